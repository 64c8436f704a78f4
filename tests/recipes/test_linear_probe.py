"""Test the linear probe as a user runs it: recorded scores of each block, resume, two ranks, and errors."""

import json
import re
import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from fastpsl.engine.optim.schedules import Moment
from fastpsl.engine.reporter import summary_line
from fastpsl.evaluation.linear import best_block_lines
from fastpsl.evaluation.result import read_result
from fastpsl.kernels.crops import RandomResizedCrop, ShorterSideCrop
from fastpsl.kernels.geometry import Flip
from fastpsl.pipelines.sample.betons import sample_paths
from fastpsl.scripts.launch import launch
from fastpsl.scripts.recipe_files import find_recipe
from tests.programs import ROOT, digests, newest_checkpoint, run
from tests.recipes.in_process import Start, refused, starter

RECIPE = ROOT / "recipes" / "linear_probe.py"
BLOCKS = ("B1", "B2", "B3", "B4", "B5", "final")
DATA = ("--data", sample_paths().train_32, "--val", sample_paths().test_32)
SMALL = (
    *("--size-px", "32", "--batch-size", "96", "--workers", "1", "--no-tensorboard"),
    *("--epochs", "1", "--lr", "0.1", "--checkpoint-steps", "2", "--keep-checkpoints", "9"),
)
RANDOM = ("--random-weights", "--backbone", "resnet18")


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Start:
    return starter("linear_probe", monkeypatch, capsys)


@pytest.fixture(scope="module")
def supervised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run of recipes/supervised.py that was cut short."""
    out = tmp_path_factory.mktemp("supervised")
    small = "--backbone resnet18 --epochs 1 --batch-size 32 --size-px 32 --max-steps-per-stage 2 "
    small += "--plan end_to_end"
    with pytest.raises(SystemExit) as caught:
        launch(
            find_recipe("supervised"),
            [*small.split(), *map(str, DATA), "--out", str(out), "--no-tensorboard", "--workers", "1"],
        )
    assert not caught.value.code
    return out


def test_a_run_puts_every_block_on_record(recipe: Start, supervised: Path, tmp_path: Path) -> None:
    outcome = recipe("--checkpoint", supervised, *DATA, *SMALL, "--out", tmp_path)
    assert outcome.code == 0, outcome
    record = read_result(tmp_path / "result.json")
    assert (record["protocol"], record["recipe"]) == ("linear/vissl", "linear_probe")
    assert set(record["numbers"]) == {f"top{k}_{block}" for k in (1, 5) for block in BLOCKS}
    val = newest_checkpoint(tmp_path)["position"]["summaries"][0]["val"]
    for name, value in record["numbers"].items():
        assert value == pytest.approx(100 * val[name]) and 0 <= value <= 100
    checkpoint = record["checkpoint"]
    assert (checkpoint["kind"], checkpoint["backbone"], checkpoint["run_step"]) == ("fastpsl", "resnet18", 2)
    assert checkpoint["science"]["recipe"] == "supervised" and len(checkpoint["sha256"]) == 64
    assert record["cut"]  # because its pre-training was cut short
    assert (record["data"]["num_train"], record["data"]["num_val"]) == (480, 160)
    settings = record["settings"]
    assert settings["val_view"].count("ShorterSideCrop") == 1 and settings["batchnorm"] == "affine"
    assert (settings["epochs"], settings["lr"], settings["weight_decay"]) == (1, 0.1, 5e-4)
    assert "RandomResizedCrop(size_px=32" in settings["train_view"] and "37" in settings["val_view"]
    printed = outcome.out + outcome.err
    line = next(line for line in printed.splitlines() if line.startswith("linear (level"))
    for block in BLOCKS:
        (score,) = re.findall(rf"{block} ([\d.]+)", line)
        assert float(score) == pytest.approx(record["numbers"][f"top1_{block}"], abs=0.051)
    highest = max(record["numbers"][f"top1_{block}"] for block in BLOCKS[:5])
    (best,) = [line for line in outcome.out.splitlines() if line.startswith("best of 5 blocks: B")]
    assert best.endswith(f", validation top-1 {highest:.1f} %")
    assert record["numbers"][f"top1_{best.split()[4].strip(',')}"] == highest
    with Image.open(tmp_path / "result.png") as chart:
        assert chart.size[0] > 600
    assert f"result {tmp_path / 'result.json'}" in outcome.out and "result.png" in outcome.out
    goes_on_with_the_same_numbers(recipe, tmp_path, tmp_path / "stopped", "--checkpoint", supervised)


def goes_on_with_the_same_numbers(recipe: Start, whole: Path, stopped: Path, *weights: object) -> None:
    """Resume from the checkpoint of step 2 of 5; another protocol must be refused."""
    for name in ("checkpoints/step-00000002.pt", "metrics.jsonl"):
        (stopped / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(whole / name, stopped / name)
    outcome = recipe(*weights, *DATA, *SMALL, "--out", stopped)
    assert outcome.code == 0 and "step-00000002.pt" in outcome.err
    assert digests(newest_checkpoint(stopped)) == digests(newest_checkpoint(whole))
    numbers = [read_result(folder / "result.json")["numbers"] for folder in (whole, stopped)]
    assert numbers[0] == numbers[1]
    outcome = recipe(*weights, *DATA, *SMALL, "--protocol", "moco", "--out", whole)
    refused(outcome, "linear_probe", "protocol (vissl there, moco now)")


def test_mocos_protocol_scores_the_final_features_alone(recipe: Start, tmp_path: Path) -> None:
    arguments = ("--protocol", "moco", "--max-steps-per-stage", "1", "--out", tmp_path)
    assert recipe(*RANDOM, *DATA, *SMALL, *arguments).code == 0
    record = read_result(tmp_path / "result.json")
    assert set(record["numbers"]) == {"top1_final", "top5_final"} and record["cut"]
    assert best_block_lines(record["numbers"]) == []
    assert (record["protocol"], record["checkpoint"]["kind"]) == ("linear/moco", "random")
    assert record["settings"]["weight_decay"] == 0


@pytest.mark.slow
def test_two_ranks(tmp_path: Path) -> None:
    steps = ("--max-steps-per-stage", "1", "--out", tmp_path)
    done = run(RECIPE, *RANDOM, *DATA, *SMALL, *steps, ranks=2)
    assert done.returncode == 0, done.stderr
    record = read_result(tmp_path / "result.json")
    assert record["cut"] and len(record["numbers"]) == 12 and all(v >= 0 for v in record["numbers"].values())


def parts() -> dict[str, Any]:
    return runpy.run_path(str(RECIPE))


# Epochs, first rate, its batch, factor, epochs of the drops, decay, Nesterov, BatchNorm, crop, number of
# crops.
PROTOCOLS = {
    "vissl": (28, 0.01, 256, 0.1, (8, 16, 24), 5e-4, True, "affine", RandomResizedCrop(224), 1),
    "vissl_places205": (14, 0.01, 256, 0.1, (4, 8, 12), 5e-4, True, "affine", RandomResizedCrop(224), 1),
    "vissl_inat18": (84, 0.01, 256, 0.1, (24, 48, 72), 5e-4, True, "affine", RandomResizedCrop(224), 1),
    "moco": (100, 30.0, 256, 0.1, (60, 80), 0.0, False, None, RandomResizedCrop(224), 1),
    "uic": (32, 0.1, 256, 0.1, (10, 20, 30), 0.0, False, None, ShorterSideCrop(256, 224, "random"), 10),
    "rotnet": (35, 0.01, 192, 0.2, (5, 15, 25), 5e-4, True, "plain", ShorterSideCrop(256, 224, "random"), 1),
    "sslpp": (200, 0.1, 64, 0.1, (100, 150), 5e-4, True, "plain", ShorterSideCrop(256, 224, "random"), 1),
    "deepcluster": (
        90,
        0.01,
        256,
        1.0,
        (),
        1e-7,
        False,
        None,
        ShorterSideCrop(256, 224, "random_middle"),
        10,
    ),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_protocols_are_the_published_ones(protocol: str) -> None:
    """Compare the rates of each epoch, the optimiser's settings, BatchNorm and views with their sources."""
    epochs, lr, lr_batch, factor, drops, decay, nesterov, batchnorm, crop, num_crops = PROTOCOLS[protocol]
    recipe = parts()
    options = recipe["RECIPE"].with_paper(
        protocol=protocol, random_weights=True, backbone="resnet18", batch_size=2 * lr_batch
    )
    experiment = recipe["build"](options)
    (stage,) = experiment.stages
    assert (stage.first_learning, stage.last_block, stage.epochs) == (6, 5, epochs)
    for epoch in range(epochs):
        moment = Moment(epoch * 5004, epochs * 5004, 0, epochs, epochs)
        expected = 2 * lr * factor ** sum(epoch >= drop for drop in drops)
        if protocol == "deepcluster":
            expected = 2 * lr / (1 + 2 * lr * decay * epoch * 5004) ** 0.5
        assert experiment.schedule(moment) == pytest.approx(expected, rel=1e-9)
    named = [("head.classifiers.final.linear.bias", torch.nn.Parameter(torch.zeros(3)))]
    group = experiment.optimiser(iter(named)).param_groups[0]
    settings = {name: group[name] for name in ("momentum", "nesterov", "weight_decay")}
    assert settings == {"momentum": 0.9, "nesterov": nesterov, "weight_decay": decay}
    (train,), val = experiment.task.views(1), experiment.task.val_views(1)
    assert (experiment.task.batchnorm, train.crop, train.ops) == (batchnorm, crop, (Flip(),))
    assert experiment.task.head_std == {"moco": 0.01, "rotnet": 0.002**0.5}.get(protocol)
    assert val[0].crop == ShorterSideCrop(256, 224, "center") and val[0].ops == ()
    assert len(val) == num_crops == len(set(val))
    if protocol == "rotnet":  # its table of rates changes after epochs 5, 15, 25 and 35
        rates = [experiment.schedule(Moment(e, 35, 0, 35, 35)) / 2 for e in (0, 4, 5, 14, 15, 24, 25, 34)]
        assert rates == pytest.approx([0.01] * 2 + [0.002] * 2 + [4e-4] * 2 + [8e-5] * 2)


def checked(recipe: Start, out: Path, protocol: str, *start: object) -> dict[str, Any]:
    """Return the record of a run of one step."""
    outcome = recipe("--protocol", protocol, *start, "--max-steps-per-stage", "1", "--out", out)
    assert outcome.code == 0, outcome
    record = read_result(out / "result.json")
    assert all(0 <= value <= 100 for value in record["numbers"].values()) and record["cut"]
    assert record["protocol"] == f"linear/{protocol}"
    settings = record["settings"]
    num_crops = settings["num_crops"]
    assert num_crops == settings["val_view"].count("ShorterSideCrop")
    assert num_crops // 2 == settings["val_view"].count("Flip(p=1.0)")
    assert "B5 " in outcome.err + outcome.out
    return record


@pytest.mark.slow
def test_alexnets_blocks_by_uics_protocol(recipe: Start, tmp_path: Path) -> None:
    """Check the recorded scores of seven blocks and final, on gradients of the sample's images."""
    start = ("--backbone", "alexnet", "--random-weights", "--size-px", "64", "--batch-size", "16")
    gradients = ("--input-channels", "SobelXY", "--input-mean", "0", "0", "--input-std", "0.03", "0.03")
    record = checked(recipe, tmp_path, "uic", *start, *gradients, "--no-tensorboard", "--workers", "1")
    assert record["settings"]["val_view"].count("SobelXY") == 10
    names = (*BLOCKS[:-1], "B6", "B7", "final")
    assert set(record["numbers"]) == {f"top{k}_{block}" for k in (1, 5) for block in names}
    settings = record["settings"]
    assert [(pool["grid"], pool["kind"]) for pool in settings["pools"]] == [
        (n, "max") for n in (10, 6, 5, 5, 6)
    ]
    assert settings["val_view"].count("shorter_px=73, size_px=64") == 10
    assert (settings["lr_batch"], settings["batch_size"], settings["num_crops"]) == (256, 16, 10)


@pytest.mark.slow
@pytest.mark.parametrize(("protocol", "num_crops"), [("rotnet", 1), ("deepcluster", 10)])
def test_alexnets_protocols_take_other_backbones(
    recipe: Start, tmp_path: Path, protocol: str, num_crops: int
) -> None:
    record = checked(recipe, tmp_path, protocol, *RANDOM, *DATA, *SMALL)
    assert set(record["numbers"]) == {f"top{k}_{block}" for k in (1, 5) for block in BLOCKS}
    assert record["settings"]["num_crops"] == num_crops


def test_small_images_are_scored_whole(recipe: Start, tmp_path: Path) -> None:
    """Check that --whole means one view, and is refused with ten crops."""
    record = checked(recipe, tmp_path / "out", "sslpp", *RANDOM, *DATA, *SMALL, "--whole")
    assert "ShorterSideCrop(shorter_px=32, size_px=32, where='center')" in record["settings"]["val_view"]
    for protocol in ("uic", "deepcluster"):
        outcome = recipe(
            *RANDOM, *DATA, *SMALL, "--whole", "--protocol", protocol, "--out", tmp_path / protocol
        )
        refused(outcome, "linear_probe", "--whole", f"--protocol {protocol}", "ten crops")


def test_a_summary_has_each_block() -> None:
    summary = {
        "stage": "linear", "level": 1, "num_steps": 4, "num_steps_planned": 4, "seconds": 5.0,
        "loss_start": None, "chance": 0.001,
        "val": {"loss": 3.0, **{f"top{k}_{b}": 0.5 for b in BLOCKS for k in (1, 5)}},
    }  # fmt: skip
    assert summary_line(summary) == (
        "linear (level G1): 4 steps in 0:00:05, validation top-1 B1 50.0, B2 50.0, B3 50.0, B4 50.0, "
        "B5 50.0, final 50.0 % (chance 0.1 %)"
    )


def other_classes(tmp_path: Path) -> Path:
    """Return the validation beton with one class renamed."""
    path = tmp_path / "other.beton"
    shutil.copy(sample_paths().test_32, path)
    sidecar = json.loads(Path(f"{sample_paths().test_32}.json").read_text())
    sidecar["class_names"][2] = "unicorn"
    Path(f"{path}.json").write_text(json.dumps(sidecar))
    return path


def test_impossible_requests_are_refused(recipe: Start, supervised: Path, tmp_path: Path) -> None:
    def is_refused(*arguments: object, words: tuple[str, ...]) -> None:
        outs.append(tmp_path / f"out-{len(outs)}")
        refused(recipe(*SMALL, "--out", outs[-1], *arguments), "linear_probe", *words)

    outs: list[Path] = []

    is_refused(*DATA, words=("--checkpoint", "--random-weights"))
    is_refused(*DATA, *RANDOM, "--checkpoint", supervised, words=("either",))
    is_refused(*DATA[:2], *RANDOM, words=("give --val",))
    is_refused(
        *DATA, "--checkpoint", supervised, "--backbone", "resnet50", words=("another backbone", "resnet18")
    )
    is_refused(*DATA, "--checkpoint", tmp_path, words=("holds no checkpoint",))
    is_refused(
        *DATA[:2],
        "--val",
        other_classes(tmp_path),
        *RANDOM,
        words=("class 2 is 'unicorn', in the training data 'flower'",),
    )
    is_refused(*DATA, *RANDOM, "--lr", "0", "--protocol", "deepcluster", words=("above 0",))
    is_refused(*DATA, "--random-weights", "--backbone", "alexnet", words=("32 px", "63 px and more"))
    is_refused(*DATA, *RANDOM, "--lr", "0", words=("above 0",))
    is_refused(*DATA, *RANDOM, "--epochs", "0", words=("--epochs 0",))
