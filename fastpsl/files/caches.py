"""Folders for what can be made again, and long checks that are remembered there."""

import contextlib
import os
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from fastpsl.console.progress import operation
from fastpsl.console.terminal import own_rank
from fastpsl.files.locks import locked
from fastpsl.files.system_errors import remedy


def cache_folder() -> Path:
    """Return $XDG_CACHE_HOME/fastpsl, by default ~/.cache/fastpsl; it need not exist."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG Base Directory Specification says to ignore a path that is not absolute.
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "fastpsl"


def cache_remedy(error: OSError) -> str:
    """Return the remedy for an error of writing into the cache."""
    return remedy(
        error,
        "set XDG_CACHE_HOME to a folder that can be written",
        "free some space, or set XDG_CACHE_HOME to a folder on another disk",
    )


def choose_caches() -> None:
    """Set $XDG_CACHE_HOME to a private folder if the user's cache (by default ~/.cache) cannot be written.

    This must run before numba is imported. Rank 0 prints a line, and child processes inherit the variables.
    """
    # numba looks for its cache when it is imported, and refuses to start without one.
    user_cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    if os.path.isabs(user_cache) and _can_be_written(user_cache):
        return
    try:
        private = _private_folder()
    except OSError as error:
        if os.environ.get("NUMBA_CACHE_DIR") or _can_be_written(os.path.dirname(__file__)):
            return  # numba has a cache; others report their own errors
        raise SystemExit(
            f"fastpsl: no folder for compiled code: {user_cache} cannot be written, "
            f"nor one for temporary files ({error}); set NUMBA_CACHE_DIR "
            f"and XDG_CACHE_HOME to a folder that can be written"
        ) from None
    os.environ["XDG_CACHE_HOME"] = str(private)
    # Matplotlib and Triton have variables of their own.
    for name, folder in (("MPLCONFIGDIR", "matplotlib"), ("TRITON_CACHE_DIR", "triton")):
        os.environ[name] = os.environ.get(name) or str(private / folder)
    if own_rank() == 0 and sys.stderr is not None:
        print(
            f"fastpsl: {user_cache} cannot be written: compiled code, indices and the sample go to "
            f"{private}; set XDG_CACHE_HOME to a folder that lasts",
            file=sys.stderr,
        )


def _can_be_written(folder: str) -> bool:
    """Return whether files can be created in the folder, which is made where it is missing."""
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def _private_folder() -> Path:
    """Return a folder that belongs to this user alone; raises OSError where none can be made."""
    # One name for all processes of a user, since compiled code is worth keeping.
    folder = Path(tempfile.gettempdir()) / f"fastpsl-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    # Code is read from it and run, so neither a link nor another user's folder will do.
    status = os.lstat(folder)
    if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077:
        return folder
    # The name belongs to somebody else.
    return Path(tempfile.mkdtemp(prefix="fastpsl-"))


def checked_once(digest: str, what: str, check: Callable[[], None]) -> None:
    """Call `check` unless it has passed before for contents of this digest.

    One of several processes checks, and the others wait for it. A check that raises is called again next
    time.
    """
    folder = cache_folder() / "checked"
    passed = folder / digest
    with contextlib.ExitStack() as stack:
        with keeping(folder, "what was checked"):
            if passed.exists():
                return
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(folder / "lock", f"waiting for another process, which checks {what}"))
        if not passed.exists():  # another process may have checked during the wait
            print(f"checking {what}, this once", file=sys.stderr, flush=True)
            with operation(f"checking {what}"):
                check()
            with keeping(folder, "what was checked"):
                passed.touch()


@contextlib.contextmanager
def keeping(folder: Path, what: str) -> Iterator[None]:
    """Tell where something cannot be kept in the cache, and what to do."""
    try:
        yield
    except OSError as error:
        advice = cache_remedy(error)
        raise ValueError(f"{folder}: {what} cannot be kept there ({error.strerror}); {advice}") from None
