"""bench/checkpoint.py at its smallest. No figure is judged but the bytes."""

import json
import sys
from pathlib import Path

import pytest

import bench.checkpoint
from bench.checkpoint_tables import checkpoint_table, states_table
from bench.recipe_stages import recipe_of
from bench.schema import validate

NUM_IMAGES = 70


def test_each_way_of_saving_is_a_row_and_bytes_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "checkpoint.json"
    # Only sizes of networks matter to the time of this test.
    values = {"backbone": "resnet18", "queue_size": 64, "size_px": 32, "num_clusters": 10}
    options = bench.checkpoint.recipe_options

    def smaller(recipe: str, **given: object) -> object:
        fields = recipe_of(recipe).paper.keys()
        return options(recipe, **given, **{name: values[name] for name in values.keys() & fields})  # type: ignore[arg-type]

    monkeypatch.setattr(bench.checkpoint, "recipe_options", smaller)
    monkeypatch.setattr(bench.checkpoint, "COUNTED", (("moco", NUM_IMAGES), ("uic_r50", NUM_IMAGES)))
    monkeypatch.setattr(sys, "argv", ["checkpoint", "--recipes", "moco", "--repeats", "2", "--out", str(out)])
    bench.checkpoint.main()
    result = json.loads(out.read_text())
    validate(result)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    states = {row["recipe"]: row for row in result["rows"] if row["measured"] == "state"}
    # Labels, those of the next epoch with their positions, and the number of positions.
    assert states["uic_r50"]["task_bytes"] == 12 * NUM_IMAGES + 8
    parts = [states["moco"][f"{name}_bytes"] for name in ("backbone", "train_step", "task")]
    assert states["moco"]["num_bytes"] == sum(parts)
    timed = {(row["measured"], row["how"]): row for row in result["rows"] if row["measured"] != "state"}
    assert {how for what, how in timed if what == "step"} == set(bench.checkpoint.HOW)
    assert {how for what, how in timed if what == "call"} == set(bench.checkpoint.HOW) - {"none"}
    assert all(row["num_bytes"] == states["moco"]["num_bytes"] for row in timed.values())
    assert "| MoCo v2" in checkpoint_table({"a": result})
    assert "| UIC, ResNet-50 | 70 |" in states_table({"a": result})
