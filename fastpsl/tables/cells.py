"""A table's cells: the paper's number and ours, and what each improvement of the paper is in ours."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace

from typing_extensions import override

from fastpsl.tables.matching import Matches
from fastpsl.tables.needs import Measure
from fastpsl.tables.rows import Row, Table


@dataclass(frozen=True)
class Measured:
    """Of one result a seed: `number` is its name there, or "mean". sd: of the sample; None for one seed."""

    number: str
    mean: float
    sd: float | None
    seeds: tuple[int, ...]

    @override
    def __str__(self) -> str:
        """50.9, or 50.9 ± 0.3 (3): mean, standard deviation, seeds."""
        mean = f"{self.mean:.1f}".replace("-", "−")
        return mean if self.sd is None else f"{mean} ± {self.sd:.1f} ({len(self.seeds)})"


@dataclass(frozen=True)
class Cell:
    """paper: None in rows that it does not have. ours: None where nothing was measured."""

    paper: float | None
    ours: Measured | None

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's."""
        return _difference(self.ours.mean if self.ours else None, self.paper)


@dataclass(frozen=True)
class Gain:
    """What a row adds to its baseline, a column each; None where one of the two is not there."""

    row: Row
    paper: tuple[float | None, ...]
    ours: tuple[float | None, ...]


def measured(measure: Measure, matches: Matches) -> Measured | None:
    """Over the seeds; of several numbers the one with the best mean, the same for all seeds, or the mean of each seed's. None without
    results, those to be taken off included."""
    results = matches.used.get((measure.weights, measure.evaluation), {})
    if measure.minus is not None:
        mine, other = (
            measured(replace(measure, weights=w, minus=None), matches)
            for w in (measure.weights, measure.minus)
        )
        return replace(mine, mean=mine.mean - other.mean) if mine and other else None
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
    """A cell for each column."""
    ours = [measured(measure, matches) for measure in row.measures]
    return tuple(
        Cell(paper, mine) for paper, mine in zip(row.numbers, ours or [None] * len(row.numbers), strict=True)
    )


def gains_of(table: Table, cells: Mapping[str, tuple[Cell, ...]]) -> list[Gain]:
    """Of every row that has a baseline; `cells` by method."""
    gains = []
    for row in table.rows:
        if row.baseline is None:
            continue
        pairs = list(zip(cells[row.method], cells[row.baseline], strict=True))
        paper = tuple(_difference(mine.paper, other.paper) for mine, other in pairs)
        ours = tuple(_difference(*(cell.ours.mean if cell.ours else None for cell in pair)) for pair in pairs)
        gains.append(Gain(row, paper, ours))
    return gains


def _difference(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other
