"""What a network says of every image of a data set, in files that an interrupted pass goes on with, equal for any number of ranks.

An image is seen alone, so that its predictions depend on no other. Images are taken in parts of `PART`; a part is one file, of one
rank. Where all parts are there they become PREDICTIONS.npz, in the order of the images. Bytes are equal for equal weights, decoder and threads
on the CPU, whatever the number of ranks.
"""

import io
import itertools
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastpsl.engine.distributed import World, share, wait_for_all
from fastpsl.pipelines.files.atomic import write_atomically

PART = 16
NAME, RECORD = "predictions.npz", "predictions.json"
Predictions = dict[str, np.ndarray]
"""Name → array [n, ...] of one image: n boxes, or one row of scores. The same names and trailing shapes for every image."""


def predict(
    folder: Path,
    num_images: int,
    predict_images: Callable[[range], Iterator[Predictions]],
    world: World,
    science: Mapping[str, Any],
    after_image: Callable[[int], bool] = lambda done: False,
) -> Path | None:
    """Write folder/predictions.npz: of all images' arrays, one behind the other, and "image", int64 [N]: whose each row is.

    Returns the path, which is there on rank 0, or None where `after_image` stopped it (parts that are whole stay). Every rank
    must call it.

    Args:
        predict_images: yields the predictions of each of some consecutive images.
        science: what predictions depend on, as JSON. Parts of another science are thrown away, and where predictions.npz is of
            this one (predictions.json) nothing is done again.
        after_image: called after each image of this rank with their number so far, on every rank equally often; True stops.
    """
    assert num_images > 0
    parts, whole = folder / "predictions", folder / NAME
    if share(world, _begin(folder, parts, science) if world.rank == 0 else None):
        return whole
    starts = range(0, num_images, PART)
    # Every rank comes to as many images, as `after_image` may communicate.
    rounds, done = -(-len(starts) // world.size), 0
    for number in range(rounds):
        part = number * world.size + world.rank
        images = range(starts[part], min(starts[part] + PART, num_images)) if part < len(starts) else range(0)
        path = parts / f"{part:06d}.npz"
        rows: list[Predictions] = []
        predicted = iter(()) if path.exists() or not images else predict_images(images)
        for _ in range(PART):
            rows += itertools.islice(predicted, 1)
            if after_image(done + len(rows)):
                return None
        if rows:
            assert len(rows) == len(images)
            _save(path, _joined(rows, images.start))
        done += len(rows)
    wait_for_all(world)
    if world.rank == 0:
        found = [read_predictions(parts / f"{part:06d}.npz") for part in range(len(starts))]
        _save(whole, {name: np.concatenate([one[name] for one in found]) for name in found[0]})
        write_atomically(folder / RECORD, _told(science).encode())
        shutil.rmtree(parts)
    wait_for_all(world)
    return whole


def read_predictions(path: Path) -> Predictions:
    """The arrays of a file that `predict` wrote. ValueError where it is not there."""
    try:
        with np.load(path) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise ValueError(
            f"{path} is not there: a finished run's predictions stay in its own folder; give that as --out, "
            "or evaluate anew"
        ) from None


def _begin(folder: Path, parts: Path, science: Mapping[str, Any]) -> bool:
    """Whether the predictions of this science are there; else its parts can be written."""
    record = folder / RECORD
    if record.exists() and record.read_text() == _told(science) and (folder / NAME).exists():
        shutil.rmtree(parts, ignore_errors=True)  # of a run that was killed as it cleared them away
        return True
    record.unlink(missing_ok=True)
    begin_folder(parts, science)
    return False


def _told(science: Mapping[str, Any]) -> str:
    return json.dumps(dict(science), sort_keys=True)


def begin_folder(parts: Path, science: Mapping[str, Any]) -> None:
    """An empty folder, or one of parts of this very science."""
    told, record = _told(science), parts / "science.json"
    if not (record.exists() and record.read_text() == told):
        shutil.rmtree(parts, ignore_errors=True)
        parts.mkdir(parents=True)
        write_atomically(record, told.encode())


def _joined(rows: list[Predictions], first: int) -> Predictions:
    """The rows of consecutive images from `first` on, and whose they are."""
    image = np.repeat(
        np.arange(first, first + len(rows)), [len(next(iter(row.values()))) for row in rows]
    ).astype(np.int64)
    return {"image": image} | {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def _save(path: Path, arrays: Predictions) -> None:
    data = io.BytesIO()
    np.savez(data, **arrays)  # type: ignore[arg-type]
    write_atomically(path, data.getbuffer())
