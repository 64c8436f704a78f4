"""The reader of PASCAL VOC's XML files: the boxes and classes of an image's objects."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import numpy as np


class Objects(NamedTuple):
    """The objects of an image, in the file's order.

    Attributes:
        boxes: float32 [n, 4], x1 y1 x2 y2 in px of the upright image, continuous and from 0. VOC's pixels
            xmin to xmax, counted from 1 and inclusive, become xmin - 1 to xmax.
        labels: int64 [n].
        difficult: bool [n].
    """

    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray

    @classmethod
    def of(cls, boxes: list[list[float]], labels: list[int], difficult: list[bool]) -> "Objects":
        """Build the arrays from lists, also from empty ones."""
        return cls(
            np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64), np.array(difficult, bool)
        )


def read_objects(path: Path, text: bytes, numbers: Mapping[str, int], size: tuple[int, int]) -> Objects:
    """Return the objects of an annotation, at least one.

    Parts of objects (heads, hands) have boxes, too, and are ignored.

    Args:
        path: The file, for messages.
        text: Its contents.
        numbers: The number of each class name.
        size: (height, width) of the image in px.

    Raises:
        ValueError: The XML is broken, holds no object or has another size. Or an object's class is unknown,
            or its box is missing, empty or outside of the image.
    """
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ValueError(f"{path}: broken XML ({error}); extract it again") from None
    _check_size(path, root, size)
    boxes, labels, difficult = [], [], []
    for element in root.iterfind("object"):
        name = (element.findtext("name") or "").strip()
        if name not in numbers:
            examples = ", ".join(list(numbers)[:3]) + (", ..." if len(numbers) > 3 else "")
            raise ValueError(
                f"{path}: class {name!r} is none of the {len(numbers)} ({examples}); "
                f"write your own classes into VOCdevkit/classes.txt, one per line"
            )
        boxes.append(_box(path, element, name, size))
        labels.append(numbers[name])
        difficult.append(_number(path, element, "difficult", 0.0) != 0)
    if not boxes:
        raise ValueError(
            f"{path}: holds no object with a box, and images here need one; "
            f"take {path.stem} out of the list, or annotate it"
        )
    return Objects.of(boxes, labels, difficult)


def _check_size(path: Path, root: Element, size: tuple[int, int]) -> None:
    element = root.find("size")
    if element is None:
        return
    stated = _number(path, element, "height"), _number(path, element, "width")
    if stated != size and stated != (0, 0):  # some tools write 0 for an unknown size
        raise ValueError(
            f"{path}: says {stated[1]:g} x {stated[0]:g} px, "
            f"and the image has {size[1]} x {size[0]} (upright): "
            "the annotation is of another image; "
            "put the image that was annotated there, or correct <size>"
        )


def _box(path: Path, element: Element, name: str, size: tuple[int, int]) -> list[float]:
    bounds = element.find("bndbox")
    if bounds is None:
        raise ValueError(f"{path}: a {name} has no <bndbox>; give each object xmin, ymin, xmax and ymax")
    xmin, ymin, xmax, ymax = (_number(path, bounds, side) for side in ("xmin", "ymin", "xmax", "ymax"))
    words = f"the box {xmin:g} {ymin:g} {xmax:g} {ymax:g} (xmin ymin xmax ymax) of a {name}"
    height, width = size
    box = [xmin - 1, ymin - 1, xmax, ymax]
    if box[2] <= box[0] or box[3] <= box[1]:
        raise ValueError(f"{path}: {words} has no area; give xmin <= xmax and ymin <= ymax")
    # The published archives have no such boxes: TensorFlow Datasets and GluonCV refuse them, too, and read
    # all of 2007 and 2012.
    if box[0] < 0 or box[1] < 0 or box[2] > width or box[3] > height:
        raise ValueError(
            f"{path}: {words} is outside of the image; "
            f"its pixels are 1 to {width} and 1 to {height}, counted from 1"
        )
    return box


def _number(path: Path, element: Element, name: str, default: float | None = None) -> float:
    """Return an element's number, which VOC2012 writes with a fraction ("45.7") at times."""
    text = element.findtext(name)
    if text is None and default is not None:
        return default
    try:
        number = float(text or "")
    except ValueError:
        number = float("nan")
    if not np.isfinite(number):
        raise ValueError(f"{path}: <{name}> of <{element.tag}> is {text!r}; give a number")
    return number
