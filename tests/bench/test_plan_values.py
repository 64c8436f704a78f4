"""The committed plans train with the values that they had when they were run, on any machine."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench.evidence.plan import RANDOM, Run, of_cpu, read_plan
from fastpsl.pipelines.datasets.open import Glance
from fastpsl.scripts import presets
from fastpsl.scripts.launch import parsed
from fastpsl.scripts.recipe_files import find_recipe
from tests.programs import ROOT

PLANS = sorted((ROOT / "bench" / "evidence").glob("*.json"))
GOLDEN = Path(__file__).with_name("plan_values.json")
# What a preset, the machine or a default may choose.
CHOSEN = ("backbone", "batch_size", "epochs", "levels", "lr", "precision", "short_side", "size_px")


def values_of(plan: Path) -> dict[str, list[Any]]:
    """Return the values of each arm's training by a recipe."""
    opened, values = read_plan(plan), dict[str, list[Any]]()
    if opened.epochs:
        opened = opened.with_epochs(opened.epochs[-1])
    rate = next(iter(opened.search.rates if opened.search else ()), None)
    for arm in opened.rows:
        if arm == RANDOM:
            continue
        run = Run(arm, rate, opened.seeds[0], counts=True)
        script, *words = opened.training_of(run).words("DATA", "RUNS")
        words = words if plan.stem.endswith("-gpu") else of_cpu([script, *words])[1:]
        if script.startswith("recipes/"):
            science = parsed(find_recipe(Path(script).stem), words, None).science()
            values[f"{plan.stem}: {arm}"] = [science.get(name) for name in CHOSEN]
    return values


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.stem)
def test_a_plan_has_the_values_of_its_runs(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of images is that of a small set, and there is no GPU."""
    monkeypatch.setattr(presets, "_is_there", lambda source: True)
    monkeypatch.setattr(presets, "_found", lambda options, at_most: Glance(5000, [], 10))
    monkeypatch.setattr(presets, "_has_gpu", lambda options: False)
    monkeypatch.setattr("fastpsl.scripts.launch.require_paths", lambda options: None)
    golden = json.loads(GOLDEN.read_text())
    expected = {name: values for name, values in golden.items() if name.startswith(f"{plan.stem}: ")}
    assert json.loads(json.dumps(values_of(plan))) == expected
