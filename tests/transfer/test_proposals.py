"""Test reading proposals from Fast R-CNN's and Detectron's files, and refusing those of other images."""

import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from fastpsl.pipelines.data.dataset import SampleTable
from fastpsl.pipelines.datasets.voc.dataset import VOC
from fastpsl.pipelines.sample.voc import draw_voc
from fastpsl.transfer.detection.proposals import Proposals
from tests.pipelines.test_sources_published import of_python_2

IDS = ("000005", "000007", "2008_000002")
WIDTH, HEIGHT = 500, 375


class NamedImages:
    """A stand-in for VOC with images of 500 x 375 px."""

    split = "2007_trainval+2012_trainval"

    def __init__(self, *ids: str):
        self.ids, self.num_samples = ids, len(ids)

    def image_id(self, index: int) -> str:
        return self.ids[index]

    def rows(self, indices: np.ndarray) -> SampleTable:
        rows = SampleTable.empty(indices)
        rows.height[:], rows.width[:] = HEIGHT, WIDTH
        return rows


def opened(data: NamedImages, *paths: Path | str, **options: int) -> Proposals:
    stands_for_voc: Any = data
    return Proposals(paths, stands_for_voc, **options)


# In VOC's form, pixels from 1 with both ends inside: the whole image, and the pixel in its first corner.
PIXELS = np.array([[1, 1, HEIGHT, WIDTH], [1, 1, 1, 1], [10, 21, 30, 62]], np.float64)
BOXES = [[0, 0, WIDTH, HEIGHT], [0, 0, 1, 1], [20, 9, 62, 30]]


def cells(values: list[Any], by_row: bool) -> np.ndarray:
    array = np.empty(len(values), object)
    array[:] = values
    return array.reshape((1, -1) if by_row else (-1, 1))


def write_mat(
    path: Path, ids: tuple[str, ...] = IDS, by_row: bool = False, boxes: list[Any] | None = None
) -> Path:
    boxes = [PIXELS] * len(ids) if boxes is None else boxes
    savemat(path, {"images": cells(list(ids), by_row), "boxes": cells(boxes, not by_row)})
    return path


def write_pkl(path: Path, protocol: int = 2, **parts: Any) -> Path:
    """Write a file of more images than IDS, in another order."""
    whole = {
        "boxes": [np.array(BOXES, np.float32)] * 4,
        "scores": [np.array([0.5, 0.9, 0.5], np.float32)] * 4,
        "ids": [2008000002, 5, 99, 7],
        "cfg": "MODEL: {}",
    }
    path.write_bytes(pickle.dumps(whole | parts, protocol))
    return path


@pytest.mark.parametrize("by_row", (False, True))
def test_selective_search(tmp_path: Path, by_row: bool) -> None:
    """Check 1-based y1 x1 y2 x2 with both ends inside, in cells in a row or a column, of more images than
    needed.
    """
    path = write_mat(tmp_path / "a.mat", (*IDS[::-1], "000009"), by_row)
    proposals = opened(NamedImages(*IDS), path)
    for i in range(3):
        boxes = proposals.boxes(i)
        assert boxes.dtype == np.float32 and boxes.flags.writeable and boxes.tolist() == BOXES


def test_which_image_is_which(tmp_path: Path) -> None:
    boxes = [np.array([[1, 1, n, n]]) for n in (3, 4, 5)]
    proposals = opened(
        NamedImages(*IDS), write_mat(tmp_path / "a.mat", (IDS[1], IDS[2], IDS[0]), boxes=boxes)
    )
    assert [proposals.boxes(i).tolist() for i in range(3)] == [[[0, 0, n, n]] for n in (5, 3, 4)]


def test_kinds_of_cells(tmp_path: Path) -> None:
    """Check names in nested cells or in one character array, integer boxes, and an image without boxes."""
    names = [cells([name], True) for name in ("000005", "000007")]
    for number, images in enumerate((cells(names, True), np.array(["000005", "000007"]))):
        path = tmp_path / f"{number}.mat"
        savemat(path, {"images": images, "boxes": cells([PIXELS.astype(np.uint16), np.zeros((0, 0))], True)})
        proposals = opened(NamedImages(*IDS[:2]), str(path))
        assert proposals.boxes(0).tolist() == BOXES
        assert proposals.boxes(1).shape == (0, 4) and proposals.boxes(1).dtype == np.float32


@pytest.mark.parametrize("protocol", (0, 2, 4, 5))
def test_detectrons(tmp_path: Path, protocol: int) -> None:
    """Check the order by falling score, ids as numbers or names, and older and newer names of the parts."""
    by_score = [BOXES[1], BOXES[0], BOXES[2]]
    paths = [write_pkl(tmp_path / "a.pkl", protocol)]
    ids = ["2008_000002", "000005", b"99", np.int64(7)]
    scores = [np.array([0.5, 0.9, 0.5])] * 4
    several: list[dict[str, Any]] = [
        {"indexes": [2008000002, 5, 99, 7]}, {"ids": ids}, {"objectness_logits": scores, "bbox_mode": 0}
    ]  # fmt: skip
    for number, parts in enumerate(several):
        whole = pickle.loads(paths[0].read_bytes())
        whole.pop("ids" if "indexes" in parts else "scores" if "objectness_logits" in parts else "cfg")
        paths.append(tmp_path / f"{number}.pkl")
        paths[-1].write_bytes(pickle.dumps(whole | parts, protocol))
    for path in paths:
        proposals = opened(NamedImages(*IDS), path)
        assert [proposals.boxes(i).tolist() for i in range(3)] == [by_score] * 3
        assert opened(NamedImages(*IDS), path, max_num=2).boxes(1).tolist() == by_score[:2]


def test_python_2s(tmp_path: Path) -> None:
    """Check that strings of bytes are read, as cPickle wrote them."""
    boxes = of_python_2(np.array([[1, 2, 3, 4]], np.float32), b"f4")
    scores = of_python_2(np.array([1], np.float32), b"f4")
    array = slice(boxes.index(b"cnumpy"), -3)
    several = scores[scores.index(b"cnumpy") : -3]
    path = tmp_path / "a.pkl"
    path.write_bytes(
        b"\x80\x02}(U\x05boxes](" + boxes[array] + b"eU\x06scores](" + several
        + b"eU\x07indexes](J" + struct.pack("<i", 7) + b"eu."
    )  # fmt: skip
    assert opened(NamedImages("000007"), path).boxes(0).tolist() == [[1, 2, 3, 4]]


def test_at_most_so_many(tmp_path: Path) -> None:
    many = np.tile(PIXELS, (700, 1))
    path = write_mat(tmp_path / "a.mat", boxes=[many] * 3)
    assert [len(opened(NamedImages(*IDS), path, **options).boxes(2)) for options in ({}, {"max_num": 7})] == [
        2000,
        7,
    ]


def test_several_files(tmp_path: Path) -> None:
    paths = write_mat(tmp_path / "a.mat", IDS[:2]), write_mat(tmp_path / "b.mat", IDS[2:])
    assert opened(NamedImages(*IDS), *paths).boxes(2).tolist() == BOXES
    with pytest.raises(ValueError, match=r"b\.mat: holds proposals for 5 a second time"):
        opened(NamedImages(*IDS), paths[0], write_mat(tmp_path / "b.mat"))


def test_the_drawn_ones(tmp_path: Path) -> None:
    """Check that each object has proposals that overlap it by half."""
    folder = draw_voc(tmp_path / "VOCdevkit", 4, 2)
    data = VOC(folder, ("2007_trainval",), "boxes")
    proposals = Proposals([folder / "proposals" / "voc_2007_trainval.mat"], data)
    for i in range(4):
        boxes, objects = proposals.boxes(i), data.objects(i).boxes
        shared = np.minimum(boxes[:, None, 2:], objects[:, 2:]) - np.maximum(
            boxes[:, None, :2], objects[:, :2]
        )
        areas = [(some[..., 2:] - some[..., :2]).prod(-1) for some in (boxes, objects)]
        overlap = shared.clip(0).prod(-1)
        ious = overlap / (areas[0][:, None] + areas[1] - overlap)
        assert ((ious >= 0.5).sum(0) >= 3).all() and ious.max() < 0.95


def refused(path: Path | str, data: NamedImages | None = None) -> str:
    with pytest.raises(ValueError) as caught:
        opened(data or NamedImages(*IDS), path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


def test_proposals_for_other_images(tmp_path: Path) -> None:
    path = write_mat(tmp_path / "a.mat")
    assert refused(path, NamedImages("000001", "000002")).endswith(
        "proposals for other images: none of the 2 here, such as 000001; give the files of 2007_trainval "
        "and 2012_trainval"
    )
    message = refused(path, NamedImages(*IDS, "000011", "000012"))
    assert "no proposals for 2 of 5 images, the first is 000011" in message


@pytest.mark.parametrize(
    "pixels",
    (
        [0, 1, 5, 5], [1, 0, 5, 5], [1, 1, HEIGHT + 1, 5], [1, 1, 5, WIDTH + 1], [6, 1, 4, 5], [1, 6, 5, 4],
        [1, 1, np.nan, 5],
    ),
)  # fmt: skip
def test_boxes_outside(tmp_path: Path, pixels: list[float]) -> None:
    boxes = [PIXELS, np.concatenate([PIXELS, [pixels]]), PIXELS]
    message = refused(write_mat(tmp_path / "a.mat", boxes=boxes))
    assert "7: box " in message and "is not inside of the image of 500 x 375 px" in message


def test_files_that_are_none(tmp_path: Path) -> None:
    whole = write_mat(tmp_path / "whole.mat").read_bytes()
    files: dict[str, tuple[str, bytes | Callable[[Path], Any]]] = {
        "no file of proposals; give Fast R-CNN's .mat": ("a.txt", b""),
        "it does not begin as one of version 5": ("a.mat", b"no such thing" * 100),
        "cannot be read as a MATLAB file": ("b.mat", whole[:-50]),
        "lacks the cells images and boxes": (
            "c.mat", lambda path: savemat(path, {"images": cells(["a"], True)}),
        ),
        "MATLAB 7.3 (HDF5), which is not read here; save it in MATLAB with -v7": (
            "d.mat",
            b"MATLAB 7.3 MAT-file".ljust(116) + bytes(8) + b"\x00\x02IM" + b"\x89HDF\r\n\x1a\n" + bytes(500),
        ),
        "3 images and boxes of 2": ("e.mat", lambda path: write_mat(path, boxes=[PIXELS] * 2)),
        "has no name (3.0)": (
            "f.mat",
            lambda path: savemat(path, {"images": cells([3.0], True), "boxes": cells([PIXELS], True)}),
        ),
        "float64 [3, 3] instead of numbers [k, 4]": (
            "g.mat", lambda path: write_mat(path, boxes=[PIXELS[:, :3]] * 3),
        ),
        "instead of numbers": ("h.mat", lambda path: write_mat(path, boxes=["four"] * 3)),
        "is not let in": ("a.pkl", lambda path: write_pkl(path, boxes=[Path])),
        "a pickle that is no dictionary": ("b.pkl", pickle.dumps([1])),
        "lacks boxes, scores and ids (or indexes)": ("c.pkl", lambda path: write_pkl(path, boxes=None)),
        "lists of one length": ("d.pkl", lambda path: write_pkl(path, ids=[5])),
        "bbox_mode 1: only 0": ("e.pkl", lambda path: write_pkl(path, bbox_mode=1)),
        "its scores are not a number for each": (
            "f.pkl", lambda path: write_pkl(path, scores=[np.zeros(2)] * 4),
        ),
        "2008000002: its scores": ("g.pkl", lambda path: write_pkl(path, boxes=[None] * 4)),
        "float32 [3] instead of numbers": (
            "h.pkl", lambda path: write_pkl(path, boxes=[np.zeros(3, np.float32)] * 4),
        ),
    }  # fmt: skip
    for words, (name, how) in files.items():
        path = tmp_path / name
        if isinstance(how, bytes):
            path.write_bytes(how)
        else:
            how(path)
        assert words in refused(path), words
    assert "no such file; give the published proposals" in refused(tmp_path / "none.mat")


def test_equal_scores_stay_in_order(tmp_path: Path) -> None:
    boxes = np.arange(300)[:, None] + np.array([0, 0, 1, 1], np.float32)
    scores = np.tile(np.array([1, 2], np.float32), 150)
    path = write_pkl(tmp_path / "a.pkl", boxes=[boxes] * 4, scores=[scores] * 4)
    expected = [*range(1, 300, 2), *range(0, 300, 2)]
    assert opened(NamedImages(*IDS), path).boxes(0)[:, 0].tolist() == expected
