"""Decoders: the same samples and the same crops, from whatever is installed (decoder.py says what a decoder is)."""

import warnings
from typing import TYPE_CHECKING

import numpy as np

from fastpsl.pipelines.data.dataset import Dataset, SampleTable, read_bytes
from fastpsl.pipelines.decoders import libffcv
from fastpsl.pipelines.decoders.codes import BAD_FILE, CHANGED, WRONG_COMPONENTS, WRONG_SIZE
from fastpsl.pipelines.decoders.decoder import BatchDecoder, Decoder
from fastpsl.pipelines.decoders.synthetic import SyntheticDecoder

if TYPE_CHECKING:  # writing a beton comes by here, and needs no torch: half a GB, and seconds
    import torch

# By kind of data.
READS = {
    "beton": ("ffcv", "dali", "torchvision", "resident", "synthetic"),
    "folder": ("dali", "torchvision", "synthetic"),
    "synthetic": ("synthetic",),
}
NAMES = READS["beton"]
INSTALL = 'pip install "fastpsl[ffcv]"'


def open_decoder(
    name: str,
    data: Dataset,
    *,
    batch_size: int = 1,
    num_threads: int = 1,
    device: "torch.device | str" = "cpu",
    hw_decoder_load: float | None = None,
) -> tuple[Decoder | BatchDecoder, str]:
    """The decoder and why it was chosen; see `choose_decoder`. The rest is for decoders that have threads or memory of
    their own; hw_decoder_load: of dali on a GPU, by default its own."""
    import torch

    device = torch.device(device)
    name, why = choose_decoder(name, data, device)
    if name == "synthetic":
        return SyntheticDecoder(), why
    if name == "dali":
        from fastpsl.pipelines.decoders.dali import DaliDecoder

        more = {} if hw_decoder_load is None else {"hw_decoder_load": hw_decoder_load}
        decoder = DaliDecoder(data.kind, batch_size, num_threads, device, **more)
        return decoder, "; ".join(filter(None, (why, decoder.remark)))
    if name == "resident":
        from fastpsl.pipelines.decoders.resident import ResidentDecoder

        return ResidentDecoder(data, device), why
    if name == "torchvision":
        from fastpsl.pipelines.decoders.torchvision import TorchvisionDecoder

        return TorchvisionDecoder(), why
    from fastpsl.pipelines.decoders.ffcv import FfcvDecoder

    return FfcvDecoder(), why


def choose_decoder(name: str, data: Dataset, device: "torch.device") -> tuple[str, str]:
    """A decoder's name and why. `auto`: on a GPU resident for a small set of raw pictures of one size, else dali; on a CPU
    ffcv, and dali for folders; what is slower than that only with one warning. ValueError for what cannot be."""
    if name not in ("auto", *NAMES):
        raise ValueError(
            f"decoder {name!r}: there are auto, {', '.join(NAMES)}; ffcv is installed by {INSTALL}"
        )
    if name == "auto":
        return _automatic(data, device)
    if name not in READS[data.kind]:
        remedy = "make a beton with `fastpsl beton write`" if data.kind == "folder" else "give a beton"
        raise ValueError(
            f"decoder {name!r} cannot read {'a folder' if data.kind == 'folder' else 'synthetic data'}; "
            f"use auto or {' or '.join(READS[data.kind])}, or {remedy}"
        )
    if name == "synthetic" and data.kind != "synthetic":
        return name, "asked for: pictures are noise, whatever the data holds"
    why_missing = libffcv.why_missing() if name == "ffcv" else ""
    if why_missing:
        raise ValueError(f"decoder 'ffcv': {why_missing}; install it by {INSTALL}, or use torchvision")
    return name, "asked for"


def _automatic(data: Dataset, device: "torch.device") -> tuple[str, str]:
    from fastpsl.pipelines.decoders import dali, resident

    if data.kind == "synthetic":
        return "synthetic", "the data is synthetic"
    # On a CPU the page cache is as near: 68,000 CIFAR pictures/s by ffcv, and no thread of torch's is in the step's way.
    if data.kind == "beton" and device.type == "cuda" and resident.is_small(data):
        return "resident", f"raw pictures of one size, {resident.megabytes(data):,.0f} MB: kept on the device"
    slower = []
    if device.type == "cuda" or data.kind == "folder":
        why_missing = dali.why_missing(device)
        if not why_missing:
            return "dali", "it reads folders" if data.kind == "folder" else "it decodes on the GPU"
        slower.append(why_missing)
    why_missing = libffcv.why_missing()
    if data.kind == "beton" and why_missing:
        slower.append(f"{why_missing}; {INSTALL} installs it")
    name = "ffcv" if data.kind == "beton" and not why_missing else "torchvision"
    if slower:
        warnings.warn(f"decoding by {name}, which is slower: {'; '.join(slower)}", stacklevel=5)
    return name, "; ".join(slower) or "its library is installed"


def reason_of(decoder: Decoder | BatchDecoder, code: int, rows: SampleTable, i: int) -> str:
    """The reason for a code of row i in words, with the sizes where sizes are the matter."""
    text = decoder.reasons[code]
    if code in (CHANGED, BAD_FILE):
        return f"{text}: {_what_is_wrong(rows, i)}"
    if code in (WRONG_SIZE, WRONG_COMPONENTS):
        jpeg = np.frombuffer(read_bytes(rows, i), np.uint8)
        _, height, width, components, _, _ = libffcv.jpeg_header(jpeg, len(jpeg))
        if code == WRONG_COMPONENTS:
            return f"{text}: the header says {components}"
        return f"the header says {height}x{width} px, the table {rows.height[i]}x{rows.width[i]}"
    return text


def _what_is_wrong(rows: SampleTable, i: int) -> str:
    """Of an image file, in words."""
    from fastpsl.pipelines.data.image_file import BrokenImage, decode_any, read_image_file

    try:
        data = read_image_file(rows.path[i])
        if len(data) != rows.num_bytes[i]:
            return f"it had {rows.num_bytes[i]:,} bytes and has {len(data):,}"
        height, width, _ = decode_any(data).shape
    except OSError as error:
        return str(error.strerror)
    except BrokenImage as error:
        return str(error)
    return f"it had {rows.height[i]} x {rows.width[i]} px and has {height} x {width}"
