"""Compute the cells of a table: the paper's number and ours, and what a row gains over its baseline."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace

from typing_extensions import override

from fastpsl.tables.matching import Matches
from fastpsl.tables.rows import Measure, Row, Table


@dataclass(frozen=True)
class Measured:
    """A number of one result per seed.

    Attributes:
        name: Its name in result.json, or "mean".
        mean: The mean over the seeds.
        sd: The sample standard deviation; None for one seed. Of a difference (`Measure.minus`) it is that of
            the first weights, as are the seeds.
        seeds: The seeds in order.
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


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        paper: The paper's number; None if it has none.
        ours: Our number; None if nothing was measured.
    """

    paper: float | None
    ours: Measured | None

    @property
    def difference(self) -> float | None:
        """Our number minus the paper's; None if one is missing."""
        return _difference(self.ours.mean if self.ours else None, self.paper)


@dataclass(frozen=True)
class Gain:
    """The differences between a row and its baseline, one per column; None where a number is missing."""

    row: Row
    paper: tuple[float | None, ...]
    ours: tuple[float | None, ...]


def measured(measure: Measure, matches: Matches) -> Measured | None:
    """Return our number over the seeds; None without results for it, or for the weights to be subtracted.

    Of several numbers it is the one with the best mean over the seeds, or the mean of each seed's numbers.
    """
    results = matches.used.get((measure.weights, measure.evaluation), {})
    if measure.minus is not None:
        first, second = (
            measured(replace(measure, weights=weights, minus=None), matches)
            for weights in (measure.weights, measure.minus)
        )
        return replace(first, mean=first.mean - second.mean) if first and second else None
    if not results:
        return None
    seeds = tuple(sorted(results))
    values = {
        number: [float(results[seed].record["numbers"][number]) for seed in seeds]
        for number in measure.numbers
    }
    if measure.of == "mean":
        values = {"mean": [statistics.fmean(of_seed) for of_seed in zip(*values.values(), strict=True)]}
    number, best = max(values.items(), key=lambda pair: statistics.fmean(pair[1]))
    sd = statistics.stdev(best) if len(best) > 1 else None
    return Measured(number, statistics.fmean(best), sd, seeds)


def cells_of(row: Row, matches: Matches) -> tuple[Cell, ...]:
    """Return a cell for each column."""
    ours = [measured(measure, matches) for measure in row.measures] or [None] * len(row.numbers)
    return tuple(Cell(paper, number) for paper, number in zip(row.numbers, ours, strict=True))


def gains_of(table: Table, cells: Mapping[str, tuple[Cell, ...]]) -> list[Gain]:
    """Return the gain of every row that has a baseline."""
    gains = []
    for row in table.rows:
        if row.baseline is None:
            continue
        pairs = list(zip(cells[row.method], cells[row.baseline], strict=True))
        paper = tuple(_difference(cell.paper, baseline.paper) for cell, baseline in pairs)
        ours = tuple(_difference(*(cell.ours.mean if cell.ours else None for cell in pair)) for pair in pairs)
        gains.append(Gain(row, paper, ours))
    return gains


def _difference(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second
