"""Data that evaluations read in the place of their table's: what it is called, how recipes take it, which pictures it has."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastpsl.pipelines.data.open import open_data
from fastpsl.pipelines.voc.dataset import VOC
from fastpsl.tables.data_sets import of_other_data
from fastpsl.tables.needs import Evaluation
from fastpsl.tables.rows import Pictures, Table
from fastpsl.transfer.classification import protocols as multilabel_protocols
from fastpsl.transfer.detection import protocols as detection_protocols
from fastpsl.transfer.segmentation import protocols as segmentation_protocols


@dataclass(frozen=True)
class OtherData:
    """flags: of the recipe; one of several paths, or one each. stands_for: what commands name where the user gives no paths."""

    title: str
    flags: tuple[str, ...]
    stands_for: tuple[str, ...]


OTHER_DATA = {
    "voc": OtherData("Pascal VOC", ("data",), ("VOCdevkit",)),
    "proposals": OtherData("proposals", ("proposals",), ("voc_2007_trainval.mat", "voc_2007_test.mat")),
    "sbd": OtherData("SBD", ("sbd",), ("SBD",)),
    "places205": OtherData("Places205", ("data", "val"), ("PLACES-TRAIN", "PLACES-VAL")),
    "inat18": OtherData("iNaturalist 2018", ("data", "val"), ("INAT-TRAIN", "INAT-VAL")),
    "mini_imagenet": OtherData("miniImageNet", ("data",), ("MINI-IMAGENET-TEST",)),
}
# By protocol: what the papers' numbers are of.
PAPERS_PICTURES = {
    "detection/pirl": Pictures("VOC07+12", 16_551, 4_952),
    "detection/fast_rcnn": Pictures("VOC07", 5_011, 4_952),
    "detection/sslpp": Pictures("VOC07", 2_501, 4_952),
    "classification/deepcluster": Pictures("VOC07", 5_011, 4_952),
    "classification/sslpp": Pictures("VOC07", 2_501, 4_952),
    "svm/vissl": Pictures("VOC07", 5_011, 4_952),
    "segmentation/fcn_alexnet": Pictures("VOC12 with SBD", 10_582, 1_449),
    "segmentation/sslpp": Pictures("VOC12", 1_464, 1_449),
    "linear/vissl_places205": Pictures("Places205", 2_448_873, 20_500),
    "linear/vissl_inat18": Pictures("iNaturalist 2018", 437_513, 24_426),
    "few_shot": Pictures("miniImageNet's test classes", 12_000, 12_000),
}
Paths = Mapping[str, tuple[str, ...]]


def inputs(evaluation: Evaluation, given: Paths) -> dict[str, Any]:
    """Option of the recipe → path or paths, of all the data that an evaluation reads."""
    options: dict[str, Any] = {}
    for name in evaluation.reads:
        data = OTHER_DATA[name]
        paths: tuple[Any, ...] = given.get(name, data.stands_for)
        options |= zip(data.flags, paths if len(paths) == len(data.flags) else (paths,), strict=True)
    return options


def digests(table: Table, there: Paths) -> tuple[tuple[str, str], ...]:
    """`DataSet.others` of what a table's evaluations read, where it is there."""
    evaluations = dict.fromkeys(measure.evaluation for row in table.rows for measure in row.measures)
    known: dict[str, str] = {}
    for evaluation in evaluations:
        if evaluation.reads and evaluation.reads[0] in there:
            known |= of_other_data(evaluation, *_opened(evaluation, there))
    return tuple(sorted(known.items()))


def _opened(evaluation: Evaluation, there: Paths) -> tuple[str | None, str | None]:
    """Digests of what an evaluation learns from and of what it is scored on."""
    name = evaluation.reads[0]
    if name == "voc":
        return _voc(evaluation, there)
    found: list[str | None] = []
    for path in there[name]:
        with contextlib.closing(open_data(path)) as data:
            found.append(data.digest())
    train, val = found if len(found) > 1 else (None, *found)
    return train, val


def _voc(evaluation: Evaluation, there: Paths) -> tuple[str | None, str | None]:
    """By the sets that its protocol learns from and is scored on. Where SBD is not given, nothing is known of what is learned with it."""
    kind, _, protocol = evaluation.protocol.partition("/")
    (root,) = there["voc"]
    if kind == "segmentation":
        of, sbd = segmentation_protocols.PROTOCOLS[protocol], "sbd" in evaluation.reads
        known = not sbd or "sbd" in there
        train = VOC(root, of.train, "masks", there["sbd"][0] if sbd else None).digest() if known else None
        return train, VOC(root, of.test, "masks").digest()
    if kind == "detection":
        sets = detection_protocols.PROTOCOLS[protocol].train_sets, ("2007_test",)
    elif kind == "classification":
        sets = multilabel_protocols.PROTOCOLS[protocol].train, ("2007_test",)
    else:
        sets = ("2007_trainval",), ("2007_test",)
    train, val = (VOC(root, one, "boxes").digest() for one in sets)
    return train, val
