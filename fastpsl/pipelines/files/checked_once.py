"""Long checks of whole data sets, remembered by the digest of what they checked."""

import fcntl
import sys
from collections.abc import Callable
from contextlib import ExitStack

from fastpsl.pipelines.doing import doing
from fastpsl.pipelines.files.cache_folder import cache_folder


def checked_once(digest: str, what: str, check: Callable[[], None]) -> None:
    """Call `check` unless it has passed before for contents of this digest.

    One of several processes checks, and the others wait for it. A check that raises is called again next
    time.

    Args:
        digest: The digest of the contents, in hexadecimal; it names the file that records the success.
        what: The contents in words, for the line on stderr.
        check: The check; what it raises passes through.

    Raises:
        ValueError: The cache folder cannot be written.
    """
    folder = cache_folder() / "checked"
    passed = folder / digest
    if passed.exists():
        return
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(open(folder / "lock", "w"))
            with doing(f"waiting for another process, which checks {what}"):
                fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            raise ValueError(
                f"{folder}: what was checked cannot be kept there ({error.strerror}); "
                f"set XDG_CACHE_HOME to a folder that can be written"
            ) from None
        if not passed.exists():
            print(f"checking {what}, this once", file=sys.stderr, flush=True)
            with doing(f"checking {what}"):
                check()
            passed.touch()
