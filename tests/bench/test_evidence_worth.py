"""What docs/methods/worth.md says, computed again from the raw scores by loops; with made-up records, too."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from scipy import stats

from bench.evidence import worth
from fastpsl import cli
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


@pytest.mark.parametrize("num_beside", [0, 1, 4, 8, 100])
def test_a_way_is_charted_once_all_its_seeds_are_there(num_beside: int) -> None:
    record: dict[str, Any] = {**RECORDS["worth-clothes"], "training": []}
    record["beside"] = record["beside"][::-1][:num_beside]
    panels = worth.chart_words({"worth-clothes": record})["panels"]
    names = [one["name"] for one in record["beside"]]
    ways = (("labels alone", "labels alone"), ("published", "published, 160 px"))
    whole = [way for way, name in ways if names.count(name) == 3]
    assert [row["name"] for row in panels.get("clothes", ())] == whole


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
