"""A base of objects that hold what a copy must not share: an open file, memory of C code, or threads."""

from typing import Any

from typing_extensions import override


class Uncopyable:
    """An object that refuses to be copied and pickled.

    A copy would have the same descriptor or address by its number. Whichever of the two were closed first
    would close or free what the other one uses.
    """

    @override
    def __reduce_ex__(self, protocol: object) -> Any:
        """Raise TypeError. `copy.copy`, `copy.deepcopy` and pickle all call this."""
        raise TypeError(
            f"{type(self).__name__} cannot be copied or pickled, because it holds open files, threads or "
            "memory of C code; make a new one"
        )
