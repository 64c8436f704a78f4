"""Checkpoints of a run: atomic writes, removal of old files, and fallback to older files."""

import io
import mmap
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from fastpsl.console.progress import operation
from fastpsl.files.atomic import atomic_file, remove_leftovers
from fastpsl.files.json_records import open_regular
from fastpsl.files.system_errors import UnreadableError, input_errors, raise_of_the_system
from fastpsl.files.untrusted import check_calls, check_pickles, check_size, check_zip, leaves

FORMAT = 1


# The functions that torch lets a pickle call though their results may be of any size.
_UNBOUNDED = (".bytearray", ".encode")
_NUM_PICKLES = 5  # in torch's older format: before the tensors' numbers


class ForeignObjectError(ValueError):
    """An object besides tensors and plain values, by its name, which could run code."""


def load_tensors(path: Path) -> Any:
    """Load a file of torch.save onto the CPU, with weights_only, after a look at its pickles.

    Raises:
        ForeignObjectError: It holds other objects than tensors and plain values.
        ValueError: It is damaged, or claims more than it can hold.
        UnreadableError: The system cannot read it.
        OSError: The system cannot open it.
        MemoryError: There is too little memory for it.
    """
    with open_regular(path) as file:
        num_bytes = os.fstat(file.fileno()).st_size
        try:
            _check(path, file, num_bytes)
            state = torch.load(file, map_location="cpu", weights_only=True)
            check_size(bytes_of(leaves(state, num_bytes)), num_bytes)
            return state
        except ForeignObjectError:
            raise
        except Exception as error:
            text = " ".join(str(error).split())
            if isinstance(error, pickle.UnpicklingError) and "GLOBAL " in text:
                raise ForeignObjectError(text.partition("GLOBAL ")[2].split(" ")[0]) from None
            if wanted := re.search(r"tried to allocate (\d+) bytes", text):
                check_size(int(wanted[1]), num_bytes)
            raise_of_the_system(path, error)
            # torch's message is about its archive reader, though the usual cause is a truncated file.
            is_ours = isinstance(error, (zipfile.BadZipFile, ValueError))
            reason = text[:200] if is_ours else "cut short or damaged"
            raise ValueError(reason) from error


def bytes_of(values: Iterable[Any]) -> int:
    """Return the bytes of memory that dense tensors have. Shared memory is counted once."""
    storages = {
        storage.data_ptr(): storage.nbytes()
        for tensor in values
        if isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided and not tensor.is_meta
        for storage in [tensor.untyped_storage()]
    }
    return sum(storages.values())


def _check(path: Path, file: BinaryIO, num_bytes: int) -> None:
    """Check the zip, and the opcodes of all pickles that torch would load."""
    names = list[str]()
    is_zip = file.read(4) == b"PK\3\4"  # as torch finds out; `zipfile` looks at the end
    if is_zip:
        check_zip(path, num_bytes)
        with zipfile.ZipFile(file) as archive:
            for name in archive.namelist():
                if name.casefold().endswith("data.pkl"):
                    pickled = archive.read(name)
                    names += check_pickles(pickled, num_bytes)
                    check_calls(io.BytesIO(pickled), num_bytes)
    elif num_bytes:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                names += check_pickles(data, num_bytes, _NUM_PICKLES)
            except ValueError:
                for name in check_pickles(data, num_bytes):
                    raise ForeignObjectError(name) from None
                raise ValueError("a pickle that torch.save did not write") from None
            check_calls(data, num_bytes, _NUM_PICKLES)
    for name in names:
        if name.endswith(_UNBOUNDED):
            raise ForeignObjectError(name)
    file.seek(0)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint file onto the CPU, with weights_only."""
    if not path.exists():
        raise ValueError(f"no checkpoint {path}: give an existing file, or --resume auto")
    with input_errors(path), operation(f"{path}: reading it"):
        try:
            state = load_tensors(path)
        except UnreadableError:
            raise
        except ValueError as error:
            reason = " ".join(str(error).split())[:120]
            raise ValueError(
                f"{path} is no readable checkpoint ({reason}): resume from an older one"
            ) from error
    # A tensor, whose comparison is no bool, is no format.
    if not isinstance(state, dict) or type(state.get("format")) is not int or state["format"] != FORMAT:
        raise ValueError(
            f"{path} is not a fastpsl checkpoint of format {FORMAT}: resume needs one of this version"
        )
    return state


class CheckpointManager:
    """A folder of checkpoints (OUT/checkpoints) that keeps the newest `keep` files.

    Files are named step-00000120.pt, where the number counts the steps since the run began. One more,
    `start`, has the weights that the run began with, and always stays.
    """

    def __init__(self, folder: Path, keep: int = 3):
        self.folder, self.start = folder, folder / "start.pt"
        self.keep = keep  # more than one, because `newest` falls back where the last one is damaged
        self._tried = False

    def paths(self) -> list[Path]:
        """Return the complete checkpoints, oldest first."""
        # By name, which is by step, because of the zeros in front.
        return sorted(p for p in self.folder.glob("step-*.pt") if re.fullmatch(r"step-\d{8}\.pt", p.name))

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write `state` as the checkpoint of `step`, then delete all but the last `keep`.

        Raises:
            OSError: The file cannot be written. The older checkpoints are unchanged.
            TypeError: The state holds an object that weights_only would refuse to read.
        """
        path = self.write(self.folder / f"step-{step:08d}.pt", state)
        for old in self.paths()[: -self.keep]:  # now that the new one is whole
            if old != path:
                old.unlink()
        return path

    def write(self, path: Path, state: dict[str, Any]) -> Path:
        """Write `state` to a file of the folder, and return its path; errors are those of `save`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.folder, beginning=("step-", "start"))
        with atomic_file(path) as file:
            try:
                torch.save({"format": FORMAT, **state}, file)
            except RuntimeError as error:
                # torch's writer only reports missing bytes. The cause is the error's context.
                if isinstance(error.__context__, (OSError, MemoryError)):
                    raise error.__context__ from None
                raise
            if not self._tried:  # once: later states are taken to hold the same types
                self._try_to_read(file)
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
            except UnreadableError:  # an older one would lose steps of a file that may be sound
                raise
            except ValueError as error:
                problems.append(str(error))
        if problems:
            raise ValueError(f"no checkpoint in {self.folder} can be read; the newest: {problems[0]}")
        return None
