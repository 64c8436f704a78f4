"""Errors for names that do not exist, with the most similar one that does."""

import difflib
from collections.abc import Iterable


def unknown(what: str, given: str, allowed: Iterable[str]) -> ValueError:
    """Return an error in one line: the wrong name, and the nearest of the allowed ones or all of them.

    Args:
        what: What the name is of, such as "recipe".
        given: The name.
        allowed: The names that exist.
    """
    names = list(allowed)
    near = nearest(given, names)
    remedy = f"perhaps you meant {near}" if near else f"there are {', '.join(names)}"
    return ValueError(f"there is no {what} called {given!r}; {remedy}")


def hint(given: str, allowed: Iterable[str]) -> str:
    """Return "did you mean …? " with the most similar name, or nothing without one."""
    near = nearest(given, allowed)
    return f"did you mean {near}? " if near else ""


def nearest(given: str, allowed: Iterable[str]) -> str | None:
    """Return the most similar of the allowed names; None if none is similar."""
    return next(iter(difflib.get_close_matches(given, list(allowed), n=1)), None)
