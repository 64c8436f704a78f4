"""Tell data sets apart by their digests, so that numbers of several data sets never stand in one table."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import override

from fastpsl.tables.needs import SUPERVISED, Evaluation, Weights
from fastpsl.tables.results import Result
from fastpsl.tables.rows import Table

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

    Args:
        results: The data set and the path of each result.
        runs: The data set and the folder of each training run. They add digests that no result knows.
        asked: The data set that the user names. What disagrees with it does not count.

    Raises:
        ValueError: There are several data sets.
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
