"""`fastpsl compare` against plain loops over the JSON files, and its page as a browser reads it."""

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from typing_extensions import override

import fastpsl
from fastpsl.console.terminal import escaped
from fastpsl.plots.charts import RUN_COLOURS, monitor_figure, run_style
from fastpsl.tables.comparison import Comparison, compare
from fastpsl.tables.comparison_page import html, write_page
from tests.cli import Cli, refused
from tests.tables.test_runs import write_run

EVIL = 'a<script>alert("x")</script>&$b^'


@pytest.fixture
def two(tmp_path: Path) -> Path:
    write_run(tmp_path / "first")
    write_run(tmp_path / "second", accuracies=(0.125, 0.75, 0.5), lr=0.3, epochs=[3, 2, 1])
    return tmp_path


def table_of(lines: Any) -> dict[str, tuple[str, ...]]:
    return {line.title: line.cells for line in lines}


def test_figures_and_counts_to_the_accuracy_that_all_reached(two: Path) -> None:
    """All reached 50 %: the first run at its second look, the second run at its second, with 75 %."""
    made = compare([two / "first", two / "second"])
    looks = {
        name: [row for row in map(json.loads, (two / name / "probe.jsonl").read_text().splitlines())]
        for name in made.names
    }
    target = min(max(row["knn_accuracy"] for row in rows if row["run_step"]) for rows in looks.values())
    assert made.target == target == 0.5
    to_target = []
    for rows in looks.values():
        for row in rows:
            if row["run_step"] and row["knn_accuracy"] >= target:
                to_target.append(row)
                break
    figures = table_of(made.figures)
    assert figures["images to 50.0 %"] == tuple(f"{row['images']:,}" for row in to_target) == ("320", "320")
    assert figures["time to 50.0 %"] == ("0:00:11", "0:00:11")
    assert figures["energy to 50.0 %"] == ("0.0556 Wh", "0.0556 Wh")  # 200 J
    assert figures["kNN at the end, %"] == ("37.5 (37.5)", "50.0 (37.5)")
    assert figures["best kNN, %"] == ("50.0 (25.0)", "75.0 (25.0)")
    assert figures["of epoch, stage"] == ("2, S2", "2, S2")
    assert figures["images/s"] == ("27", "27") and figures["steps"] == ("30", "30")
    assert "GPU memory" not in figures and "top-1, %" not in figures  # nobody has them


def test_differences_are_those_of_plain_loops(two: Path) -> None:
    made = compare([str(two / "*d"), two / "first"])
    configs = [json.loads((run.folder / "config.json").read_text()) for run in made.runs]
    names = []
    for name in configs[0]["science"] | configs[1]["science"]:
        if configs[0]["science"].get(name) != configs[1]["science"].get(name):
            names.append(name)
    learned = table_of(made.differences["What is learned"])
    assert made.names == ("second", "first") and sorted(learned) == sorted(names) == ["epochs", "lr"]
    assert learned == {"lr": ("0.3", "0.1"), "epochs": ("3 2 1", "–")}
    assert list(learned) == ["lr", "epochs"]  # what only some have comes last
    assert list(made.differences) == ["What is learned"]  # --out is no difference


def test_the_environment_and_machine_options_are_told_apart(two: Path) -> None:
    for name, value in (("environment", {"gpu": "H100", "commit": "a" * 40, "packages": {"torch": "3"}}),):
        (two / "second" / f"{name}.json").write_text(json.dumps(value))
    config = json.loads((two / "second" / "config.json").read_text())
    config["options"] |= {"workers": None, "fused": True}
    (two / "second" / "config.json").write_text(json.dumps(config))
    made = compare([two])  # a folder of runs
    assert made.names == ("first", "second")
    first, second = 0, 1
    others, environment = (table_of(made.differences[name]) for name in ("Other options", "Environment"))
    assert (others["workers"][first], others["workers"][second]) == ("2", "not given")
    assert (others["fused"][first], others["fused"][second]) == ("–", "yes")
    assert environment["commit"][second] == "a" * 10 and environment["torch"][first] == "2.9"


def odd_runs(folder: Path) -> Path:
    """Write runs that have less than a usual one, and other things that a glob may match."""
    write_run(folder / "good")
    (write_run(folder / "none", val="none") / "probe.jsonl").unlink()
    (write_run(folder / "running", state="running") / "probe.jsonl").unlink()
    (write_run(folder / "linear", recipe="linear_probe", weights="f" * 64) / "probe.jsonl").unlink()
    (write_run(folder / "bad") / "results.json").write_text("[{")
    shutil.copytree(folder / "good", folder / "old")
    for name in ("environment.json", "results.json", "status.json", "metrics.jsonl"):
        (folder / "old" / name).unlink()
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    (folder / "notes.txt").touch()
    return folder


def test_each_run_works_or_is_named_in_a_line(tmp_path: Path, cli: Cli) -> None:
    odd_runs(tmp_path)
    outcome = cli("compare", *sorted(tmp_path.iterdir()), "--out", tmp_path / "out")
    assert (outcome.code, outcome.err) == (0, "")
    notes = [line for line in outcome.out.splitlines() if line.startswith(str(tmp_path))]
    for name, word in (
        ("none", "no validation images"), ("running", "not been looked at"), ("linear", "evaluates"),
        ("bad", "results.json"), ("model", "config.json"), ("notes.txt", "a file"),
    ):  # fmt: skip
        (note,) = (line for line in notes if line.startswith(f"{tmp_path / name}:"))
        assert word in note
    assert len(notes) == 6 and "damaged" in outcome.out and "unknown" in outcome.out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"comparison.html", "comparison.png"}


def test_without_any_monitor_there_is_no_chart(tmp_path: Path, cli: Cli) -> None:
    (write_run(tmp_path / "run", val="none") / "probe.jsonl").unlink()
    outcome = cli("compare", tmp_path / "run", "--out", tmp_path / "out")
    assert outcome.code == 0 and [path.name for path in (tmp_path / "out").iterdir()] == ["comparison.html"]


def test_what_cannot_be_compared_is_refused(cwd: Path, cli: Cli) -> None:
    write_run(cwd / "run")
    (cwd / "empty").mkdir()
    refused(cli("compare"), "fastpsl compare runs")
    refused(cli("compare", "rum"), "did you mean run?")
    refused(cli("compare", "none*"), "none*")
    refused(cli("compare", "empty"), "config.json")
    (cwd / "file").touch()
    refused(cli("compare", "run", "--out", "file"), "--out file is a file")
    refused(cli("compare", "run", "--out", "run/page"), "--out run/page")
    assert not (cwd / "run" / "page").exists()


class Reader(HTMLParser):
    """A reader that keeps tags, texts and addresses, and that refuses tags that do not match."""

    VOID = ("meta", "img", "br", "link", "line", "circle", "use", "path", "rect")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.tags, self.texts = list[str](), list[str](), list[str]()
        self.rows, self.values, self.ids = list[list[str]](), list[str](), list[str]()
        self.feed(text)
        assert not self.open

    @override
    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.values += [value for name, value in attrs if name in ("src", "href", "xlink:href")]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in self.VOID:
            self.open.append(tag)

    @override
    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    @override
    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def test_the_page_is_whole_and_needs_nothing_else(two: Path) -> None:
    write_run(two / EVIL.replace("/", "|"), lr=EVIL, accuracies=(0.5, 0.5, 0.5))
    made = compare([two])
    page = html(made)
    read = Reader(page)
    assert "script" not in read.tags and "http" not in "".join(read.values) and "url(http" not in page
    assert page.count("prefers-color-scheme: dark") == 1 and "#000000" not in page
    assert len(set(read.ids)) == len(read.ids) > 0
    assert {value.removeprefix("#") for value in read.values} <= {*read.ids}
    rows = {row[0]: tuple(row[1:]) for row in read.rows}
    assert rows[""] == made.names and EVIL.replace("/", "|") in made.names
    for line in (*made.figures, *(line for lines in made.differences.values() for line in lines)):
        assert rows[line.title] == line.cells
    assert read.tags.count("svg") == 3 + 3  # seconds, images and joules; and a mark for each run


def test_what_steers_a_terminal_is_escaped_on_the_page(two: Path) -> None:
    steering = "a\x1b[2J\x07\x9b\u202e\udcff"
    folder = write_run(two / steering, lr=steering)
    (folder / "status.json").write_text(json.dumps({"state": steering, "stage": 1, "step": 1, "reason": ""}))
    page, _ = write_page(compare([two]), two / "out")
    text = page.read_bytes().decode()
    assert escaped(text) == text and text.count(r"a\x1b[2J\x07\x9b\u202e\udcff") > 2


def points_of(figure: Figure, colour: str) -> list[list[tuple[float, float]]]:
    """Return the points of a run's thick lines, panel by panel."""
    return [
        [tuple(point) for line in axis.lines if line.get_color() == colour and line.get_linewidth() > 1
         for point in np.asarray(line.get_xydata()).tolist()]
        for axis in figure.axes
    ]  # fmt: skip


def test_charts_show_each_look_from_the_untrained_network_on(two: Path) -> None:
    made = compare([two / "first", two / "second"])
    figure = monitor_figure(made.panels)
    accuracies = (12.5, 12.5, 75.0, 50.0)  # of the first block untrained, then of the looks
    seconds, images, watt_hours = points_of(figure, RUN_COLOURS[1])
    assert seconds == list(zip((0, 5.5, 11, 16.5), accuracies, strict=True))
    assert images == list(zip((0, 160, 320, 480), accuracies, strict=True))
    assert watt_hours == [(pytest.approx(100 * n / 3600), y) for n, y in enumerate(accuracies)]
    assert [axis.get_xlabel() for axis in figure.axes] == [
        "wall clock, s",
        "images",
        "energy of the GPUs, Wh",
    ]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["first", "second"]


def test_letters_that_the_font_lacks_are_told_once_and_stand_in_the_page(
    two: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    shutil.copytree(two / "first", tmp_path / "実験")
    page, chart = write_page(compare([tmp_path / "実験", two / "second"]), tmp_path / "out")
    assert "実験" in page.read_text() and [str(each.message) for each in recwarn] == [
        f"{chart}: its font lacks letters of some names, which stand as boxes"
    ]


@pytest.mark.parametrize(
    ("hours", "label"), [(0.02, "wall clock, s"), (0.1, "wall clock, min"), (3, "wall clock, h")]
)
def test_time_is_in_a_unit_that_suits(hours: float, label: str) -> None:
    figure = monitor_figure({"seconds": {"a": [(3600 * hours, 0.5, "S1")]}})
    assert figure.axes[0].get_xlabel() == label


def test_twenty_runs_have_a_style_each() -> None:
    styles = [tuple(run_style(number).values()) for number in range(21)]
    assert len(set(styles)) == 21


def test_a_run_without_a_count_has_no_curve_over_it(two: Path) -> None:
    lines = [json.loads(line) for line in (two / "first" / "probe.jsonl").read_text().splitlines()]
    lines = [line | {"joules": None} for line in lines]
    (two / "first" / "probe.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    made = compare([two / "first", two / "second"])
    assert [len(curve) for curve in made.panels["joules"].values()] == [0, 4]
    assert table_of(made.figures)["energy"] == ("–", "0.0833 Wh")
    assert list(compare([two / "first"]).panels) == ["seconds", "images"]


def test_the_image_has_a_line_of_each_run(two: Path, cli: Cli) -> None:
    assert cli("compare", two, "--out", two / "out").code == 0
    with Image.open(two / "out" / "comparison.png") as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    for colour in RUN_COLOURS[:2]:
        rgb = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
        assert (pixels == rgb).all(1).sum() > 100


def test_the_calls_are_the_commands(two: Path) -> None:
    found = fastpsl.runs(two)
    assert sorted(run.folder.name for run in found) == ["first", "second"] and "finished" in repr(found[0])
    made = fastpsl.compare(found[:1])
    assert made.names == (found[0].folder.name,) and not made.differences
    figure = fastpsl.plot.compare(two)
    assert len(figure.axes) == 3 and [len(run) for run in points_of(figure, RUN_COLOURS[0])] == [4] * 3
    for call in (lambda: fastpsl.runs(two / "gone"), lambda: fastpsl.compare(two / "gone")):
        with pytest.raises(ValueError, match="gone: no such"):
            call()
    (two / "first" / "probe.jsonl").unlink()
    with pytest.raises(ValueError, match="no curve: it has no kNN"):
        fastpsl.plot.compare(two / "first")


def test_a_run_named_twice_counts_once(two: Path) -> None:
    made: Comparison = compare([two / "first", two, str(two / "f*")])
    assert sorted(made.names) == ["first", "second"]
