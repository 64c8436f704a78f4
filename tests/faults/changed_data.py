"""Data that change during training: deleted, truncated, replaced or overwritten in place."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from fastpsl.pipelines.beton.encode import Target
from fastpsl.pipelines.beton.sidecar import sidecar_path
from fastpsl.pipelines.beton.write import write_beton
from fastpsl.pipelines.data.source import Sample
from tests.faults.disk import write_images
from tests.faults.trials import Outcome, Trial, long_run, stop_after
from tests.pipelines.photos import jpeg, photo

NUM_SAMPLES = 80
_PAGE_BYTES = 1 << 21


def beton(path: Path, seed: int = 0) -> Path:
    """Write a beton of photos of 130 to 190 px, and return its path."""
    samples = (
        Sample(f"{i}.jpg", jpeg(photo(seed + i % 40, 130 + 7 * i % 60, 130 + 11 * i % 60)), i % 4)
        for i in range(NUM_SAMPLES)
    )
    write_beton(
        samples,
        path,
        num_samples=NUM_SAMPLES,
        class_names=["a", "b", "c", "d"],
        target=Target(),
        page_bytes=_PAGE_BYTES,
    )
    return path


def _changed(
    folder: Path, change: Callable[[Path], object], *words: str, data: Path | None = None
) -> Outcome:
    """Change `data` during training; the run must go on, or end in a line with its name and `words`."""
    data = data or beton(folder / "x.beton")
    process = long_run(folder / "run", folder / "log", "--data", data, "--timeout-s", 30)
    change(data)
    # More steps than an epoch has, and than the batches that are ready.
    return stop_after(process, folder / "run", NUM_SAMPLES // 4 + 10, words and (data.name, *words))


def deleted(folder: Path) -> Outcome:
    """Delete the beton; the open file stays readable."""

    def delete(data: Path) -> None:
        data.unlink()
        sidecar_path(data).unlink()

    return _changed(folder, delete)


def replaced_by_a_renamed_one(folder: Path) -> Outcome:
    """Rename another beton to its name; the open file stays, or the message names the new one."""
    other = beton(folder / "other.beton", seed=100)
    return _changed(folder, lambda data: os.replace(other, data), "changed")


def truncated_in_its_pictures(folder: Path) -> Outcome:
    return _changed(folder, lambda data: os.truncate(data, data.stat().st_size * 2 // 3), "truncated")


def truncated_to_nothing(folder: Path) -> Outcome:
    return _changed(folder, lambda data: os.truncate(data, 0), "truncated")


def overwritten_by_zeros(folder: Path) -> Outcome:
    return _changed(folder, lambda data: _overwrite(data, bytes(data.stat().st_size)), "overwritten")


def overwritten_by_another_beton(folder: Path) -> Outcome:
    """Overwrite the beton by a sound one with other images, as cp and rsync --inplace do."""
    other = beton(folder / "other.beton", seed=100).read_bytes()
    outcome = _changed(folder, lambda data: _overwrite(data, other), "overwritten")
    return ("silent", "trained on to its end on other pictures") if outcome[0] == "goes on" else outcome


def folder_deleted(folder: Path) -> Outcome:
    return _changed(
        folder, shutil.rmtree, "No such file", data=write_images(folder / "pictures", NUM_SAMPLES)
    )


def a_picture_of_a_folder_deleted(folder: Path) -> Outcome:
    gone = "class 1/17.jpg"
    return _changed(
        folder, lambda data: os.unlink(data / gone), gone, data=write_images(folder / "pictures", NUM_SAMPLES)
    )


def _overwrite(data: Path, content: bytes) -> None:
    with open(data, "r+b") as file:
        file.write(content)


TRIALS: tuple[Trial, ...] = (
    deleted, replaced_by_a_renamed_one, truncated_in_its_pictures, truncated_to_nothing, overwritten_by_zeros,
    overwritten_by_another_beton, folder_deleted, a_picture_of_a_folder_deleted,
)  # fmt: skip
