"""Whole pictures in batches: order, ranks, the place to go on from, errors and ends."""

import threading
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastpsl.pipelines.batch import BadSampleError
from fastpsl.pipelines.data.image_folder import Folder
from fastpsl.pipelines.loader.annotated import AnnotatedImage, AnnotatedLoader, read_picture
from fastpsl.pipelines.loader.order import epoch_order

NUM = 23


def read(index: int, epoch: int) -> AnnotatedImage:
    """A picture of its own size and value, and what is known of it."""
    picture = torch.full((3, 4 + index, 5 + epoch), index, dtype=torch.uint8)
    return picture, {"twice": torch.tensor([2 * index]), "boxes": torch.zeros(index % 3, 4)}


def loader(**options: object) -> AnnotatedLoader:
    values = {"batch_size": 3, "seed": 5, "num_threads": 3, "timeout_s": 240.0} | options
    return AnnotatedLoader(values.pop("read", read), NUM, **values)  # type: ignore[arg-type]


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("pictures")]


def indices_of(made: AnnotatedLoader, epoch: int, first_step: int = 0) -> list[list[int]]:
    return [batch.indices.tolist() for batch in made.epoch(epoch, first_step)]


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("prefetch", [1, 3, 50])
def test_the_order_is_that_of_seed_and_epoch(num_threads: int, prefetch: int) -> None:
    with loader(num_threads=num_threads, prefetch_batches=prefetch) as made:
        assert made.num_steps == 7
        for epoch in (0, 1, 0):
            found = list(made.epoch(epoch))
            order = epoch_order(5, epoch, NUM)
            assert [batch.indices.tolist() for batch in found] == order[:21].reshape(7, 3).tolist()
            assert [(batch.epoch, batch.step) for batch in found] == [(epoch, step) for step in range(7)]
            for batch in found:
                assert batch.indices.dtype == torch.int64 and batch.labels.tolist() == [-1, -1, -1]
                assert batch.inputs((), torch.float32) == []
                for index, image, target in zip(
                    batch.indices.tolist(), batch.images, batch.targets, strict=True
                ):
                    picture, known = read(index, epoch)
                    assert torch.equal(image, picture) and image.dtype == torch.uint8
                    assert target.keys() == known.keys()
                    assert all(torch.equal(target[name], known[name]) for name in known)
    with loader(seed=6) as other:
        assert indices_of(other, 0) != epoch_order(5, 0, NUM)[:21].reshape(7, 3).tolist()


@pytest.mark.parametrize(("world", "batch_size"), [(2, 3), (3, 2)])
def test_ranks_share_the_batches_of_one(world: int, batch_size: int) -> None:
    """A global batch of six is the same pictures whatever the ranks."""
    with loader(batch_size=6) as one:
        alone = indices_of(one, 4)
    parts = []
    for rank in range(world):
        with loader(rank=rank, world=world, batch_size=batch_size) as made:
            parts.append(indices_of(made, 4))
    assert [[*chain(*step)] for step in zip(*parts, strict=True)] == alone


@pytest.mark.parametrize("first_step", [0, 1, 6, 7])
def test_an_epoch_goes_on_from_any_step(first_step: int) -> None:
    asked: list[int] = []

    def noted(index: int, epoch: int) -> AnnotatedImage:
        asked.append(index)
        return read(index, epoch)

    with loader() as made:
        whole = indices_of(made, 2)
    with loader(read=noted) as made:
        assert indices_of(made, 2, first_step) == whole[first_step:]
    assert sorted(asked) == sorted(chain(*whole[first_step:])), "what comes before is not read"


def test_what_read_raises_is_raised_here() -> None:
    bad = int(epoch_order(5, 0, NUM)[10])  # of step 3

    def broken(index: int, epoch: int) -> AnnotatedImage:
        if index == bad and epoch == 0:
            raise BadSampleError(f"picture {index}: no JPEG")
        return read(index, epoch)

    with loader(read=broken) as made:
        batches = made.epoch(0)
        assert [next(batches).step for _ in range(3)] == [0, 1, 2]
        with pytest.raises(BadSampleError, match=f"picture {bad}: no JPEG"):
            next(batches)
        assert len(indices_of(made, 1)) == 7, "other epochs are as good as ever"
    assert not threads()


def test_a_stuck_read_is_a_timeout() -> None:
    free = threading.Event()
    let_go: list[bool] = []

    def stuck(index: int, epoch: int) -> AnnotatedImage:
        let_go.append(free.wait(240))
        return read(index, epoch)

    made = loader(read=stuck, timeout_s=0.2)
    with pytest.raises(TimeoutError, match="no picture within 0.2 s"):
        next(made.epoch(0))
    assert not let_go  # it was not waited for
    free.set()
    for thread in threads():  # the next tests count them
        thread.join(240)
    with pytest.raises(ValueError, match="closed"):
        made.epoch(0)


def test_leaving_early_cancels_and_leaves_no_threads() -> None:
    asked: list[int] = []
    slow = threading.Event()

    def slowly(index: int, epoch: int) -> AnnotatedImage:
        asked.append(index)
        if len(asked) > 3:
            slow.wait(240)
        return read(index, epoch)

    made = loader(read=slowly, num_threads=1, prefetch_batches=7)
    batches = made.epoch(0)
    next(batches)
    batches.close()
    slow.set()
    made.close()
    assert len(asked) <= 5, "twenty more were asked for"
    assert not threads()
    with pytest.raises(ValueError, match="closed"):
        made.epoch(1)


def test_too_few_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match="23 samples are fewer than one global batch of 24"):
        loader(batch_size=12, world=2)
    assert not threads()
    with loader(batch_size=23) as made:
        assert made.num_steps == 1


def save(path: Path, picture: np.ndarray, orientation: int = 1) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture).save(path, exif=exif)


def test_a_picture_is_read_upright(tmp_path: Path) -> None:
    """Against Pillow's own values; grey and turned pictures too, and those that cannot be decoded by name."""
    random = np.random.default_rng(0)
    colour, grey = random.integers(0, 256, (20, 31, 3), np.uint8), random.integers(0, 256, (9, 7), np.uint8)
    save(tmp_path / "a.png", colour)
    save(tmp_path / "b.png", grey)
    save(tmp_path / "c.png", colour, orientation=6)  # to be turned by 90 degrees clockwise
    (tmp_path / "d.jpg").write_bytes(b"\xff\xd8 this is no picture")
    with pytest.warns(UserWarning, match=r"d\.jpg"):
        data = Folder(tmp_path)
    with data:
        names = [Path(data.name(index)).name for index in range(data.num_samples)]
        found = {name: read_picture(data, index) for index, name in enumerate(names) if name != "d.jpg"}
        with pytest.raises(BadSampleError, match=r"d\.jpg"):
            read_picture(data, names.index("d.jpg"))
    assert torch.equal(found["a.png"], torch.from_numpy(colour).permute(2, 0, 1))
    assert torch.equal(found["b.png"], torch.from_numpy(grey).expand(3, 9, 7))
    assert torch.equal(found["c.png"], torch.from_numpy(np.rot90(colour, -1).copy()).permute(2, 0, 1))
