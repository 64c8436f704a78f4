"""Tables as people see them: pages, charts, and the errors of the command."""

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode
from PIL import Image

from fastpsl.console.terminal import escaped
from fastpsl.pipelines.embedded.patterns import CLASS_NAMES, draw_image
from fastpsl.tables.paper_file import NAMES, TABLES
from tests.cli import Cli, refused
from tests.programs import ENVIRONMENT, ROOT
from tests.tables.table_results import BLOCKS, DIGESTS, END_TO_END, PAPER, put, put_run, report


def rendered(cli: Cli, runs: Path, out: Path, *arguments: str) -> tuple[str, str]:
    """Return the command's lines and its page."""
    code, said, error = cli("table", "psl/5", "--runs", runs, "--out", out, "--scale", "tiny", *arguments)
    # A warning where it is not there.
    assert code == 0 and ("no such.beton" in error) == ("no such.beton" in arguments)
    with Image.open(out / "psl-5.png") as image:
        assert image.format == "PNG" and image.width > 600
    return said, (out / "psl-5.md").read_text()


def test_the_page_holds_the_table_and_what_is_missing(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    runs = tmp_path / "runs <1>"
    folder = put_run(runs, "trained")
    for seed, b4 in enumerate((40.0, 41.0, 45.0)):
        at = {"path": str(folder / "checkpoints" / "step-00000005.pt")} if seed == 0 else {}
        put(runs, seed=seed, numbers=BLOCKS | {"top1_B4": b4}, checkpoint=at)
    unused = put(runs, END_TO_END, cut=True)
    given = ("--data", "no such.beton", "--val", "v.beton")
    said, markdown = rendered(cli, runs, tmp_path / "out", *given)
    lines = markdown.splitlines()
    row = next(i for i, line in enumerate(lines) if line.startswith("| **PSL** |"))
    assert lines[row] == "| **PSL** | R50 | paper | 10.9 | 27.0 | 43.2 | 50.9 | 38.5 |"
    assert lines[row + 1].endswith(
        "| ours | 10.0 ± 0.0 (3) | 20.0 ± 0.0 (3) | 30.0 ± 0.0 (3) | 42.0 ± 2.6 (3) | 35.0 ± 0.0 (3) |"
    )
    assert "| ours | – | – | – | – | – |" in markdown  # the others: nothing is made up
    assert "ours − paper" not in markdown  # tiny numbers and ImageNet's have no difference
    assert "3 of 15 results" in said and f"not used {unused}: cut short" in said
    commands = [line for line in said.splitlines() if line.startswith(("fastpsl train", "fastpsl eval"))]
    assert len(commands) == 4 * 3 * 2 and all("--data 'no such.beton'" in line for line in commands[::2])
    for command in commands:
        assert command in markdown
    for words in ("cut short", "aaaaaaaa/bbbbbbbb", "c" * 12, str(runs)):
        assert words in markdown, words


def test_words_of_strangers_stay_words_on_the_page(tmp_path: Path, cli: Cli) -> None:
    word = "<b>`\n```\n# owned\n| [x](http://a.b) a\x1b[2J\x07\x9b\u202e"
    runs = tmp_path / f"{word.replace('/', '')}\udcff"
    put_run(runs, "training", seed=1)
    path = put(runs, checkpoint={"sha256": word})
    path.write_text(json.dumps(json.loads(path.read_text()) | {"commit": word, "date": word}))
    put(runs, END_TO_END, science={"backbone": word, "plan": word})
    _, markdown = rendered(cli, runs, tmp_path / "out")
    assert escaped(markdown) == markdown
    root = SyntaxTreeNode(MarkdownIt("commonmark").enable("table").parse(markdown))
    kinds = {node.type for node in root.walk()}
    assert not kinds & {"html_block", "html_inline", "link", "image"} and "fence" in kinds
    headings = [node.children[0].content for node in root.walk() if node.type == "heading"]
    assert headings[-4:] == ["Results that went in", "Missing", "Not used", "Sizes"]
    (fence,) = (node for node in root.walk() if node.type == "fence")
    assert "# owned" in fence.content
    assert "# owned" not in re.sub(r"'[^']*'", "", fence.content).splitlines()  # but within quotation


def test_at_the_papers_scale_the_difference_is_shown(tmp_path: Path, cli: Cli) -> None:
    runs = tmp_path / "runs"
    put(runs, scale=PAPER, data={**DIGESTS, "num_train": 1_281_167, "num_val": 50_000})  # type: ignore[dict-item]
    assert "1 of 5 results" in cli("table", "psl/5", "--runs", runs, "--out", tmp_path / "out").out
    markdown = (tmp_path / "out" / "psl-5.md").read_text()
    assert "| ours | 10.0 | 20.0 | 30.0 | 40.0 | 35.0 |" in markdown
    assert "1,281,167 training and 50,000 validation images" in markdown and "ImageNet's numbers" in markdown
    assert "| ours − paper | −0.9 | −7.0 | −13.2 | −10.9 | −3.5 |" in markdown


def test_a_row_that_is_the_papers_alone_says_so(tmp_path: Path) -> None:
    made = report(tmp_path, "psl/4")
    assert "the paper's alone" in made.mark(TABLES["psl/4"].row("SwAV [9]"))
    assert made.cells["SwAV [9]"][0].ours is None and made.cells["SwAV [9]"][0].paper == 75.3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("psl/3 --runs {tmp} --out {tmp}/o", "unknown table 'psl/3': did you mean"),
        ("psl/5 --runs {tmp}/none --out {tmp}/o", "none: no such folder"),
        ("psl/5 --runs {tmp} --out {tmp}/o --scale big", "--scale big: allowed are paper, tiny"),
        ("psl/5 --runs {tmp} --out {tmp}/o --gpus 0", "--gpus 0"),
    ],
)
def test_user_errors_are_one_line_and_exit_2(arguments: str, words: str, tmp_path: Path, cli: Cli) -> None:
    refused(cli("table", *arguments.format(tmp=tmp_path).split()), words)
    assert not (tmp_path / "o").exists()


def as_if_trained(runs: Path, seed: int) -> None:
    """Copy the folders of seed 0 with other numbers, as if another seed had been trained."""
    of_seed = f"jigsaw-s{seed}"
    for folder in (runs / "psl-tiny" / "jigsaw", runs / "psl-tiny" / "jigsaw-linear"):
        copy = shutil.copytree(folder, folder.with_name(folder.name.replace("jigsaw", of_seed)))
        for path in copy.glob("*.json"):
            text = path.read_text().replace("psl-tiny/jigsaw", f"psl-tiny/{of_seed}")
            path.write_text(text.replace('"seed": 0', f'"seed": {seed}'))
        if (result := copy / "result.json").exists():
            record = json.loads(result.read_text())
            record["numbers"] = {name: number / (1 + seed) for name, number in record["numbers"].items()}
            result.write_text(json.dumps(record))


@pytest.mark.nightly
def test_a_row_of_the_tiny_scale_for_real(tmp_path: Path, cli: Cli) -> None:
    """The printed commands train and evaluate a row of Table 5 on images of 64 px.

    One of three seeds is trained; then its result is lost.
    """
    for part, first, num in (("train", 0, 32), ("val", 32, 16)):
        for index in range(first, first + num):
            path = tmp_path / "my photos" / part / CLASS_NAMES[index % 8] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw_image(1, index, 64, 64 + index % 3)).save(path)
    runs, out = tmp_path / "runs", tmp_path / "out"
    runs.mkdir()
    words = ("--data", str(tmp_path / "my photos/train"), "--val", str(tmp_path / "my photos/val"))

    def commands_of(*methods: str) -> list[str]:
        said = rendered(cli, runs, out, *words)[0]
        blocks = [block for block in re.split(r"^# ", said, flags=re.MULTILINE) if block.startswith(methods)]
        return [
            line
            for block in blocks
            for line in block.splitlines()
            if line.startswith(("fastpsl train", "fastpsl eval"))
        ]

    def paste(command: str) -> None:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        threads = {"OMP_NUM_THREADS": str(os.cpu_count()), "OMP_WAIT_POLICY": "PASSIVE"}
        done = subprocess.run(
            command, shell=True, cwd=ROOT, env=ENVIRONMENT | threads | {"PATH": path},
            capture_output=True, text=True, timeout=1800, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    commands, others = commands_of("PSL, "), commands_of("Jigsaw, ")
    assert len(commands) == len(others) == 6
    of_seed_0 = commands[:2]
    for seed in (1, 2):
        others_of_seed = commands[2 * seed : 2 * seed + 2]
        assert [re.sub(f" --seed {seed}|-s{seed}", "", command) for command in others_of_seed] == of_seed_0
    for command in of_seed_0:
        paste(command)
    for seed in (1, 2):
        as_if_trained(runs, seed)
    assert not commands_of("PSL, ") and commands_of("Jigsaw, ") == others
    psl = {path: json.loads(path.read_text()) for path in runs.rglob("result.json")}
    assert all(record["checkpoint"]["science"]["plan"] == "psl" for record in psl.values())
    assert sorted(record["settings"]["seed"] for record in psl.values()) == [0, 1, 2]
    values = [record["numbers"]["top1_B4"] for record in psl.values()]
    told = f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f} (3)"
    _, page = rendered(cli, runs, out, *words)
    line = next(after for before, after in pairwise(page.splitlines()) if before.startswith("| **PSL** |"))
    assert line.split("|")[7].strip() == told


def shown(cli: Cli, monkeypatch: pytest.MonkeyPatch, columns: int, *arguments: object) -> list[str]:
    """Return the lines of `fastpsl table` in a terminal of so many columns, or not in a terminal for 0."""
    monkeypatch.setenv("COLUMNS", str(columns or 80))
    monkeypatch.setattr("fastpsl.console.grid.plain", lambda _: SimpleNamespace(isatty=lambda: columns > 0))
    code, out, _ = cli("table", *arguments)
    assert code == 0
    return out.splitlines()


def test_the_table_stands_in_the_terminal(cwd: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --runs and runs/ it is the paper's alone; with results ours stand below the paper's."""
    lines = shown(cli, monkeypatch, 80, "psl/5")
    assert " PSL         R50   10.9  27.0  43.2  50.9  38.5" in lines and "0 of 5 results in runs" in "".join(
        lines
    )
    assert not list(cwd.iterdir())
    put(cwd / "runs")
    lines = shown(cli, monkeypatch, 0, "psl/5", "--scale", "tiny")
    place = next(i for i, line in enumerate(lines) if line.split()[:1] == ["PSL"])
    assert lines[place].split() == ["PSL", "R50", "paper", "10.9", "27.0", "43.2", "50.9", "38.5"]
    assert lines[place + 1].split() == ["ours", "10.0", "20.0", "30.0", "40.0", "35.0"]
    assert sum(line.split()[:1] == ["ours"] for line in lines) == 1
    for command in (line for line in lines if line.startswith("fastpsl train")):
        assert "/" not in command.replace("runs/psl-tiny/", "")


@pytest.mark.parametrize("name", ["sslpp/8", "uic/8", "psl/4"])
def test_a_wide_table_is_parted(name: str, cwd: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 80 columns no number is lost or wrapped."""
    end = next(i for i, line in enumerate(shown(cli, monkeypatch, 80, name)) if "results in runs" in line)
    lines = shown(cli, monkeypatch, 80, name)[:end]
    assert max(map(len, lines)) <= 80
    words = " ".join(lines).split()
    numbers = [
        number for row in TABLES[name].rows if row.printed for number in row.numbers if number is not None
    ]
    for number in numbers:
        assert f"{number:.2f}".removesuffix("0") in words, number


def test_without_a_name_the_tables_are_listed(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(cli, monkeypatch, 0)
    assert [line.split()[0] for line in lines] == [*NAMES]
