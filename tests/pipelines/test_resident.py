"""A set that stays on the device: its pixels are those of the other decoders; what cannot stay there is said."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fastpsl.kernels.crops import RandomResizedCrop, ShorterSideCrop
from fastpsl.kernels.rotation_crops import RotationCrop
from fastpsl.pipelines.beton import Beton
from fastpsl.pipelines.decoders import choose_decoder, open_decoder, resident
from fastpsl.pipelines.loader import Loader
from fastpsl.pipelines.views import ViewSpec
from tests.pipelines.photos import DECODERS, RAW, jpeg, photo, photo_samples, write

NUM = 30
VIEWS = [ViewSpec(RandomResizedCrop(32)), ViewSpec(ShorterSideCrop(40, 32, where="center"))]
ROTATIONS = [ViewSpec(RotationCrop(24)), ViewSpec(RotationCrop(33, base=45))]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pictures = [photo(i, 40, 36) for i in range(NUM)]
    samples = [(picture.tobytes(), 40, 36, RAW) for picture in pictures]
    return write(tmp_path_factory.mktemp("raw") / "raw.beton", samples)


@pytest.mark.parametrize("decoder", DECODERS)
def test_the_pixels_are_those_of_the_other_decoders(raw: Path, decoder: str) -> None:
    def pictures(name: str) -> list[torch.Tensor]:
        with Beton(raw) as data, Loader(data, VIEWS, batch_size=NUM, decoder=name) as loader:
            (batch,) = loader.epoch(0)
        return [images.int() for images in batch.images]

    for ours, theirs in zip(pictures("resident"), pictures(decoder), strict=True):
        difference = (ours - theirs).abs()
        # Both are exact area means but torchvision's, whose filter is Pillow's nearest to it.
        if decoder == "ffcv":
            assert difference.max() <= 1 and difference.float().mean() < 1e-3
        else:
            assert difference.float().mean() < 2


@pytest.mark.parametrize("decoder", DECODERS)
def test_windows_turned_by_45_degrees_are_those_of_the_other_decoders(tmp_path: Path, decoder: str) -> None:
    samples = [(photo(i, 90, 101).tobytes(), 90, 101, RAW) for i in range(NUM)]
    path = write(tmp_path / "raw.beton", samples)

    def pictures(name: str) -> list[torch.Tensor]:
        with Beton(path) as data, Loader(data, ROTATIONS, batch_size=NUM, decoder=name) as loader:
            (batch,) = loader.epoch(0)
        return [images.int() for images in batch.images]

    for ours, theirs in zip(pictures("resident"), pictures(decoder), strict=True):
        assert (ours - theirs).abs().max() <= 1 and (ours - theirs).abs().float().mean() < 1e-3


def test_it_is_chosen_for_a_small_raw_set_of_one_size_on_a_gpu(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Beton(raw) as data:
        gpu = torch.device("cuda", 0)
        assert choose_decoder("auto", data, gpu) == (
            "resident",
            "raw pictures of one size, 0 MB: kept on the device",
        )
        assert choose_decoder("auto", data, torch.device("cpu"))[0] == (
            "ffcv" if "ffcv" in DECODERS else "torchvision"
        )
        monkeypatch.setattr(resident, "SMALL_BYTES", NUM * 40 * 36 * 3 - 1)
        assert not resident.is_small(data)
    with Beton(write(tmp_path / "jpeg.beton", photo_samples(3))) as data:
        assert not resident.is_small(data)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([(jpeg(photo(0, 40, 36)), 40, 36, 0)], "some of its pictures are JPEGs"),
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
    is_jpeg = samples[0][3] != RAW  # written raw, sizes would differ as before
    assert ("fastpsl beton write --mode raw" in str(error.value)) == is_jpeg and "\n" not in str(error.value)


def test_a_set_that_does_not_fit_is_refused_with_figures(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "free_bytes", lambda device: 100_000)
    with (
        Beton(raw) as data,
        pytest.raises(
            ValueError, match=r"raw\.beton is 0\.00 GB, and cpu has 0\.00 GB free; use ffcv or dali"
        ),
    ):
        Loader(data, VIEWS, batch_size=4, decoder="resident")
    monkeypatch.undo()
    assert resident.free_bytes(torch.device("cpu")) > 1e8


def test_boxes_outside_and_shrunk_files_are_named(raw: Path, tmp_path: Path) -> None:
    with Beton(raw) as data:
        decoder, _ = open_decoder("resident", data)
        boxes = np.array([[0, 0, 40, 36, 0], [-1, 0, 9, 9, 0], [0, 0, 41, 9, 0], [0, 30, 9, 7, 0]], np.int32)
        # The second lies in the picture, but not with what the kernel reaches around it.
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
