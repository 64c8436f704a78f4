"""bench/small.py at its smallest, as people call it. No figure is judged."""

import json
import subprocess
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from bench.recipe_stages import Recipe, recipe_options, stage_experiment
from bench.schema import validate
from bench.small import HEADS, NUM_CLASSES, Bench, Options, SmallRecipe, write_noise
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.decoders import resident
from tests.engine.tiny import one_process
from tests.programs import ROOT, run


@pytest.fixture(scope="module")
def betons(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("small")
    for seed, (name, num) in enumerate((("train", 60), ("val", 20))):
        write_noise(folder / f"{name}.beton", num, seed)
    return folder / "train.beton", folder / "val.beton"


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run(ROOT / "bench" / "small.py", "--device", "cpu", *arguments, environment={"COLUMNS": "200"})


def test_noise_can_be_kept_on_any_device(betons: tuple[Path, Path]) -> None:
    with Beton(betons[0]) as data, Beton(betons[1]) as other:
        assert data.num_samples == 60 and data.image_sizes() == (32, 32, 32, 32) and resident.is_small(data)
        assert data.num_classes == NUM_CLASSES and (data.labels() == np.arange(60) % NUM_CLASSES).all()
        assert len({data.read(i) for i in range(60)} | {other.read(i) for i in range(20)}) == 80


@pytest.mark.nightly
def test_a_run_writes_three_rows_of_tasks_and_probe_and_knn_as_a_whole(
    betons: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "small.json"
    data, val = map(str, betons)
    sizes = ("--batch-size", "8", "--repeats", "1", "--seconds", "0.001", "--workers", "1")
    process = call("--data", data, "--val", val, "--recipes", "sslpp_rotation", *sizes, "--out", str(out))
    assert process.returncode == 0, process.stderr
    result = json.loads(out.read_text())
    validate(result)
    rows = {(row["recipe"], row["measured"]): row for row in result["rows"]}
    three = ("step", "loader", "both")
    assert rows.keys() == {
        *((recipe, measured) for recipe in ("sslpp_rotation", "block_probe") for measured in three),
        ("knn", "whole"),
    }  # fmt: skip
    assert all(row["decoder"] == "resident" for row in result["rows"] if row["measured"] != "step")
    rotation, probe = rows["sslpp_rotation", "both"], rows["block_probe", "both"]
    assert (rotation["samples_per_step"], rotation["inputs_per_image"], rotation["epochs"]) == (8, 4, 200)
    assert (probe["samples_per_step"], probe["inputs_per_image"], probe["epochs"]) == (8, 1, 200)
    assert rows["knn", "whole"]["unit"] == "s" and rows["knn", "whole"]["blocks"] == ["B2", "B3", "B4"]
    whats = {(ratio["recipe"], ratio["what"]): ratio["median"] for ratio in result["ratios"]}
    for recipe in ("sslpp_rotation", "block_probe"):
        both, step = (rows[recipe, measured]["median"] for measured in ("both", "step"))
        assert whats[recipe, "both / step"] == pytest.approx(both / step, rel=1e-4)
    assert result["data"] | {"num_samples": 60, "num_distinct": 60, "num_held_out": 20} == result["data"]
    text = " ".join(process.stdout.split())
    assert f"{rotation['median']:,.0f} images/s, {4 * rotation['median']:,.0f} inputs/s" in text
    assert text.count("whole: 200 epochs x 7 steps") == 2
    assert "knn of B2 B3 B4, whole:" in text and str(out) in process.stdout.replace("\n", "")


@pytest.mark.parametrize("recipe", get_args(SmallRecipe))
def test_every_recipe_is_known_to_the_other_benches_at_its_papers_values(recipe: str) -> None:
    assert recipe in get_args(Recipe)
    options = recipe_options(recipe, is_sample=False, batch_size=24, device="cpu")
    experiment, number = stage_experiment(recipe, "E", options, one_process())
    own = {"sslpp_iic": "resnet34_iic", "uic_cifar10": "resnet18_cifar"}
    assert experiment.backbone.name == own.get(recipe, "nin4")
    assert experiment.stages[number].epochs == options.epochs[0] >= 200


def test_the_probe_has_six_classifiers() -> None:
    more = {"random_weights": True, "backbone": "nin4", "heads": HEADS}
    options = recipe_options("block_probe", is_sample=False, batch_size=8, device="cpu", **more)
    experiment, _ = stage_experiment("block_probe", "blocks", options, one_process())
    assert [head.name for head in experiment.task.heads] == list(HEADS)  # type: ignore[attr-defined]


@pytest.mark.slow
def test_knn_that_fails_is_named_beside_what_was_measured(
    betons: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.small.try_stage", lambda recipe, *_, **__: {"rows": [recipe]})
    bench = Bench(Options(recipes=("sslpp_aet",)), one_process(), betons[0], tmp_path / "absent.beton")
    result = bench.measure(tmp_path, lambda phase: None)
    bench.data.close()
    assert result["rows"] == ["sslpp_aet", "block_probe"] and not result["ratios"]
    (missing,) = result["not_measured"]
    assert missing["what"] == "recipes/knn.py"
    assert missing["reason"].startswith("exit status 2: ") and "absent.beton" in missing["reason"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (Options(batch_size=0), "--batch-size 0"),
        (Options(data="a.beton"), "--data and --val: give both"),
        (Options(decoders=()), "at least one decoder"),
        (Options(recipes=(), evaluation=False), "a recipe or --evaluation"),
    ],
)
def test_values_that_cannot_be_are_refused(options: Options, says: str) -> None:
    Options().check()
    with pytest.raises(ValueError, match=says):
        options.check()


def test_what_is_no_set_of_small_images_is_one_line_and_exit_2(tmp_path: Path) -> None:
    process = call("--data", "absent.beton", "--val", "absent.beton", "--out", str(tmp_path / "small.json"))
    assert process.returncode == 2 and "absent.beton" in process.stderr and process.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
