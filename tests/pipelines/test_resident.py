"""The decoder `resident` is equal to the others, and refuses what it cannot hold."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from typing_extensions import override

from fastpsl.kernels.crops import RandomResizedCrop, ShorterSideCrop
from fastpsl.kernels.device_crops import crop_area
from fastpsl.kernels.geometry import Flip, Shift
from fastpsl.kernels.rotation_crops import RotationCrop
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.decoders import resident
from fastpsl.pipelines.decoders.choose import choose_decoder, open_decoder
from fastpsl.pipelines.views import ViewSpec
from tests.fake_cuda import fake_cuda
from tests.pipelines.decoding import batches_of
from tests.pipelines.photos import COMPILED, DECODERS, RAW, jpeg, photo, photo_samples, write

NUM = 30
VIEWS = [ViewSpec(RandomResizedCrop(32)), ViewSpec(ShorterSideCrop(40, 32, where="center"))]
ROTATIONS = [ViewSpec(RotationCrop(24)), ViewSpec(RotationCrop(33, base=45))]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    images = [photo(i, 40, 36) for i in range(NUM)]
    samples = [(image.tobytes(), 40, 36, RAW) for image in images]
    return write(tmp_path_factory.mktemp("raw") / "raw.beton", samples)


def differences(path: Path, views: list[ViewSpec], decoder: str) -> Iterator[torch.Tensor]:
    """Yield the absolute differences to another decoder's pixels for each view."""
    with Beton(path) as data:
        ours, others = (batches_of(data, views, NUM, decoder=name)[0] for name in ("resident", decoder))
    for view, other in zip(ours.images, others.images, strict=True):
        yield (view.int() - other.int()).abs()


@pytest.mark.parametrize("decoder", DECODERS)
def test_the_pixels_are_those_of_the_other_decoders(raw: Path, decoder: str) -> None:
    for difference in differences(raw, VIEWS, decoder):
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
    for difference in differences(write(tmp_path / "raw.beton", samples), ROTATIONS, decoder):
        assert difference.max() <= 1 and difference.float().mean() < 1e-3


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


def test_one_launch_makes_a_view_on_a_gpu(raw: Path) -> None:
    pytest.importorskip("triton")
    rows = np.array([3, 29, 3])
    box = np.array([[2, 3, 20, 25, 0]] * 3, np.int32)
    with Beton(raw) as data:
        decoder = resident.ResidentDecoder(data, torch.device("cpu"))
    with fake_cuda() as cuda:
        decoder._device, decoder._images = cuda.device, torch.empty(NUM, 40, 36, 3, dtype=torch.uint8).cuda()
        for _ in range(2):  # the kernel is tried out before its first use
            decoder.submit(decoder.table.part(rows), None, [box, box], [32, 24])
            with cuda.watched() as seen, CountedOperations() as counted:
                _, (first, second) = decoder.collect()
        assert first.shape == (3, 32, 32, 3) and second.shape == (3, 24, 24, 3) and first.is_cuda
        assert seen.kernels == {"crop_kernel": 2} and not seen.waits
        assert counted.num <= 12  # copies of indices and boxes, and memory


class CountedOperations(TorchDispatchMode):
    """A mode that counts operations."""

    num = 0

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.num += func.namespace == "aten"  # not the questions that a tensor without values asks
        return func(*args, **(kwargs or {}))


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
            read = batches_of(data, [view], 10, 1, decoder="resident")
            batches.append([batch.inputs([view], torch.float32)[0] for batch in read])
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
    data = Beton(write(tmp_path / "x.beton", samples))
    with data, pytest.raises(ValueError, match=message) as error:
        open_decoder("resident", data)
    is_jpeg = samples[0][3] != RAW  # writing raw images would not help with different sizes
    assert ("fastpsl data write --mode raw" in str(error.value)) == is_jpeg and "\n" not in str(error.value)


def test_a_set_that_does_not_fit_is_refused_with_figures(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "free_bytes", lambda device: 100_000)
    message = r"raw\.beton is 0\.00 GB, and cpu has 0\.00 GB free; use turbo or dali"
    with Beton(raw) as data, pytest.raises(ValueError, match=message):
        open_decoder("resident", data)
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
