"""A subset is a data set: every decoder returns images and labels of the whole, with the subset's indices."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fastpsl.kernels.crops import ShorterSideCrop
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.data.dataset import Dataset
from fastpsl.pipelines.datasets.folder import Folder
from fastpsl.pipelines.datasets.subset import Subset, Synthetic
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.views import ViewSpec
from tests.pipelines.folders import photo_tree, write_folder
from tests.pipelines.photos import COMPILED, DECODERS, RAW, photo, write

VIEW = [ViewSpec(ShorterSideCrop(40, 40, where="center"))]
CHOSEN = np.array([11, 2, 3, 17, 0, 7, 5])  # of 18, unsorted


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photo_tree(tmp_path_factory.mktemp("folder") / "photos")


@pytest.fixture(scope="module")
def beton(folder: Path) -> Path:
    write_folder(folder, folder.parent / "photos.beton")
    return folder.parent / "photos.beton"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def read_images(data: Dataset, decoder: str) -> tuple[torch.Tensor, list[int], list[int]]:
    """Return the images, labels and indices of an evaluation in batches of 4, without padding."""
    with Loader(data, VIEW, batch_size_per_rank=4, train=False, decoder=decoder, num_threads=1) as loader:
        batches = list(loader.epoch(0))
    indices = torch.cat([batch.indices for batch in batches])
    keep = indices >= 0
    images = torch.cat([batch.images[0] for batch in batches])[keep]
    return images, torch.cat([batch.labels for batch in batches])[keep].tolist(), indices[keep].tolist()


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("kind", ["beton", "folder"])
def test_every_decoder_reads_it(folder: Path, beton: Path, decoder: str, kind: str) -> None:
    if kind == "folder" and decoder in COMPILED:
        pytest.skip("it reads no folders")
    with Beton(beton) if kind == "beton" else Folder(folder) as whole:
        images, labels, _ = read_images(whole, decoder)
        part = Subset(whole, CHOSEN)
        part_images, part_labels, indices = read_images(part, decoder)
    assert indices == list(range(len(CHOSEN)))
    assert part_labels == [labels[i] for i in CHOSEN]
    assert torch.equal(part_images, images[CHOSEN])


def test_a_resident_set_keeps_the_part_alone(tmp_path: Path) -> None:
    samples = [(photo(i, 40, 40).tobytes(), 40, 40, RAW) for i in range(18)]
    with Beton(write(tmp_path / "raw.beton", samples)) as whole:
        images, labels, _ = read_images(whole, "resident")
        part = Subset(whole, CHOSEN)
        part_images, part_labels, indices = read_images(part, "resident")
        assert indices == list(range(7)) and part_labels == [labels[i] for i in CHOSEN]
        assert torch.equal(part_images, images[CHOSEN])
        with Loader(part, VIEW, batch_size_per_rank=4, decoder="resident") as loader:
            assert len(loader.decoder._images) == 7  # type: ignore[union-attr]


def test_what_it_says_of_itself_is_of_the_part(beton: Path) -> None:
    with Beton(beton) as whole:
        part = Subset(whole, CHOSEN)
        heights = whole.rows(CHOSEN).height
        assert part.image_sizes()[::2] == (heights.min(), heights.max()) != whole.image_sizes()[::2]
        assert part.labels().tolist() == whole.labels()[CHOSEN].tolist()
        assert (part.num_samples, part.num_classes, part.class_names) == (7, 3, ["ant", "cat", "dog"])
        assert part.name(3) == whole.name(17)
        rows = part.rows(np.array([3, 0]))
        assert rows.indices.tolist() == [3, 0]
        assert rows.offset.tolist() == whole.rows(CHOSEN[[3, 0]]).offset.tolist()
        # A subset with fewer classes keeps the labels of the whole.
        assert Subset(whole, np.flatnonzero(whole.labels() == 2)).num_classes == 3
        with pytest.raises(IndexError, match="the data has 0 to 6"):
            part.rows(np.array([7]))
        with pytest.raises(AttributeError, match="shards"):
            part.shards  # noqa: B018


def test_its_digest_is_of_the_data_and_of_the_choice(beton: Path) -> None:
    with Beton(beton) as whole:
        digest = Subset(whole, CHOSEN).digest()
        others = [
            Subset(whole, CHOSEN[::-1]).digest(),
            Subset(whole, CHOSEN[:-1]).digest(),
            Subset(Synthetic(18), CHOSEN).digest(),
            whole.digest(),
        ]
        assert Subset(whole, CHOSEN.astype(np.int32)).digest() == digest
    assert digest not in others and len(set(others)) == 4


@pytest.mark.parametrize(
    ("indices", "message"),
    [([], "without any"), ([3, 18], "sample 18"), ([-1], "sample -1"), ([3, 5, 3], "sample 3 .* twice")],
)
def test_wrong_indices_are_refused(indices: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Subset(Synthetic(18), np.array(indices, np.int64))


def test_closing_it_closes_the_whole(beton: Path) -> None:
    whole = Beton(beton)
    with Subset(whole, CHOSEN):
        whole.rows(np.array([0]))
    with pytest.raises(OSError):
        whole.rows(np.array([0]))
