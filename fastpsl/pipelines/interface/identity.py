"""The identity of a data set, as records hold it.

    NAMES               version 1: a digest of names, labels and sizes
    NAMES.v2.CONTENTS   version 2: also one of contents, where the data has checksums of each sample

Only dataset files of ours have such checksums. Times are no part of it, so that a copy on another machine is
the same data.
"""

from collections.abc import Iterable
from itertools import combinations

_VERSION_2 = ".v2."


def identity(names: str, contents: str = "") -> str:
    """Return the text of a digest of names, and of a digest of contents if there is one."""
    return f"{names}{_VERSION_2}{contents}" if contents else names


def parts_of(text: str) -> tuple[str, str]:
    """Return the digests of names and of contents; the latter is empty if it is not known."""
    names, _, contents = text.partition(_VERSION_2)
    return names, contents


def same_data(first: str, second: str) -> bool:
    """Return whether two texts are of the same data, as far as both tell."""
    (names, contents), (other_names, others) = parts_of(first), parts_of(second)
    return names == other_names and (contents == others or not contents or not others)


def all_same(texts: Iterable[str]) -> bool:
    """Return whether all texts are of the same data, each as far as two of them tell."""
    return all(same_data(*pair) for pair in combinations(dict.fromkeys(texts), 2))


def not_compared(where: str, recorded: str, now: str) -> list[str]:
    """Return a line where a record lacks the contents that the data tells; none elsewhere."""
    if parts_of(recorded)[1] or not parts_of(now)[1]:
        return []
    return [f"{where} is older than digests of contents: the data was compared by names, labels and sizes"]


def in_digits(text: str, num: int = 8) -> str:
    """Return the first digits of both digests, for messages."""
    return ".".join(part[:num] for part in parts_of(text) if part)
