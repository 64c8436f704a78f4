"""The choice of `auto`, as a table, and the decoder `resident`, which is equal to the others."""

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fastpsl.kernels.area import crop_area
from fastpsl.kernels.crops import RandomResizedCrop, ShorterSideCrop
from fastpsl.kernels.flip import Flip
from fastpsl.kernels.rotation_crops import RotationCrop
from fastpsl.kernels.shift import Shift
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.data.dataset import MODE_FILE, MODE_JPEG
from fastpsl.pipelines.decoders import choose, dali, libffcv, resident
from fastpsl.pipelines.decoders.choose import choose_decoder, open_decoder
from fastpsl.pipelines.image import libturbo
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.views import ViewSpec
from tests.pipelines.photos import COMPILED, DECODERS, RAW, jpeg, photo, photo_samples, write

JPEGS, RAW_IMAGES, PNGS = "JPEGs", "raw images", "PNGs"
WORKING, IDLE, NO_DALI = "", "a GPU without engines", "DALI is not installed"
T4 = "NVIDIA T4 has no JPEG engines"


def data_of(kind: str, images: str, num_pixels: int) -> Any:
    mode = {JPEGS: MODE_JPEG, PNGS: MODE_FILE}.get(images, 1)
    return SimpleNamespace(
        kind=kind,
        num_samples=1000,
        is_raw=images == RAW_IMAGES,
        image_sizes=lambda: (200, 200, 500, 500),
        rows=lambda indices: SimpleNamespace(
            mode=np.full(len(indices), mode),
            height=np.full(len(indices), num_pixels // 500, np.int32),
            width=np.full(len(indices), 500, np.int32),
        ),
    )


CASES: list[tuple[dict[str, Any], str, list[str]]] = [
    # 16 threads / 0.68 ms = 23,529/s, and with two views / 0.90 ms = 17,778/s.
    ({}, "turbo", ["16 threads decode about 23,500 images/s of 0.17 Mpx (an estimate)", "14,758"]),
    ({"views": 2}, "turbo", ["about 17,800 images/s", "6,031"]),
    # 11 / 0.68 ms = 16,176, 10 / 0.68 ms = 14,706: one thread too few.
    ({"threads": 11}, "turbo", ["11 threads", "about 16,200"]),
    ({"threads": 10}, "dali", ["the GPU's JPEG engines decode", "10 threads decode about 14,700", "14,758"]),
    ({"threads": 10, "dali": IDLE}, "turbo", ["--workers 11 would do", "0.97 ms", "turbo 0.68", T4]),
    ({"threads": 10, "dali": NO_DALI}, "turbo", ["--workers 11", "not taken: DALI is not installed"]),
    ({"threads": 10, "images": PNGS}, "turbo", ["many of these images are none"]),
    ({"threads": 1, "images": RAW_IMAGES}, "turbo", ["raw images need no decoding"]),
    ({"cores": 8}, "dali", ["8 threads decode about 11,800"]),
    ({"cores": 8, "dali": IDLE}, "turbo", ["11 cores per GPU instead of 8"]),
    # Two views: 6 / 0.90 ms = 6,667; 5 / 0.90 ms = 5,556. Eight views are estimated at 2.22 ms: 7,207.
    ({"threads": 6, "views": 2}, "turbo", ["6 threads"]),
    ({"threads": 5, "views": 2}, "dali", ["about 5,560"]),
    ({"views": 8}, "turbo", ["about 7,210"]),
    # Images of 5,000 px: 2 / 0.0204 ms = 98,200/s. Of 4 times as many as measured: 16 / 1.36 ms = 11,765.
    ({"threads": 2, "pixels": 5_000}, "turbo", ["2 threads decode about 98,200 images/s of 0.005 Mpx"]),
    ({"pixels": 4 * 167_000}, "dali", ["about 11,800 images/s of 0.67 Mpx"]),
    ({"threads": 1, "device": "cpu"}, "turbo", ["it decodes what the crops need"]),
    ({"threads": 1}, "dali", ["1 thread decodes about 1,470"]),
    ({"given_cores": 8}, "dali", ["8 threads decode about 11,800"]),
    ({"no_turbo": True}, "dali", ["it decodes on the GPU", "no compiler; a wheel"]),
    ({"no_turbo": True, "dali": IDLE}, "dali", ["it decodes on the GPU", "no compiler; a wheel"]),
    ({"no_turbo": True, "dali": NO_DALI}, "ffcv", ["no faster one"]),
    ({"no_turbo": True, "dali": NO_DALI, "no_ffcv": True}, "pillow", ["no faster one"]),
    ({"no_turbo": True, "device": "cpu"}, "ffcv", ["no faster one"]),
    ({"kind": "folder"}, "turbo", ["16 threads decode about 23,500"]),
    ({"kind": "folder", "threads": 4}, "dali", ["4 threads decode about 5,880"]),
    ({"kind": "folder", "device": "cpu"}, "turbo", ["it decodes what the crops need"]),
    ({"kind": "folder", "device": "cpu", "images": PNGS}, "turbo", ["about 100% of the files", "Pillow"]),
    ({"kind": "folder", "images": PNGS}, "turbo", ["16 threads", "about 100% of the files", "Pillow"]),
    ({"kind": "folder", "images": PNGS, "threads": 4}, "turbo", ["JPEGs only", "about 100% of the files"]),
    ({"kind": "folder", "no_turbo": True}, "dali", ["it decodes on the GPU"]),
    ({"kind": "folder", "device": "cpu", "no_turbo": True}, "pillow", ["no faster one"]),
]  # fmt: skip


@pytest.mark.parametrize(("case", "name", "mentions"), CASES)
def test_what_auto_takes(
    case: dict[str, Any], name: str, mentions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, tried = list[torch.device](), list[torch.device]()
    cores = case.get("cores", 16)
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
    data = data_of(
        case.get("kind", "beton"), case.get("images", JPEGS), case.get("pixels", choose.MEASURED_PIXELS)
    )
    device = case.get("device", "cuda:0")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        chosen, reason = choose_decoder(
            "auto",
            data,
            torch.device(device),
            num_threads=case.get("threads"),
            num_views=case.get("views", 1),
            num_cores=case.get("given_cores"),
        )
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
    """A rate is cores over CPU time: 15.6 cores made 22,987 and, with two views, 17,030 images/s."""
    for num_views, rate in ((1, 22_987), (2, 17_030)):
        assert 15.6 / rate * 1e3 == pytest.approx(choose.turbo_ms(num_views), rel=0.03)
    assert pytest.approx(choose.DALI_MS, rel=0.04) == 4.2 / 37_027 * 1e3
    assert pytest.approx(choose.DALI_MS_WITHOUT_ENGINES, rel=0.01) == 13.6 / 14_002 * 1e3


NUM = 30
VIEWS = [ViewSpec(RandomResizedCrop(32)), ViewSpec(ShorterSideCrop(40, 32, where="center"))]
ROTATIONS = [ViewSpec(RotationCrop(24)), ViewSpec(RotationCrop(33, base=45))]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    images = [photo(i, 40, 36) for i in range(NUM)]
    samples = [(image.tobytes(), 40, 36, RAW) for image in images]
    return write(tmp_path_factory.mktemp("raw") / "raw.beton", samples)


@pytest.mark.parametrize("decoder", DECODERS)
def test_the_pixels_are_those_of_the_other_decoders(raw: Path, decoder: str) -> None:
    def read_images(name: str) -> list[torch.Tensor]:
        with Beton(raw) as data, Loader(data, VIEWS, batch_size_per_rank=NUM, decoder=name) as loader:
            (batch,) = loader.epoch(0)
        return [images.int() for images in batch.images]

    for view, expected_view in zip(read_images("resident"), read_images(decoder), strict=True):
        difference = (view - expected_view).abs()
        # All are exact area means, turbo's within 0.52, but DALI's, whose filters come close.
        if decoder != "dali":
            assert difference.max() <= 1 and difference.float().mean() < (
                5e-3 if decoder == "turbo" else 1e-3
            )
        else:
            assert difference.float().mean() < 2


@pytest.mark.parametrize("decoder", DECODERS)
def test_windows_turned_by_45_degrees_are_those_of_the_other_decoders(tmp_path: Path, decoder: str) -> None:
    samples = [(photo(i, 90, 101).tobytes(), 90, 101, RAW) for i in range(NUM)]
    path = write(tmp_path / "raw.beton", samples)

    def read_images(name: str) -> list[torch.Tensor]:
        with Beton(path) as data, Loader(data, ROTATIONS, batch_size_per_rank=NUM, decoder=name) as loader:
            (batch,) = loader.epoch(0)
        return [images.int() for images in batch.images]

    for view, expected_view in zip(read_images("resident"), read_images(decoder), strict=True):
        assert (view - expected_view).abs().max() <= 1 and (view - expected_view).abs().float().mean() < 1e-3


@pytest.fixture(scope="module")
def square(tmp_path_factory: pytest.TempPathFactory) -> Path:
    samples = [(photo(i, 33, 33).tobytes(), 33, 33, RAW) for i in range(NUM)]
    return write(tmp_path_factory.mktemp("square") / "square.beton", samples)


WHOLE = [0, 0, 33, 33, 0]


def cropped(path: Path, indices: list[int], views: list[tuple[list[list[int]], int]]) -> list[torch.Tensor]:
    """Return the crops of samples for views given by boxes and size; a single box serves for all samples."""
    with Beton(path) as data:
        decoder, _ = open_decoder("resident", data)
        boxes = [
            np.array(each if len(each) > 1 else each * len(indices), np.int32).reshape(-1, 5)
            for each, _ in views
        ]
        decoder.submit(data.rows(np.array(indices, np.int64)), None, boxes, [size for _, size in views])  # type: ignore[union-attr]
        status, images = decoder.collect()  # type: ignore[union-attr]
        assert not status.any()
        return images


def watched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the names of the cropping functions as they are called."""
    calls: list[str] = []

    def watch(name: str) -> None:
        crop = getattr(resident, name)

        def watching(images: torch.Tensor, boxes: torch.Tensor, size_px: int) -> torch.Tensor:
            calls.append(name)
            crops: torch.Tensor = crop(images, boxes, size_px)
            return crops

        monkeypatch.setattr(resident, name, watching)

    watch("crop_area")
    watch("crop_isotropic")
    return calls


@pytest.mark.parametrize("indices", [[], [7], [3, 29, 3, 0, 11]])
def test_images_shown_whole_are_copied_with_the_bytes_of_their_crop(
    square: Path, indices: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = watched(monkeypatch)
    first, second = cropped(square, indices, [([WHOLE], 33), ([WHOLE], 33)])
    assert not calls
    with Beton(square) as data:
        images = [np.frombuffer(data.read(index), np.uint8).reshape(33, 33, 3) for index in indices]
    stored = torch.from_numpy(np.array(images, np.uint8).reshape(-1, 33, 33, 3))
    box = torch.tensor([WHOLE] * len(indices), dtype=torch.int32).view(-1, 5)
    expected = crop_area(stored, box, 33)
    assert torch.equal(expected, stored)
    for view in (first, second):
        assert torch.equal(view, expected) and view.dtype == torch.uint8
        assert view.shape == expected.shape and view.stride() == expected.stride()
    if indices:
        # Changing a view in place changes neither another view nor the set itself.
        first.zero_()
        assert torch.equal(second, expected)
        (again,) = cropped(square, indices, [([WHOLE], 33)])
        assert torch.equal(again, expected)


def test_other_boxes_and_sizes_are_cropped(square: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = watched(monkeypatch)
    one_less = [WHOLE, [1, 0, 32, 33, 0]]
    views = [(one_less, 33), ([WHOLE], 32), ([[0, 0, 32, 32, 0]], 33), ([[14, 14, 5, 5, 1]], 33)]
    crops = cropped(square, [4, 5], views)
    assert calls == ["crop_area", "crop_area", "crop_area", "crop_isotropic"]
    whole = cropped(square, [4, 5], [([WHOLE], 33)])[0]
    assert torch.equal(crops[0][0], whole[0]) and not torch.equal(crops[0][1], whole[1])


def test_a_view_is_shown_whole_through_the_loader(square: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in SSL++'s recipes: a shorter side and a crop of the image's own size, then operations."""
    view = ViewSpec(ShorterSideCrop(33, 33, "center"), (Shift(4), Flip(p=0.5)))
    batches = []
    for forbidden in (True, False):
        with monkeypatch.context() as patch, Beton(square) as data:
            if forbidden:
                patch.delattr(resident, "crop_area")
            else:
                patch.setattr(resident, "_is_identity", lambda *_: False)
            with Loader(data, [view], batch_size_per_rank=10, decoder="resident") as loader:
                batches.append([batch.inputs([view], torch.float32)[0] for batch in loader.epoch(1)])
    for copied, cropped_view in zip(*batches, strict=True):
        assert torch.equal(copied, cropped_view) and copied.stride() == cropped_view.stride()


def test_it_is_chosen_for_a_small_raw_set_of_one_size_on_a_gpu(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Beton(raw) as data:
        gpu = torch.device("cuda", 0)
        assert choose_decoder("auto", data, gpu) == (
            "resident",
            "raw images of one size, 0 MB: kept on the device",
        )
        assert choose_decoder("auto", data, torch.device("cpu"))[0] == (COMPILED[0] if COMPILED else "pillow")
        monkeypatch.setattr(resident, "SMALL_BYTES", NUM * 40 * 36 * 3 - 1)
        assert not resident.is_small(data)
    with Beton(write(tmp_path / "jpeg.beton", photo_samples(3))) as data:
        assert not resident.is_small(data)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([(jpeg(photo(0, 40, 36)), 40, 36, 0)], "some images are JPEGs"),
        ([(bytes(30), 5, 2, RAW), (bytes(30), 2, 5, RAW)], "sizes from 2 x 2 to 5 x 5 px"),
    ],
)
def test_other_betons_are_refused(
    tmp_path: Path, samples: list[tuple[bytes, int, int, int]], message: str
) -> None:
    with (
        Beton(write(tmp_path / "x.beton", samples)) as data,
        pytest.raises(ValueError, match=message) as error,
    ):
        open_decoder("resident", data)
    is_jpeg = samples[0][3] != RAW  # writing raw images would not help with different sizes
    assert ("fastpsl data write --mode raw" in str(error.value)) == is_jpeg and "\n" not in str(error.value)


def test_a_set_that_does_not_fit_is_refused_with_figures(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "free_bytes", lambda device: 100_000)
    with (
        Beton(raw) as data,
        pytest.raises(
            ValueError, match=r"raw\.beton is 0\.00 GB, and cpu has 0\.00 GB free; use turbo or dali"
        ),
    ):
        Loader(data, VIEWS, batch_size_per_rank=4, decoder="resident")
    monkeypatch.undo()
    assert resident.free_bytes(torch.device("cpu")) > 1e8


def test_boxes_outside_and_shrunk_files_are_named(raw: Path, tmp_path: Path) -> None:
    with Beton(raw) as data:
        decoder, _ = open_decoder("resident", data)
        boxes = np.array([[0, 0, 40, 36, 0], [-1, 0, 9, 9, 0], [0, 0, 41, 9, 0], [0, 30, 9, 7, 0]], np.int32)
        # The second lies inside of the image, but not with its kernel's margin.
        turned = np.array([[17, 15, 5, 5, 1], [14, 12, 12, 12, 2]], np.int32)
        decoder.submit(data.rows(np.arange(2)), None, [turned], [8])  # type: ignore[union-attr]
        assert decoder.collect()[0].tolist() == [0, 6]  # type: ignore[union-attr]
        decoder.submit(data.rows(np.arange(4)), None, [boxes], [8])  # type: ignore[union-attr]
        status, (out,) = decoder.collect()  # type: ignore[union-attr]
        assert status.tolist() == [0, 6, 6, 6] and out.shape == (4, 8, 8, 3)
        copy = tmp_path / "copy.beton"
        copy.write_bytes(raw.read_bytes())
    with Beton(copy) as data:
        copy.write_bytes(raw.read_bytes()[:5000])
        with pytest.raises(ValueError, match="copy.beton: was truncated while it was in use"):
            open_decoder("resident", data)
