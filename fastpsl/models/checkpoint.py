"""Checkpoints: written beside and renamed, the last few kept, read with weights_only; a corrupt one is passed over."""

import io
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fastpsl.pipelines.doing import doing
from fastpsl.pipelines.files.atomic import write_atomically
from fastpsl.pipelines.files.bounded import check_zip

FORMAT = 1


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The state in a checkpoint file, on the CPU. ValueError where it is missing, corrupt (a flipped bit, too) or of another kind."""
    try:
        with doing(f"{path}: reading it"):
            check_zip(path, path.stat().st_size)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"no checkpoint {path}: give an existing file, or --resume auto") from None
    except Exception as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise ValueError(f"{path} is no readable checkpoint ({reason}): resume from an older one") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(
            f"{path} is not a fastpsl checkpoint of format {FORMAT}: resume needs one of this version"
        )
    return state


class CheckpointManager:
    """The folder OUT/checkpoints with files step-00000120.pt, the number being steps since the run began."""

    def __init__(self, folder: Path, keep: int = 3):
        self.folder = folder
        self.keep = keep
        self._tried = False

    def paths(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted(p for p in self.folder.glob("step-*.pt") if re.fullmatch(r"step-\d{8}\.pt", p.name))

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write `state` for `step`, then delete all but the last `keep`. OSError leaves the older ones as they were."""
        return self.write(step, self.packed(state))

    def packed(self, state: dict[str, Any]) -> memoryview:
        """The file that holds `state`. MemoryError where there is no room for it."""
        buffer = io.BytesIO()
        try:
            torch.save({"format": FORMAT, **state}, buffer)
        except RuntimeError as error:
            # What torch's writer says is that bytes are missing; why is behind it.
            if isinstance(error.__context__, MemoryError):
                raise error.__context__ from None
            raise
        if not self._tried:
            self._try_to_read(buffer)
        return buffer.getbuffer()

    def write(self, step: int, data: memoryview) -> Path:
        """`save` of what is packed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step-{step:08d}.pt"
        write_atomically(path, data)
        for old in self.paths()[: -self.keep]:
            if old != path:
                old.unlink()
        return path

    def _try_to_read(self, buffer: io.BytesIO) -> None:
        """Refuse, at the first save and not at the first resume, a state that weights_only would not read."""
        buffer.seek(0)
        try:
            torch.load(buffer, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise TypeError(
                "a checkpoint may hold tensors, numbers, strings, lists and dicts only"
            ) from error
        self._tried = True

    def newest(
        self, check: Callable[[Path, dict[str, Any]], None] | None = None
    ) -> tuple[Path, dict[str, Any], list[str]] | None:
        """The newest readable checkpoint with its state, and what was wrong with the ones that were passed over.

        check: raises ValueError for a state that does not serve. None where there is no checkpoint; ValueError where there are some and none can be read.
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
