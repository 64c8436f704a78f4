"""Say what the experiments show of a paper's claim: the rows of a table and of a chart for docs/evidence.md.

A verdict is made by rule: "higher" or "lower" where Holm's p is below power.LEVEL, else "not found". There is
none before all seeds of the plan are there.
"""

import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from math import ceil, floor, hypot
from operator import itemgetter
from typing import Any

from bench.evidence.best_blocks import BEST, Best, bests
from bench.evidence.plan import RANDOM, UNTRAINED, Plan
from bench.evidence.power import LEVEL, POWER, smallest_difference, spread
from bench.evidence.results import CONFIDENCE, block_means, compared_numbers, holm, numbers_of, t_interval
from fastpsl.tables.paper_file import TABLES

Record = Mapping[str, Any]

PAPERS = {
    "psl": [
        ("jigsaw: psl − end to end", "psl/4", "Jigsaw+PSL", "Top 1"),
        ("rotation: psl − end to end", "psl/4", "Rotation+PSL", "Top 1"),
        ("SimCLR: psl − end to end", "psl/4", "SimCLR+PSL", "Top 1"),
    ],
    "uic": [
        (f"uic − deepcluster, {column}", "uic/4", "Ours", column) for column in ("conv3", "conv4", "conv5")
    ],
    "sslpp": [
        ("iic − rotation, B4", "sslpp/3", "Ours+Rot.", "B4"),
        ("iic − rotation, B4", "sslpp/5", "Ours+Rot.", "B4"),
        ("true labels − random, B4", "sslpp/9", "Rotation [8]: Labels", "B4"),
        ("k-means − random, B4", "sslpp/9", "Rotation [8]: K-means", "B4"),
    ],
}
"""Claim → what the paper says of it: words, table, method and column. The method's baseline is the other."""

_EVALUATIONS = {
    "linear": "linear classifiers", "neighbours": "nearest neighbours", "few_labels": "10 labels a class",
}  # fmt: skip
_NAMES = {"psl": "PSL", "uic": "UIC", "sslpp": "SSL++"}
_STEPS, _MOST_TICKS = (0.5, 1, 2, 5, 10, 20, 50), 8


@dataclass(frozen=True)
class Line:
    """A comparison: a row of the table and of the chart."""

    pair: str  # with the block if the endpoint has several
    means: tuple[float, float]
    difference: float
    interval: Sequence[float] | None = None
    seeds: Sequence[float] = ()  # the differences seed by seed; none of a paper
    p: float | None = None
    seconds: str = ""  # of both trainings
    verdict: str = ""

    @property
    def points(self) -> str:
        """The difference with its interval, if it has one."""
        return points(self.difference, self.interval)

    @property
    def p_in_words(self) -> str:
        """p with three digits, nothing if there is none."""
        return p_in_words(self.p)

    @property
    def found(self) -> bool:
        """Whether there is a difference by the rule."""
        return self.verdict in ("higher", "lower")


@dataclass(frozen=True)
class Group:
    """The comparisons of an experiment, or of a paper's table, and what they are of."""

    name: str
    about: str
    lines: Sequence[Line]
    notes: Sequence[str] = ()
    link: str = ""
    columns: Sequence[str] = ()  # blocks
    arms: Mapping[str, Sequence[str]] = field(default_factory=dict)  # the means by block, and of pairs
    best_columns: Sequence[str] = ()
    best: Mapping[str, Sequence[str]] = field(default_factory=dict)  # by arm and pair

    @property
    def title(self) -> str:
        """The name, a link to the record if there is one, and what it is of."""
        return f"{f'[{self.name}]({self.link})' if self.link else self.name}: {self.about}"


def points(mean: float, interval: Sequence[float] | None) -> str:
    """Return +1.2 (−0.4 to +2.8), or the mean alone if there is no interval."""
    between = "" if interval is None else f" ({interval[0]:+.1f} to {interval[1]:+.1f})"
    return f"{mean:+.1f}{between}".replace("-", "−")


def p_in_words(p: float | None) -> str:
    """Return .012, < .001, or nothing for None."""
    return "" if p is None else "< .001" if p < 0.001 else f"{p:.3f}".lstrip("0")


def p_values(result: Record) -> list[float | None]:
    """Return the differences' p, corrected for all comparisons of the plan; None of single seeds."""
    known = [one["values"] for one in result["differences"] if len(one["values"]) > 1]
    found = iter(holm(known, num_comparisons(result["endpoint"])))
    return [next(found) if len(one["values"]) > 1 else None for one in result["differences"]]


def num_comparisons(endpoint: Record) -> int:
    """Return how many differences decide: one of each pair and number, or of each pair if one is chosen."""
    return len(endpoint["pairs"]) * (1 if endpoint.get("chosen_by") else len(endpoint["numbers"]))


def evaluation_in_words(evaluation: str) -> str:
    """Return the name of an evaluation for people."""
    return _EVALUATIONS.get(evaluation, evaluation)


def block(number: str) -> str:
    """Return the block of a number: B4 of top1_k20_B4."""
    of = number.rpartition("_")[2]
    return "best block" if of == BEST else of


def data_in_words(title: str) -> str:
    """Return the images and the network of an experiment: what follows its name in its title."""
    return title.partition(": ")[2] or title


def paper_groups(claim: str) -> Iterator[Group]:
    """Yield what a paper says of its claim, table by table."""
    for name, of_table in groupby(PAPERS[claim], key=lambda one: one[1]):
        table, lines, archs = TABLES[name], list[Line](), dict[str, None]()
        for words, _, method, column in of_table:
            row, place = table.row(method), table.columns.index(column)
            assert row.baseline is not None
            first, second = row.numbers[place], table.row(row.baseline).numbers[place]
            assert first is not None and second is not None
            lines.append(Line(words, (first, second), first - second))
            archs[row.arch] = None
        what, _, number = table.title.rstrip(")").partition(" (")
        images = table.images.name
        what = what[0].lower() + what[1:].removesuffix(f", {images}")
        about = f"{images}, {' and '.join(archs)}; {what}"
        yield Group(f"The paper ({number})", about, lines)


def experiment_group(name: str, result: Record, plan: Plan, times: Record | None = None) -> Group:
    """Return the comparisons of an experiment that are there; `times` is its times.json, if it has one.

    Pairs with random weights are left out: they normalise otherwise than a training. Holm counts them.
    """
    seconds = _seconds(result["training"], times)
    p = p_values(result)
    lines = [
        _line(result, one, p[place], plan, seconds)
        for place, one in enumerate(result["differences"])
        if RANDOM not in one["pair"]
    ]
    link = f"/docs/runs/{name}/results.json"
    columns, arms = by_block(result)
    return Group(
        name, _about(result), lines, [*_notes(result, plan)], link, columns, arms | _pairs_by_block(result),
        *by_best_block(result),
    )  # fmt: skip


def by_best_block(result: Record) -> tuple[list[str], dict[str, list[str]]]:
    """Return the columns of the table of best blocks, and the cells of arms and of pairs of trainings.

    An evaluation has two columns; one if there is no row "no training".
    """
    found = {(one.arm, one.evaluation): one for one in bests(result)}
    evaluations = dict.fromkeys(evaluation for _, evaluation in found)
    over = [f"over {UNTRAINED}'s"] if any(one.gains for one in found.values()) else []
    columns = [words for name in evaluations for words in (f"best by {evaluation_in_words(name)}", *over)]

    def of_arm(one: Best | None) -> list[str]:
        if one is None:  # it has one seed there yet
            return [""] * (1 + len(over))
        gain = _points_of([*one.gains.values()]) if one.gains else ""
        return [f"{'/'.join(one.blocks)} {statistics.fmean(one.values.values()):.1f}", gain][: 1 + len(over)]

    def of_pair(first: Best | None, second: Best | None) -> list[str]:
        values = list[float]()
        if first and second:
            both = [seed for seed in first.values if seed in second.values]
            values = [first.values[seed] - second.values[seed] for seed in both]
        return [_points_of(values) if values else "", ""][: 1 + len(over)]

    arms = dict.fromkeys(arm for arm, _ in found)
    rows = {arm: [cell for name in evaluations for cell in of_arm(found.get((arm, name)))] for arm in arms}
    for first, second in _trained_pairs(result):
        if first in arms and second in arms:
            rows[f"{first} − {second}"] = [
                cell
                for name in evaluations
                for cell in of_pair(found.get((first, name)), found.get((second, name)))
            ]
    return columns, rows


def _pairs_by_block(result: Record) -> dict[str, list[str]]:
    """Return the differences of each pair of trainings by block, in words."""
    numbers, of = block_means(result)[0], compared_numbers(result)
    rows = dict[str, list[str]]()
    for first, second in _trained_pairs(result):
        seeds = [seed for arm, seed in of if arm == first and (second, seed) in of]
        if seeds:
            rows[f"{first} − {second}"] = [
                _points_of([of[first, seed][name] - of[second, seed][name] for seed in seeds])
                for name in numbers
            ]
    return rows


def _trained_pairs(result: Record) -> list[Sequence[str]]:
    """Return the endpoint's pairs of trainings."""
    arms = {score["arm"] for score in result["scores"]} - {UNTRAINED, RANDOM}
    return [pair for pair in result["endpoint"]["pairs"] if {*pair} <= arms]


def _points_of(values: Sequence[float]) -> str:
    """Return the mean of differences with its interval, if there are two or more."""
    interval = t_interval(values, CONFIDENCE) if len(values) > 1 else None
    return points(statistics.fmean(values), interval)


def by_block(result: Record) -> tuple[list[str], dict[str, list[str]]]:
    """Return the names of the blocks, and the means of each arm in words."""

    def words(row: Record) -> str:
        num = len(row["values"])
        return f"{row['mean']:.1f}" + (f" ± {row['deviation']:.1f} ({num})" if num > 1 else "")

    numbers, means = block_means(result)
    return [*map(block, numbers)], {arm: [*map(words, rows)] for arm, rows in means.items()}


def _line(result: Record, one: Record, p: float | None, plan: Plan, seconds: Mapping[str, str]) -> Line:
    end, number, of = result["endpoint"], one["number"], compared_numbers(result)
    its, _, others = number.partition(" - ")
    first, second = (
        statistics.fmean(of[arm, seed][name] for seed in one["seeds"])
        for arm, name in zip(one["pair"], (its, others or its), strict=True)
    )
    where = f", {block(number)}" if len(end["numbers"]) > 1 else ""
    return Line(
        " − ".join(one["pair"]) + where, (first, second), one["mean"], one["interval"], one["values"], p,
        "/".join(seconds.get(arm, "–") for arm in one["pair"]), _verdict(one, p, plan),
    )  # fmt: skip


def _verdict(one: Record, p: float | None, plan: Plan) -> str:
    if len(one["values"]) < len(plan.seeds):
        return "open: seeds to come"
    if p is None:
        return "one seed shows nothing"
    if p < LEVEL:
        return "higher" if one["mean"] > 0 else "lower"
    margin = plan.endpoint.margin
    # Two one-sided tests at LEVEL, each against an end of the margin.
    if margin and all(abs(end) < margin for end in t_interval(one["values"], 1 - 2 * LEVEL)):
        return f"alike within {margin:g}"
    return "not found"


def _seconds(trainings: Sequence[Record], times: Record | None) -> dict[str, str]:
    """Return arm → the mean seconds of its trainings in words."""
    by_arm = seconds_of_each(trainings)
    by_arm |= {row["arm"]: row["cpu_seconds"] for row in (times or {"rows": ()})["rows"]}
    return {arm: f"{statistics.fmean(values):,.0f}" for arm, values in by_arm.items()}


def seconds_of_each(trainings: Sequence[Record]) -> dict[str, list[float]]:
    """Return arm → the seconds of each of its trainings: of the processor, or of the clock with a GPU.

    Of a training that was resumed only the last part's seconds are known, so it does not count.
    """
    by_arm = dict[str, list[float]]()
    trained = (one for one in trainings if one["arm"] != UNTRAINED and "seconds" in one)
    for one in trained:
        name = "seconds" if one.get("machine", {}).get("gpu") else "cpu_seconds"
        if sum(stage["seconds"] for stage in one["stages"]) <= one["seconds"]:
            by_arm.setdefault(one["arm"], []).append(one[name])
    return by_arm


def _about(result: Record) -> str:
    """Return data, network and epochs in words."""
    epochs = sorted({
        sum(map(int, found[1].split()))
        for one in result["training"]
        if one["arm"] != UNTRAINED and (found := re.search(r"--epochs((?: \d+)+)", one["command"]))
    })  # fmt: skip
    data = data_in_words(result["title"])
    if epochs:
        data += f", {' to '.join(map(str, dict.fromkeys((epochs[0], epochs[-1]))))} epochs"
    end = result["endpoint"]
    blocks = " and ".join(map(block, end["numbers"]))
    return f"{data}; {evaluation_in_words(end['evaluation'])} on {blocks}"


def _notes(result: Record, plan: Plan) -> Iterator[str]:
    """Yield what else there is to know: what is missing, power, rates, numbers to compare with, the curve."""
    there, num = (
        len({(one["arm"], one["seed"]) for one in result["scores"]}),
        len(plan.rows) * len(plan.seeds),
    )
    if there < num:
        yield f"{there} of {num} entries are there."
    yield from power_notes(result)
    yield from rate_notes(result, plan)
    beside = dict[tuple[str, str], list[float]]()
    for one in result["beside"]:
        beside.setdefault((one["name"], one["number"]), []).append(one["numbers"][one["number"]])
    for (name, number), values in beside.items():
        deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        yield f"`{number}` of {name}: {statistics.fmean(values):.1f}{deviation} % ({len(values)})."
    for arm, of in result["curves"].items():
        if change := of.get("change"):
            (first, last), (before, after) = change["epochs"], change["means"]
            gain = points(change["mean"], change["interval"])
            yield (
                f"`{result['curve']['name']}` of {arm} in %: {before:.1f} after epoch {first}, {after:.1f} "
                f"after epoch {last}, {gain}."
            )


def rate_notes(result: Record, plan: Plan) -> Iterator[str]:
    """Yield the rates, and of which grid each is the best."""
    rates: Mapping[str, float] = result["rates"]
    if not rates:
        return
    grid = sorted(plan.search.rates) if plan.search else []
    ends = {grid[0], grid[-1]} if len(grid) > 2 else set()

    def words(rate: float) -> str:
        return f"{rate:g}{' (an end)' if rate in ends else ''}"

    alike = len({*rates.values()}) == 1
    each = (
        [words(next(iter(rates.values())))] if alike else [f"{a} {words(rate)}" for a, rate in rates.items()]
    )
    yield f"Rate{'' if alike else 's'}: {', '.join(each)}."
    if plan.search and len(grid) > 1:
        values = ", ".join(f"{rate:g}" for rate in grid[:-1]) + f" and {grid[-1]:g}"
        of = f" for {plan.search.arm}" if plan.search.arm else ""
        which = "better" if len(grid) == 2 else "best"
        yield f"{'It' if alike else 'Each'} was the {which} of {values}{of}, by one seed."


def power_notes(result: Record) -> Iterator[str]:
    """Yield which difference would be found, if all comparisons have three seeds or more."""
    num_seeds = min((len(one["values"]) for one in result["differences"]), default=0)
    if num_seeds > 2:
        of_one = smallest_difference(num_seeds, num_comparisons(result["endpoint"]))
        yield (
            f"With a probability of {100 * POWER:.0f} %, {num_seeds} seeds find a difference of "
            f"{spread(result)[0] * of_one:.1f} points."
        )


def cost_words(result: Record, plan: Plan) -> dict[str, Any]:
    """Return the words of the chart of cost: a point for each arm, a line for each number to compare with."""
    scores, evaluation = result["scores"], result["endpoint"]["evaluation"]
    means = {(row["arm"], row["evaluation"], row["number"]): row for row in result["means"]}
    mean = itemgetter("mean")
    best = {
        arm: max((means[arm, evaluation, number] for number in numbers_of(plan, arm, scores)), key=mean)
        for arm in dict.fromkeys(row["arm"] for row in result["means"])
    }
    lines = [(UNTRAINED, best.pop(UNTRAINED)["mean"])] if UNTRAINED in best else []
    for name in plan.beside:
        values = [one["numbers"][one["number"]] for one in result["beside"] if one["name"] == name]
        lines += [(name, statistics.fmean(values))] if values else []
    seconds = seconds_of_each(result["training"])
    dots = [
        (arm, statistics.fmean(seconds[arm]) / 60, row["mean"], row["deviation"] or 0.0)
        for arm, row in best.items()
        if arm in seconds
    ]
    ends = [value for _, _, mean, deviation in dots for value in (mean - deviation, mean + deviation)]
    minutes = _ticks(0, max(minutes for _, minutes, _, _ in dots))
    percents = _ticks(*(end([*ends, *(mean for _, mean in lines)]) for end in (min, max)))
    title = f"{evaluation_in_words(evaluation)[0].upper()}{evaluation_in_words(evaluation)[1:]}: top-1 in %"
    spoken = [f"{arm} {mean:.1f} % in {minutes:.1f} minutes" for arm, minutes, mean, _ in dots]
    return {
        "title": title, "about": data_in_words(result["title"]), "lines": lines,
        "description": f"{title}. {', '.join(spoken)}.", "minutes": minutes, "percents": percents,
        "dots": [*zip(dots, _places(dots, minutes, percents), strict=True)],
    }  # fmt: skip


def _places(
    dots: Sequence[tuple[str, float, float, float]], minutes: Sequence[float], percents: Sequence[float]
) -> Iterator[tuple[int, int]]:
    """Yield where each dot's number stands, in pixels right of it and below, so that numbers are apart."""
    wide, high = 750 / (minutes[-1] - minutes[0]), 380 / (percents[-1] - percents[0])  # pixels, about
    taken = [(cpu * wide, -mean * high) for _, cpu, mean, _ in dots]
    for x, y in taken[:]:
        sides = [(20, 0), (-20, 0), (0, -22), (0, 22)]
        others = [place for place in taken if place != (x, y)]
        away = [min((hypot(x + a - b, y + c - d) for b, d in others), default=99.0) for a, c in sides]
        side = sides[next((place for place, far in enumerate(away) if far > 18), 0)]
        taken.append((x + side[0], y + side[1]))
        yield side


def _ticks(least: float, most: float) -> list[float]:
    """Return round numbers from below the least to above the most, at most _MOST_TICKS steps."""
    step = next(step for step in _STEPS if (most - least) / step <= _MOST_TICKS)
    return [step * place for place in range(floor(least / step), ceil(most / step) + 1)]


def chart_words(claim: str, groups: Sequence[Group]) -> dict[str, Any]:
    """Return the words of the chart: a row for each comparison, below the name of what it is of."""
    lines = [line for group in groups for line in group.lines]
    values = [v for line in lines for v in (0, line.difference, *(line.interval or ()), *line.seeds)]
    title = f"{_NAMES[claim]}: differences in points of accuracy"
    return {
        "title": title, "description": f"{title}, with 95 % intervals. The table has the numbers.",
        "about": "Grey: seeds. Blue: mean, 95 % interval; filled: p < .05 by Holm. Diamonds: the paper.",
        "rows": [row for group in groups for row in (group.name, *group.lines)],
        "ticks": _ticks(min(values), max(values)),
    }  # fmt: skip
