"""The choice of a decoder, and its opening. All decoders make the same crops of the same samples.

All figures are of one machine: an NVIDIA H200 and 16 cores of an Intel Xeon, torch 2.11, DALI 2.4, in
November 2026. Images were JPEGs of 500 px and 55 KB (bench/photos.py), crops were random and resized to
224 px, batches had 256 images. DALI's are of prototypes; `turbo`'s and the step's are of this version
(bench/results/throughput-h200-recipes.json). `fastpsl doctor` measures both decoders on the machine at hand.
"""

import math
import re
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastpsl.console.words import number_of
from fastpsl.files.caches import cache_folder
from fastpsl.files.json_records import NUMBER, Form, NoRecord
from fastpsl.files.system_errors import is_of_the_system
from fastpsl.files.workers import default_num_threads
from fastpsl.pipelines.decoders.codes import BAD_FILE, CHANGED, REASONS, WRONG_COMPONENTS, WRONG_SIZE
from fastpsl.pipelines.decoders.decoder import BatchDecoder, Decoder, SyntheticDecoder
from fastpsl.pipelines.image import libturbo
from fastpsl.pipelines.image.jpeg import jpeg_header
from fastpsl.pipelines.interface import dataset

if TYPE_CHECKING:
    import torch

# CPU time per image: `turbo` with 16 threads made 17,082 images/s with one view (12.9 cores), and 13,371 with
# two (13.6 cores).
TURBO_MS, TURBO_MS_PER_FURTHER_VIEW = 0.76, 0.26
MEASURED_PIXELS = 167_000  # of an image, in the mean
# The same of a plain DALI pipeline whose JPEG engines were busy: 37,027 images/s, 4.2 cores, one view.
DALI_MS = 0.11
# The same of our `dali` while the engines were idle: 14,002 images/s, 13.6 cores, one view.
DALI_MS_WITHOUT_ENGINES = 0.97
# Images/s of the fastest step: captured, with fused BatchNorms, ResNet-50, fp16, S1. It was jigsaw with one
# view, and SimCLR with two. A loader need not deliver more.
FASTEST_STEP, FASTEST_STEP_OF_TWO_VIEWS = 16_250, 6_444
# The step waits for memory. So the share of an H200's rate (4.8 TB/s) that another GPU's has at most is
# estimated by the bandwidth of the fastest card of its compute capability, in TB/s by data sheets.
BANDWIDTHS = {
    (7, 5): 0.67, (8, 0): 2.04, (8, 6): 1.01, (8, 9): 1.01, (9, 0): 4.8, (10, 0): 8.0, (12, 0): 1.79
}  # fmt: skip


def turbo_ms(num_views: int, num_pixels: float = MEASURED_PIXELS) -> float:
    """Return the CPU time of `turbo` per image, in ms; for other sizes and more views it is an estimate.

    Below the measured size the time grows as the pixels (bench/results/sizes.json). Above it, it grows as
    their root, because parts of an image are skipped, and larger ones are decoded at a half or less.
    """
    share = num_pixels / MEASURED_PIXELS
    return TURBO_MS * min(share, share**0.5) + TURBO_MS_PER_FURTHER_VIEW * (num_views - 1) * min(share, 1)


_CARD = Form("card.json", {"fastest_step.1": NUMBER, "fastest_step.2": NUMBER})


def card_file(name: str) -> Path:
    """Return the file in the user's cache where `fastpsl doctor --card` leaves the card of such a GPU."""
    return cache_folder() / "cards" / f"{re.sub(r'[^A-Za-z0-9]+', '-', name)}.json"


def fastest_step(num_views: int, name: str = "", capability: tuple[int, int] = (9, 0)) -> tuple[int, str]:
    """Return the images/s of a GPU's fastest step with so many views, and whose they are, in words.

    They are those of the card of this GPU, if the user's cache has one. Without it, and for more than two
    views, they are an estimate, but for an H200.
    """
    with suppress(OSError, NoRecord):
        of_card = _CARD.read(card_file(name), *_CARD.fields)["fastest_step"]
        measured = of_card["1"] if num_views == 1 else 2 * of_card["2"] / num_views
        if math.isfinite(measured) and measured >= 1:
            return round(measured), "the fastest step of this GPU's card"
    measured = FASTEST_STEP if num_views == 1 else 2 * FASTEST_STEP_OF_TWO_VIEWS // num_views
    share = BANDWIDTHS.get(capability, BANDWIDTHS[9, 0]) / BANDWIDTHS[9, 0]
    return round(measured * share), "the fastest step"


def choose_on_gpu(
    num_threads: int, num_cores: int, num_views: int, num_pixels: float, needed: int, whose: str,
    why_not_dali: Callable[[], str],
) -> tuple[str, str]:  # fmt: skip
    """Choose between `turbo`, which takes the CPU, and `dali`, which takes the GPU's JPEG engines."""
    num_threads = min(num_threads, num_cores)
    image_ms = turbo_ms(num_views, num_pixels)
    rate = 1e3 * num_threads / image_ms
    threads = number_of(num_threads, "thread decodes", "threads decode")
    decode = f"{threads} about {float(f'{rate:.3g}'):,.0f} images/s of {num_pixels / 1e6:.2g} Mpx"
    estimate = f"{decode} (an estimate), and {whose} takes {needed:,}"
    if rate >= needed:
        return "turbo", estimate
    reason = why_not_dali()
    if not reason:
        return "dali", f"the GPU's JPEG engines decode. By turbo {estimate}"
    enough = math.ceil(needed * image_ms / 1e3)
    more = f"--workers {enough}" if num_cores >= enough else f"{enough} cores per GPU instead of {num_cores}"
    return "turbo", f"{estimate}. If the step waits, {more} would do. dali is not taken: {reason}"


# The decoders for each kind of data, and those of them that do not read packed coefficients.
READS = {
    "beton": ("turbo", "ffcv", "dali", "pillow", "resident", "synthetic"),
    "folder": ("turbo", "dali", "pillow", "synthetic"),
    "synthetic": ("synthetic",),
}
_NOT_PACKED = ("ffcv", "dali", "resident")
NAMES = tuple(dict.fromkeys(name for names in READS.values() for name in names))
SLOWER = ("ffcv", "pillow")  # than turbo, of whole images that are cropped
# The samples of which `auto` looks at the format, and the most that may be no JPEGs for the GPU's engines.
_NUM_LOOKED_AT, _MOST_OTHERS = 256, 0.25


def open_decoder(
    name: str,
    data: dataset.Dataset,
    *,
    batch_size: int = 1,
    num_threads: int = 1,
    num_views: int = 1,
    device: "torch.device | str" = "cpu",
    hw_decoder_load: float | None = None,
) -> tuple[Decoder | BatchDecoder, str]:
    """Open a decoder."""
    import torch

    device = torch.device(device)
    name, why = choose_decoder(name, data, device, num_threads=num_threads, num_views=num_views)
    if name == "synthetic":
        return SyntheticDecoder(), why
    if name == "dali":
        from fastpsl.pipelines.decoders.dali import DaliDecoder

        options = {} if hw_decoder_load is None else {"hw_decoder_load": hw_decoder_load}
        decoder = DaliDecoder(data.kind, batch_size, num_threads, device, **options)
        return decoder, "; ".join(filter(None, (why, decoder.remark)))
    if name == "resident":
        from fastpsl.pipelines.decoders.resident import ResidentDecoder

        return ResidentDecoder(data, device), why
    if name == "pillow":
        from fastpsl.pipelines.decoders.pillow import PillowDecoder

        return PillowDecoder(), why
    if name == "ffcv":
        from fastpsl.pipelines.decoders.ffcv import FfcvDecoder

        return FfcvDecoder(), why
    assert name == "turbo", name
    from fastpsl.pipelines.decoders.turbo import TurboDecoder

    return TurboDecoder(num_threads), why


def choose_decoder(
    name: str,
    data: dataset.Dataset,
    device: "torch.device",
    *,
    num_threads: int | None = None,
    num_views: int = 1,
    num_cores: int | None = None,
) -> tuple[str, str]:
    """Choose a decoder by name, or by what was measured."""
    if name not in ("auto", *NAMES):
        raise ValueError(f"decoder {name!r}: there are auto, {', '.join(NAMES)}")
    if name == "auto":
        return _automatic(data, device, num_threads, num_views, num_cores or default_num_threads())
    if name not in READS[data.kind]:
        remedy = "pack it with `fastpsl data write`" if data.kind == "folder" else "give a dataset file"
        raise ValueError(
            f"decoder {name!r} cannot read {'a folder' if data.kind == 'folder' else 'synthetic data'}; "
            f"use auto or {' or '.join(READS[data.kind])}, or {remedy}"
        )
    if name == "synthetic" and data.kind != "synthetic":
        return name, "asked for: images are noise, whatever the data holds"
    if name not in decoders_of(data) and name != "resident":  # `resident` refuses them itself
        raise ValueError(
            f"decoder {name!r} does not read packed coefficients; use turbo, or make JPEGs of them again: "
            "fastpsl data write DATA OUT --mode jpg"
        )
    if missing := _why_missing(name, device):
        raise ValueError(f"decoder {name!r}: {missing}; or use auto")
    return name, "asked for"


def is_packed(data: dataset.Dataset) -> bool:
    """Return whether some images are packed coefficients, which `turbo` and `pillow` alone read."""
    return getattr(data, "is_packed", False)


def decoders_of(data: dataset.Dataset) -> tuple[str, ...]:
    """Return the names of the decoders that can read data, if they are installed."""
    others = _NOT_PACKED if is_packed(data) else ()
    return tuple(name for name in READS[data.kind] if name not in others)


def _why_missing(name: str, device: "torch.device") -> str:
    """Return why the library that a decoder needs cannot be used, with the remedy; empty if it can."""
    if name == "dali":
        from fastpsl.pipelines.decoders import dali

        return dali.why_missing(device)
    if name not in ("turbo", "ffcv"):
        return ""
    library: Any = libturbo
    if name == "ffcv":
        from fastpsl.pipelines.decoders import libffcv as library  # imports numba, which takes 0.7 s
    why = library.why_missing()
    return why and f"{why}: {library.remedy()}"


def _name_and_capability(device: "torch.device") -> tuple[str, tuple[int, int]]:
    import torch

    return torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)


def _automatic(
    data: dataset.Dataset, device: "torch.device", num_threads: int | None, num_views: int, num_cores: int
) -> tuple[str, str]:
    if data.kind == "synthetic":
        return "synthetic", "the data is synthetic"
    is_gpu = device.type == "cuda"
    if is_kept_on_device(data, device):
        from fastpsl.pipelines.decoders import resident

        size = f"{resident.num_bytes(data) / 1e6:,.0f} MB"
        return "resident", f"raw images of one size, {size}: kept on the device"
    no_turbo = libturbo.why_missing()
    if not no_turbo:
        if is_packed(data):
            return "turbo", "it unpacks coefficients"
        if not is_gpu and data.kind == "beton":
            return "turbo", "it decodes what the crops need"
        if getattr(data, "is_raw", False):
            return "turbo", "raw images need no decoding, and so no JPEG engine"
        some = data.rows(dataset.spread_indices(data.num_samples, _NUM_LOOKED_AT))
        name, reason = "turbo", "it decodes what the crops need"
        if is_gpu:
            num_pixels = float((some.height.astype(float) * some.width).mean())
            why_not, most = partial(_why_not_dali, some, device), num_threads or num_cores
            needed = fastest_step(num_views, *_name_and_capability(device))
            name, reason = choose_on_gpu(most, num_cores, num_views, num_pixels, *needed, why_not)
        if name == "turbo" and (others := (some.mode == dataset.MODE_FILE).mean()):
            reason += f"; about {others:.0%} of the files are no usual JPEGs, which Pillow decodes whole"
        return name, reason
    remedy = f"{no_turbo}; {libturbo.remedy()}"
    if is_gpu and not is_packed(data):
        from fastpsl.pipelines.decoders import dali
        from fastpsl.pipelines.decoders.dali import why_slower

        if not dali.why_missing(device):
            if why_slower(device):  # the decoder's remark has the reason
                warnings.warn(f"decoding by dali without JPEG engines is slow: {remedy}", stacklevel=5)
            return "dali", f"it decodes on the GPU. turbo is not here: {remedy}"
    name = "pillow"
    if data.kind == "beton" and not is_packed(data):
        from fastpsl.pipelines.decoders import libffcv

        name = "pillow" if libffcv.why_missing() else "ffcv"
    warnings.warn(f"decoding by {name} is slow: {remedy}", stacklevel=5)
    return name, "no faster one can read this here"


def _why_not_dali(some: dataset.SampleTable, device: "torch.device") -> str:
    """Return why DALI cannot decode such images by the GPU's JPEG engines; empty if it can."""
    from fastpsl.pipelines.decoders.dali import why_slower

    if (some.mode != dataset.MODE_JPEG).mean() > _MOST_OTHERS:
        return "its JPEG engines decode JPEGs only, and many of these images are none"
    if reason := why_slower(device):
        return (
            f"without JPEG engines it took {DALI_MS_WITHOUT_ENGINES:g} ms of CPU per image, "
            f"turbo {TURBO_MS:g} ({reason})"
        )
    from fastpsl.pipelines.decoders import dali  # importing DALI itself takes seconds

    return dali.why_missing(device)


def is_kept_on_device(data: dataset.Dataset, device: "torch.device") -> bool:
    """Return whether `auto` takes `resident`: for a small set of raw images of one size, on a GPU.

    Not on a CPU, where the page cache serves as well: ffcv reads 68,000 CIFAR images/s, and its threads do
    not compete with torch's for the step.
    """
    if data.kind != "beton" or device.type != "cuda":
        return False
    from fastpsl.pipelines.decoders import resident

    return resident.is_small(data)


def reason_of(code: int, rows: dataset.SampleTable, i: int) -> str:
    """Explain a code."""
    text = REASONS[code]
    if code in (CHANGED, BAD_FILE):
        try:
            return f"{text}: {_what_is_wrong(rows, i)}"
        except OSError as error:
            is_damage = not is_of_the_system(error)
            return f"{text}: {error.strerror}" if is_damage else f"cannot be read ({error.strerror})"
    if code in (WRONG_SIZE, WRONG_COMPONENTS):
        jpeg = dataset.read_bytes(rows, i)
        _, height, width, components, _, _ = jpeg_header(jpeg, len(jpeg))
        if code == WRONG_COMPONENTS:
            return f"{text}: the header says {components}"
        return f"the header says {height}x{width} px, the table {rows.height[i]}x{rows.width[i]}"
    return text


def _what_is_wrong(rows: dataset.SampleTable, i: int) -> str:
    """Read an image file again and explain why it was refused."""
    from fastpsl.pipelines.image.image_file import decode_any, read_image_file

    try:
        data = read_image_file(rows.path[i])
        if len(data) != rows.num_bytes[i]:
            return f"it had {rows.num_bytes[i]:,} bytes and has {len(data):,}"
        height, width, _ = decode_any(data, rows.reading).shape
    except dataset.BadImage as error:
        return str(error)
    return f"it had {rows.height[i]} x {rows.width[i]} px and has {height} x {width}"
