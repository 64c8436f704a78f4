"""The checks of the data that options name: paths before anything is printed, classes before work begins."""

from pathlib import Path

from fastpsl.engine.options import RunOptions
from fastpsl.pipelines.files.existing import FORMS, require_existing


def require_paths(options: RunOptions) -> None:
    """Check that --data, --val and --checkpoint name something of a kind that they may.

    Args:
        options: The options.

    Raises:
        ValueError: Nothing is there, or it is of another kind.
    """
    from fastpsl.pipelines.data.open import check_form  # imports numba, which --help does without

    for source in (options.data, options.val):
        if source is not None and options.forms == FORMS:
            check_form(source)
        elif source is not None:
            require_existing(source, options.forms)
    checkpoint: Path | None = getattr(options, "checkpoint", None)
    if checkpoint is not None:
        require_existing(checkpoint, "a checkpoint, a run's folder, or a file of weights")


def require_given_classes(options: RunOptions) -> None:
    """Check that --val has the classes of --data, without looking at images.

    Args:
        options: The options.

    Raises:
        ValueError: It has others, or one of them cannot be read.
    """
    from fastpsl.pipelines.data.classes import classes_of
    from fastpsl.pipelines.data.dataset import require_same_classes

    if options.data is not None and options.val is not None:
        require_same_classes(classes_of(options.data), classes_of(options.val), options.data, options.val)
