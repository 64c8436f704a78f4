"""Of which pictures numbers are: told by digests, so that those of several data sets never stand in one table."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import override

from fastpsl.tables.found import Result
from fastpsl.tables.needs import SUPERVISED, Evaluation, Weights
from fastpsl.tables.rows import Table

# What a digest is of, and how a user says which one counts.
_FLAGS = {"train": "--data", "val": "--val", "pretrain": "--pretrain-data"}


@dataclass(frozen=True)
class DataSet:
    """Digests of the pictures that all numbers of a table are of; None where it is not known yet.

    pretrain: what trainings without labels learned from, where the table has other pictures for that. others: (what, digest) of the data
    that evaluations read in the place of the table's, each protocol's for itself: "voc detection/pirl train".
    """

    train: str | None = None
    val: str | None = None
    pretrain: str | None = None
    others: tuple[tuple[str, str], ...] = ()

    @property
    def known(self) -> dict[str, str]:
        """What → digest."""
        own = {"train": self.train, "val": self.val, "pretrain": self.pretrain}
        return {what: digest for what, digest in own.items() if digest is not None} | dict(self.others)

    @classmethod
    def of(cls, known: dict[str, str]) -> "DataSet":
        """The set of which this is known."""
        others = tuple(sorted((what, digest) for what, digest in known.items() if what not in _FLAGS))
        return cls(known.get("train"), known.get("val"), known.get("pretrain"), others)

    def agrees(self, other: "DataSet") -> bool:
        """Whether nothing that both know differs."""
        mine, its = self.known, other.known
        return all(mine[what] == its[what] for what in mine.keys() & its.keys())

    @override
    def __str__(self) -> str:
        parts = [self.train, self.val] + [self.pretrain] * (self.pretrain is not None)
        own = "/".join((digest or "unknown")[:8] for digest in parts)
        return ", ".join([own, *(f"{what} {digest[:8]}" for what, digest in self.others)])


def flag_of(name: str) -> str:
    """The flag of `fastpsl table` that names other data."""
    return f"--{name.replace('_', '-')}"


def of_other_data(evaluation: Evaluation, train: str | None, val: str | None) -> tuple[tuple[str, str], ...]:
    """`DataSet.others` of an evaluation that reads data of its own."""
    parts = (("train", train), ("val", val))
    return tuple(
        (f"{evaluation.reads[0]} {evaluation.protocol} {part}", digest)
        for part, digest in parts
        if digest is not None
    )


def learned_from(weights: Weights, table: Table, digest: str | None) -> DataSet:
    """What is known of the data where these weights learned from pictures of this digest."""
    elsewhere = table.pretrains_elsewhere and not weights.with_labels
    return DataSet(pretrain=digest) if elsewhere else DataSet(digest)


def data_of(result: Result, table: Table, evaluation: Evaluation) -> DataSet:
    """The pictures of one result, as far as it tells."""
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
    """The data set of all of them: what is asked, what its results know, and what its training runs know besides.

    A result that knows its held-out pictures alone, or those that it learned from, is of any set that has them. ValueError where
    there are several: their numbers must not stand in one table.
    """
    known = asked
    for words, found in (("results of", results), ("training runs on", runs)):
        where: dict[str, dict[str, Path]] = {}  # what → digest → the first that knows it
        for one, path in found:
            for what, digest in one.known.items() if one.agrees(known) else ():
                where.setdefault(what, {}).setdefault(digest, path)
        for what, paths in where.items():
            if len(paths) > 1:
                raise ValueError(_mixed(words, what, paths))
        known = DataSet.of(known.known | {what: next(iter(paths)) for what, paths in where.items()})
    return known


def _mixed(words: str, what: str, paths: dict[str, Path]) -> str:
    told = ", ".join(f"{digest[:8]} (such as {path})" for digest, path in paths.items())
    flag = _FLAGS.get(what) or flag_of(what.split()[0])
    return (
        f"{words} {len(paths)} data sets must not be mixed (digests of {what}: {told}): give {flag} of one of them, or --runs with "
        f"one alone"
    )
