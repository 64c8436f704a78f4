"""The checks of the data that options name: paths before anything is printed, classes before work begins."""

import os
from pathlib import Path

from fastpsl.engine.options import RunOptions
from fastpsl.files.paths import FORMS, WEIGHTS, require_existing


def require_paths(options: RunOptions) -> None:
    """Check that --data, --val and --checkpoint name what they may, and that --out can be made.

    Args:
        options: The options.

    Raises:
        ValueError: Nothing is there, it is of another kind, or --out is in no folder that can be written.
    """
    from fastpsl.pipelines.datasets.open import check_form  # imports numba, which --help does without

    for source in (options.data, options.val):
        if source is not None and options.forms == FORMS:
            check_form(source)
        elif source is not None:
            require_existing(source, options.forms)
    checkpoint: Path | None = getattr(options, "checkpoint", None)
    if checkpoint is not None:
        require_existing(checkpoint, WEIGHTS)
    if options.out is not None:
        require_folder(options.out)


def require_folder(out: Path) -> None:
    """Raise ValueError unless --out is a folder that can be written, or that can be made; make nothing."""
    place = next(path for path in (out, *out.absolute().parents) if os.path.lexists(path))
    if not place.is_dir():
        which = out if place == out else f"{out}: {place}"
        raise ValueError(f"--out {which} is a file: give a folder, or a path that does not exist yet")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ValueError(f"--out {out}: {place} cannot be written; choose a folder that can be written")


def require_given_classes(options: RunOptions) -> None:
    """Check that --val has the classes of --data, without looking at images.

    Args:
        options: The options.

    Raises:
        ValueError: It has others, or one of them cannot be read.
    """
    from fastpsl.pipelines.data.dataset import require_same_classes
    from fastpsl.pipelines.datasets.open import classes_of

    if options.data is not None and options.val is not None:
        train, val = (
            classes_of(source, options.cache_dir, options.cache_gb) for source in (options.data, options.val)
        )
        require_same_classes(train, val, options.data, options.val)
