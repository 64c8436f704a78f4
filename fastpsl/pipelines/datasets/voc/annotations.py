"""Annotations of PASCAL VOC: boxes of objects, and masks of classes.

Masks in SBD are MATLAB's files. scipy's reader is compiled and trusts its input: an unknown type of data
ends the process, nested cells exhaust its stack, and compressed parts fill the memory. Of 3,474 masks with
one to three changed bytes, 61 ended the process of scipy 1.17 by signal 11. So the structure of a file is
checked first.

https://www.mathworks.com/help/pdf_doc/matlab/matfile_format.pdf

benchmark_RELEASE/dataset/{img/*.jpg,cls/*.mat,train.txt,val.txt}    SBD, Hariharan et al. (2011)
"""

import io
import itertools
import math
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from fastpsl.console.words import cut
from fastpsl.pipelines.image.host_settings import decoding
from fastpsl.pipelines.image.image_file import check_pixels
from fastpsl.pipelines.interface.dataset import BadImage


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


def read_objects(path: Path, text: bytes, numbers: Mapping[str, int], size: tuple[int, int]) -> Objects:
    """Return the objects of an annotation `text`, at least one, for an image of `size` (height, width) px.

    Parts of objects (heads, hands) have boxes, too, and are ignored. `path` is for messages.
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
                f"{path}: class {cut(repr(name))} is none of the {len(numbers)} ({examples}); "
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
    return Objects(np.array(boxes, np.float32), np.array(labels, np.int64), np.array(difficult, bool))


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
    text = element.findtext(name, None if default is None else str(default))
    try:
        number = float(text or "")
    except ValueError:
        number = float("nan")
    if not np.isfinite(number):
        raise ValueError(f"{path}: <{name}> of <{element.tag}> is {cut(repr(text))}; give a number")
    return number


_HEADER_BYTES, _TAG_BYTES = 128, 8
# The types of data in a part's tag; numbers and UTF text are values.
_INT32, _UINT32, _MATRIX, _COMPRESSED = 5, 6, 14, 15
_VALUES = {1, 2, 3, 4, _INT32, _UINT32, 7, 9, 12, 13, 16, 17, 18}
# The classes of arrays, and the flag of complex numbers.
_CELL, _STRUCT, _CHAR, _SPARSE, _NUMBERS = 1, 2, 4, 5, range(6, 16)
_IS_COMPLEX = 0x800
_MOST_LEVELS, _MOST_DIMENSIONS = 32, 32
_MOST_TIMES, _SPARE_BYTES = 64, 1 << 26


def read_mat(data: bytes, names: Collection[str]) -> dict[str, Any]:
    """Return variables of a MATLAB file as `scipy.io.loadmat` does; missing ones are left out.

    What is damaged, holds MATLAB's objects or functions, or would inflate to more than 64 times its size and
    64 MiB, raises ValueError.
    """
    from scipy.io import loadmat  # the import takes a second

    _check_structure(data)
    try:
        return loadmat(io.BytesIO(data), variable_names=list(names))
    except MemoryError:
        raise
    except Exception as error:
        raise _damage_error(" ".join(str(error).split())) from error


def _damage_error(what: str) -> ValueError:
    return ValueError(f"cannot be read as a MATLAB file ({what}); download it again")


def _check_structure(data: bytes) -> None:
    """Raise ValueError unless the file holds only arrays, each with the parts of its class."""
    mark = data[124:_HEADER_BYTES]
    if mark in (b"\0\2IM", b"\2\0MI"):
        raise ValueError("is a file of MATLAB 7.3 (HDF5), which is not read here; save it in MATLAB with -v7")
    if mark not in (b"\0\1IM", b"\1\0MI"):
        raise _damage_error("it does not begin as one of version 5 does")
    parts = _Parts(memoryview(data)[_HEADER_BYTES:], "little" if mark.endswith(b"IM") else "big")
    bytes_left = _MOST_TIMES * len(data) + _SPARE_BYTES
    while not parts.at_end():
        kind, body = parts.next()
        if kind == _COMPRESSED:
            array_data = _inflated(body, bytes_left)
            bytes_left -= len(array_data)
            kind, body = _Parts(array_data, parts.order).next()
        _check_array(kind, _Parts(body, parts.order), _MOST_LEVELS)


class _Parts:
    """The parts of a file or an array: each a tag with type and size, and a body padded to 8 bytes."""

    def __init__(self, data: memoryview, order: Literal["little", "big"]):
        self.order = order
        self._data, self._at = data, 0

    def at_end(self) -> bool:
        return self._at >= len(self._data)

    def next(self) -> tuple[int, memoryview]:
        """Return the type and the body of the next part."""
        tag = self._data[self._at : self._at + _TAG_BYTES]
        if len(tag) < _TAG_BYTES:
            raise _damage_error("a part is missing or cut off")
        kind, num_bytes = self._number(tag[:4]), self._number(tag[4:])
        start, step = self._at + _TAG_BYTES, -(-num_bytes // 8) * 8
        if kind >> 16:  # up to 4 bytes lie within the tag
            kind, num_bytes = kind & 0xFFFF, kind >> 16
            start, step = self._at + 4, 4
        body = self._data[start : start + num_bytes]
        if kind == _COMPRESSED:
            step = num_bytes
        if len(body) < num_bytes or num_bytes > step:
            raise _damage_error("a part is longer than what holds it")
        self._at = start + step
        return kind, body

    def numbers(self, kind: int) -> list[int]:
        """Return the next part's 32-bit integers; raise ValueError unless it has this type."""
        part_kind, body = self.next()
        if part_kind != kind or len(body) % 4:
            raise _damage_error(f"type {part_kind} of {len(body)} bytes instead of type {kind}")
        return [self._number(body[i : i + 4]) for i in range(0, len(body), 4)]

    def values(self, num: int) -> None:
        """Skip the next `num` parts; raise ValueError unless they are numbers or text."""
        for _ in range(num):
            kind, _body = self.next()
            if kind not in _VALUES:
                raise _damage_error(f"type {kind} instead of numbers")

    def _number(self, data: memoryview) -> int:
        return int.from_bytes(data, self.order)


def _check_array(kind: int, parts: _Parts, levels: int) -> None:
    """Raise ValueError unless a part is an array, with arrays nested at most `levels` deep."""
    if kind != _MATRIX:
        raise _damage_error(f"type {kind} instead of an array")
    if parts.at_end():  # an empty array
        return
    if not levels:
        raise _damage_error(f"cells within cells, more than {_MOST_LEVELS} deep")
    flags, sizes = parts.numbers(_UINT32), parts.numbers(_INT32)
    if len(flags) != 2 or not 2 <= len(sizes) <= _MOST_DIMENSIONS or max(sizes) >= 1 << 31:
        raise _damage_error(f"{len(sizes)} dimensions, {sizes[:4]}")
    parts.values(1)  # its name
    array_class, is_complex, num_arrays = flags[0] & 0xFF, bool(flags[0] & _IS_COMPLEX), 0
    if array_class == _CHAR or array_class in _NUMBERS:
        parts.values(2 if is_complex else 1)
    elif array_class == _SPARSE:
        _check_sparse(parts, sizes)
        parts.values(2 if is_complex else 1)
    elif array_class == _CELL:
        num_arrays = math.prod(sizes)
    elif array_class == _STRUCT:
        num_arrays = math.prod(sizes) * _num_fields(parts)
    else:
        raise ValueError(
            f"holds an array of class {array_class}; only numbers, text, cells and structures are read here"
        )
    for _ in range(num_arrays):
        kind, body = parts.next()
        _check_array(kind, _Parts(body, parts.order), levels - 1)
    if not parts.at_end():
        raise _damage_error("more parts than an array of its class has")


def _check_sparse(parts: _Parts, sizes: list[int]) -> None:
    """Raise ValueError unless a sparse matrix's values lie within it; scipy 1.15 writes them anywhere."""
    rows, starts = parts.numbers(_INT32), parts.numbers(_INT32)
    rises = all(first <= second for first, second in itertools.pairwise([0, *starts, len(rows)]))
    if len(sizes) != 2 or len(starts) != sizes[1] + 1 or not rises or any(row >= sizes[0] for row in rows):
        raise _damage_error("values outside a sparse matrix")


def _num_fields(parts: _Parts) -> int:
    (num_bytes, *more), (_, names) = parts.numbers(_INT32), parts.next()
    if not num_bytes or more or len(names) % num_bytes or not names:
        raise _damage_error("a structure without fields")
    return len(names) // num_bytes


def _inflated(body: memoryview, most_bytes: int) -> memoryview:
    try:
        data = zlib.decompressobj().decompress(body, most_bytes + 1)  # 0 would mean no limit
    except zlib.error as error:
        raise _damage_error(str(error)) from None
    if len(data) > most_bytes:
        raise ValueError(
            f"inflates to more than {_MOST_TIMES} times its size, which no sound file does; download it again"
        )
    return memoryview(data)


VOID = 255


def palette() -> np.ndarray:
    """Return VOC's colours of the class numbers, uint8 [256, 3].

    Bits 0, 1 and 2 of a number are the highest bits of red, green and blue. The next three bits are the
    second highest, and so on.
    """
    colours = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        shifted = np.arange(256) >> (3 * bit)
        for channel in range(3):
            colours[:, channel] |= (((shifted >> channel) & 1) << (7 - bit)).astype(np.uint8)
    return colours


def mask_png(mask: np.ndarray) -> bytes:
    """Return a mask, uint8 [h, w], as a PNG in VOC's palette."""
    image, data = Image.fromarray(mask, "P"), io.BytesIO()
    image.putpalette(palette().tobytes())
    image.save(data, format="PNG")
    return data.getvalue()


def read_mask(path: Path, data: bytes, num_classes: int, size: tuple[int, int]) -> np.ndarray:
    """Return the class numbers of a mask file's `data`, uint8 [h, w], a PNG with a palette or SBD's .mat.

    The image has `size` (height, width) px. `num_classes` does not count the background.
    """
    mask = _sbd(path, data) if path.suffix == ".mat" else _png(path, data)
    if mask.shape != size:
        raise ValueError(
            f"{path}: has {mask.shape[1]} x {mask.shape[0]} px, "
            f"and the image {size[1]} x {size[0]} (upright); give the mask of this image"
        )
    numbers = np.flatnonzero(np.bincount(mask.ravel(), minlength=256))
    unknown = numbers[(numbers > num_classes) & (numbers != VOID)]
    if len(unknown):
        raise ValueError(
            f"{path}: holds the number {unknown[0]}, which is no class; "
            f"allowed are 0 (background), 1 to {num_classes} and {VOID} (void)"
        )
    return mask


def _png(path: Path, data: bytes) -> np.ndarray:
    try:
        # Not Image.open, which refuses more pixels than the user's program says.
        with decoding(), PngImageFile(io.BytesIO(data)) as image:
            check_pixels(image.height, image.width)
            mode, mask = image.mode, np.array(image)
    # Pillow raises SyntaxError or ValueError for a broken PNG.
    except (OSError, SyntaxError, ValueError, BadImage) as error:
        raise ValueError(f"{path}: cannot be read as a PNG ({error}); extract it again") from None
    if mode not in ("P", "L"):
        raise ValueError(
            f"{path}: is a PNG of kind {mode}; "
            "give one with a palette, whose indices are the classes' numbers"
        )
    return mask


def _sbd(path: Path, data: bytes) -> np.ndarray:
    try:
        arrays = read_mat(data, ("GTcls",))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    try:
        mask = np.asarray(arrays["GTcls"]["Segmentation"][0, 0])
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(
            f"{path}: no GTcls.Segmentation is in it ({' '.join(str(error).split())}); extract it again"
        ) from None
    if mask.ndim != 2 or mask.dtype != np.uint8:
        raise ValueError(
            f"{path}: GTcls.Segmentation is {mask.dtype} {list(mask.shape)}; SBD's are uint8 [h, w]"
        )
    return mask
