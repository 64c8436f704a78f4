"""Tell data sets apart by their digests, so that numbers of several data sets never stand in one table."""

import contextlib
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fastpsl.engine.options import flag
from fastpsl.pipelines.datasets.open import open_data
from fastpsl.pipelines.datasets.voc.dataset import VOC
from fastpsl.pipelines.interface.identity import in_digits, not_compared, parts_of, same_data
from fastpsl.tables.results import Result
from fastpsl.tables.rows import SUPERVISED, Evaluation, PaperImages, Table, Weights
from fastpsl.tables.runs import Run
from fastpsl.transfer.classification import task as multilabel_protocols
from fastpsl.transfer.detection import protocols as detection_protocols
from fastpsl.transfer.segmentation import task as segmentation_protocols

# The parts of a data set, each with the option that names it.
FLAGS = {"train": "--data", "val": "--val", "pretrain": "--pretrain-data"}


# The known digests of the images that numbers are of, by part: "train", "val" and, where trainings without
# labels learn from a set of their own, "pretrain". The parts of other data that an evaluation reads name the
# data, the protocol and the split: "voc detection/pirl train".
Digests = Mapping[str, str]


def digests_of(
    train: str | None = None, val: str | None = None, pretrain: str | None = None
) -> dict[str, str]:
    """Return the digests that are known of a table's own images."""
    parts = {"train": train, "val": val, "pretrain": pretrain}
    return {part: digest for part, digest in parts.items() if digest is not None}


def agree(first: Digests, second: Digests) -> bool:
    """Return whether the digests are equal for each part that both have."""
    return all(same_data(first[part], second[part]) for part in first.keys() & second.keys())


def in_words(digests: Digests) -> str:
    """Return the first eight digits of all digests."""
    own = [in_digits(digests.get(part, "unknown")) for part in FLAGS if part != "pretrain" or part in digests]
    others = sorted(f"{part} {in_digits(digest)}" for part, digest in digests.items() if part not in FLAGS)
    return ", ".join(["/".join(own), *others])


def _of_other_data(evaluation: Evaluation, train: str | None, val: str | None) -> dict[str, str]:
    """Return the digests of an evaluation that reads data of its own."""
    of_splits = digests_of(train, val).items()
    return {f"{evaluation.reads[0]} {evaluation.protocol} {split}": digest for split, digest in of_splits}


def learned_from(run: Run, weights: Weights, table: Table) -> Digests:
    """Return the digests, by part, of the images that a run learned from which made the weights."""
    elsewhere = table.pretrains_elsewhere and not weights.with_labels
    digest = str(run.science.get("data_digest"))
    return digests_of(pretrain=digest) if elsewhere else digests_of(digest)


def data_of(result: Result, table: Table, evaluation: Evaluation) -> Digests:
    """Return the digests of a result, as far as its record tells them."""
    science, (train, val) = result.science, result.data
    digest = science.get("data_digest")
    elsewhere = table.pretrains_elsewhere and science.get("recipe") not in (None, SUPERVISED)
    if evaluation.reads:
        learned = digests_of(pretrain=digest) if elsewhere else digests_of(digest)
        return learned | _of_other_data(evaluation, train, val)
    return digests_of(train, val, digest if elsewhere else None)


def one_data_set(
    results: Iterable[tuple[Digests, Path]], runs: Iterable[tuple[Digests, Path]], asked: Digests
) -> Digests:
    """Return the digests that results and runs have in common.

    A result that knows only some of the digests belongs to every data set that has these.
    """
    common = asked
    for words, members in (("results of", results), ("training runs on", runs)):
        first_paths: dict[str, dict[str, Path]] = {}  # by part and digest
        for data, path in members:
            for part, digest in data.items() if agree(data, common) else ():
                first_paths.setdefault(part, {}).setdefault(digest, path)
        for part, paths in first_paths.items():
            _drop_older(paths, common.get(part))
            if len(paths) > 1:
                raise ValueError(_mixed(words, part, paths))
        common = {**common, **{part: next(iter(paths)) for part, paths in first_paths.items()}}
    return common


def _drop_older(paths: dict[str, Path], asked: str | None) -> None:
    """Drop digests of names alone where a digest with contents is of the same data, and warn of each."""
    for older in [digest for digest in paths if not parts_of(digest)[1]]:
        known = [digest for digest in (*paths, asked or "") if digest != older and same_data(digest, older)]
        if not known:
            continue
        for line in not_compared(str(paths[older]), older, known[0]):
            warnings.warn(line, stacklevel=2)
        if known[0] not in paths:
            paths[known[0]] = paths[older]
        del paths[older]


def _mixed(words: str, part: str, paths: dict[str, Path]) -> str:
    digests = ", ".join(f"{in_digits(digest)} (such as {path})" for digest, path in paths.items())
    named = FLAGS.get(part) or flag(part.split()[0])
    return (
        f"{words} {len(paths)} data sets must not be mixed (digests of {part}: {digests}): "
        f"give {named} of one of them, or --runs with one alone"
    )


class OtherData(NamedTuple):
    """A kind of data that evaluations read, with one of the recipe's flags for each path, or one for all.

    Commands name the paths `stands_for` if the user gives none.
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


def digests_of_other_data(table: Table, paths: Paths) -> dict[str, str]:
    """Return the digests of the data that a table's evaluations read."""
    parts: dict[str, str] = {}
    for evaluation in dict.fromkeys(measure.evaluation for measure in table.measures):
        if evaluation.reads and evaluation.reads[0] in paths:
            parts |= _of_other_data(evaluation, *_digests(evaluation, paths))
    return parts


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
