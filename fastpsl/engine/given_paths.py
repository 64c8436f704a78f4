"""The check of the paths that options name, before anything is printed or read."""

import os
from pathlib import Path

from fastpsl.engine.options import RunOptions
from fastpsl.pipelines.files.existing import require_existing


def require_paths(options: RunOptions) -> None:
    """Check that --data, --val and --checkpoint name something, and that --data is not both parts in one.

    Args:
        options: The options.

    Raises:
        ValueError: Nothing is there; or --data has a part for training and one for validation.
    """
    for source in (options.data, options.val):
        if source is not None:
            require_existing(source, options.forms)
    checkpoint: Path | None = getattr(options, "checkpoint", None)
    if checkpoint is not None:
        require_existing(checkpoint, "a checkpoint, a run's folder, or a file of weights")
    if options.data is None or "val" in options.without or not os.path.isdir(options.data):
        return
    from fastpsl.pipelines.sources.folder import parts_in  # imports numpy, which --help does without

    folder = Path(options.data)
    if parts := parts_in([name for name in os.listdir(folder) if (folder / name).is_dir()]):
        train, val = (folder / part for part in parts)
        raise ValueError(
            f"--data {folder}: holds the folders {train.name} and {val.name}: give --data {train} --val {val}"
        )
