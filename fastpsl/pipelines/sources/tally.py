"""What is left out of a data set, by kind and number, and the line that tells it."""

import os
from collections import Counter
from collections.abc import Mapping

from fastpsl.console.words import number_of

BAD, SMALL, OTHERS, LEFTOVERS, SAME_KEY, EMPTY = (
    "bad", "small", "other files", "leftovers", "same key", "empty classes"
)  # fmt: skip
_WORDS = {
    BAD: ("bad image", "bad images"),
    SMALL: ("image that is too small", "images that are too small"),
    OTHERS: ("file of another kind", "files of other kinds"),
    LEFTOVERS: ("leftover of another program", "leftovers of other programs"),
    SAME_KEY: ("image that shares the key of another", "images that share the key of another"),
    EMPTY: (
        "class without an image, which keeps its label",
        "classes without an image, which keep their labels",
    ),
}
_SHOWN = 3  # endings of other files
_ENDING_CHARACTERS = 10  # of a longer one, such as in a name with a date, is not told


class Tally:
    """The numbers of what is left out.

    Attributes:
        counts: The number of each kind; see `_WORDS`.
    """

    def __init__(self, counts: Mapping[str, int] | None = None) -> None:
        self.counts = Counter[str](counts or {})
        self._first, self._endings = dict[str, str](), Counter[str]()

    def add(self, kind: str, name: str) -> None:
        """Count one; `name` is its path, or a class's name."""
        self.counts[kind] += 1
        if kind == OTHERS:
            ending = os.path.splitext(name)[1].lower()
            self._endings[ending if len(ending) <= _ENDING_CHARACTERS else ""] += 1
        else:
            self._first.setdefault(kind, " ".join(name.split()))

    def line(self) -> str:
        """Return all of it in one line, such as "2 bad images, 1 file of another kind (.txt)", or ""."""
        parts = [
            number_of(self.counts[kind], *words) + self._detail(kind)
            for kind, words in _WORDS.items()
            if self.counts[kind]
        ]
        return ", ".join(parts)

    def _detail(self, kind: str) -> str:
        if kind == OTHERS and self._endings:
            shown = [f"{num:,} {ending or 'other'}" for ending, num in self._endings.most_common(_SHOWN)]
            return f" ({', '.join(shown)}{', ...' if len(self._endings) > _SHOWN else ''})"
        if kind not in self._first:
            return ""
        return f" ({'the first is ' if self.counts[kind] > 1 else ''}{self._first[kind]})"
