"""Every recipe on a GPU, in its own process, and with captured steps on the CPU: a few steps and a resume."""

import json
import math
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fastpsl.engine import experiment, step_modes
from fastpsl.engine.step_modes import GraphChoice
from fastpsl.pipelines.embedded.draw_sample import sample_paths
from tests import cheaper
from tests.programs import ROOT, SMALL_NET, digests, newest_checkpoint, run, run_fresh
from tests.recipes.in_process import start
from tests.step_recorder import plain_capture

RECIPES = ROOT / "recipes"
# Recipes that compile come first, because they take the longest.
TRAINED = {
    "simclr compiled": ("simclr_r50", "--compile", "on", "--fold-frozen"),
    "jigsaw captured": ("jigsaw_r50", "--graph", "on", "--backbone", "resnet18"),
    "jigsaw fused, launched": ("jigsaw_r50", "--compile", "fused", "--graph", "off"),
    "distill": ("distill", "--teacher", SMALL_NET, "--teacher-px", "32"),
    "block_probe": ("block_probe",), "deepcluster": ("deepcluster_alexnet",), "jigsaw": ("jigsaw_r50",),
    "jigsaw by parts": ("jigsaw_r50", "--augment-backend", "kornia", "--accumulate", "2"),
    "linear_probe": ("linear_probe",), "linear_probe uic": ("linear_probe", "--protocol", "uic"),
    "moco": ("mocov2_r50",), "moco bf16": ("mocov2_r50", "--precision", "bf16"),
    "rotation": ("rotation_rv50",), "semi_supervised": ("semi_supervised",), "simclr": ("simclr_r50",),
    "sslpp_aet": ("sslpp_aet",), "sslpp_colorization": ("sslpp_colorization",),
    "sslpp_context": ("sslpp_context",), "sslpp_iic": ("sslpp_iic",), "sslpp_rotation": ("sslpp_rotation",),
    "supervised": ("supervised", "--probe-every", "1"), "uic": ("uic_alexnet",),
    "uic of CIFAR-10": ("uic_cifar10", "--decoder", "resident"), "uic of ResNet-50": ("uic_r50",),
    "voc_classification": ("voc_classification",), "voc_detection": ("voc_detection",),
    "voc_segmentation": ("voc_segmentation",),
}  # fmt: skip
LOOKED_AT = ("few_labels", "few_shot", "knn", "voc_svm")
STEPS, MIDDLE = 6, 4
# Sums have another order and weights are rounded to half precision, and this rounding grows in the two steps
# after the resume. Another batch, other draws or a lost momentum change a loss by several times as much.
BOUND = 0.02


def output(device: str, script: str, *flags: object, ranks: int = 0) -> str:
    """Return the output of a script, which sees the GPU that tests.programs hides."""
    environment = {"TORCHINDUCTOR_COMPILE_THREADS": "2"}
    if device == "cuda":
        environment["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
    path: Path = RECIPES / f"{script}.py"
    more = (*flags, "--device", device, "--workers", 2)
    if ranks:
        path, more = ROOT / "bench" / "gpu_day" / "two_ranks.py", (path, *more)
    start_it = run_fresh if device == "cuda" else partial(run, prepare=cheaper.for_good)
    done = start_it(path, *more, ranks=ranks, environment=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def raw_images() -> tuple[object, ...]:
    """Return options for the sample's images of 32 px, which the resident decoder takes."""
    paths = sample_paths()
    return "--data", paths.train_32, "--val", paths.test_32, "--batch-size", 32, "--num-clusters", 16


def train(device: str, folder: Path, script: str, *flags: object, ranks: int = 0) -> dict[int, float]:
    """Check the files of a short run and return its losses by step."""
    often = (
        "--max-steps-per-stage", STEPS, "--checkpoint-steps", MIDDLE, "--keep-checkpoints", 99,
        "--log-steps", 1,
    )  # fmt: skip
    output(device, script, *flags, *often, "--no-tensorboard", "--out", folder, ranks=ranks)

    def read(name: str) -> Any:
        return json.loads((folder / f"{name}.json").read_text())

    assert read("status")["state"] == "finished"
    stages = read("results")
    assert stages and all(math.isfinite(stage["loss_end"]) for stage in stages)
    for stage in stages:
        assert all(math.isfinite(value) for value in stage["val"].values())
        assert ("peak_allocated_bytes" in stage) == (device == "cuda")
    machine = newest_checkpoint(folder)["machine"]
    assert (machine["device"], machine["world_size"]) == (device, max(ranks, 1))
    assert bool(read("environment")["gpu"]) == (device == "cuda")
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    losses = {line["run_step"]: line["loss"] for line in lines}
    assert sorted(losses) == list(range(1, len(stages) * STEPS + 1))
    assert all(map(math.isfinite, losses.values()))
    return losses


def train_and_resume(device: str, folder: Path, script: str, *flags: object) -> None:
    losses = train(device, folder / "whole", script, *flags)
    middle = folder / "whole" / "checkpoints" / f"step-{MIDDLE:08d}.pt"
    again = train(device, folder / "resumed", script, *flags, "--resume", middle)
    for step in range(MIDDLE + 1, STEPS + 1):
        assert again[step] == pytest.approx(losses[step], rel=BOUND, abs=BOUND), step


@pytest.mark.gpu
@pytest.mark.parametrize("name", TRAINED)
def test_a_run_and_its_resume(name: str, tmp_path: Path) -> None:
    train_and_resume("cuda", tmp_path, *TRAINED[name], *(raw_images() if "resident" in TRAINED[name] else ()))


@pytest.mark.gpu
@pytest.mark.parametrize("script", LOOKED_AT)
def test_an_evaluation_that_trains_nothing(script: str, tmp_path: Path) -> None:
    look("cuda", tmp_path, script)


def look(device: str, folder: Path, script: str) -> None:
    output(device, script, "--out", folder)
    numbers = json.loads((folder / "result.json").read_text())["numbers"]
    assert numbers and all(math.isfinite(value) for value in numbers.values())


@pytest.mark.gpu
@pytest.mark.parametrize("script", ["simclr_r50", "mocov2_r50", "jigsaw_r50"])
def test_two_ranks_on_one_gpu(script: str, tmp_path: Path) -> None:
    train("cuda", tmp_path, script, "--backbone", "resnet18", ranks=2)


@pytest.mark.slow
def test_the_same_of_one_recipe_on_the_cpu(tmp_path: Path) -> None:
    small = ("--backbone", "resnet18", "--size-px", 32, "--batch-size", 4)
    train_and_resume("cpu", tmp_path, "sslpp_rotation", *small)


def test_no_recipe_is_left_out() -> None:
    scripts = {path.stem for path in RECIPES.glob("*.py")}
    assert scripts == {row[0] for row in TRAINED.values()} | set(LOOKED_AT)


CAPTURED_PX = ("--size-px", "54", "--counts", "4", "8", "16")
QUICK = ("moco",)
MORE: dict[str, tuple[str, ...]] = {
    "jigsaw": CAPTURED_PX,
    "jigsaw by parts": CAPTURED_PX,
    "moco": ("--backbone", "resnet18", "--size-px", "32", "--queue-size", "64", "--key-group", "4"),
    "simclr": ("--backbone", "resnet18", "--size-px", "32"),
    "sslpp_iic": ("--num-heads", "2", "--num-copies", "2"),
    "supervised": ("--probe-every", "0"),
}
MORE["moco bf16"] = MORE["moco"]


def usual(name: str) -> tuple[str, ...]:
    """Return a row's options that hold on a CPU, too."""
    flags = TRAINED[name][1:]
    return () if {"--compile", "--decoder", "--precision"} & set(flags) else flags


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.nightly)
        for name in TRAINED
        if not {"--compile", "--graph"} & {*TRAINED[name]} and not name.startswith("voc")
    ],
)
def test_a_captured_run_is_a_launched_one(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Captured steps are plain calls on the static batches here; also resume a launched run in mid-stage.

    Both end as launched runs to the bit.
    """
    monkeypatch.setattr("fastpsl.plots.charts.draw_probes", lambda *_: None)
    often = f"--max-steps-per-stage {STEPS} --checkpoint-steps {MIDDLE} --keep-checkpoints 99"
    small = (*usual(name), *MORE.get(name, ()), often, "--no-tensorboard --workers 1 --batch-size 16 --out")

    def train(folder: str, *more: object) -> dict[str, str]:
        start(TRAINED[name][0], *small, tmp_path / folder, *more).ok()
        return digests(newest_checkpoint(tmp_path / folder))

    launched = train("launched")
    captures = list[int]()

    def capture(compute, *_):  # type: ignore[no-untyped-def]
        captures.append(1)
        return plain_capture(compute)

    monkeypatch.setattr(step_modes, "capture", capture)
    monkeypatch.setattr(step_modes, "NUM_LAUNCHED", 1)
    monkeypatch.setattr(experiment, "choose_graph", lambda *_: GraphChoice(True, "asked for"))
    assert train("captured") == launched
    middle = tmp_path / "launched" / "checkpoints" / f"step-{MIDDLE:08d}.pt"
    assert train("resumed", "--resume", middle) == launched
    assert captures
