"""Checks of whole data sets that take long: what has passed once is not checked again for as long as it stays as it is."""

import fcntl
import sys
from collections.abc import Callable
from contextlib import ExitStack

from fastpsl.pipelines.doing import doing
from fastpsl.pipelines.files.cache_folder import cache_folder


def checked_once(digest: str, what: str, check: Callable[[], None]) -> None:
    """Calls `check` unless it has passed before for contents of this digest; of several processes one does, the others wait.

    what: in words, said on stderr. What `check` raises goes through, and it is called again next time. ValueError when the cache folder
    cannot be written.
    """
    place = cache_folder() / "checked"
    passed = place / digest
    if passed.exists():
        return
    with ExitStack() as stack:
        try:
            place.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(open(place / "lock", "w"))
            with doing(f"waiting for another process, which checks {what}"):
                fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            raise ValueError(
                f"{place}: what was checked cannot be kept there ({error.strerror}); set XDG_CACHE_HOME to a folder that can be written"
            ) from None
        if not passed.exists():
            print(f"checking {what}, this once", file=sys.stderr, flush=True)
            with doing(f"checking {what}"):
                check()
            passed.touch()
