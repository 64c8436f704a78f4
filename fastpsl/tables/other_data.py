"""Describe the data that evaluations read instead of their table's: names, flags and images."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastpsl.pipelines.datasets.open import open_data
from fastpsl.pipelines.datasets.voc.dataset import VOC
from fastpsl.tables.data_sets import of_other_data
from fastpsl.tables.needs import Evaluation
from fastpsl.tables.rows import PaperImages, Table
from fastpsl.transfer.classification import protocols as multilabel_protocols
from fastpsl.transfer.detection import protocols as detection_protocols
from fastpsl.transfer.segmentation import protocols as segmentation_protocols


@dataclass(frozen=True)
class OtherData:
    """A kind of data that evaluations read.

    Attributes:
        title: The name for people.
        flags: The options of the recipe: one for each path, or one for all paths.
        stands_for: The paths that commands name if the user gives none.
    """

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
# The images that the papers' numbers are of, by protocol.
PAPER_IMAGES = {
    "detection/pirl": PaperImages("VOC07+12", 16_551, 4_952),
    "detection/fast_rcnn": PaperImages("VOC07", 5_011, 4_952),
    "detection/sslpp": PaperImages("VOC07", 2_501, 4_952),
    "classification/deepcluster": PaperImages("VOC07", 5_011, 4_952),
    "classification/sslpp": PaperImages("VOC07", 2_501, 4_952),
    "svm/vissl": PaperImages("VOC07", 5_011, 4_952),
    "segmentation/fcn_alexnet": PaperImages("VOC12 with SBD", 10_582, 1_449),
    "segmentation/sslpp": PaperImages("VOC12", 1_464, 1_449),
    "linear/vissl_places205": PaperImages("Places205", 2_448_873, 20_500),
    "linear/vissl_inat18": PaperImages("iNaturalist 2018", 437_513, 24_426),
    "few_shot": PaperImages("miniImageNet's test classes", 12_000, 12_000),
}
Paths = Mapping[str, tuple[str, ...]]


def inputs(evaluation: Evaluation, given: Paths) -> dict[str, Any]:
    """Return the recipe's options for all the data that an evaluation reads.

    Args:
        evaluation: The evaluation.
        given: The user's paths, by the name of the data.
    """
    options: dict[str, Any] = {}
    for name in evaluation.reads:
        data = OTHER_DATA[name]
        paths: tuple[Any, ...] = given.get(name, data.stands_for)
        options |= zip(data.flags, paths if len(paths) == len(data.flags) else (paths,), strict=True)
    return options


def digests(table: Table, paths: Paths) -> tuple[tuple[str, str], ...]:
    """Return `DataSet.others` of the data that a table's evaluations read.

    Args:
        table: The table.
        paths: The paths of the data that exist, by name.
    """
    evaluations = dict.fromkeys(measure.evaluation for row in table.rows for measure in row.measures)
    parts: dict[str, str] = {}
    for evaluation in evaluations:
        if evaluation.reads and evaluation.reads[0] in paths:
            parts |= of_other_data(evaluation, *_digests(evaluation, paths))
    return tuple(sorted(parts.items()))


def _digests(evaluation: Evaluation, paths: Paths) -> tuple[str | None, str | None]:
    """Return the digests of the images that an evaluation learns from and is scored on."""
    name = evaluation.reads[0]
    if name == "voc":
        return _voc_digests(evaluation, paths)
    of_paths: list[str | None] = []
    for path in paths[name]:
        with contextlib.closing(open_data(path)) as data:
            of_paths.append(data.digest())
    train, val = of_paths if len(of_paths) > 1 else (None, *of_paths)
    return train, val


def _voc_digests(evaluation: Evaluation, paths: Paths) -> tuple[str | None, str | None]:
    """Return the digests of the protocol's image sets; the first is None without the SBD that it needs."""
    kind, _, protocol = evaluation.protocol.partition("/")
    (root,) = paths["voc"]
    if kind == "segmentation":
        sets_of, needs_sbd = segmentation_protocols.PROTOCOLS[protocol], "sbd" in evaluation.reads
        train = None
        if not needs_sbd or "sbd" in paths:
            train = VOC(root, sets_of.train, "masks", paths["sbd"][0] if needs_sbd else None).digest()
        return train, VOC(root, sets_of.test, "masks").digest()
    if kind == "detection":
        sets = detection_protocols.PROTOCOLS[protocol].train_sets, ("2007_test",)
    elif kind == "classification":
        sets = multilabel_protocols.PROTOCOLS[protocol].train, ("2007_test",)
    else:
        sets = ("2007_trainval",), ("2007_test",)
    train, val = (VOC(root, names, "boxes").digest() for names in sets)
    return train, val
