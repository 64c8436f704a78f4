"""Checkpoints of a run: atomic writes, removal of old files, and fallback to older files."""

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from fastpsl.console.progress import operation
from fastpsl.files.atomic import atomic_file, remove_leftovers
from fastpsl.files.untrusted import check_zip

FORMAT = 1


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint file onto the CPU, with weights_only."""
    try:
        with operation(f"{path}: reading it"):
            check_zip(path, path.stat().st_size)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"no checkpoint {path}: give an existing file, or --resume auto") from None
    except Exception as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise ValueError(f"{path} is no readable checkpoint ({reason}): resume from an older one") from error
    # A tensor, whose comparison is no bool, is no format.
    if not isinstance(state, dict) or repr(state.get("format")) != repr(FORMAT):
        raise ValueError(
            f"{path} is not a fastpsl checkpoint of format {FORMAT}: resume needs one of this version"
        )
    return state


class CheckpointManager:
    """A folder of checkpoints (OUT/checkpoints) that keeps the newest `keep` files.

    Files are named step-00000120.pt, where the number counts the steps since the run began.
    """

    def __init__(self, folder: Path, keep: int = 3):
        self.folder = folder
        self.keep = keep
        self._tried = False

    def paths(self) -> list[Path]:
        """Return the complete checkpoints, oldest first."""
        return sorted(p for p in self.folder.glob("step-*.pt") if re.fullmatch(r"step-\d{8}\.pt", p.name))

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write `state` as the checkpoint of `step`, then delete all but the last `keep`.

        Raises:
            OSError: The file cannot be written. The older checkpoints are unchanged.
            TypeError: The state holds an object that weights_only would refuse to read.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step-{step:08d}.pt"
        remove_leftovers(self.folder, beginning="step-")
        with atomic_file(path) as file:
            try:
                torch.save({"format": FORMAT, **state}, file)
            except RuntimeError as error:
                # torch's writer only reports missing bytes. The cause is the error's context.
                if isinstance(error.__context__, (OSError, MemoryError)):
                    raise error.__context__ from None
                raise
            if not self._tried:
                self._try_to_read(file)
        for old in self.paths()[: -self.keep]:
            if old != path:
                old.unlink()
        return path

    def _try_to_read(self, file: BinaryIO) -> None:
        """Raise TypeError now, instead of at a resume, for a state that weights_only cannot read."""
        file.seek(0)
        try:
            torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise TypeError(
                "a checkpoint may hold tensors, numbers, strings, lists and dicts only; return nothing else "
                "in state_dict()"
            ) from error
        self._tried = True

    def newest(
        self, check: Callable[[Path, dict[str, Any]], None] | None = None
    ) -> tuple[Path, dict[str, Any], list[str]] | None:
        """Find the newest readable checkpoint.

        Args:
            check: Called with the path and state of a candidate; raises ValueError to reject it.

        Returns:
            The path, the state, and the error messages of newer checkpoints that were skipped; None if the
            folder has no checkpoint.

        Raises:
            ValueError: There are checkpoints, but none can be read.
        """
        problems: list[str] = []
        for path in reversed(self.paths()):
            try:
                state = read_checkpoint(path)
                if check is not None:
                    check(path, state)
                return path, state, problems
            except ValueError as error:
                problems.append(str(error))
        if problems:
            raise ValueError(f"no checkpoint in {self.folder} can be read; the newest: {problems[0]}")
        return None
