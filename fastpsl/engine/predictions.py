"""Predictions of a network for all images of a data set, in files that an interrupted pass can resume from.

Each image is predicted alone, so that its predictions depend on no other. Images are divided into parts of
`PART`, and a part is one file of one rank. Complete parts are joined to predictions.npz, in the order of the
images. On the CPU, the bytes are equal for equal weights, decoder and threads, for any number of ranks.
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
from fastpsl.files.atomic import remove_leftovers, write_atomically

PART = 16
NAME, RECORD = "predictions.npz", "predictions.json"
Predictions = dict[str, np.ndarray]
"""Name → array [n, ...] of an image, such as n boxes or one row of scores.

Names and trailing shapes are the same for all images.
"""


def predict(
    folder: Path,
    num_images: int,
    predict_images: Callable[[range], Iterator[Predictions]],
    world: World,
    science: Mapping[str, Any],
    after_image: Callable[[int], bool] = lambda done: False,
) -> Path | None:
    """Write folder/predictions.npz with the concatenated arrays of all images.

    An array "image", int64 [N], holds the image of each row. Every rank must call it.

    Args:
        folder: The run's folder.
        num_images: The number of images.
        predict_images: Yields the predictions of each image of a range.
        world: The ranks.
        science: What predictions depend on, as JSON values. Parts with another science are deleted. If
            predictions.npz has the same (predictions.json), nothing is computed.
        after_image: Called after each image with the number of this rank's images so far, on every rank
            equally often. It stops the pass by returning True.

    Returns:
        The path, where rank 0 has written the file; None if `after_image` stopped the pass. Complete parts
        are kept then.
    """
    assert num_images > 0
    parts, whole = folder / "predictions", folder / NAME
    if share(world, _begin(folder, parts, science) if world.rank == 0 else None):
        return whole
    starts = range(0, num_images, PART)
    # All ranks take the same number of parts, because `after_image` may communicate.
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
        arrays = [read_predictions(parts / f"{part:06d}.npz") for part in range(len(starts))]
        _save(
            whole, {name: np.concatenate([part_arrays[name] for part_arrays in arrays]) for name in arrays[0]}
        )
        write_atomically(folder / RECORD, _science_text(science).encode())
        shutil.rmtree(parts)
    wait_for_all(world)
    return whole


def read_predictions(path: Path) -> Predictions:
    """Read the arrays of a file that `predict` wrote.

    Raises:
        ValueError: The file does not exist.
    """
    try:
        with np.load(path) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise ValueError(
            f"{path} is not there: a finished run's predictions stay in its own folder; give that as "
            "--out, or evaluate anew"
        ) from None


def _begin(folder: Path, parts: Path, science: Mapping[str, Any]) -> bool:
    """Return whether the predictions of this science exist; otherwise prepare the folder of parts."""
    record = folder / RECORD
    remove_leftovers(folder, NAME, RECORD)
    if record.exists() and record.read_text() == _science_text(science) and (folder / NAME).exists():
        shutil.rmtree(parts, ignore_errors=True)  # a run may have been killed while it removed them
        return True
    record.unlink(missing_ok=True)
    begin_folder(parts, science)
    return False


def _science_text(science: Mapping[str, Any]) -> str:
    return json.dumps(dict(science), sort_keys=True)


def begin_folder(parts: Path, science: Mapping[str, Any]) -> None:
    """Create an empty folder of parts, or keep one with parts of the same science."""
    text, record = _science_text(science), parts / "science.json"
    if not (record.exists() and record.read_text() == text):
        shutil.rmtree(parts, ignore_errors=True)
        parts.mkdir(parents=True)
        write_atomically(record, text.encode())


def _joined(rows: list[Predictions], first: int) -> Predictions:
    """Concatenate the rows of consecutive images, starting with image `first`, and add "image"."""
    image = np.repeat(
        np.arange(first, first + len(rows)), [len(next(iter(row.values()))) for row in rows]
    ).astype(np.int64)
    return {"image": image} | {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def _save(path: Path, arrays: Predictions) -> None:
    data = io.BytesIO()
    np.savez(data, **arrays)  # type: ignore[arg-type]
    write_atomically(path, data.getbuffer())
