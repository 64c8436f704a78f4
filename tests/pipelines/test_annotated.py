"""The loader of whole images: order, ranks, resuming, errors and closing."""

import threading
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastpsl.pipelines.datasets.open_folder import Folder
from fastpsl.pipelines.loader.annotated import AnnotatedImage, AnnotatedLoader, read_image
from fastpsl.pipelines.loader.batch import BadSampleError
from fastpsl.pipelines.loader.order import epoch_order
from tests.pipelines.photos import exif

NUM = 23


def read(index: int, epoch: int) -> AnnotatedImage:
    """Return an image with a size and a value for each index, and its annotations."""
    image = torch.full((3, 4 + index, 5 + epoch), index, dtype=torch.uint8)
    return image, {"twice": torch.tensor([2 * index]), "boxes": torch.zeros(index % 3, 4)}


def make_loader(**options: object) -> AnnotatedLoader:
    values = {"batch_size_per_rank": 3, "seed": 5, "num_threads": 3, "timeout_s": 240.0} | options
    return AnnotatedLoader(values.pop("read", read), NUM, **values)  # type: ignore[arg-type]


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("images-")]


def indices_of(loader: AnnotatedLoader, epoch: int, first_step: int = 0) -> list[list[int]]:
    return [batch.indices.tolist() for batch in loader.epoch(epoch, first_step)]


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("prefetch", [1, 3, 50])
def test_the_order_is_that_of_seed_and_epoch(num_threads: int, prefetch: int) -> None:
    with make_loader(num_threads=num_threads, prefetch_batches=prefetch) as loader:
        assert loader.num_steps == 7
        for epoch in (0, 1, 0):
            batches = list(loader.epoch(epoch))
            order = epoch_order(5, epoch, NUM)
            assert [batch.indices.tolist() for batch in batches] == order[:21].reshape(7, 3).tolist()
            assert [(batch.epoch, batch.step) for batch in batches] == [(epoch, step) for step in range(7)]
            for batch in batches:
                assert batch.indices.dtype == torch.int64 and batch.labels.tolist() == [-1, -1, -1]
                assert batch.inputs((), torch.float32) == []
                for index, image, target in zip(
                    batch.indices.tolist(), batch.images, batch.targets, strict=True
                ):
                    expected_image, expected = read(index, epoch)
                    assert torch.equal(image, expected_image) and image.dtype == torch.uint8
                    assert target.keys() == expected.keys()
                    assert all(torch.equal(target[name], expected[name]) for name in expected)
    with make_loader(seed=6) as other:
        assert indices_of(other, 0) != epoch_order(5, 0, NUM)[:21].reshape(7, 3).tolist()


@pytest.mark.parametrize(("world", "batch_size_per_rank"), [(2, 3), (3, 2)])
def test_ranks_share_the_batches_of_one(world: int, batch_size_per_rank: int) -> None:
    """A global batch of six has the same images for any number of ranks."""
    with make_loader(batch_size_per_rank=6) as single:
        alone = indices_of(single, 4)
    parts = []
    for rank in range(world):
        with make_loader(rank=rank, world=world, batch_size_per_rank=batch_size_per_rank) as loader:
            parts.append(indices_of(loader, 4))
    assert [[*chain(*step)] for step in zip(*parts, strict=True)] == alone


@pytest.mark.parametrize("first_step", [0, 1, 6, 7])
def test_an_epoch_goes_on_from_any_step(first_step: int) -> None:
    read_indices: list[int] = []

    def recording(index: int, epoch: int) -> AnnotatedImage:
        read_indices.append(index)
        return read(index, epoch)

    with make_loader() as loader:
        whole = indices_of(loader, 2)
    with make_loader(read=recording) as loader:
        assert indices_of(loader, 2, first_step) == whole[first_step:]
    assert sorted(read_indices) == sorted(chain(*whole[first_step:])), "what comes before is not read"


def test_what_read_raises_is_raised_here() -> None:
    bad = int(epoch_order(5, 0, NUM)[10])  # of step 3

    def broken(index: int, epoch: int) -> AnnotatedImage:
        if index == bad and epoch == 0:
            raise BadSampleError(f"picture {index}: no JPEG")
        return read(index, epoch)

    with make_loader(read=broken) as loader:
        batches = loader.epoch(0)
        assert [next(batches).step for _ in range(3)] == [0, 1, 2]
        with pytest.raises(BadSampleError, match=f"picture {bad}: no JPEG"):
            next(batches)
        assert len(indices_of(loader, 1)) == 7, "other epochs are as good as ever"
    assert not threads()


def test_a_stuck_read_is_a_timeout() -> None:
    free = threading.Event()
    release: list[bool] = []

    def stuck(index: int, epoch: int) -> AnnotatedImage:
        release.append(free.wait(240))
        return read(index, epoch)

    loader = make_loader(read=stuck, timeout_s=0.2)
    with pytest.raises(TimeoutError, match="no image within 0.2 s"):
        next(loader.epoch(0))
    assert not release  # the loader did not wait for the read
    free.set()
    for thread in threads():  # because the next tests count them
        thread.join(240)
    with pytest.raises(ValueError, match="closed"):
        loader.epoch(0)


def test_leaving_early_cancels_and_leaves_no_threads() -> None:
    read_indices: list[int] = []
    slow = threading.Event()

    def slowly(index: int, epoch: int) -> AnnotatedImage:
        read_indices.append(index)
        if len(read_indices) > 3:
            slow.wait(240)
        return read(index, epoch)

    loader = make_loader(read=slowly, num_threads=1, prefetch_batches=7)
    batches = loader.epoch(0)
    next(batches)
    batches.close()
    slow.set()
    loader.close()
    assert len(read_indices) <= 5, "twenty more were asked for"
    assert not threads()
    with pytest.raises(ValueError, match="closed"):
        loader.epoch(1)


def test_too_few_images_are_refused() -> None:
    with pytest.raises(ValueError, match="23 samples are fewer than one global batch of 24"):
        make_loader(batch_size_per_rank=12, world=2)
    assert not threads()
    with make_loader(batch_size_per_rank=23) as loader:
        assert loader.num_steps == 1


def test_an_image_is_read_upright(tmp_path: Path) -> None:
    """Colour, grey and rotated images equal Pillow's, and an error names the image that cannot be decoded."""
    random = np.random.default_rng(0)
    colour, grey = random.integers(0, 256, (20, 31, 3), np.uint8), random.integers(0, 256, (9, 7), np.uint8)
    for name, pixels, orientation in (("a", colour, 1), ("b", grey, 1), ("c", colour, 6)):  # 6: by 90 degrees
        Image.fromarray(pixels).save(tmp_path / f"{name}.png", exif=exif(orientation))
    (tmp_path / "d.jpg").write_bytes(b"\xff\xd8 this is no picture")
    with pytest.warns(UserWarning, match=r"d\.jpg"):
        data = Folder(tmp_path)
    with data:
        names = [Path(data.name(index)).name for index in range(data.num_samples)]
        images = {name: read_image(data, index) for index, name in enumerate(names) if name != "d.jpg"}
        with pytest.raises(BadSampleError, match=r"d\.jpg"):
            read_image(data, names.index("d.jpg"))
    assert torch.equal(images["a.png"], torch.from_numpy(colour).permute(2, 0, 1))
    assert torch.equal(images["b.png"], torch.from_numpy(grey).expand(3, 9, 7))
    assert torch.equal(images["c.png"], torch.from_numpy(np.rot90(colour, -1).copy()).permute(2, 0, 1))
