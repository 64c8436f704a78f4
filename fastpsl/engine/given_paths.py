"""The check of the paths that options name, before anything is printed or read."""

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
