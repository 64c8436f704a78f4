"""The report of a table: its results, its cells, and what is missing."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from typing_extensions import override

from fastpsl.pipelines.interface.identity import in_digits
from fastpsl.tables.data_sets import PAPER_IMAGES, Digests, in_words
from fastpsl.tables.matching import Matches, Missing, Place, match, missing_runs, needs_of
from fastpsl.tables.results import Result, RunIndex
from fastpsl.tables.rows import Evaluation, Measure, PaperImages, Row, Table, Weights
from fastpsl.tables.scales import Scale


@dataclass(frozen=True)
class Measured:
    """A number of one result per seed: its name in result.json or "mean", its mean and standard deviation.

    The deviation is None for one seed. Of a difference (`Measure.minus`) it is that of the first weights, as
    are the seeds.
    """

    name: str
    mean: float
    sd: float | None
    seeds: tuple[int, ...]

    @override
    def __str__(self) -> str:
        """Return 50.9, or 50.9 ± 0.3 (3): the mean, the standard deviation and the number of seeds."""
        mean = f"{self.mean:.1f}".replace("-", "−")
        return mean if self.sd is None else f"{mean} ± {self.sd:.1f} ({len(self.seeds)})"


class Cell(NamedTuple):
    """A cell of a table: the paper's number and ours; None where there is none."""

    paper: float | None
    ours: Measured | None

    @property
    def mean(self) -> float | None:
        """Our mean."""
        return self.ours.mean if self.ours else None

    @property
    def difference(self) -> float | None:
        """Our number minus the paper's; None if one is missing."""
        return _minus(self.mean, self.paper)


class Gain(NamedTuple):
    """The differences between a row and its baseline, one per column; None where a number is missing."""

    row: Row
    paper: tuple[float | None, ...]
    ours: tuple[float | None, ...]


def _minus(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second


def measured(measure: Measure, matches: Matches) -> Measured | None:
    """Return our number over the seeds; None without results for it, or for the weights to be subtracted.

    Of several numbers it is the one with the best mean over the seeds, or the mean of each seed's numbers.
    """
    if measure.minus is not None:
        first, second = (
            measured(replace(measure, weights=weights, minus=None), matches)
            for weights in (measure.weights, measure.minus)
        )
        return replace(first, mean=first.mean - second.mean) if first and second else None
    results = matches.used.get((measure.weights, measure.evaluation), {})
    if not results:
        return None
    seeds = tuple(sorted(results))
    records = [results[seed].record["numbers"] for seed in seeds]
    values = {name: [float(record[name]) for record in records] for name in measure.numbers}
    if measure.of == "mean":
        values = {"mean": [statistics.fmean(of_seed) for of_seed in zip(*values.values(), strict=True)]}
    name, best = max(values.items(), key=lambda pair: statistics.fmean(pair[1]))
    return Measured(name, statistics.fmean(best), statistics.stdev(best) if len(best) > 1 else None, seeds)


def gains_of(table: Table, cells: Mapping[str, tuple[Cell, ...]]) -> tuple[Gain, ...]:
    """Return the gain of every row that has a baseline."""
    gains = []
    for row in table.rows:
        if row.baseline is not None:
            pairs = list(zip(cells[row.method], cells[row.baseline], strict=True))
            paper = tuple(_minus(cell.paper, below.paper) for cell, below in pairs)
            gains.append(Gain(row, paper, tuple(_minus(cell.mean, below.mean) for cell, below in pairs)))
    return tuple(gains)


@dataclass(frozen=True)
class Report:
    """A table and what is measured of it: the cells by a row's method, and the runs to make, in order."""

    table: Table
    scale: Scale
    matches: Matches
    missing: tuple[Missing, ...]
    cells: dict[str, tuple[Cell, ...]]
    gains: tuple[Gain, ...]

    @property
    def used(self) -> list[tuple[str, Evaluation, Result]]:
        """The results in the cells, each with its method and evaluation, in the table's order and by seed."""
        return [
            (self.method_of(weights, evaluation), evaluation, result)
            for weights, evaluation in needs_of(self.table)
            for _, result in sorted(self.matches.used.get((weights, evaluation), {}).items())
        ]

    def method_of(self, weights: Weights, evaluation: Evaluation | None = None) -> str:
        """Return the method of the row that is measured on these weights, by this evaluation if one is given.

        Of several rows it is the one with the fewest other weights. If no row is measured on these weights,
        it is the row of a training that needs them.
        """
        weights_of_rows = [
            [measure.weights for measure in row.measures if evaluation in (None, measure.evaluation)]
            for row in self.table.rows
        ]
        candidates = [
            (sum(other != weights for other in of_row), number)
            for number, of_row in enumerate(weights_of_rows)
            if any(weights in (other, other.before) for other in of_row)
        ]
        return self.table.rows[min(candidates)[1]].method

    @property
    def num_needed(self) -> int:
        """The number of results that fill the whole table."""
        return len(self.used) + sum(len(run.evaluations) for run in self.missing)

    def mark(self, row: Row) -> str:
        """Return the remark beside a row's method."""
        unmeasured = "" if row.measures else f"the paper's alone: {self.table.unmeasured}"
        unprinted = "" if row.printed else self.table.unprinted
        return "; ".join(words for words in (unmeasured, row.note, unprinted) if words)

    def data_words(self) -> str:
        """Return which images ours were measured on, and whether they are as many as the paper's."""
        if not self.used:
            return "Nothing is measured yet."
        data, paper = self.matches.data, self.table.images
        results = [result for _, evaluation, result in self.used if not evaluation.reads]
        parts = list[tuple[str, bool]]()
        if results:
            result = next((result for result in results if result.data[1]), results[0])
            parts.append(_images_words("Ours:", in_words(data), result.counts, paper))
        elif learned := data.get("pretrain" if self.table.pretrains_elsewhere else "train"):
            parts.append((f"Ours: pre-trained on images of digest {in_digits(learned)}.", True))
        others = {
            evaluation.protocol: result for _, evaluation, result in reversed(self.used) if evaluation.reads
        }
        for protocol, result in reversed(others.items()):
            digests = "/".join(in_digits(digest) for digest in result.data if digest)
            parts.append(_images_words(f"{protocol}:", digests, result.counts, PAPER_IMAGES[protocol]))
        words = " ".join(words for words, _ in parts)
        as_many = all(as_many for _, as_many in parts)
        return words if as_many else f"{words} Compare what the rows gain, not their values."


def _images_words(
    whose: str, digests: str, counts: tuple[int | None, int | None], paper: PaperImages
) -> tuple[str, bool]:
    """Return of which images numbers are, and whether they are as many as the paper's."""
    of_paper = (paper.num_train, paper.num_val)
    parts = [part for part in zip(("training", "validation"), counts, of_paper, strict=True) if part[1]]
    words = " and ".join(f"{num:,} {kind}" for kind, num, _ in parts)
    words = f"{whose} {words} images (digests {digests})."
    if all(num == num_of_paper for _, num, num_of_paper in parts):
        return f"{words} These are {paper.name}'s numbers of images.", True
    return f"{words} The paper's numbers are of {paper.name}.", False


def make_report(table: Table, scale: Scale, index: RunIndex, asked: Digests, place: Place) -> Report:
    """Match the results of a table, compute its cells, and list what is missing.

    Results on other data than the `asked` do not count. Results of several data sets are a ValueError.
    """
    matches = match(table, scale, index, asked)
    missing = missing_runs(table, scale, matches, index, place)
    cells = {}
    for row in table.rows:
        ours = [measured(measure, matches) for measure in row.measures] or [None] * len(row.numbers)
        cells[row.method] = tuple(map(Cell, row.numbers, ours))
    return Report(table, scale, matches, tuple(missing), cells, gains_of(table, cells))
