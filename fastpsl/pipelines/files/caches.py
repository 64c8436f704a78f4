"""Where compiled code, indices and the sample are kept when the user's own cache cannot be written, as in a read-only container."""

import contextlib
import os
import stat
import sys
import tempfile
from pathlib import Path


def choose_caches() -> None:
    """Leave $XDG_CACHE_HOME (by default ~/.cache) where it can be written; else set it to a private folder for temporary files.

    numba, which refuses to start without a cache, looks for it when it is imported: so this comes before. Matplotlib and Triton have
    variables of their own. Rank 0 says so; child processes inherit it. Leaves the process, with one line, where there is no such folder.
    """
    own = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    if os.path.isabs(own) and _can_be_written(own):
        return
    try:
        private = _private_folder()
    except OSError as error:
        if "NUMBA_CACHE_DIR" in os.environ or _can_be_written(os.path.dirname(__file__)):
            return  # who needs another cache says so
        raise SystemExit(
            f"fastpsl: no folder for compiled code: {own} cannot be written, nor one for temporary files ({error}); set NUMBA_CACHE_DIR "
            f"and XDG_CACHE_HOME to a folder that can be written"
        ) from None
    os.environ["XDG_CACHE_HOME"] = str(private)
    os.environ.setdefault("MPLCONFIGDIR", str(private / "matplotlib"))
    os.environ.setdefault("TRITON_CACHE_DIR", str(private / "triton"))
    if os.environ.get("RANK", "0") == "0" and sys.stderr is not None:
        print(
            f"fastpsl: {own} cannot be written: compiled code, indices and the sample go to {private}; set XDG_CACHE_HOME to a folder "
            f"that lasts",
            file=sys.stderr,
        )


def _can_be_written(folder: str) -> bool:
    """Made where it is not there."""
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def _private_folder() -> Path:
    """The same for all of a user's processes, as compiled code is worth keeping. Code is read from it and run: so it is nobody else's,
    or another one is made. OSError where none can be made.
    """
    folder = Path(tempfile.gettempdir()) / f"fastpsl-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = os.lstat(folder)
    if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077:
        return folder
    return Path(tempfile.mkdtemp(prefix="fastpsl-"))
