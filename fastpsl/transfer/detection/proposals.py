"""Read published object proposals, which take the place of a region proposal network.

The formats are Fast R-CNN's selective search (.mat) and Detectron's files (.pkl).
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np

from fastpsl.files.system_errors import raise_of_the_system
from fastpsl.files.untrusted import load_plain
from fastpsl.pipelines.datasets.voc.annotations import read_mat
from fastpsl.pipelines.datasets.voc.dataset import VOC

# Proposals per image: Detectron2's number for training. Fast R-CNN uses all of its file, which are about as
# many (its section 2.3: "R ≈ 2000").
MAX_NUM = 2000
_NUMBERS = "uif"  # numpy's kinds


@final
class Proposals:
    """The proposals for each image of a data set.

    They keep the order of the files; Detectron's are sorted by falling score. Images are matched by their
    ids; leading zeros and underscores do not count, so 000005 is Detectron's 5. The files may hold other
    images, too.
    """

    def __init__(self, paths: Sequence[str | Path], data: VOC, max_num: int = MAX_NUM) -> None:
        self._ids = [_key(data.image_id(i)) for i in range(data.num_samples)]
        self._boxes: dict[str, np.ndarray] = {}
        rows = data.rows(np.arange(data.num_samples))
        sizes = dict(zip(self._ids, zip(rows.width.tolist(), rows.height.tolist(), strict=True), strict=True))
        remedy = f"give the files of {data.split.replace('+', ' and ')}"
        for path in map(Path, paths):
            has_images = False
            for name, boxes in _read(path):
                key = _key(name)
                if key in sizes:
                    has_images = True
                    if key in self._boxes:
                        raise ValueError(
                            f"{path}: holds proposals for {key} a second time; {remedy}, each once"
                        )
                    self._boxes[key] = _checked(boxes[:max_num], sizes[key], f"{path}: {key}")
            if not has_images:
                raise ValueError(
                    f"{path}: proposals for other images: none of the {data.num_samples:,} here, "
                    f"such as {data.image_id(0)}; {remedy}"
                )
        missing = [i for i, key in enumerate(self._ids) if key not in self._boxes]
        if missing:
            raise ValueError(
                f"{', '.join(map(str, paths))}: no proposals for {len(missing):,} of {data.num_samples:,} "
                f"images, the first is {data.image_id(missing[0])}; {remedy}"
            )

    def boxes(self, index: int) -> np.ndarray:
        """Return an image's boxes x1 y1 x2 y2, float32 [k, 4], where k may be 0.

        They are in px of the image, continuous and from 0, as those of `Objects` are.
        """
        return self._boxes[self._ids[index]]


def _key(name: object) -> str:
    """Return a key that is equal for 000005, b"000005" and 5; that of 2008_000002 is 2008000002."""
    text = name.decode(errors="replace") if isinstance(name, bytes) else str(name)
    digits = text.replace("_", "")
    return str(int(digits)) if digits.isdecimal() and len(digits) < 19 else text


def _checked(boxes: np.ndarray, size: tuple[int, int], where: str) -> np.ndarray:
    """Return a float32 copy of boxes that lie in an image of `size` (width, height).

    A side may be 0: Detectron's are where they end in the pixel in which they begin.
    """
    if boxes.size == 0:
        return np.zeros((0, 4), np.float32)
    if boxes.ndim != 2 or boxes.shape[1] != 4 or boxes.dtype.kind not in _NUMBERS:
        raise ValueError(
            f"{where}: {boxes.dtype} {list(boxes.shape)} instead of numbers [k, 4], one box per row"
        )
    boxes = np.array(boxes, np.float32)
    x1, y1, x2, y2 = boxes.T
    is_inside = (x1 >= 0) & (x1 <= x2) & (x2 <= size[0]) & (y1 >= 0) & (y1 <= y2) & (y2 <= size[1])
    if not is_inside.all():
        wrong = " ".join(f"{side:g}" for side in boxes[is_inside.argmin()])
        raise ValueError(
            f"{where}: box {wrong} (x1 y1 x2 y2 from 0) is not inside of the image of {size[0]} x "
            f"{size[1]} px; give proposals that were made for these images"
        )
    return boxes


def _read(path: Path) -> Iterable[tuple[object, np.ndarray]]:
    """Return (image id, boxes [k, 4]) of all images in the file."""
    if path.suffix not in (".mat", ".pkl"):
        raise ValueError(
            f"{path}: no file of proposals; give Fast R-CNN's .mat (images, boxes) or Detectron's .pkl "
            f"(boxes, scores, ids)"
        )
    is_mat = path.suffix == ".mat"
    try:
        data = path.read_bytes()
        content = read_mat(data, ("images", "boxes")) if is_mat else load_plain(data)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; give the published proposals") from None
    except (OSError, ValueError) as error:
        raise_of_the_system(path, error)
        raise ValueError(f"{path}: {error}") from None
    return _selective_search(path, content) if is_mat else _detectrons(path, content)


def _selective_search(path: Path, cells: dict[str, Any]) -> Iterator[tuple[object, np.ndarray]]:
    """Read MATLAB's cells `images` (names) and `boxes`.

    Boxes are y1 x1 y2 x2 in pixels from 1 with both ends inside; here they become y1 - 1 to y2.
    """
    if not {"images", "boxes"} <= cells.keys() or cells["boxes"].dtype != object:
        raise ValueError(f"{path}: lacks the cells images and boxes; give Fast R-CNN's selective search")
    names, boxes = cells["images"].ravel(), cells["boxes"].ravel()
    if len(names) != len(boxes):
        raise ValueError(f"{path}: {len(names):,} images and boxes of {len(boxes):,}; download it again")
    for cell, stored in zip(names, boxes, strict=True):
        is_usual = stored.ndim == 2 and stored.shape[1] == 4 and stored.dtype.kind in _NUMBERS
        corners = stored[:, [1, 0, 3, 2]] - np.array([1, 1, 0, 0], np.float32) if is_usual else stored
        yield _text(path, cell), corners


def _text(path: Path, cell: Any) -> str:
    """Return a name out of the nested arrays that cells are read as."""
    while isinstance(cell, np.ndarray) and cell.size == 1:
        cell = cell.item()
    if isinstance(cell, str):
        return cell
    raise ValueError(f"{path}: one of its images has no name ({' '.join(str(cell)[:60].split())})")


def _detectrons(path: Path, content: dict[Any, Any]) -> Iterator[tuple[object, np.ndarray]]:
    """Read the lists `boxes` (x1 y1 x2 y2), `scores` and `ids`, under their older and newer names.

    Coordinates are used as stored, as Detectron2 does. Detectron, which wrote the older files, means the last
    pixel itself by x2 and y2.
    """
    content = {key.decode() if isinstance(key, bytes) else key: value for key, value in content.items()}
    parts = (("ids", "indexes"), ("boxes", "boxes"), ("scores", "objectness_logits"))
    lists: list[Any] = [content.get(name, content.get(other)) for name, other in parts]
    if not all(isinstance(part, (list, np.ndarray)) for part in lists) or len(set(map(len, lists))) > 1:
        raise ValueError(
            f"{path}: lacks boxes, scores and ids (or indexes) of Detectron's proposals, lists of one length"
        )
    if content.get("bbox_mode", 0) != 0:
        raise ValueError(f"{path}: bbox_mode {content['bbox_mode']}: only 0, x1 y1 x2 y2 in px, is read here")
    for name, boxes, scores in zip(*lists, strict=True):
        are_arrays = isinstance(boxes, np.ndarray) and isinstance(scores, np.ndarray)
        if not are_arrays or boxes.shape[:1] != scores.shape or scores.dtype.kind not in _NUMBERS:
            raise ValueError(f"{path}: {_key(name)}: its scores are not a number for each of its boxes")
        yield name, boxes[np.argsort(-scores.astype(np.float64), kind="stable")]
