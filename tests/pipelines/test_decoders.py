"""Decoders agree with each other and with a full decode; what they cannot decode they say, sample by sample."""

import os
import subprocess
import sys
import warnings
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar, cast

import numpy as np
import pytest
import torch
import torchvision.io
from numba.core.caching import NullCache
from PIL import Image

from fastpsl.kernels.isotropic import DIAGONAL, ISOTROPIC, isotropic_resize
from fastpsl.pipelines import decoders
from fastpsl.pipelines.data.dataset import SampleTable
from fastpsl.pipelines.data.plain_jpeg import by_pillow, plain_decoder
from fastpsl.pipelines.decoders import BatchDecoder, Decoder, codes, libffcv, open_decoder, reason_of
from fastpsl.pipelines.decoders import ffcv as ffcv_decoder
from fastpsl.pipelines.decoders.area import area_resize
from fastpsl.pipelines.decoders.dali import DaliDecoder
from fastpsl.pipelines.decoders.ffcv import _denominator
from fastpsl.pipelines.decoders.synthetic import Synthetic
from fastpsl.pipelines.decoders.torchvision import TorchvisionDecoder
from tests.pipelines.photos import DECODERS, JPG, RAW, area_mean, jpeg, photo, pil_decode

# pillow: the torchvision decoder where torchvision's own one has been removed.
KINDS = [*DECODERS, "pillow"]


def make(name: str) -> Decoder | BatchDecoder:
    if name == "dali":
        return DaliDecoder("beton", 600, 2, torch.device("cpu"))
    if name == "torchvision":
        return TorchvisionDecoder()
    if name == "pillow":
        with pytest.MonkeyPatch.context() as patch:
            patch.delattr(torchvision.io, "decode_jpeg")
            plain_decoder.cache_clear()
            decoder = TorchvisionDecoder()
            assert plain_decoder() is by_pillow
        plain_decoder.cache_clear()
        assert plain_decoder() is not by_pillow
        return decoder
    from fastpsl.pipelines.decoders.ffcv import FfcvDecoder

    return FfcvDecoder()


class Samples:
    """Bytes in one file, open for the time of a test, and the rows that tell of them."""

    opened: ClassVar[list[int]] = []

    def __init__(self, path: Path, samples: list[tuple[bytes, int, int, int]]) -> None:
        path.write_bytes(b"before" + b"".join(data for data, *_ in samples))
        self.fd = os.open(path, os.O_RDONLY)
        self.opened.append(self.fd)
        sizes = np.array([len(data) for data, *_ in samples], np.int64)
        self.rows = SampleTable.empty(np.arange(len(samples)))
        self.rows.fd[:], self.rows.label[:] = self.fd, 0
        self.rows.offset[:], self.rows.num_bytes[:] = 6 + np.cumsum(sizes) - sizes, sizes
        for i, (_, height, width, mode) in enumerate(samples):
            self.rows.height[i], self.rows.width[i], self.rows.mode[i] = height, width, mode


@pytest.fixture(autouse=True)
def samples_are_closed() -> Iterator[None]:
    yield
    while Samples.opened:
        os.close(Samples.opened.pop())


def decode(
    decoder: Decoder | BatchDecoder, rows: SampleTable, boxes: list[np.ndarray], sizes: list[int]
) -> tuple[np.ndarray, list[np.ndarray]]:
    boxes = [with_resampling(box) for box in boxes]
    if isinstance(decoder, DaliDecoder):
        encoded = decoder.begin(rows)
        for i in range(0, len(rows.fd), 16):
            decoder.encode(rows, encoded, slice(i, min(i + 16, len(rows.fd))))
        decoder.submit(rows, encoded, boxes, sizes)
        status, pictures = decoder.collect()
        return status, [picture.numpy() for picture in pictures]
    outs = [np.zeros((len(rows.fd), size, size, 3), np.uint8) for size in sizes]
    return cast(Decoder, decoder).decode(rows, boxes, outs), outs


def with_resampling(boxes: np.ndarray, how: int = codes.AREA) -> np.ndarray:
    """Boxes [n, 4] with a way of resampling; those that have one, [n, 5], as they are."""
    five = boxes if np.shape(boxes)[1] == 5 else np.column_stack([boxes, np.full(len(boxes), how)])
    return np.asarray(five).astype(np.int32)


def whole(rows: SampleTable) -> np.ndarray:
    zero = np.zeros(len(rows.fd), np.int32)
    return np.stack([zero, zero, rows.height, rows.width], axis=1)


# Source size, crop's least side as a share of the source's, output size: shrinking, both ways at once, enlarging, and
# (last three) where the ffcv decoder decodes at 1/2, 1/4, 1/8. Bounds in 1/255 over all crops of the case, each measured and
# then given a third more: mean and 99th percentile of the difference to the exact area mean of Pillow's decode.
CASES = {
    "shrink": (
        (401, 523),
        0.8,
        151,
        1,
        {"torchvision": (0.45, 1.6), "ffcv": (1.3, 3.7), "dali": (0.48, 1.9)},
    ),
    "near": ((301, 225), 0.6, 225, 1, {"torchvision": (0.85, 4.6), "ffcv": (1.4, 4.2), "dali": (0.48, 2.4)}),
    "enlarge": ((61, 47), 0.3, 96, 1, {"torchvision": (1.35, 11), "ffcv": (1.4, 4.2), "dali": (1.87, 13.4)}),
    "half": ((640, 801), 0.9, 111, 2, {"torchvision": (0.55, 2.1), "ffcv": (1.0, 3.2), "dali": (0.72, 3)}),
    "quarter": ((640, 801), 0.9, 57, 4, {"torchvision": (0.7, 2.9), "ffcv": (0.7, 2.7), "dali": (0.94, 4.2)}),
    "eighth": ((640, 801), 0.9, 45, 8, {"torchvision": (0.75, 3.2), "ffcv": (1.4, 7), "dali": (0.98, 4.4)}),
}

# Between two decoders, over all cases, alike.
PAIRS = {
    ("torchvision", "ffcv"): (2.1, 10.7),
    ("torchvision", "dali"): (0.7, 4),
    ("ffcv", "dali"): (2.5, 13.4),
}


@pytest.mark.parametrize("case", CASES)
def test_crops_agree_with_a_full_decode_and_with_each_other(case: str, tmp_path: Path) -> None:
    (height, width), least, size, denominator, bounds = CASES[case]
    random = np.random.default_rng(1)
    pictures = [jpeg(photo(seed, height, width)) for seed in range(6)]
    samples = Samples(tmp_path / "data", [(data, height, width, JPG) for data in pictures])
    heights = random.integers(int(least * height), height + 1, 6)
    widths = random.integers(int(least * width), width + 1, 6)
    boxes = np.stack(
        [random.integers(0, height - heights + 1), random.integers(0, width - widths + 1), heights, widths], 1
    )
    boxes = boxes.astype(np.int32)
    for i in range(6):
        assert _denominator(boxes[None], np.array([size]), i) == denominator
    exact = np.stack(
        [area_mean(pil_decode(data), box, size) for data, box in zip(pictures, boxes, strict=True)]
    )
    results = {}
    for name in KINDS:
        status, (out,) = decode(make(name), samples.rows, [boxes], [size])
        assert not status.any()
        results[name] = out
        difference = np.abs(out - exact)
        mean, high = difference.mean(), np.percentile(difference, 99)
        print(f"{case} {name}: mean {mean:.2f}, 99th percentile {high:.1f}")
        most = bounds["torchvision" if name == "pillow" else name]
        assert mean < most[0] and high < most[1], (name, mean, high)
    for one, other in combinations(DECODERS, 2):
        difference = np.abs(results[one].astype(int) - results[other])
        mean, high = difference.mean(), np.percentile(difference, 99)
        print(f"{case} {one} and {other}: mean {mean:.2f}, 99th percentile {high:.1f}")
        assert mean < PAIRS[one, other][0] and high < PAIRS[one, other][1], (one, other, mean, high)


def test_the_scale_is_that_of_the_most_demanding_crop() -> None:
    sizes = np.array([100, 50])
    for crops, expected in [
        (((600, 700), (600, 600)), 4),
        (((599, 700), (600, 600)), 2),
        (((300, 300), (150, 150)), 2),
        (((300, 300), (149, 300)), 1),
        (((10, 10), (600, 600)), 1),
        (((4000, 4000), (4000, 4000)), 8),
    ]:
        boxes = np.array([[[0, 0, *crop]] for crop in crops], np.int32)
        assert _denominator(boxes, sizes, 0) == expected, crops


@pytest.mark.parametrize("size", [1, 5, 97, 224])
def test_area_resize_is_the_exact_mean(size: int) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (201, 333, 3), np.uint8)
    for box in [
        (0, 0, 201, 333),
        (7, 11, 150, 97),
        (200, 332, 1, 1),
        (0, 0, 201, 1),
        (3, 5, 60, 300),
        (1, 1, 97, 97),
    ]:
        out = np.empty((size, size, 3), np.uint8)
        top, left, box_height, box_width = (float(value) for value in box)
        area_resize(picture.reshape(-1), 201, 333, top, left, box_height, box_width, out)
        assert np.abs(out - area_mean(picture, box, size)).max() < 0.51, box


def test_area_resize_takes_fractions_of_pixels() -> None:
    # A box that begins and ends at quarter pixels is a whole box of the picture enlarged four times.
    picture = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    large = picture.repeat(4, 0).repeat(4, 1)
    for box in [(1, 2, 157, 193), (3, 7, 81, 62), (159, 199, 1, 1), (0, 0, 3, 199)]:
        out = np.empty((13, 13, 3), np.uint8)
        top, left, box_height, box_width = (value / 4 for value in box)
        area_resize(picture.reshape(-1), 40, 50, top, left, box_height, box_width, out)
        assert np.abs(out - area_mean(large, box, 13)).max() < 0.51, box


@pytest.mark.parametrize("name", KINDS)
def test_raw_pixels_grey_and_progressive_are_read(name: str, tmp_path: Path) -> None:
    picture = photo(3, 51, 67)
    grey, progressive = jpeg(picture[..., 0]), jpeg(picture, progressive=True)
    samples = Samples(
        tmp_path / "data",
        [
            (picture.tobytes(), 51, 67, RAW),
            (grey, 51, 67, JPG),
            (progressive, 51, 67, JPG),
        ],
    )
    box = np.array([[2, 3, 31, 31]] * 3)
    status, (out,) = decode(make(name), samples.rows, [box], [31])
    assert not status.any()
    assert (out[0] == picture[2:33, 3:34]).all()  # no resize: the pixels themselves
    for got, data in ((out[1], grey), (out[2], progressive)):
        assert np.abs(got.astype(int) - pil_decode(data)[2:33, 3:34]).mean() < 1.5


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("orientation", [3, 6])
def test_betons_jpegs_are_not_turned(name: str, orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()  # applied at writing; other writers leave it
    exif[0x112] = orientation
    data = jpeg(photo(3, 51, 67), exif=exif.tobytes())
    samples = Samples(tmp_path / "data", [(data, 51, 67, JPG)])
    status, (out,) = decode(make(name), samples.rows, [whole(samples.rows)], [25])
    assert not status.any() and np.abs(out[0] - area_mean(pil_decode(data), (0, 0, 51, 67), 25)).mean() < 1.5


@pytest.mark.parametrize("name", KINDS)
def test_isotropic_crops_are_the_kernels_of_the_whole_picture(name: str, tmp_path: Path) -> None:
    sizes = [(130, 151), (201, 140), (130, 151), (130, 151)]
    data = [jpeg(photo(i, *size)) for i, size in enumerate(sizes)]
    samples = [(item, *size, JPG) for item, size in zip(data, sizes, strict=True)]
    samples[2] = (photo(2, *sizes[2]).tobytes(), *sizes[2], RAW)
    rows = Samples(tmp_path / "data", samples).rows
    boxes = np.array(
        [[40, 45, 50, 50], [71, 31, 61, 61], [34, 39, 62, 62], [10, 45, 50, 50]]
    )  # the last does not fit
    boxes = np.column_stack([boxes, [ISOTROPIC, DIAGONAL, DIAGONAL, ISOTROPIC]])
    decoder = make(name)
    status, (plain, turned) = decode(decoder, rows, [whole(rows), boxes], [90, 33])
    assert status.tolist() == [0, 0, 0, codes.BAD_BOX]
    assert (plain[:3] == decode(decoder, rows, [whole(rows)], [90])[1][0][:3]).all()
    for i, (top, left, side, _, how) in enumerate(boxes[:3].tolist()):
        picture = photo(2, *sizes[2]) if i == 2 else pil_decode(data[i])
        expected = np.empty((33, 33, 3), np.uint8)
        rows_px, columns_px = picture.shape[:2]
        isotropic_resize(picture.reshape(-1), rows_px, columns_px, top, left, side, how == DIAGONAL, expected)
        assert np.abs(turned[i].astype(int) - expected).mean() < 1.3, i  # libffcv decodes by the fast DCT


@pytest.mark.parametrize("name", KINDS)
def test_several_views_of_several_sizes_and_none(name: str, tmp_path: Path) -> None:
    decoder = make(name)
    data = [jpeg(photo(seed, 90 + seed, 70)) for seed in range(3)]
    samples = Samples(tmp_path / "data", [(item, 90 + i, 70, JPG) for i, item in enumerate(data)])
    small = np.array([[5, 6, 40, 33]] * 3)
    status, together = decode(decoder, samples.rows, [whole(samples.rows), small], [33, 20])
    assert not status.any()
    for boxes, size, out in zip([whole(samples.rows), small], [33, 20], together, strict=True):
        _, (alone,) = decode(decoder, samples.rows, [boxes], [size])
        assert (alone == out).all()
    none = samples.rows.part(slice(0))
    status, outs = decode(decoder, none, [np.zeros((0, 4))], [33])
    assert len(status) == 0 and len(outs[0]) == 0


@pytest.mark.parametrize("name", KINDS)
def test_what_is_wrong_is_said_and_spares_the_rest(name: str, tmp_path: Path) -> None:
    picture = photo(0, 60, 80)
    good = jpeg(picture)
    short = good[: len(good) // 2]
    cmyk = tmp_path / "cmyk.jpg"
    Image.fromarray(picture).convert("CMYK").save(cmyk)
    samples = Samples(
        tmp_path / "data",
        [
            (good, 60, 80, JPG),
            (b"\x89PNG" + good, 60, 80, JPG),
            (b"", 60, 80, JPG),
            (good, 80, 60, JPG),
            (short, 60, 80, JPG),
            (cmyk.read_bytes(), 60, 80, JPG),
            (picture.tobytes()[:-1], 60, 80, RAW),
            (good, 60, 80, 7),
            (good, 60, 80, JPG),
            (good[:-2] + bytes(100), 60, 80, JPG),  # zeros in place of the end marker: Pillow reads it
            (good, 60, 80, JPG),
        ],
    )
    samples.rows.num_bytes[-1] += 1  # past the end of the file
    boxes = np.array([[0, 0, 60, 60]] * 11)
    boxes[3] = (0, 0, 60, 60)
    boxes[8] = (1, 0, 60, 60)
    decoder = make(name)
    status, (out,) = decode(decoder, samples.rows, [boxes], [24])
    expected = [
        codes.GOOD,
        codes.NOT_JPEG,
        codes.NOT_JPEG,
        codes.WRONG_SIZE,
        codes.CORRUPT,
        codes.WRONG_COMPONENTS,
        codes.RAW_SIZE,
        codes.BAD_MODE,
        codes.BAD_BOX,
        codes.CORRUPT,
        codes.SHORT_READ,
    ]
    assert status.dtype == np.int8 and status.tolist() == expected
    assert np.abs(out[0] - area_mean(picture, (0, 0, 60, 60), 24)).mean() < 6
    assert (
        reason_of(decoder, codes.WRONG_SIZE, samples.rows, 3) == "the header says 60x80 px, the table 80x60"
    )
    assert reason_of(decoder, codes.WRONG_COMPONENTS, samples.rows, 5).endswith("the header says 4")
    for height, width in ((59, 80), (61, 80), (60, 79), (60, 81)):  # one side alone
        alone = Samples(tmp_path / "alone", [(good, height, width, JPG)])
        assert decode(decoder, alone.rows, [np.array([[0, 0, 9, 9]])], [8])[0].tolist() == [codes.WRONG_SIZE]
    of_files = {codes.CHANGED, codes.BAD_FILE}
    assert set(decoder.reasons) == (set(expected) | of_files) - {codes.GOOD}
    assert "\n" not in "".join(decoder.reasons.values())


def mutated(data: bytes, random: np.random.Generator) -> bytes:
    """Bytes changed, cut out, put in, or the end cut off; half of the time in the headers."""
    out = bytearray(data)
    limit = len(out) if random.random() < 0.5 else 700
    for _ in range(int(random.integers(1, 6))):
        at, kind = int(random.integers(2, min(limit, len(out)))), int(random.integers(4))
        if kind == 0:
            out[at] = int(random.integers(256))
        elif kind == 1:
            del out[at : at + int(random.integers(1, 20))]
        elif kind == 2:
            out[at:at] = random.bytes(int(random.integers(1, 20)))
        elif len(out) > 200 and random.random() < 0.3:
            del out[int(random.integers(100, len(out))) :]
    return bytes(out)


@pytest.mark.parametrize("name", KINDS)
def test_300_mutated_jpegs_do_no_harm(name: str, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    base = [
        jpeg(photo(0, 75, 101)),
        jpeg(photo(1, 75, 101), progressive=True, subsampling=0),
        jpeg(photo(2, 75, 101)[..., 0], optimize=True),
    ]
    good = (base[0], 75, 101, JPG)
    bad = [(mutated(base[i % 3], random), 75, 101, JPG) for i in range(300)]
    samples = Samples(tmp_path / "data", [sample for item in bad for sample in (item, good)])
    decoder = make(name)
    status, (large, small) = decode(
        decoder, samples.rows, [whole(samples.rows), whole(samples.rows)], [50, 8]
    )
    assert not status[1::2].any() and (large[1::2] == large[1]).all() and (small[1::2] == small[1]).all()
    assert (status[::2] != codes.GOOD).sum() > 100
    assert set(status.tolist()) <= {codes.GOOD, *decoder.reasons}
    assert all(reason_of(decoder, int(status[i]), samples.rows, i) for i in np.flatnonzero(status).tolist())


@pytest.mark.parametrize("name", KINDS)
def test_boxes_outside_never_reach_the_decoder(name: str, tmp_path: Path) -> None:
    samples = Samples(tmp_path / "data", [(jpeg(photo(0, 60, 80)), 60, 80, JPG)])
    decoder = make(name)
    top = 2**31 - 1
    for box in [
        (-1, 0, 9, 9),
        (0, -1, 9, 9),
        (0, 0, 0, 9),
        (0, 0, 9, 0),
        (52, 0, 9, 9),
        (0, 72, 9, 9),
        (top, 0, top, 9),
    ]:
        status, _ = decode(decoder, samples.rows, [np.array([[0, 0, 9, 9]]), np.array([box])], [8, 8])
        assert status.tolist() == [codes.BAD_BOX], box


@pytest.mark.parametrize(
    "name", [name for name in KINDS if name != "dali"]
)  # which has one thread to talk to
def test_threads_do_not_share_scratch(name: str, tmp_path: Path) -> None:
    sides = [(40 + 13 * i, 200 - 11 * i) for i in range(12)]
    samples = Samples(
        tmp_path / "data", [(jpeg(photo(i, h, w)), h, w, JPG) for i, (h, w) in enumerate(sides)]
    )
    decoder = make(name)
    boxes = whole(samples.rows)
    _, (alone,) = decode(decoder, samples.rows, [boxes], [48])

    def one(i: int) -> bool:
        i %= 12
        _, (out,) = decode(decoder, samples.rows.part(slice(i, i + 1)), [boxes[i : i + 1]], [48])
        return bool((out[0] == alone[i]).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(one, range(240)))


def test_auto_chooses_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    data = Synthetic(4)
    assert open_decoder("auto", data)[0].name == "synthetic"
    beton = SimpleNamespace(
        kind="beton", is_raw=False, image_sizes=lambda: (1, 1, 1, 1)
    )  # nothing is read here
    monkeypatch.setattr(libffcv, "why_missing", lambda: "ffcv is not installed")
    with pytest.warns(
        UserWarning,
        match=r'torchvision, which is slower: ffcv is not installed; pip install "fastpsl\[ffcv\]"',
    ) as seen:
        decoder, why = open_decoder("auto", beton)  # type: ignore[arg-type]
    assert (decoder.name, len(seen)) == ("torchvision", 1)
    assert why == 'ffcv is not installed; pip install "fastpsl[ffcv]" installs it'
    with pytest.raises(
        ValueError, match=r'ffcv is not installed; install it by pip install "fastpsl\[ffcv\]"'
    ):
        open_decoder("ffcv", beton)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_decoder("torchvision", beton)[0].name == "torchvision"  # type: ignore[arg-type]
        if "ffcv" in DECODERS:
            monkeypatch.undo()
            decoder, why = open_decoder("auto", beton)  # type: ignore[arg-type]
            assert (decoder.name, why) == ("ffcv", "its library is installed")
    with pytest.raises(
        ValueError, match="decoder 'dalli': there are auto, ffcv, dali, torchvision, resident, synthetic;"
    ):
        open_decoder("dalli", data)
    with pytest.raises(ValueError, match="decoder 'torchvision' cannot read synthetic data"):
        open_decoder("torchvision", data)
    assert decoders.NAMES == ("ffcv", "dali", "torchvision", "resident", "synthetic")


def test_torchvisions_deprecation_is_not_said_a_thousand_times(tmp_path: Path) -> None:
    samples = Samples(tmp_path / "data", [(jpeg(photo(0, 60, 80)), 60, 80, JPG)] * 3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        plain_decoder.cache_clear()
        assert not decode(TorchvisionDecoder(), samples.rows, [whole(samples.rows)], [9])[0].any()
    assert caught == []


FRESH = """
import gc, sys, tempfile, numpy as np, numba, torch
torch_threads, numba_threads = torch.get_num_threads(), numba.get_num_threads()
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from fastpsl.pipelines.data.plain_jpeg import by_pillow, plain_decoder
from fastpsl.pipelines.data.dataset import SampleTable
from tests.pipelines.photos import photo_samples, write
from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.kernels.flip import Flip
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.views import ViewSpec
view = ViewSpec(RandomResizedCrop(32), (Flip(),))
with tempfile.TemporaryDirectory() as folder, Beton(write(Path(folder) / "a.beton", photo_samples(4))) as data:
    with Loader(data, [view, view], batch_size=2) as loader:
        assert len(list(loader.epoch(0))) == 2
from numba.core.dispatcher import Dispatcher
ours = [x for x in gc.get_objects() if isinstance(x, Dispatcher) and x.py_func.__module__.startswith("fastpsl")]
assert len(ours) > 5, ours
assert not any(name.split(".")[0] == "ffcv" for name in sys.modules)
assert (torch_threads, numba_threads) == (torch.get_num_threads(), numba.get_num_threads())
print(sum(sum(x.stats.cache_misses.values()) for x in ours), sum(sum(x.stats.cache_hits.values()) for x in ours))
"""


@pytest.mark.slow
def test_a_second_process_compiles_nothing_and_never_imports_ffcv() -> None:
    def fresh() -> tuple[int, int]:
        command = [sys.executable, "-c", FRESH, str(Path(__file__).parents[2])]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        misses, hits = done.stdout.split()
        return int(misses), int(hits)

    fresh()  # fills the cache where it is not filled yet
    misses, hits = fresh()
    assert misses == 0 and hits >= 3


def test_the_cached_loop_is_compiled_again_when_a_file_it_calls_changes() -> None:
    # numba looks at the date of the function's own file; free variables are in its key too (numba/core/caching.py).
    modules = (
        ffcv_decoder.area,
        codes,
        ffcv_decoder.encoded,
        ffcv_decoder.isotropic,
        libffcv,
        ffcv_decoder.rows,
    )
    files = [Path(str(module.__file__)) for module in modules]
    cells = [cell.cell_contents for cell in ffcv_decoder._decode_chunk.py_func.__closure__]  # type: ignore[attr-defined]
    assert zlib.crc32(b"".join(file.read_bytes() for file in files)) in cells
    assert isinstance(ffcv_decoder._decode_one._cache, NullCache)  # type: ignore[attr-defined]
