"""The probes as a user runs them: recorded scores of every block and head, resume, two ranks, protocols."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from fastpsl.engine.optim.schedules import Moment
from fastpsl.evaluation import fine_tuning, untrained
from fastpsl.evaluation.few_labels import FewLabels
from fastpsl.evaluation.linear import best_block_lines
from fastpsl.evaluation.result_file import read_result
from fastpsl.kernels.crops import RandomResizedCrop, ShorterSideCrop
from fastpsl.kernels.geometry import Flip, Shift
from fastpsl.models.weights import random_weights
from fastpsl.pipelines.embedded.draw_sample import sample_paths
from fastpsl.pipelines.embedded.patterns import CLASS_NAMES
from fastpsl.scripts.launch import launch
from fastpsl.scripts.recipe_files import find_recipe
from tests.pipelines.written import write_labelled
from tests.programs import newest_checkpoint
from tests.recipes.in_process import built, goes_on, ran, refused, start, words

LINEAR = "linear_probe"
BLOCKS = ("B1", "B2", "B3", "B4", "B5", "final")
DATA = ("--data", sample_paths().train_32, "--val", sample_paths().test_32)
SMALL = words(
    "--size-px 32 --batch-size 96 --workers 1 --no-tensorboard --epochs 1 --lr 0.1",
    "--checkpoint-steps 2 --keep-checkpoints 9",
)
RANDOM = ("--random-weights", "--backbone", "resnet18")
NIN = ("--random-weights", "--backbone", "nin4")


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


def test_a_run_puts_every_block_on_record(supervised: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    outcome = start(LINEAR, supervised, *DATA, *SMALL, "--out", whole).ok()
    record = read_result(whole / "result.json")
    assert (record["protocol"], record["recipe"]) == ("linear/vissl", "linear_probe")
    assert set(record["numbers"]) == {f"top{k}_{block}" for k in (1, 5) for block in BLOCKS}
    val = newest_checkpoint(whole)["position"]["summaries"][0]["val"]
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
    assert "network: resnet18, " in printed and "None" not in printed and " the defaults: " in printed
    line = next(line for line in printed.splitlines() if line.startswith("linear (level"))
    for block in BLOCKS:
        (score,) = re.findall(rf"{block} ([\d.]+)", line)
        assert float(score) == pytest.approx(record["numbers"][f"top1_{block}"], abs=0.051)
    highest = max(record["numbers"][f"top1_{block}"] for block in BLOCKS[:5])
    (best,) = [line for line in outcome.out.splitlines() if line.startswith("best of 5 blocks: B")]
    assert f"{highest:.1f} %" in best
    assert record["numbers"][f"top1_{best.split()[4].strip(',')}"] == highest
    with Image.open(whole / "result.png") as chart:
        assert chart.size[0] > 600
    assert f"result {whole / 'result.json'}" in outcome.out and "result.png" in outcome.out
    weights = (supervised,)
    goes_on(LINEAR, *weights, *DATA, *SMALL, whole=whole, steps=(2,))
    outcome = start(LINEAR, *weights, *DATA, *SMALL, "--protocol moco --out", whole)
    refused(outcome, "protocol (vissl there, moco now)")


@pytest.mark.parametrize("recipe", ["linear_probe", "block_probe"])
def test_the_floor_is_the_protocol_on_random_weights(
    recipe: str, supervised: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is trained once, and kept in the cache; a stop within it goes on."""
    monkeypatch.setattr(untrained, "cache_folder", lambda: tmp_path / "cache")
    steps = ("--max-steps-per-stage 2 --seed 3",) + (
        ("--heads conv_B1 conv_B2",) if "block" in recipe else ()
    )
    common = (*DATA, *SMALL, *steps, "--out")
    random = start(recipe, *RANDOM, *common, tmp_path / "random").ok()
    plain = start(recipe, supervised, *common, tmp_path / "plain").ok()
    expected, own = (read_result(tmp_path / name / "result.json")["numbers"] for name in ("random", "plain"))
    trained = list[Path]()
    monkeypatch.setattr(fine_tuning, "train", note_folders(trained, stops=1))
    assert start(recipe, supervised, "--floor", *common, tmp_path / "out").code == 75
    status = json.loads((tmp_path / "out/status.json").read_text())
    assert status["state"] == "preempted" and not (tmp_path / "out/result.json").exists()
    outcome = start(recipe, supervised, "--floor", *common, tmp_path / "out").ok()
    numbers = read_result(tmp_path / "out/result.json")["numbers"]
    assert numbers == own | {f"untrained_{name}": value for name, value in expected.items()}
    line = ", ".join(f"{name[5:]} {value:.1f}" for name, value in expected.items() if name.startswith("top1"))
    assert f"\nuntrained: {line} %\n" in outcome.out and "untrained:" not in plain.out + random.out
    assert trained == [tmp_path / "out/untrained"] * 2 and not trained[0].exists()
    start(recipe, supervised, "--floor", *common, tmp_path / "again").ok()
    assert read_result(tmp_path / "again/result.json")["numbers"] == numbers and len(trained) == 2


def note_folders(folders: list[Path], stops: int) -> Any:
    """Return `train` that notes its folders, and is stopped in the first calls."""
    train = fine_tuning.train

    def noted(script: Any, options: Any, *more: Any, **named: Any) -> bool:
        folders.append(options.out)
        return len(folders) > stops and train(script, options, *more, **named)

    return noted


def test_mocos_protocol_scores_the_final_features_alone(tmp_path: Path) -> None:
    arguments = ("--protocol", "moco", "--max-steps-per-stage", "1", "--out", tmp_path)
    start(LINEAR, *RANDOM, *DATA, *SMALL, *arguments).ok()
    record = read_result(tmp_path / "result.json")
    assert set(record["numbers"]) == {"top1_final", "top5_final"} and record["cut"]
    assert best_block_lines(record["numbers"], 160) == []
    assert (record["protocol"], record["checkpoint"]["kind"]) == ("linear/moco", "random")
    assert record["settings"]["weight_decay"] == 0


@pytest.mark.slow
def test_two_ranks(supervised: Path, tmp_path: Path) -> None:
    own_cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    steps = ("--max-steps-per-stage", "1", "--floor", "--out", tmp_path)
    ran(LINEAR, supervised, *DATA, *SMALL, *steps, ranks=2, environment=own_cache)
    record = read_result(tmp_path / "result.json")
    assert record["cut"] and len(record["numbers"]) == 24 and all(v >= 0 for v in record["numbers"].values())
    assert len(list(tmp_path.glob("cache/fastpsl/untrained/*.json"))) == 1


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
        90, 0.01, 256, 1.0, (), 1e-7, False, None, ShorterSideCrop(256, 224, "random_middle"), 10,
    ),
}  # fmt: skip


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_protocols_are_the_published_ones(protocol: str) -> None:
    """Compare the rates of each epoch, the optimiser's settings, BatchNorm and views with their sources."""
    epochs, lr, lr_batch, factor, drops, decay, nesterov, batchnorm, crop, num_crops = PROTOCOLS[protocol]
    weights = {"random_weights": True, "backbone": "resnet18"}
    _, experiment = built("linear_probe", "cpu", protocol=protocol, batch_size=2 * lr_batch, **weights)
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


def checked(out: Path, protocol: str, *given: object) -> dict[str, Any]:
    """Return the record of a run of one step."""
    outcome = start(LINEAR, "--protocol", protocol, *given, "--max-steps-per-stage 1 --out", out).ok()
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
def test_alexnets_blocks_by_uics_protocol(tmp_path: Path) -> None:
    """Check the recorded scores of seven blocks and final, on gradients of the sample's images."""
    alexnet = words(
        "--backbone alexnet --random-weights --size-px 64 --batch-size 16 --no-tensorboard --workers 1"
    )
    gradients = ("--input-channels", "SobelXY", "--input-mean", "0", "0", "--input-std", "0.03", "0.03")
    record = checked(tmp_path, "uic", *alexnet, *gradients)
    assert record["settings"]["val_view"].count("SobelXY") == 10
    names = (*BLOCKS[:-1], "B6", "B7", "final")
    assert set(record["numbers"]) == {f"top{k}_{block}" for k in (1, 5) for block in names}
    settings = record["settings"]
    assert [(pool["grid"], pool["kind"]) for pool in settings["pools"]] == [
        (n, "max") for n in (10, 6, 5, 5, 6)
    ]
    assert settings["val_view"].count("shorter_px=73, size_px=64") == 10
    assert (settings["lr_batch"], settings["batch_size"], settings["num_crops"]) == (256, 16, 10)


def test_small_images_are_scored_whole(tmp_path: Path) -> None:
    """Check that --whole means one view."""
    record = checked(tmp_path / "out", "sslpp", *RANDOM, *DATA, *SMALL, "--whole")
    assert "ShorterSideCrop(shorter_px=32, size_px=32, where='center')" in record["settings"]["val_view"]


def other_classes(tmp_path: Path) -> Path:
    """Return the validation beton with one class renamed."""
    path = tmp_path / "other.beton"
    shutil.copy(sample_paths().test_32, path)
    sidecar = json.loads(Path(f"{sample_paths().test_32}.json").read_text())
    sidecar["class_names"][2] = "unicorn"
    Path(f"{path}.json").write_text(json.dumps(sidecar))
    return path


def test_other_weights_and_classes_are_refused(supervised: Path, tmp_path: Path) -> None:
    for arguments, texts in (
        ((*DATA, *RANDOM, supervised), ("either",)),
        ((*DATA, supervised, "--backbone resnet50"), ("another backbone", "resnet18")),
        (
            (*DATA[:2], "--val", other_classes(tmp_path), *RANDOM),
            ("class 2 is 'unicorn', in the training data 'chevrons'",),
        ),
    ):
        refused(start(LINEAR, *SMALL, *arguments, "--out", tmp_path / "out"), *texts)


BLOCK_PROBE = "block_probe"
# A quarter of the images' positions, because there are two cores.
SMALL_PROBE = ("--size-px", "16", "--batch-size", "16", "--workers", "1", "--no-tensorboard")


def test_a_run_puts_every_head_on_record(tmp_path: Path) -> None:
    heads = ("conv_B2", "conv_B3", "fc1_B3", "fc2_B2")
    outcome = start(
        BLOCK_PROBE, *NIN, *DATA, *SMALL_PROBE, "--heads", *heads, "--epochs 1 --out", tmp_path
    ).ok()
    record = read_result(tmp_path / "result.json")
    assert (record["protocol"], record["recipe"], record["cut"]) == ("block_probe", "block_probe", False)
    numbers = record["numbers"]
    assert list(numbers) == [f"top{k}_{head}" for head in heads for k in (1, 5)]
    checkpoint = newest_checkpoint(tmp_path)
    val = checkpoint["position"]["summaries"][0]["val"]
    for name, value in numbers.items():
        assert value == pytest.approx(100 * val[name], abs=1e-3) and 0 <= value <= 100
    assert max(numbers[f"top1_{head}"] for head in heads) > 17  # chance is 12.5
    settings = record["settings"]
    assert (settings["heads"], settings["epochs"], settings["labels_per_class"]) == ([*heads], 1, None)
    assert (settings["lr"], settings["intervals"], settings["weight_decay"]) == (0.1, [100, 50, 50], 5e-4)
    assert (settings["momentum"], settings["nesterov"], settings["decay_biases"]) == (0.9, True, True)
    assert "Shift(max_px=2" in settings["train_view"] and "shorter_px=16" in settings["val_view"]
    mean = (numbers["top1_conv_B2"] + numbers["top1_conv_B3"]) / 2
    assert f"average of conv_B2, conv_B3: {mean:.1f} %" in outcome.out
    line = next(line for line in outcome.err.splitlines() if line.startswith("blocks (level"))
    assert all(f"{head} {numbers[f'top1_{head}']:.1f}" in line for head in heads)
    with Image.open(tmp_path / "result.png") as chart:
        assert chart.size[0] > 600
    # The weights of all blocks are still the random ones.
    fresh = random_weights("nin4", 0).backbone
    assert all(torch.equal(value, checkpoint["backbone"][k]) for k, value in fresh.state_dict().items())


FEW = (
    *RANDOM, *DATA, *SMALL_PROBE, "--heads", "conv_B2", "fc2_B1", "--labels-per-class", "3", "--epochs", "1",
)  # fmt: skip


@pytest.mark.slow
def test_killed_and_resumed_is_as_never_killed(tmp_path: Path) -> None:
    """Run with few labels, so that their order must continue where it stopped."""
    whole = tmp_path / "whole"
    start(BLOCK_PROBE, *FEW, "--checkpoint-steps 6 --keep-checkpoints 9 --out", whole).ok()
    goes_on(BLOCK_PROBE, *FEW, whole=whole, steps=(6,), files=("metrics.jsonl",))
    assert newest_checkpoint(whole)["position"]["run_step"] == 30  # 480 images in batches of 16
    assert read_result(whole / "result.json")["data"]["num_train"] == 480


@pytest.mark.slow
def test_two_ranks_of_block(tmp_path: Path) -> None:
    ran(BLOCK_PROBE, *FEW, "--max-steps-per-stage", "2", "--out", tmp_path, ranks=2)
    record = read_result(tmp_path / "result.json")
    assert record["cut"] and len(record["numbers"]) == 4 and all(v >= 0 for v in record["numbers"].values())


def test_values_are_the_papers_and_rotnets() -> None:
    """Check the rates of each epoch, the optimiser's settings, the views, and that only needed blocks run."""
    paper = find_recipe(BLOCK_PROBE).paper
    options, experiment = built("block_probe", "cpu", random_weights=True, backbone="nin4")
    assert {name: getattr(options, name) for name in paper} == paper
    assert options.batch_size == 128
    (stage,) = experiment.stages
    assert (stage.first_learning, stage.last_block, stage.epochs) == (5, 4, 200)
    for epoch in range(200):
        rate = experiment.schedule(Moment(epoch * 390, 200 * 390, 0, 200, 200))
        assert rate == pytest.approx(0.1 * 0.1 ** ((epoch >= 100) + (epoch >= 150)))
    named = [(f"head.{name}", torch.nn.Parameter(torch.zeros(3))) for name in ("0.weight", "1.bias")]
    decayed, rest = experiment.optimiser(iter(named)).param_groups
    assert len(decayed["params"]) == 2 and not rest["params"]
    settings = {name: decayed[name] for name in ("momentum", "nesterov", "weight_decay")}
    assert settings == {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
    (train,), (val,) = experiment.task.views(1), experiment.task.val_views(1)
    whole = ShorterSideCrop(32, 32, "center")
    assert (train.crop, train.ops, val.crop, val.ops) == (whole, (Shift(4), Flip()), whole, ())
    assert not isinstance(experiment.task, FewLabels) and not experiment.task.has_own_order
    values = {"heads": ("fc1_B2",), "whole": False, "labels_per_class": 20, "seed": 7}
    _, experiment = built("block_probe", "cpu", random_weights=True, backbone="nin4", **values)  # type: ignore[arg-type]
    assert experiment.stages[0].last_block == 2
    assert experiment.task.val_view.crop == ShorterSideCrop(37, 32, "center")
    assert isinstance(experiment.task, FewLabels)
    assert (experiment.task.labels_per_class, experiment.task.seed) == (20, 7)


def unlabelled(tmp_path: Path) -> Path:
    """Return a beton with an unlabelled last image, as STL-10 has them."""
    return write_labelled(tmp_path / "some.beton", [*(i % 8 for i in range(31)), -1], CLASS_NAMES)


def test_an_image_without_a_label_is_refused(tmp_path: Path) -> None:
    some = (*SMALL_PROBE, *NIN, "--data", unlabelled(tmp_path), *DATA[2:], "--out", tmp_path / "out")
    refused(start(BLOCK_PROBE, *some), "needs labels", "1 of 32 samples have none", "p31")
    refused(start(BLOCK_PROBE, *some, "--labels-per-class 3"), "needs labels")
    assert not (tmp_path / "out").exists()
