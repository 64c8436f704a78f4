"""What a label of any source is: the number of a class, the name of a class, or none.

Whole numbers are class numbers however they are written: 3, 3.0 or "3". Other text is the name of a class.
Where no label of a source is a number, its classes are these names in sorted order, as those of folders.
Nothing, such as an empty cell or NaN, is -1: no label.
"""

import math
import re
from collections.abc import Mapping

import numpy as np

# Python's int accepts others, such as 1_000 and digits of other scripts.
_WHOLE = re.compile(r"(-?)0*([0-9]{1,10})(?:\.0*)?")
# In CSV files "Image_Path" and "image path" are one word.
PATH_WORDS = (
    "path", "paths", "file", "files", "filename", "filenames", "filepath", "filepaths", "image", "images",
    "img", "imagepath", "imagename", "imagefile", "imgpath", "imgname", "imgfile", "relativepath",
)  # fmt: skip
LABEL_WORDS = ("label", "labels", "cls", "target", "targets")


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
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return int(value)
    return -1 if value is None else None


def is_number(text: str) -> bool:
    """Return whether a text is a number, whole or not."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def class_number(value: object, numbers: Mapping[str, int]) -> int | None:
    """Return the class number that a label is or that its name has in `numbers`; None for what is neither."""
    label = as_label(value)
    return numbers.get(label) if isinstance(label, str) else label


class Census:
    """The classes of a source, told from all of its labels.

    Attributes:
        lowest, highest: The range of the class numbers.
        example: A label that is neither a number nor a name.
    """

    def __init__(self) -> None:
        self.lowest, self.highest = math.inf, -math.inf
        self.example = ""
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
