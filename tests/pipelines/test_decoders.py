"""Decoders agree with a full decode and with each other, refuse damage, and tell how they are chosen."""

import errno
import os
import re
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, get_args

import numba
import numpy as np
import pytest
import torch
from numba.core.caching import NullCache
from numba.core.dispatcher import Dispatcher
from PIL import Image

from fastpsl.console.installed import install
from fastpsl.engine.options import DecoderName
from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.kernels.geometry import Flip
from fastpsl.kernels.isotropic import DIAGONAL, ISOTROPIC, margin_px
from fastpsl.kernels.isotropic_loops import isotropic_resize
from fastpsl.pipelines.datasets.subset import Synthetic
from fastpsl.pipelines.decoders import choose, codes, dali, ffcv, libffcv
from fastpsl.pipelines.decoders.choose import NAMES, choose_decoder, open_decoder, reason_of
from fastpsl.pipelines.decoders.decoder import cannot
from fastpsl.pipelines.decoders.ffcv import _denominator
from fastpsl.pipelines.image import libturbo
from fastpsl.pipelines.image.area import area_resize
from fastpsl.pipelines.interface.dataset import MODE_FILE, MODE_JPEG, SampleTable
from fastpsl.pipelines.views import ViewSpec
from tests.faults.mutations import mutated
from tests.pipelines.decoding import (  # noqa: F401
    Samples,
    decode,
    loader_of,
    make,
    samples_are_closed,
    whole,
    with_resampling,
)
from tests.pipelines.photos import (
    DECODERS,
    JPG,
    RAW,
    area_mean,
    exif,
    jpeg,
    needs_ffcv,
    photo,
    photo_samples,
    pil_decode,
    write,
)
from tests.warm import on_ranks

# Source size, smallest crop side as a share of the source's, output size, the ffcv decoder's scale. The cases
# shrink, shrink or enlarge, enlarge, and (the last three) let ffcv decode at 1/2, 1/4 and 1/8.
CASES = {
    "shrink": ((401, 523), 0.8, 151, 1),
    "near": ((301, 225), 0.6, 225, 1),
    "enlarge": ((61, 47), 0.3, 96, 1),
    "half": ((640, 801), 0.9, 111, 2),
    "quarter": ((640, 801), 0.9, 57, 4),
    "eighth": ((640, 801), 0.9, 45, 8),
}
# The bounds of pillow, turbo, ffcv and dali, in 1/255 over all crops of a case, are a third above what was
# measured: mean and 99th percentile of the difference to the exact area mean of Pillow's decode.
BOUNDS = {
    "shrink": ((0.34, 0.7), (0.34, 0.7), (1.3, 3.7), (0.48, 1.9)),
    "near": ((0.34, 0.7), (0.34, 0.7), (1.4, 4.2), (0.36, 1.1)),
    "enlarge": ((0.34, 0.7), (0.34, 0.7), (1.4, 4.2), (0.46, 4.2)),
    "half": ((0.34, 0.7), (0.5, 2), (1.0, 3.2), (0.72, 3)),
    "quarter": ((0.34, 0.7), (0.7, 2.7), (0.7, 2.7), (0.94, 4.2)),
    "eighth": ((0.34, 0.7), (1.4, 7), (1.4, 7), (0.98, 4.4)),
}

# Bounds for the difference between two decoders, over all cases.
PAIRS = {
    ("pillow", "turbo"): (1.4, 7), ("pillow", "ffcv"): (1.4, 7), ("pillow", "dali"): (0.95, 4.1),
    ("turbo", "ffcv"): (1.4, 4.1), ("turbo", "dali"): (0.85, 4.1), ("ffcv", "dali"): (1.4, 5.4),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_crops_agree_with_a_full_decode_and_with_each_other(case: str, tmp_path: Path) -> None:
    (height, width), smallest, size, denominator = CASES[case]
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
    exact = [area_mean(pil_decode(data), box, size) for data, box in zip(images, boxes, strict=True)]
    results = {}
    for name in DECODERS:
        status, (out,) = decode(make(name), samples.rows, [boxes], [size])
        assert not status.any()
        results[name] = out
        difference = np.abs(out - np.stack(exact))
        mean, high = difference.mean(), np.percentile(difference, 99)
        print(f"{case} {name}: mean {mean:.2f}, 99th percentile {high:.1f}")
        max_mean, max_high = BOUNDS[case][("pillow", "turbo", "ffcv", "dali").index(name)]
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
        (((600, 700), (600, 600)), 4), (((599, 700), (600, 600)), 2), (((300, 300), (150, 150)), 2),
        (((300, 300), (149, 300)), 1), (((10, 10), (600, 600)), 1), (((4000, 4000), (4000, 4000)), 8),
    ]:  # fmt: skip
        boxes = np.array([[[0, 0, *crop, codes.AREA]] for crop in crops], np.int32)
        assert _denominator(boxes, sizes, 0) == expected, crops


@pytest.mark.parametrize("size", [1, 5, 97, 224])
def test_area_resize_is_the_exact_mean(size: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (201, 333, 3), np.uint8)
    boxes = [(0, 0, 201, 333), (7, 11, 150, 97), (200, 332, 1, 1)]
    for box in [*boxes, (0, 0, 201, 1), (3, 5, 60, 300), (1, 1, 97, 97)]:
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
    stored = [(image.tobytes(), 51, 67, RAW), (grey, 51, 67, JPG), (progressive, 51, 67, JPG)]
    samples = Samples(tmp_path / "data", stored)
    box = np.array([[2, 3, 31, 31]] * 3)
    status, (out,) = decode(make(name), samples.rows, [box], [31])
    assert not status.any()
    assert (out[0] == image[2:33, 3:34]).all()  # exact without a resize
    for crop, data in ((out[1], grey), (out[2], progressive)):
        assert np.abs(crop.astype(int) - pil_decode(data)[2:33, 3:34]).mean() < 1.5


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("orientation", [3, 6])
def test_betons_jpegs_are_not_turned(name: str, orientation: int, tmp_path: Path) -> None:
    data = jpeg(photo(3, 51, 67), exif=exif(orientation))  # which other writers leave in
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
    # The last is too large.
    windows = [[40, 45, 50, 50], [71, 31, 61, 61], [34, 39, 62, 62], [10, 45, 50, 50]]
    boxes = np.column_stack([np.array(windows), [ISOTROPIC, DIAGONAL, DIAGONAL, ISOTROPIC]])
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
    stored = [(jpeg(photo(i, h, w)), h, w, JPG) for i, (h, w) in enumerate(sides)]
    samples = Samples(tmp_path / "data", stored)
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
    slow = "^decoding by pillow is slow: installed without it; .* gcc libjpeg"
    with pytest.warns(UserWarning, match=slow) as caught:
        decoder, why = open_decoder("auto", beton)  # type: ignore[arg-type]
    assert (decoder.name, len(caught)) == ("pillow", 1)
    assert why == "no faster one can read this here"  # not the advice a second time
    missing = rf"ffcv is not installed: {re.escape(install('ffcv'))} .*; or use auto"
    with pytest.raises(ValueError, match=missing):
        open_decoder("ffcv", beton)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_decoder("pillow", beton)[0].name == "pillow"  # type: ignore[arg-type]
        monkeypatch.undo()
        if "turbo" in DECODERS:
            decoder, why = open_decoder("auto", beton)  # type: ignore[arg-type]
            assert (decoder.name, why) == ("turbo", "it decodes what the crops need")
    with pytest.raises(ValueError, match="'dalli': there are auto, turbo, ffcv, dali, pillow, resident, sy"):
        open_decoder("dalli", data)
    with pytest.raises(ValueError, match="decoder 'pillow' cannot read synthetic data"):
        open_decoder("pillow", data)
    assert ("auto", *NAMES) == get_args(DecoderName)


@pytest.mark.parametrize("name", DECODERS)
def test_what_is_wrong_is_said_and_spares_the_rest(name: str, tmp_path: Path) -> None:
    image = photo(0, 60, 80)
    good = jpeg(image)
    cmyk = tmp_path / "cmyk.jpg"
    Image.fromarray(image).convert("CMYK").save(cmyk)
    cases = [
        ((good, 60, 80, JPG), codes.GOOD),
        ((b"\x89PNG" + good, 60, 80, JPG), codes.NOT_JPEG),
        ((b"", 60, 80, JPG), codes.NOT_JPEG),
        ((good, 80, 60, JPG), codes.WRONG_SIZE),
        ((good[: len(good) // 2], 60, 80, JPG), codes.CORRUPT),
        ((cmyk.read_bytes(), 60, 80, JPG), codes.WRONG_COMPONENTS),
        ((image.tobytes()[:-1], 60, 80, RAW), codes.RAW_SIZE),
        ((good, 60, 80, 7), codes.BAD_MODE),
        ((good, 60, 80, JPG), codes.BAD_BOX),
        # Zeros in place of the end marker, which Pillow accepts.
        ((good[:-2] + bytes(100), 60, 80, JPG), codes.CORRUPT),
        ((good, 60, 80, JPG), codes.SHORT_READ),
    ]
    samples = Samples(tmp_path / "data", [sample for sample, _ in cases])
    expected = [code for _, code in cases]
    samples.rows.num_bytes[-1] += 1  # beyond the end of the file
    boxes = np.array([[0, 0, 60, 60]] * 11)
    boxes[8] = (1, 0, 60, 60)
    decoder = make(name)
    status, (out,) = decode(decoder, samples.rows, [boxes], [24])
    assert status.dtype == np.int8 and status.tolist() == list(expected)
    assert np.abs(out[0] - area_mean(image, (0, 0, 60, 60), 24)).mean() < 6
    assert reason_of(codes.WRONG_SIZE, samples.rows, 3) == "the header says 60x80 px, the table 80x60"
    assert reason_of(codes.WRONG_COMPONENTS, samples.rows, 5).endswith("the header says 4")
    for height, width in ((59, 80), (61, 80), (60, 79), (60, 81)):  # only one side is wrong
        alone = Samples(tmp_path / "alone", [(good, height, width, JPG)])
        assert decode(decoder, alone.rows, [np.array([[0, 0, 9, 9]])], [8])[0].tolist() == [codes.WRONG_SIZE]
    others = {codes.CHANGED, codes.BAD_FILE, codes.OTHER_VERSION}  # of files, and of packed coefficients
    assert set(codes.REASONS) == (set(expected) | others) - {codes.GOOD}
    assert "\n" not in "".join(codes.REASONS.values())


@pytest.mark.parametrize("name", DECODERS)
def test_what_the_system_cannot_read_is_not_truncated(name: str, tmp_path: Path) -> None:
    samples = Samples(tmp_path / "data", [(jpeg(photo(0, 60, 80)), 60, 80, JPG)])
    samples.rows.fd[:] = fd = os.open(tmp_path / "data", os.O_WRONLY)
    try:
        status, _ = decode(make(name), samples.rows, [np.array([[0, 0, 60, 60]])], [24])
        assert status[0] < codes.READING  # the system's error, which the loader raises
    except OSError as error:
        assert error.errno == errno.EBADF
    finally:
        os.close(fd)


@pytest.mark.parametrize("name", DECODERS)
def test_300_mutated_jpegs_do_no_harm(name: str, tmp_path: Path) -> None:
    random, base = Random(0), [jpeg(photo(0, 75, 101)), jpeg(photo(2, 75, 101)[..., 0], optimize=True)]
    base.append(jpeg(photo(1, 75, 101), progressive=True, subsampling=0))
    good = (base[0], 75, 101, JPG)
    bad = [(mutated(base[i % 3], random), 75, 101, JPG) for i in range(300)]
    samples = Samples(tmp_path / "data", [sample for item in bad for sample in (item, good)])
    decoder = make(name)
    boxes = [whole(samples.rows)] * 2
    status, (large, small) = decode(decoder, samples.rows, boxes, [50, 8])
    assert not status[1::2].any() and (large[1::2] == large[1]).all() and (small[1::2] == small[1]).all()
    assert (status[::2] != codes.GOOD).sum() > 100
    assert set(status.tolist()) <= {codes.GOOD, *codes.REASONS}
    assert all(reason_of(int(status[i]), samples.rows, i) for i in np.flatnonzero(status).tolist())


def test_which_boxes_lie_inside_with_their_margin() -> None:
    margin = int(margin_px(20, 16))
    length = 20 + 2 * margin
    for height, width, is_inside, *box in [
        (length, length, True, margin, margin, 20, 20),
        (length - 1, length, False, margin, margin, 20, 20),
        (length, length - 1, False, margin, margin, 20, 20),
        (length, length, False, margin - 1, margin, 20, 20),
        (length, length, False, margin, margin - 1, 20, 20),
        (length, length, False, margin + 1, margin, 20, 20),
        (length, length, False, margin, margin, 19, 20),
        (length, length, False, margin, margin, 0, 0),
        (length, length, False, -5, margin, 20, 20),
    ]:
        for kind in (ISOTROPIC, DIAGONAL):
            boxes = np.array([[*box, kind]], np.int32)
            assert cannot(boxes, 16, height, width).tolist() == [not is_inside], (height, width, box)


@pytest.mark.parametrize("name", DECODERS)
def test_boxes_outside_never_reach_the_decoder(name: str, tmp_path: Path) -> None:
    samples = Samples(tmp_path / "data", [(jpeg(photo(0, 60, 80)), 60, 80, JPG)])
    decoder = make(name)
    top = 2**31 - 1
    outside = [(-1, 0, 9, 9), (0, -1, 9, 9), (0, 0, 0, 9), (0, 0, 9, 0), (52, 0, 9, 9), (0, 72, 9, 9)]
    for box in [*outside, (top, 0, top, 9)]:
        status, _ = decode(decoder, samples.rows, [np.array([[0, 0, 9, 9]]), np.array([box])], [8, 8])
        assert status.tolist() == [codes.BAD_BOX], box


JPEGS, RAW_IMAGES, PNGS = "JPEGs", "raw images", "PNGs"
WORKING, IDLE, NO_DALI = "", "a GPU without engines", "DALI is not installed"
T4 = "NVIDIA T4 has no JPEG engines"


def data_of(kind: str, images: str, num_pixels: int) -> Any:
    mode = {JPEGS: MODE_JPEG, PNGS: MODE_FILE}.get(images, 1)

    def rows(indices: np.ndarray) -> SampleTable:
        table = SampleTable.empty(indices)
        table.mode[:], table.height[:], table.width[:] = mode, num_pixels // 500, 500
        return table

    is_raw, sizes = images == RAW_IMAGES, (200, 200, 500, 500)
    return SimpleNamespace(kind=kind, num_samples=1000, is_raw=is_raw, image_sizes=lambda: sizes, rows=rows)


AUTO_CASES: list[tuple[dict[str, Any], str, list[str]]] = [
    # 16 threads / 0.76 ms = 21,053/s, and with two views / 1.02 ms = 15,686/s.
    ({}, "turbo", ["16 threads decode about 21,100 images/s of 0.17 Mpx (an estimate)", "16,250"]),
    ({"views": 2}, "turbo", ["about 15,700 images/s", "6,444"]),
    # 13 / 0.76 ms = 17,105, 12 / 0.76 ms = 15,789: one thread too few.
    ({"threads": 13}, "turbo", ["13 threads", "about 17,100"]),
    ({"threads": 12}, "dali", ["the GPU's JPEG engines decode", "12 threads decode about 15,800", "16,250"]),
    ({"threads": 12, "dali": IDLE}, "turbo", ["--workers 13 would do", "0.97 ms", "turbo 0.76", T4]),
    ({"threads": 12, "dali": NO_DALI}, "turbo", ["--workers 13", "not taken: DALI is not installed"]),
    ({"threads": 12, "images": PNGS}, "turbo", ["many of these images are none"]),
    ({"threads": 1, "images": RAW_IMAGES}, "turbo", ["raw images need no decoding"]),
    ({"cores": 8}, "dali", ["8 threads decode about 10,500"]),
    ({"cores": 8, "dali": IDLE}, "turbo", ["13 cores per GPU instead of 8"]),
    # An A100 has 2.04 / 4.8 of an H200's bandwidth. A GPU that is not in the table is taken for an H200.
    ({"cores": 8, "capability": (8, 0)}, "turbo", ["8 threads decode about 10,500", "takes 6,906"]),
    ({"cores": 8, "capability": (11, 0)}, "dali", ["8 threads decode about 10,500", "takes 16,250"]),
    # Two views: 7 / 1.02 ms = 6,863; 6 / 1.02 ms = 5,882. Eight views are estimated at 2.58 ms: 6,202.
    ({"threads": 7, "views": 2}, "turbo", ["7 threads"]),
    ({"threads": 6, "views": 2}, "dali", ["about 5,880"]),
    ({"views": 8}, "turbo", ["about 6,200", "1,611"]),
    # Images of 5,000 px: 2 / 0.0228 ms = 87,900/s. Of 4 times as many as measured: 16 / 1.52 ms = 10,526.
    ({"threads": 2, "pixels": 5_000}, "turbo", ["2 threads decode about 87,900 images/s of 0.005 Mpx"]),
    ({"pixels": 4 * 167_000}, "dali", ["about 10,500 images/s of 0.67 Mpx"]),
    ({"threads": 1, "device": "cpu"}, "turbo", ["it decodes what the crops need"]),
    ({"threads": 1}, "dali", ["1 thread decodes about 1,320"]),
    ({"given_cores": 8}, "dali", ["8 threads decode about 10,500"]),
    ({"no_turbo": True}, "dali", ["it decodes on the GPU", "no compiler; apt install"]),
    ({"no_turbo": True, "dali": IDLE}, "dali", ["it decodes on the GPU", "no compiler; apt install"]),
    ({"no_turbo": True, "dali": NO_DALI}, "ffcv", ["no faster one"]),
    ({"no_turbo": True, "dali": NO_DALI, "no_ffcv": True}, "pillow", ["no faster one"]),
    ({"no_turbo": True, "device": "cpu"}, "ffcv", ["no faster one"]),
    ({"kind": "folder"}, "turbo", ["16 threads decode about 21,100"]),
    ({"kind": "folder", "threads": 4}, "dali", ["4 threads decode about 5,260"]),
    ({"kind": "folder", "device": "cpu"}, "turbo", ["it decodes what the crops need"]),
    ({"kind": "folder", "device": "cpu", "images": PNGS}, "turbo", ["about 100% of the files", "Pillow"]),
    ({"kind": "folder", "images": PNGS}, "turbo", ["16 threads", "about 100% of the files", "Pillow"]),
    ({"kind": "folder", "images": PNGS, "threads": 4}, "turbo", ["JPEGs only", "about 100% of the files"]),
    ({"kind": "folder", "no_turbo": True}, "dali", ["it decodes on the GPU"]),
    ({"kind": "folder", "device": "cpu", "no_turbo": True}, "pillow", ["no faster one"]),
]  # fmt: skip


@pytest.mark.parametrize(("case", "name", "mentions"), AUTO_CASES)
def test_what_auto_takes(
    case: dict[str, Any], name: str, mentions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, tried = list[torch.device](), list[torch.device]()
    cores, capability = case.get("cores", 16), case.get("capability", (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU without a card")
    monkeypatch.setattr(choose, "default_num_threads", lambda: cores)
    monkeypatch.setattr(libturbo, "why_missing", lambda: "no compiler" if "no_turbo" in case else "")
    monkeypatch.setattr(libffcv, "why_missing", lambda: "no ffcv" if "no_ffcv" in case else "")
    state = case.get("dali", WORKING)

    def why_missing(device: torch.device) -> str:
        tried.append(device)
        return NO_DALI if state == NO_DALI else ""

    monkeypatch.setattr(dali, "why_missing", why_missing)

    def why_slower(device: torch.device) -> str:
        asked.append(device)
        return T4 if state == IDLE else ""

    monkeypatch.setattr(dali, "why_slower", why_slower)
    pixels = case.get("pixels", choose.MEASURED_PIXELS)
    data = data_of(case.get("kind", "beton"), case.get("images", JPEGS), pixels)
    device = case.get("device", "cuda:0")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        chosen, reason = choose_decoder(
            "auto", data, torch.device(device), num_threads=case.get("threads"),
            num_views=case.get("views", 1), num_cores=case.get("given_cores"),
        )  # fmt: skip
    assert chosen == name
    for text in mentions:
        assert text in reason, reason
    assert "\n" not in reason
    is_slow = name in ("ffcv", "pillow") or ("no_turbo" in case and state == IDLE)
    assert len(caught) == is_slow and (not is_slow or "slow" in str(caught[0].message))
    if device == "cpu" or name == "pillow":
        assert not asked  # the engines are proven only where they could be taken
    if state == IDLE and "no_turbo" not in case:
        assert not tried  # importing DALI takes seconds


def test_the_measured_figures_agree_with_each_other() -> None:
    """A rate is cores over CPU time."""
    for num_views, num_cores, rate in ((1, 12.92, 17_082), (2, 13.62, 13_371)):
        assert num_cores / rate * 1e3 == pytest.approx(choose.turbo_ms(num_views), rel=0.01)
    assert pytest.approx(choose.DALI_MS, rel=0.04) == 4.2 / 37_027 * 1e3
    assert pytest.approx(choose.DALI_MS_WITHOUT_ENGINES, rel=0.01) == 13.6 / 14_002 * 1e3


def decode_two_views(path: Path) -> None:
    view = ViewSpec(RandomResizedCrop(32), (Flip(),))
    with loader_of(path, [view, view], 2, decoder="ffcv") as loader:
        assert len(list(loader.epoch(0))) == 2


def decode_in_another_process(_: int, path: Path) -> None:
    num_threads = torch.get_num_threads(), numba.get_num_threads()
    decode_two_views(path)
    ours = [module for name, module in sys.modules.items() if name.startswith("fastpsl")]
    compiled = {x for module in ours for x in vars(module).values() if isinstance(x, Dispatcher)}
    assert len(compiled) > 5, compiled
    assert not any(name.split(".")[0] == "ffcv" for name in sys.modules)
    assert num_threads == (torch.get_num_threads(), numba.get_num_threads())
    misses, hits = (
        sum(sum(getattr(x.stats, name).values()) for x in compiled) for name in ("cache_misses", "cache_hits")
    )
    assert misses == 0 and hits >= 1  # the loop; what it calls is cached in it


@pytest.mark.slow
@needs_ffcv("its library decodes")
def test_a_second_process_compiles_nothing_and_never_imports_ffcv(tmp_path: Path) -> None:
    path = write(tmp_path / "a.beton", photo_samples(4))
    decode_two_views(path)  # fills the cache if it is empty
    on_ranks(decode_in_another_process, (path,), 1)


def test_the_cached_loop_is_compiled_again_when_a_file_it_calls_changes() -> None:
    # numba's key has the date of the function's own file and the free variables (numba/core/caching.py).
    modules = [ffcv.area, ffcv.codes, ffcv.read_samples, ffcv.isotropic, ffcv.isotropic_loops]
    files = [Path(str(module.__file__)) for module in [*modules, ffcv.jpeg, libffcv, ffcv.dataset]]
    cells = [cell.cell_contents for cell in ffcv._decode_chunk.py_func.__closure__]  # type: ignore[attr-defined]
    assert zlib.crc32(b"".join(file.read_bytes() for file in files)) in cells
    assert isinstance(ffcv._decode_one._cache, NullCache)  # type: ignore[attr-defined]
