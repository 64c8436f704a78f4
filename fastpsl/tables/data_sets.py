"""Tell data sets apart by their digests, so that numbers of several data sets never stand in one table."""

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typing_extensions import override

from fastpsl.pipelines.datasets.open import open_data
from fastpsl.pipelines.datasets.voc.dataset import VOC
from fastpsl.tables.results import Result
from fastpsl.tables.rows import SUPERVISED, Evaluation, PaperImages, Table, Weights
from fastpsl.transfer.classification import task as multilabel_protocols
from fastpsl.transfer.detection import protocols as detection_protocols
from fastpsl.transfer.segmentation import protocols as segmentation_protocols

# The part that a digest is of, and the flag that names the data.
_FLAGS = {"train": "--data", "val": "--val", "pretrain": "--pretrain-data"}


@dataclass(frozen=True)
class DataSet:
    """The digests of the images that the numbers of a table are of; None as long as one is unknown.

    Attributes:
        train: Of the training images.
        val: Of the validation images.
        pretrain: Of the images that trainings without labels learn from, if the table has a set for that.
        others: Pairs of a part and its digest, for evaluations that read other data than the table's. A part
            names the data, the protocol and the split: "voc detection/pirl train".
    """

    train: str | None = None
    val: str | None = None
    pretrain: str | None = None
    others: tuple[tuple[str, str], ...] = ()

    @property
    def known(self) -> dict[str, str]:
        """The known digests, by part."""
        parts = {"train": self.train, "val": self.val, "pretrain": self.pretrain}
        return {part: digest for part, digest in parts.items() if digest is not None} | dict(self.others)

    @classmethod
    def of(cls, known: dict[str, str]) -> "DataSet":
        """Return the data set with these digests, by part."""
        others = tuple(sorted((part, digest) for part, digest in known.items() if part not in _FLAGS))
        return cls(known.get("train"), known.get("val"), known.get("pretrain"), others)

    def agrees(self, other: "DataSet") -> bool:
        """Return whether all digests are equal that both know."""
        first, second = self.known, other.known
        return all(first[part] == second[part] for part in first.keys() & second.keys())

    @override
    def __str__(self) -> str:
        """Return the first eight digits of all digests."""
        digests = [self.train, self.val, *([] if self.pretrain is None else [self.pretrain])]
        text = "/".join((digest or "unknown")[:8] for digest in digests)
        return ", ".join([text, *(f"{part} {digest[:8]}" for part, digest in self.others)])


def flag_of(name: str) -> str:
    """Return the flag of `fastpsl table` for a name of other_data."""
    return f"--{name.replace('_', '-')}"


def of_other_data(evaluation: Evaluation, train: str | None, val: str | None) -> tuple[tuple[str, str], ...]:
    """Return `DataSet.others` for an evaluation that reads data of its own."""
    splits = (("train", train), ("val", val))
    return tuple(
        (f"{evaluation.reads[0]} {evaluation.protocol} {split}", digest)
        for split, digest in splits
        if digest is not None
    )


def learned_from(weights: Weights, table: Table, digest: str | None) -> DataSet:
    """Return the data set of weights that learned from the images with this digest."""
    elsewhere = table.pretrains_elsewhere and not weights.with_labels
    return DataSet(pretrain=digest) if elsewhere else DataSet(digest)


def data_of(result: Result, table: Table, evaluation: Evaluation) -> DataSet:
    """Return the data set of a result, as far as its record tells it."""
    science, (train, val) = result.science, result.data
    digest = science.get("data_digest")
    elsewhere = table.pretrains_elsewhere and science.get("recipe") not in (None, SUPERVISED)
    if evaluation.reads:
        others = of_other_data(evaluation, train, val)
        return DataSet(None if elsewhere else digest, None, digest if elsewhere else None, others)
    return DataSet(train, val, digest if elsewhere else None)


def one_data_set(
    results: Iterable[tuple[DataSet, Path]], runs: Iterable[tuple[DataSet, Path]], asked: DataSet
) -> DataSet:
    """Return the data set that results and runs have in common.

    A result that knows only some of the digests belongs to every data set that has these.
    """
    common = asked
    for words, members in (("results of", results), ("training runs on", runs)):
        first_paths: dict[str, dict[str, Path]] = {}  # by part and digest
        for data, path in members:
            for part, digest in data.known.items() if data.agrees(common) else ():
                first_paths.setdefault(part, {}).setdefault(digest, path)
        for part, paths in first_paths.items():
            if len(paths) > 1:
                raise ValueError(_mixed(words, part, paths))
        common = DataSet.of(common.known | {part: next(iter(paths)) for part, paths in first_paths.items()})
    return common


def _mixed(words: str, part: str, paths: dict[str, Path]) -> str:
    digests = ", ".join(f"{digest[:8]} (such as {path})" for digest, path in paths.items())
    flag = _FLAGS.get(part) or flag_of(part.split()[0])
    return (
        f"{words} {len(paths)} data sets must not be mixed (digests of {part}: {digests}): "
        f"give {flag} of one of them, or --runs with one alone"
    )


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
    """Return the recipe's options for all the data that an evaluation reads."""
    options: dict[str, Any] = {}
    for name in evaluation.reads:
        data = OTHER_DATA[name]
        paths: tuple[Any, ...] = given.get(name, data.stands_for)
        options |= zip(data.flags, paths if len(paths) == len(data.flags) else (paths,), strict=True)
    return options


def digests(table: Table, paths: Paths) -> tuple[tuple[str, str], ...]:
    """Return `DataSet.others` of the data that a table's evaluations read."""
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
