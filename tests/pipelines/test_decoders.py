"""Decoders agree with a full decode and with each other, and the choice among them is reported."""

import warnings
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from fastpsl.kernels.isotropic import DIAGONAL, ISOTROPIC
from fastpsl.kernels.isotropic_loops import isotropic_resize
from fastpsl.pipelines.datasets.subset import Synthetic
from fastpsl.pipelines.decoders import codes, libffcv
from fastpsl.pipelines.decoders.choose import NAMES, open_decoder
from fastpsl.pipelines.decoders.ffcv import _denominator
from fastpsl.pipelines.image import libturbo
from fastpsl.pipelines.image.area import area_resize
from tests.pipelines.decoding import (  # noqa: F401
    Samples,
    decode,
    make,
    samples_are_closed,
    whole,
    with_resampling,
)
from tests.pipelines.photos import DECODERS, JPG, RAW, area_mean, jpeg, photo, pil_decode

# Source size, smallest crop side as a share of the source's, output size, the ffcv decoder's scale, bounds.
# The cases shrink, shrink or enlarge, enlarge, and (the last three) let ffcv decode at 1/2, 1/4 and 1/8. The
# bounds, in 1/255 over all crops of a case, are a third above the measured values: mean and 99th percentile
# of the difference to the exact area mean of Pillow's decode.
CASES = {
    "shrink": (
        (401, 523),
        0.8,
        151,
        1,
        {"pillow": (0.34, 0.7), "turbo": (0.34, 0.7), "ffcv": (1.3, 3.7), "dali": (0.48, 1.9)},
    ),
    "near": (
        (301, 225),
        0.6,
        225,
        1,
        {"pillow": (0.34, 0.7), "turbo": (0.34, 0.7), "ffcv": (1.4, 4.2), "dali": (0.36, 1.1)},
    ),
    "enlarge": (
        (61, 47),
        0.3,
        96,
        1,
        {"pillow": (0.34, 0.7), "turbo": (0.34, 0.7), "ffcv": (1.4, 4.2), "dali": (0.46, 4.2)},
    ),
    "half": (
        (640, 801),
        0.9,
        111,
        2,
        {"pillow": (0.34, 0.7), "turbo": (0.5, 2), "ffcv": (1.0, 3.2), "dali": (0.72, 3)},
    ),
    "quarter": (
        (640, 801),
        0.9,
        57,
        4,
        {"pillow": (0.34, 0.7), "turbo": (0.7, 2.7), "ffcv": (0.7, 2.7), "dali": (0.94, 4.2)},
    ),
    "eighth": (
        (640, 801),
        0.9,
        45,
        8,
        {"pillow": (0.34, 0.7), "turbo": (1.4, 7), "ffcv": (1.4, 7), "dali": (0.98, 4.4)},
    ),
}

# Bounds for the difference between two decoders, over all cases.
PAIRS = {
    ("pillow", "turbo"): (1.4, 7),
    ("pillow", "ffcv"): (1.4, 7),
    ("pillow", "dali"): (0.95, 4.1),
    ("turbo", "ffcv"): (1.4, 4.1),
    ("turbo", "dali"): (0.85, 4.1),
    ("ffcv", "dali"): (1.4, 5.4),
}


@pytest.mark.parametrize("case", CASES)
def test_crops_agree_with_a_full_decode_and_with_each_other(case: str, tmp_path: Path) -> None:
    (height, width), smallest, size, denominator, bounds = CASES[case]
    random = np.random.default_rng(1)
    images = [jpeg(photo(seed, height, width)) for seed in range(6)]
    samples = Samples(tmp_path / "data", [(data, height, width, JPG) for data in images])
    heights = random.integers(int(smallest * height), height + 1, 6)
    widths = random.integers(int(smallest * width), width + 1, 6)
    boxes = np.stack(
        [random.integers(0, height - heights + 1), random.integers(0, width - widths + 1), heights, widths], 1
    )
    boxes = boxes.astype(np.int32)
    for i in range(6):
        assert _denominator(with_resampling(boxes)[None], np.array([size]), i) == denominator
    exact = np.stack(
        [area_mean(pil_decode(data), box, size) for data, box in zip(images, boxes, strict=True)]
    )
    results = {}
    for name in DECODERS:
        status, (out,) = decode(make(name), samples.rows, [boxes], [size])
        assert not status.any()
        results[name] = out
        difference = np.abs(out - exact)
        mean, high = difference.mean(), np.percentile(difference, 99)
        print(f"{case} {name}: mean {mean:.2f}, 99th percentile {high:.1f}")
        max_mean, max_high = bounds[name.partition(" ")[0]]
        assert mean < max_mean and high < max_high, (name, mean, high)
    for pair in combinations(DECODERS, 2):
        first, second = pair
        difference = np.abs(results[first].astype(int) - results[second])
        mean, high = difference.mean(), np.percentile(difference, 99)
        print(f"{case} {first} and {second}: mean {mean:.2f}, 99th percentile {high:.1f}")
        assert mean < PAIRS[pair][0] and high < PAIRS[pair][1], (pair, mean, high)


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
        boxes = np.array([[[0, 0, *crop, codes.AREA]] for crop in crops], np.int32)
        assert _denominator(boxes, sizes, 0) == expected, crops


@pytest.mark.parametrize("size", [1, 5, 97, 224])
def test_area_resize_is_the_exact_mean(size: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (201, 333, 3), np.uint8)
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
        area_resize(image.reshape(-1), 201, 333, top, left, box_height, box_width, out)
        assert np.abs(out - area_mean(image, box, size)).max() < 0.51, box


def test_area_resize_takes_fractions_of_pixels() -> None:
    # A box with edges at quarter pixels has edges at whole pixels in the image enlarged four times.
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    large = image.repeat(4, 0).repeat(4, 1)
    for box in [(1, 2, 157, 193), (3, 7, 81, 62), (159, 199, 1, 1), (0, 0, 3, 199)]:
        out = np.empty((13, 13, 3), np.uint8)
        top, left, box_height, box_width = (value / 4 for value in box)
        area_resize(image.reshape(-1), 40, 50, top, left, box_height, box_width, out)
        assert np.abs(out - area_mean(large, box, 13)).max() < 0.51, box


@pytest.mark.parametrize("name", DECODERS)
def test_raw_pixels_grey_and_progressive_are_read(name: str, tmp_path: Path) -> None:
    image = photo(3, 51, 67)
    grey, progressive = jpeg(image[..., 0]), jpeg(image, progressive=True)
    samples = Samples(
        tmp_path / "data",
        [
            (image.tobytes(), 51, 67, RAW),
            (grey, 51, 67, JPG),
            (progressive, 51, 67, JPG),
        ],
    )
    box = np.array([[2, 3, 31, 31]] * 3)
    status, (out,) = decode(make(name), samples.rows, [box], [31])
    assert not status.any()
    assert (out[0] == image[2:33, 3:34]).all()  # exact without a resize
    for crop, data in ((out[1], grey), (out[2], progressive)):
        assert np.abs(crop.astype(int) - pil_decode(data)[2:33, 3:34]).mean() < 1.5


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("orientation", [3, 6])
def test_betons_jpegs_are_not_turned(name: str, orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()  # writing a beton applies it, but other writers leave it in
    exif[0x112] = orientation
    data = jpeg(photo(3, 51, 67), exif=exif.tobytes())
    samples = Samples(tmp_path / "data", [(data, 51, 67, JPG)])
    status, (out,) = decode(make(name), samples.rows, [whole(samples.rows)], [25])
    assert not status.any() and np.abs(out[0] - area_mean(pil_decode(data), (0, 0, 51, 67), 25)).mean() < 1.5


@pytest.mark.parametrize("name", DECODERS)
def test_isotropic_crops_are_the_kernels_of_the_whole_image(name: str, tmp_path: Path) -> None:
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
    for i, (top, left, side, _, kind) in enumerate(boxes[:3].tolist()):
        image = photo(2, *sizes[2]) if i == 2 else pil_decode(data[i])
        expected = np.empty((33, 33, 3), np.uint8)
        rows_px, columns_px = image.shape[:2]
        isotropic_resize(image.reshape(-1), rows_px, columns_px, top, left, side, kind == DIAGONAL, expected)
        assert np.abs(turned[i].astype(int) - expected).mean() < 1.3, i  # because libffcv uses the fast DCT


@pytest.mark.parametrize("name", DECODERS)
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


# Without dali, because a `BatchDecoder` is driven by one thread.
@pytest.mark.parametrize("name", [name for name in DECODERS if name != "dali"])
def test_threads_do_not_share_scratch(name: str, tmp_path: Path) -> None:
    sides = [(40 + 13 * i, 200 - 11 * i) for i in range(12)]
    samples = Samples(
        tmp_path / "data", [(jpeg(photo(i, h, w)), h, w, JPG) for i, (h, w) in enumerate(sides)]
    )
    decoder = make(name)
    boxes = whole(samples.rows)
    _, (alone,) = decode(decoder, samples.rows, [boxes], [48])

    def is_equal(i: int) -> bool:
        i %= 12
        _, (out,) = decode(decoder, samples.rows.part(slice(i, i + 1)), [boxes[i : i + 1]], [48])
        return bool((out[0] == alone[i]).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(is_equal, range(240)))


def test_auto_chooses_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    data = Synthetic(4)
    assert open_decoder("auto", data)[0].name == "synthetic"
    beton = SimpleNamespace(kind="beton", is_raw=False, image_sizes=lambda: (1, 1, 1, 1))
    monkeypatch.setattr(libturbo, "why_missing", lambda: "installed without it")
    if "ffcv" in DECODERS:
        with pytest.warns(UserWarning, match="^decoding by ffcv is slow: installed without it; .* gcc"):
            assert open_decoder("auto", beton)[0].name == "ffcv"  # type: ignore[arg-type]
    monkeypatch.setattr(libffcv, "why_missing", lambda: "ffcv is not installed")
    with pytest.warns(
        UserWarning,
        match=r"^decoding by pillow is slow: installed without it; .* gcc libjpeg",
    ) as caught:
        decoder, why = open_decoder("auto", beton)  # type: ignore[arg-type]
    assert (decoder.name, len(caught)) == ("pillow", 1)
    assert why == "no faster one can read this here"  # not the advice a second time
    with pytest.raises(
        ValueError, match=r"ffcv is not installed: pip install 'fastpsl-vision\[ffcv\]' .*; or use pillow"
    ):
        open_decoder("ffcv", beton)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_decoder("pillow", beton)[0].name == "pillow"  # type: ignore[arg-type]
        monkeypatch.undo()
        if "turbo" in DECODERS:
            decoder, why = open_decoder("auto", beton)  # type: ignore[arg-type]
            assert (decoder.name, why) == ("turbo", "it decodes what the crops need")
    with pytest.raises(
        ValueError,
        match="'dalli': there are auto, turbo, ffcv, dali, pillow, resident, synthetic$",
    ):
        open_decoder("dalli", data)
    with pytest.raises(ValueError, match="decoder 'pillow' cannot read synthetic data"):
        open_decoder("pillow", data)
    assert NAMES == ("turbo", "ffcv", "dali", "pillow", "resident", "synthetic")
