"""What a label of any source is: the number of a class, the name of a class, or none.

Whole numbers are class numbers however they are written: 3, 3.0 or "3"; true is 1. Other text is the name of
a class, "nan" and "1e5" too; fractions are no labels. Where no label of a source is a number, its classes are
these names in sorted order, as those of folders. -1 is no label, and so is nothing: an empty cell or NaN.
"""

import math
import re
from collections.abc import Mapping

import numpy as np

# Python's int accepts others, such as 1_000 and digits of other scripts.
_WHOLE = re.compile(r"(-?)0*([0-9]{1,10})(?:\.0*)?")
# "Image_Path" and "image path" are one word.
_PATH_WORDS = (
    "path", "paths", "file", "files", "filename", "filenames", "filepath", "filepaths", "image", "images",
    "img", "imagepath", "imagename", "imagefile", "imgpath", "imgname", "imgfile", "relativepath",
)  # fmt: skip
_LABEL_WORDS = (
    "label", "labels", "labelid", "labelname", "class", "classes", "classid", "classname", "cls", "category",
    "categoryid", "categoryname", "target", "targets",
)  # fmt: skip
NO_LABELS = "no labels; give whole numbers alone or names alone, or leave it out"


def is_path_word(name: str) -> bool:
    """Return whether a column of this name holds paths."""
    return _word(name) in _PATH_WORDS


def is_label_word(name: str) -> bool:
    """Return whether a column of this name holds labels."""
    return _word(name) in _LABEL_WORDS


def _word(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def as_label(value: object) -> int | str | None:
    """Return a class number, which may be out of range, or a class name; None for what is neither."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, str):
        text = value.strip()
        if match := _WHOLE.fullmatch(text):
            return int(match[1] + match[2])
        is_name = text.isprintable() and "\ufffd" not in text and not is_number(text)
        return text or -1 if is_name else None
    if isinstance(value, float | np.floating):
        return -1 if math.isnan(value) else int(value) if float(value).is_integer() else None
    if isinstance(value, int | np.integer):
        return int(value)
    return -1 if value is None else None


def is_number(text: str) -> bool:
    """Return whether a text is a number, whole or not, and not a name such as 1e5 or nan."""
    try:
        float(text)
    except ValueError:
        return False
    return not any(map(str.isalpha, text))


def class_number(value: object, numbers: Mapping[str, int]) -> int | None:
    """Return the class number that a label is or that its name has in `numbers`; None for what is neither."""
    label = as_label(value)
    return numbers.get(label) if isinstance(label, str) else label


class Census:
    """The classes of a source, told from all of its labels."""

    def __init__(self) -> None:
        self.lowest, self.highest = math.inf, -math.inf  # class numbers
        self.example = ""  # a label that is neither a number nor a name
        self._names, self._has_numbers = set[str](), False

    def add(self, value: object) -> None:
        """Take notice of a label."""
        label = as_label(value)
        if isinstance(label, str):
            self._names.add(label)
        elif label is None:
            self.example = self.example or repr(value)
        else:
            self._has_numbers |= label != -1
            self.lowest, self.highest = min(self.lowest, label), max(self.highest, label)

    def update(self, other: "Census") -> None:
        """Add what another census has seen."""
        self.lowest, self.highest = min(self.lowest, other.lowest), max(self.highest, other.highest)
        self.example = self.example or other.example
        self._names |= other._names
        self._has_numbers |= other._has_numbers

    @property
    def class_names(self) -> list[str] | None:
        """The names, sorted; None if there are none, or if a label is a number."""
        return None if self._has_numbers else sorted(self._names) or None

    @property
    def fault(self) -> str:
        """Why these are no labels, in words; or ""."""
        if self.example:
            return f"holds {self.example}, which is neither a whole number nor a name"
        return "holds both numbers and names" if self._names and self._has_numbers else ""
