"""Write the tables and the chart of docs/methods/worth.md: what training is worth on four public sets.

The plans are worth-*.json. An arm of worth-SET stands in the table of its set with what worth-continued-SET
adds, and with the numbers to compare with. Where such a number's name ends with ": NAME", it is of the column
NAME.
"""

import json
import re
import statistics
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.evidence import splits
from bench.evidence.claims import block, p_in_words, p_values, points, power_notes, seconds_of_each
from bench.evidence.plan import Plan, Run, read_plan
from bench.evidence.results import CONFIDENCE, numbers_of, t_interval
from bench.evidence.splits import HELD_OUT, SEARCH, TRAIN
from bench.figures.svg import THEMES, render
from fastpsl.scripts.recipe_files import TRAIN as RECIPES
from fastpsl.tables.templates import templates

Record = Mapping[str, Any]
PLANS = Path(__file__).parent
SETS = tuple(splits.SETS)
# Name of a table → the plans of its rows.
TABLES = {name: (f"worth-{name}", f"worth-continued-{name}") for name in SETS} | {
    name: (f"worth-{name}",) for name in ("scenes-500", "scenes-2000", "scenes-longer", "gpu")
}
# Plan → what its rows begin with.
_SETTINGS = dict.fromkeys(
    ("worth-settings", "worth-settings-ends", "worth-settings-labels"), ""
) | dict.fromkeys(("worth-settings-clothes", "worth-settings-clothes-ends"), "clothes: ")
PARTS = {*(f"worth {name}" for name in (*TABLES, "sets", "commands", "chart", "settings"))}
LABELS = (1, 5, 10, 50)
COLUMNS = (*(str(num) for num in LABELS), "all labels", "fine-tuned")
_DECIDES = 10  # labels a class
# The chart's rows, once all seeds are there: of several, the arm that is best on images of the search.
_SHOWN = {
    "labels alone": ("labels alone",), "from scratch": ("SimCLR psl", "rotation psl"),
    "published": ("published, 160 px",), "distilled": ("distilled",), "continued": ("continued",),
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """An arm of a set, or what it is compared with."""

    name: str
    epochs: str
    minutes: float | None  # the mean over seeds
    values: Mapping[str, Sequence[float]]  # by column, one for each seed
    block: str = ""  # the block that was chosen
    on_search: float = 0.0  # in %, its mean on the images by which it was chosen

    def cells(self) -> list[str]:
        """Return the cells of the table: the mean, and its 95 % interval where seeds are several."""
        minutes = "" if self.minutes is None else f"{self.minutes:.0f}"
        return [
            f"{self.name}, {self.block}" if self.block else self.name,
            self.epochs,
            minutes,
            *(in_words(self.values.get(column, ())) for column in COLUMNS),
        ]


def in_words(values: Sequence[float]) -> str:
    """Return 71.2 ± 0.8, the mean and half of its 95 % interval by Student's t, or the mean of one value."""
    if not values:
        return "–"
    mean = statistics.fmean(values)
    if len(values) == 1:
        return f"{mean:.1f}"
    return f"{mean:.1f} ± {(t_interval(values, CONFIDENCE)[1] - mean):.1f}"


def rows_of(name: str, results: Mapping[str, Record]) -> list[Row]:
    """Return the rows of a table, those that need no training first."""
    rows = list[Row]()
    for record_name in TABLES[name]:
        if record := results.get(record_name):
            known = {row.name for row in rows}
            plan = read_plan(PLANS / f"{record_name}.json")
            rows += [row for row in _rows(plan, record) if row.name not in known]
    return rows


def _rows(plan: Plan, record: Record) -> Iterator[Row]:
    beside = dict[str, dict[str, list[float]]]()
    for one in record["beside"]:
        name, _, column = one["name"].partition(": ")
        values = beside.setdefault(name, {})
        if column:
            values.setdefault(column, []).append(one["numbers"][one["number"]])
            continue
        names = {num: one["number"].replace(f"_{_DECIDES}", f"_{num}") for num in LABELS}
        for num in (num for num, number in names.items() if number in one["numbers"]):
            values.setdefault(str(num), []).append(one["numbers"][names[num]])
    for name, values in beside.items():
        yield Row(name, "", None, values)
    means = {(row["arm"], row["evaluation"], row["number"]): row["values"] for row in record["means"]}
    seconds = seconds_of_each(record["training"])
    commands = {one["arm"]: one["command"] for one in record["training"]}
    for arm in (arm for arm in plan.arms if arm in commands):
        (number,) = numbers_of(plan, arm, record["scores"])
        chosen_block = block(number)
        wanted = {str(num): ("few_labels", f"top1_{num}_{chosen_block}") for num in LABELS}
        wanted |= {
            "all labels": ("neighbours", f"top1_k20_{chosen_block}"),
            "fine-tuned": ("fine_tuned", "top1_10"),
        }
        values = {column: means.get((arm, *of), ()) for column, of in wanted.items()}
        minutes = statistics.fmean(seconds[arm]) / 60 if arm in seconds else None
        epochs = re.search(r"--epochs((?: \d+)+)", commands[arm])
        chosen = statistics.fmean(means[arm, plan.endpoint.chosen_by, number])
        yield Row(arm, epochs[1].strip() if epochs else "", minutes, values, chosen_block, chosen)


def parts(results: Mapping[str, Record]) -> dict[str, str]:
    """Return the tables of the page by the names of their places, of what is there."""
    found = {"worth sets": _render("sets", sets=_sets())}
    for name, plans in TABLES.items():
        records = {key: results[key] for key in plans if key in results}
        rows = rows_of(name, results)
        found[f"worth {name}"] = _render(
            "set", columns=COLUMNS, rows=[row.cells() for row in rows], records=records,
            differences=[line for key, record in records.items() for line in _differences(key, record)],
            notes=[note for key, record in records.items() for note in _notes(key, record)],
        )  # fmt: skip
    found["worth commands"] = _render(
        "commands", commands=[*commands_of(read_plan(PLANS / "worth-scenes.json"))]
    )
    chart = chart_words(results)
    found["worth chart"] = _render("chart", themes=THEMES, **chart) if chart["panels"] else "Not drawn yet."
    found["worth settings"] = _render(
        "settings",
        # Plans of one set have a row in common, which stands once.
        rows=dict.fromkeys(
            (begin + row[0], *row[1:])
            for name, begin in _SETTINGS.items()
            for row in _settings(name, results.get(name))
        ),
    )
    return found


# What a command of a plan has for the plan alone, and how people name the rest.
_NOT_SHOWN = ("--seed", "--out", "--checkpoint-minutes", "--no-tensorboard")
_SHOWN_DATA = {"DATA/train.beton": "photos", "DATA/lite0.pth": "lite0.pth"}


def commands_of(plan: Plan) -> Iterator[str]:
    """Yield a comment and the command of each arm, as people give it."""
    names = {stem: name for name, stem in RECIPES.items()}
    for arm in plan.arms:
        script, *words = plan.training_of(Run(arm, None, 0, counts=True)).words("DATA", "RUNS")
        options = list[list[str]]()  # with their values
        for word in words:
            if word.startswith("--"):
                options.append([])
            options[-1].append(_SHOWN_DATA.get(word, word))
        # Glued together, because a line must not end between an option and its values.
        shown = ["\xa0".join(option) for option in options if option[0] not in _NOT_SHOWN]
        command = " ".join([f"fastpsl train {names[Path(script).stem]}", *shown])
        lines = textwrap.wrap(command, 82, break_on_hyphens=False, break_long_words=False)
        yield f"# {arm}"
        yield " \\\n    ".join(lines).replace("\xa0", " ")


def _sets() -> Iterator[list[str]]:
    for name, of in json.loads((splits.FOLDER / "splits.json").read_text()).items():
        images, near = of["images"], of["near_duplicates"]
        twins = sum(near[f"{HELD_OUT} in {part}"] for part in (TRAIN, SEARCH))
        yield [
            f"[{name}]({of['source']})", str(of["classes"]), f"{images[TRAIN] + images[SEARCH]:,}",
            f"{images[HELD_OUT]:,}", str(twins), str(of["same_bytes"]), of["license"],
        ]  # fmt: skip


def _differences(name: str, record: Record) -> Iterator[list[str]]:
    plan = read_plan(PLANS / f"{name}.json")
    for one, p in zip(record["differences"], p_values(record), strict=True):
        seeds, words = len(one["values"]), points(one["mean"], one["interval"])
        shown = p_in_words(p) if seeds == len(plan.seeds) else "seeds to come"
        yield [" − ".join(one["pair"]), words, str(seeds), shown]


def _notes(name: str, record: Record) -> Iterator[str]:
    plan = read_plan(PLANS / f"{name}.json")
    there = {(one["arm"], one["seed"]) for one in record["scores"]}
    if len(there) < len(plan.arms) * len(plan.seeds):
        yield f"{len(there)} of {len(plan.arms) * len(plan.seeds)} trainings of `{name}` are there."
    yield from power_notes(record)


def _settings(name: str, record: Record | None) -> Iterator[list[str]]:
    """Yield each setting with its CPU minutes and its score by 10 labels a class on images of the search."""
    if record is None:
        return
    plan = read_plan(PLANS / f"{name}.json")
    of_training = {one["arm"]: one["cpu_seconds"] / 60 for one in record["training"]}
    for arm, of in {one["arm"]: one["numbers"] for one in record["scores"]}.items():
        minutes = f"{of_training.get(arm, 0.0):.0f}"
        yield [arm, minutes, *(f"{of[number]:.1f}" for number in plan.endpoint.numbers)]
    for one in record["beside"]:
        numbers = [one["numbers"].get(number) for number in plan.endpoint.numbers]
        shown = numbers if None not in numbers else ["", one["numbers"][one["number"]]]
        minutes = f"{one['cpu_seconds'] / 60:.0f}"
        yield [one["name"], minutes, *(each and f"{each:.1f}" for each in shown)]


def charts(results: Mapping[str, Record], root: Path) -> Iterator[tuple[Path, str]]:
    """Yield path and content of the chart, where each set has its rows."""
    words = chart_words(results)
    if words["panels"]:
        for theme in THEMES:
            yield root / "docs" / "images" / f"worth-{theme}.svg", render("worth", theme, words)


def chart_words(results: Mapping[str, Record]) -> dict[str, Any]:
    """Return the words of the chart: a panel for each set, with a row for each way to a classifier."""
    panels = dict[str, list[dict[str, Any]]]()
    for name in SETS:
        num_seeds = len(read_plan(PLANS / f"worth-{name}.json").seeds)
        rows = {row.name: row for row in rows_of(name, results)}
        for shown, names in _SHOWN.items():
            known = [rows[each] for each in names if each in rows]
            if [len(row.values.get(str(_DECIDES), ())) for row in known] == [num_seeds] * len(names):
                best = max(known, key=lambda row: row.on_search)
                panels.setdefault(name, []).append(_dot(shown, best.values[str(_DECIDES)]))
    title = f"A classifier with {_DECIDES} labels a class: top-1 in %"
    spoken = [
        f"{name}: " + ", ".join(f"{row['name']} {row['mean']:.1f}" for row in of_set)
        for name, of_set in panels.items()
    ]
    return {
        "title": title, "panels": panels, "ticks": [*range(0, 101, 20)],
        "about": "Dots: means over seeds. Lines: 95 % intervals.",
        "description": f"{title}. {'; '.join(spoken)}.",
    }  # fmt: skip


def _dot(name: str, values: Sequence[float]) -> dict[str, Any]:
    return {"name": name, "mean": statistics.fmean(values), "interval": t_interval(values, CONFIDENCE)}


def _render(kind: str, **words: Any) -> str:
    return _TEMPLATES.get_template("worth.md.jinja").render(kind=kind, **words).strip()


_TEMPLATES = templates(PLANS)
