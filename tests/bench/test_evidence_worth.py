"""What docs/methods/worth.md says, computed again from the raw scores by loops; with made-up records, too."""

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from scipy import stats

from bench.evidence import worth
from bench.evidence.results import Results
from bench.figures.svg import THEMES, render
from fastpsl import cli
from tests.bench.test_figures import check_layout
from tests.pipelines.published_files import random_images
from tests.programs import ROOT

PAGE = ROOT / "docs" / "methods" / "worth.md"
RECORDS = {
    path.parent.name: json.loads(path.read_text()) for path in ROOT.glob("docs/runs/worth-*/results.json")
}
NUMBERS = {"1": "top1_1", "5": "top1_5", "10": "top1_10", "50": "top1_50"}


def table(text: str, part: str) -> dict[str, list[str]]:
    """Return a part's rows by their first cell."""
    lines = text.split(f"<!-- worth {part} begin")[1].split(f"<!-- worth {part} end")[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return {row[0]: row[1:] for row in cells}


def shown(values: list[float]) -> str:
    mean, num = sum(values) / len(values), len(values)
    if num == 1:
        return f"{mean:.1f}"
    deviation = (sum((value - mean) ** 2 for value in values) / (num - 1)) ** 0.5
    return f"{mean:.1f} ± {stats.t.ppf(0.975, num - 1) * deviation / num**0.5:.1f}"


def expected_rows(plan: dict[str, Any], record: dict[str, Any]) -> dict[str, list[str]]:
    """Return the cells of each arm from `1` on, and of each name beside them."""
    rows = dict[str, list[str]]()
    for arm in plan["arms"]:
        by_block = {}
        for number in plan["endpoint"]["numbers"]:
            found = [
                one["numbers"][number]
                for one in record["scores"]
                if one["arm"] == arm and one["evaluation"] == plan["endpoint"]["chosen_by"]
            ]
            by_block[number[-2:]] = sum(found) / len(found) if found else 0.0
        if not any(by_block.values()):
            continue
        block = max(sorted(by_block), key=lambda name: by_block[name])
        cells = []
        wanted = [("few_labels", f"{number}_{block}") for number in NUMBERS.values()]
        for evaluation, number in (*wanted, ("neighbours", f"top1_k20_{block}"), ("fine_tuned", "top1_10")):
            values = [
                one["numbers"][number]
                for one in record["scores"]
                if (one["arm"], one["evaluation"]) == (arm, evaluation)
            ]
            cells.append(shown(values) if values else "–")
        rows[f"{arm}, {block}"] = cells
    for name in dict.fromkeys(one["name"].partition(": ")[0] for one in record["beside"]):
        cells = []
        for column in worth.COLUMNS:
            values = []
            for one in record["beside"]:
                number = one["number"]
                if one["name"] == f"{name}: {column}":
                    values.append(one["numbers"][number])
                if one["name"] == name and column in NUMBERS:
                    stem = number.replace("top1_10", NUMBERS[column])
                    values += [one["numbers"][stem]] if stem in one["numbers"] else []
            cells.append(shown(values) if values else "–")
        rows[name] = cells
    return rows


@pytest.mark.parametrize("name", [name for name in RECORDS if not name.startswith("worth-settings")])
def test_the_page_has_what_the_scores_give(name: str) -> None:
    record = RECORDS[name]
    plan = json.loads((worth.PLANS / f"{name}.json").read_text())
    text = PAGE.read_text()
    rows = table(text, name.removeprefix("worth-").removeprefix("continued-"))  # its table's name
    for row, cells in expected_rows(plan, record).items():
        assert rows[row][2:] == cells, row
    by_seed: dict[tuple[str, int], dict[str, float]] = {}
    for one in record["scores"]:
        if one["evaluation"] == plan["endpoint"]["evaluation"]:
            by_seed[one["arm"], one["seed"]] = one["numbers"]
    for one in record["beside"]:
        by_seed[one["name"], one["seed"]] = one["numbers"]
    for difference in record["differences"]:
        first, _, second = difference["number"].partition(" - ")
        values = [
            by_seed[difference["pair"][0], seed][first]
            - by_seed[difference["pair"][1], seed][second or first]
            for seed in difference["seeds"]
        ]
        assert difference["values"] == pytest.approx(values, abs=2e-3)
        words = rows[" − ".join(difference["pair"])]
        assert words[0].startswith(f"{np.mean(values):+.1f}".replace("-", "−")) and words[1] == str(
            len(values)
        )


def test_a_set_s_table_and_the_chart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seeds are there of three, of one arm; the better block on the search is the one that is shown."""
    evaluations = ("block", "few_labels", "neighbours", "fine_tuned")
    plan = {
        "title": "T", "claim": "C", "paper": "", "first": {}, "training": "recipes/x.py",
        "arms": {"distilled": "--epochs 5", "SimCLR psl": "--epochs 2 3 4"}, "untrained": None,
        "search": None, "seeds": [0, 1, 2], "random": "", "curve": None,
        "evaluations": dict.fromkeys(evaluations, "recipes/y.py"),
        "beside": {"labels alone": {"command": "recipes/z.py {seed}", "number": "top1_10"},
                   "labels alone: 50": {"command": "recipes/z.py", "number": "top1_50"}},
        "endpoint": {"evaluation": "few_labels", "chosen_by": "block",
                     "numbers": ["top1_10_B4", "top1_10_B5"],
                     "pairs": [["distilled", "labels alone"], ["SimCLR psl", "distilled"]]},
    }  # fmt: skip
    shutil.copy(worth.PLANS / "worth-scenes.json", tmp_path)
    monkeypatch.setattr(worth, "PLANS", tmp_path)
    path = tmp_path / "worth-steel.json"
    path.write_text(json.dumps(plan))
    results, random = Results.opened(tmp_path / "results.json", path), np.random.default_rng(0)
    numbers = ["top1_10", *(f"top1_{num}_{block}" for num in (1, 5, 10, 50, "k20") for block in ("B4", "B5"))]
    for seed in (0, 1):
        of_seed = {"arm": "distilled", "rate": None, "seed": seed, "data": {"train": "a", "val": "b"}}
        results.record["training"].append(of_seed | {
            "cpu_seconds": 600.0 + 120 * seed, "command": f"x {seed} --epochs 5", "curve": None,
            "machine": {"gpu": None}, "seconds": 600.0, "stages": [{"seconds": 500.0}],
        })  # fmt: skip
        for evaluation in evaluations:
            values = {number: float(random.uniform(20, 90)) for number in numbers}
            if evaluation == "block":
                values |= {"top1_10_B4": 60.0 + seed, "top1_10_B5": 59.0}
            results.record["scores"].append(of_seed | {
                "evaluation": evaluation, "numbers": values, "command": f"{evaluation} {seed}",
            })  # fmt: skip
        results.record["beside"].append({
            "name": "labels alone", "seed": seed, "number": "top1_10", "command": f"labels {seed}",
            "data": of_seed["data"], "numbers": {f"top1_{num}": 20.0 + num + seed for num in (1, 5, 10)},
        })  # fmt: skip
    results.record["beside"].append({
        "name": "labels alone: 50", "seed": None, "number": "top1_50", "numbers": {"top1_50": 77.77},
        "command": "f",
    })  # fmt: skip
    results.write()
    record = {"worth-steel": json.loads(results.path.read_text())}
    text = "<!-- worth steel begin -->\n" + worth.parts(record)["worth steel"] + "\n<!-- worth steel end -->"
    rows = table(text, "steel")
    for row, cells in expected_rows(plan, record["worth-steel"]).items():
        assert rows[row][2:] == cells, row
    assert rows["distilled, B4"][:2] == ["5", "11"] and rows["labels alone"][5] == "77.8"
    assert rows["distilled − labels alone"][1:] == ["2", "seeds to come"]
    assert "SimCLR psl − distilled" not in rows
    words = worth.chart_words(record)
    assert [row["name"] for row in words["panels"]["steel"]] == ["labels alone", "distilled"]
    for theme in THEMES:
        check_layout(ElementTree.fromstring(render("worth", theme, words)))


COMMANDS = re.findall(r"^fastpsl ((?:.*\\\n)*.*)$", PAGE.read_text(), re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.split()[1])
def test_the_commands_of_the_page_run_as_printed(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number, image in enumerate(random_images(160, 80)):
        path = Path("photos", "ab"[number % 2], f"{number}.jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    torch.save(timm.create_model("tf_efficientnet_lite0").state_dict(), "lite0.pth")
    words = shlex.split(command.replace("\\\n", " "))
    with pytest.raises(SystemExit, match="0"):
        cli.main([*words, "--max-steps-per-stage", "1", "--out", "run", "--no-tensorboard", "--workers", "1"])
    summaries = json.loads(Path("run", "results.json").read_text())
    assert [summary["num_steps"] for summary in summaries] == [1] * len(summaries)
