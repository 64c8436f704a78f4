"""The embedded sample: 640 small images that the project draws itself, as dataset files in the user's cache.

Every recipe without `--data` uses it. Train and test hold JPEGs of 128 to 200 px a side. The 32-px files
hold the middle squares of the same images as raw 32 x 32. The first use draws them in seconds, and processes
that start at the same time wait for one another.
"""

import fcntl
from pathlib import Path
from typing import NamedTuple

from fastpsl.files.caches import cache_folder

VERSION = "sample-v1"  # a new name whenever the images change
NUM_TRAIN, NUM_TEST = 480, 160


class SamplePaths(NamedTuple):
    """The paths of the sample's dataset files."""

    train: Path
    test: Path
    train_32: Path
    test_32: Path


def sample_paths(cache: Path | None = None) -> SamplePaths:
    """Return the sample's dataset files, which the first use draws.

    They are equal on every machine but for the version of the JPEG encoder.

    Args:
        cache: The folder for them; by default $XDG_CACHE_HOME or ~/.cache, there fastpsl/sample-v1.

    Raises:
        ValueError: The folder cannot be written.
    """
    folder = (cache or cache_folder()) / VERSION
    paths = SamplePaths(*(folder / f"{name}.beton" for name in SamplePaths._fields))
    if all(path.exists() for path in paths):
        return paths
    from fastpsl.pipelines.sample.drawn_betons import draw_part  # seldom needed, and slow to import

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # one rank draws, the others find the files
            for part, small, first, num in (
                (paths.train, paths.train_32, 0, NUM_TRAIN),
                (paths.test, paths.test_32, NUM_TRAIN, NUM_TEST),
            ):
                if not (part.exists() and small.exists()):
                    draw_part(part, small, first, num, VERSION)
    except OSError as error:
        raise ValueError(
            f"{folder}: the sample cannot be made there ({error.strerror}); "
            f"set XDG_CACHE_HOME to a folder that can be written"
        ) from None
    return paths
