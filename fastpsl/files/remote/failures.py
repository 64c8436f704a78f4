"""What may go wrong between here and a server: which failures pass, and how they are said in a line."""

import random
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

Result = TypeVar("Result")
HELP = "https://fastpsl.github.io/fastpsl/how_to/remote_data.html#credentials"
_FIRST_PAUSE_S, _MAX_PAUSE_S = 0.2, 5.0  # doubled in between, so a minute has about twenty tries
TELL_AFTER_S = 5.0  # most failures pass before, and are worth no line (not measured)
_TELL_AGAIN_S = 30.0  # many parts wait for one server
NEVER = threading.Event()
_FINAL = {401: "credentials", 403: "credentials", 404: "missing", 410: "missing"}


class _Told:
    """The time at which this process last told of a server without an answer, for all threads."""

    def __init__(self) -> None:
        self._lock, self._at = threading.Lock(), float("-inf")

    def is_due(self) -> bool:
        """Return whether it is time for a line, which the caller prints then."""
        with self._lock:
            is_due = time.monotonic() >= self._at + _TELL_AGAIN_S
            if is_due:
                self._at = time.monotonic()
            return is_due


_told = _Told()


class WrongBytesError(OSError):
    """A server's answer that is not what was asked for, or does not match its checksum."""


class RemoteDataError(ValueError):
    """A failure of the network or a server that no other try mends, as one line with the remedy."""


def is_final(error: BaseException) -> bool:
    """Return whether another try would fail as well: nothing is there, or access is denied."""
    return _kind(error) != "passing"


def _root(error: BaseException) -> BaseException:
    """Return aiohttp's error where fsspec made a FileNotFoundError of it, as it does with all of them."""
    cause = error.__cause__
    return cause if cause is not None and type(cause).__module__.startswith("aiohttp") else error


def _kind(error: BaseException) -> str:
    error = _root(error)
    if isinstance(error, FileNotFoundError):
        return "missing"
    # botocore's and Google's errors are told by their names, since importing either package is slow.
    names = {base.__name__ for base in type(error).__mro__}
    if isinstance(error, PermissionError) or names & {
        "NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError", "DefaultCredentialsError",
        "RefreshError", "GatedRepoError", "ProfileNotFound",
    }:  # fmt: skip
        return "credentials"
    if isinstance(error, (NotImplementedError, TypeError, KeyError, AssertionError)):
        return "unknown"
    return _FINAL.get(_status(error), "passing")


def _status(error: BaseException) -> int:
    """Return the HTTP status that an error holds, or 0."""
    for holder in (error, getattr(error, "response", None)):
        for name in ("status", "status_code", "code"):
            with suppress(TypeError, ValueError):
                return int(getattr(holder, name, None))  # type: ignore[arg-type]
    return 0


def explained(address: str, error: BaseException) -> RemoteDataError:
    """Return the error as one line with a remedy."""
    error = _root(error)
    reason = " ".join(str(error).split())[:200]
    match _kind(error):
        case "missing":
            remedy = "give the address of what is there"
            reason = "no such file or bucket"
        case "credentials":
            remedy = f"log in anew, or give credentials that may use it by the environment ({HELP})"
        case _:
            remedy = "look at the network and the server"
            reason = f"{type(error).__name__}: {reason}" if reason else type(error).__name__
    return RemoteDataError(f"{address}: cannot be reached ({reason}); {remedy}")


def persistently(
    call: Callable[[], Result], address: str, limit_s: float, left: threading.Event = NEVER
) -> Result:
    """Call a function until it succeeds, with growing pauses, and say where that lasts."""
    deadline, pause_s = time.monotonic() + limit_s, _FIRST_PAUSE_S
    tell_at = time.monotonic() + TELL_AFTER_S
    while True:
        try:
            return call()
        except RemoteDataError:
            raise
        except Exception as error:
            now = time.monotonic()
            if is_final(error) or now + pause_s > deadline or left.is_set():
                raise explained(address, error) from error
            if now > tell_at and _told.is_due():
                tell_at = float("inf")
                reason = " ".join(str(error).split())[:120] or type(error).__name__
                print(
                    f"{address}: no answer ({reason}); trying for {deadline - now:.0f} s more",
                    file=sys.stderr,
                    flush=True,
                )
        # By chance, so that the threads do not all ask again at once.
        left.wait(pause_s * random.uniform(0.5, 1.0))
        pause_s = min(2 * pause_s, _MAX_PAUSE_S)
