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
    near = difflib.get_close_matches(given, names, n=1)
    remedy = f"perhaps you meant {near[0]}" if near else f"there are {', '.join(names)}"
    return ValueError(f"there is no {what} called {given!r}; {remedy}")
