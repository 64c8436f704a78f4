import itertools
import json
import runpy
import signal
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fastpsl.engine.optim.schedules import Moment
from fastpsl.kernels.crops import RandomResizedCrop, ShorterSideCrop
from fastpsl.kernels.geometry import Flip, Shift
from fastpsl.pipelines.datasets.open import open_data
from fastpsl.pipelines.sample.betons import sample_paths
from fastpsl.pipelines.views import Crop, Op, ViewSpec, center_view
from fastpsl.tasks.pseudo_labels.file import labels_of, read_labels, write_labels
from tests.programs import ROOT, digests, newest_checkpoint, run, run_until
from tests.recipes.in_process import refused, starter

TASKS = ("colorization", "context", "rotation", "aet")
SMALL = ("--backbone", "nin3", "--workers", "1", "--no-tensorboard", "--size-px", "16")


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write labels of seven clusters for the sample."""
    with closing(open_data(str(sample_paths().train))) as data:
        numbers = np.random.default_rng(0).integers(7, size=data.num_samples)
        path = tmp_path_factory.mktemp("labels") / "labels.npz"
        return write_labels(path, numbers, 7, data, "a test", configuration={"source": "random", "seed": 0})


# Epochs, batch, rates after drops, Nesterov and lambda, from Table II. AET's 1500 epochs and Nesterov
# momentum are those of RotNet's and AET's code.
TABLE_II = {
    "colorization": (200, 128, {0: 1e-2, 99: 1e-2, 100: 1e-3, 150: 1e-4}, None, 1.0),
    "context": (200, 512, {0: 1e-2, 99: 1e-2, 100: 1e-3, 150: 1e-4}, False, 1.0),
    "rotation": (200, 128, {0: 0.1, 59: 0.1, 60: 1e-2, 120: 1e-3, 160: 1e-4}, True, 0.05),
    "aet": (
        1500,
        512,
        {0: 0.1, 240: 0.02, 480: 4e-3, 640: 8e-4, 800: 1.6e-4, 1000: 3.2e-5, 1499: 3.2e-5},
        True,
        0.05,
    ),
}


@pytest.mark.parametrize("task", TASKS)
def test_the_papers_values(task: str) -> None:
    epochs, batch_size, rates, nesterov, weight = TABLE_II[task]
    parts = runpy.run_path(str(ROOT / "recipes" / f"sslpp_{task}.py"))
    options = parts["RECIPE"].with_paper(data="T.beton", pseudo_labels="coupled", seed=5)
    experiment = parts["build"](options)
    assert experiment.task.seed == 5  # of the clusters and of each epoch's classifier
    for mode in ("eval", "train"):
        assert parts["build"](replace(options, frozen_batchnorm=mode)).frozen_batchnorm == mode
    assert options.batch_size == batch_size and [stage.epochs for stage in experiment.stages] == [epochs]
    for epoch, rate in rates.items():
        assert experiment.schedule(Moment(epoch * 10, epochs * 10, 0, epochs, epochs)) == pytest.approx(
            rate
        ), epoch
    optimiser = experiment.optimiser(experiment.backbone.named_parameters())
    groups = [group for group in optimiser.param_groups if group["params"]]
    assert all(group["weight_decay"] == 5e-4 for group in groups)
    if nesterov is None:
        assert type(optimiser) is torch.optim.Adam and optimiser.defaults["betas"] == (0.9, 0.999)
    else:
        assert all((group["momentum"], group["nesterov"]) == (0.9, nesterov) for group in groups)
    assert (
        experiment.backbone.name == "nin4"
        and experiment.task.weight == weight
        and experiment.task.num_classes == 70
    )
    assert experiment.inputs_per_image() == ({"E": 4} if task == "rotation" else {})
    # 512 network inputs of rotation are 128 images, or 512 that are not rotated.
    plain = parts["RECIPE"].variant(replace(options, proxy=False))
    assert plain == ({"batch_size": 512} if task == "rotation" else {})
    # Labels are computed from whole images, as the network sees them.
    assert experiment.task.pass_views(1) == (
        center_view(experiment.task.views(1)[0].input(), 32, whole=True),
    )


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    ("asked", "crop", "ops"),
    [
        # RotNet's and AET's code for CIFAR-10: 4 px around the 32 px.
        ({}, ShorterSideCrop(32, 32, "center"), (Shift(4), Flip(0.5))),
        ({"crop": "padded"}, ShorterSideCrop(32, 32, "center"), (Shift(4), Flip(0.5))),
        ({"crop": "random_resized"}, RandomResizedCrop(32, (0.08, 1.0), (3 / 4, 4 / 3)), (Flip(0.5),)),
    ],
)
def test_pseudo_labels_alone_have_plain_views(
    task: str, asked: dict[str, str], crop: Crop, ops: tuple[Op, ...]
) -> None:
    """SSL++, Table XI, "SPL": without the proxy, images are cropped as --crop says, and stay in colour."""
    parts = runpy.run_path(str(ROOT / "recipes" / f"sslpp_{task}.py"))
    options = parts["RECIPE"].with_paper(data="T.beton", pseudo_labels="coupled", proxy=False, **asked)
    with torch.device("meta"):
        experiment = parts["build"](options)
    plain = ViewSpec(crop, ops, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert experiment.task.plain == plain and experiment.task.views(1) == (plain,)


# Each task and each kind of labels once; `make test-all` runs all pairs.
QUICK = {("colorization", "alone"), ("context", "none"), ("rotation", "coupled"), ("aet", "file")}
PAIRS = [
    pytest.param(*pair, marks=() if pair in QUICK else pytest.mark.slow)
    for pair in itertools.product(TASKS, ("none", "file", "alone", "coupled"))
]


@pytest.mark.parametrize(("task", "source"), PAIRS)
def test_each_task_with_each_kind_of_labels(
    task: str,
    source: str,
    labels: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags: dict[str, tuple[object, ...]] = {
        "none": (),
        "file": ("--pseudo-labels", labels, "--lambda", "0.5"),
        "alone": ("--pseudo-labels", labels, "--no-proxy"),
        "coupled": ("--pseudo-labels", "coupled", "--num-clusters", "5"),
    }
    done = starter(f"sslpp_{task}", monkeypatch, capsys)(
        *SMALL, "--max-steps-per-stage", "1", "--out", tmp_path, *flags[source]
    )
    assert done.code == 0, done.err
    state = newest_checkpoint(tmp_path)
    expected = {"none": {"source": "none"}, "coupled": {"source": "coupled", "num_classes": 5}}
    with closing(open_data(str(sample_paths().train))) as data:
        of_file = {
            "source": "random",
            "seed": 0,
            "num_classes": 7,
            "digest": read_labels(labels, data).digest(),
        }
    assert state["science"]["pseudo_labels"] == expected.get(source, of_file)
    heads = {name.split(".")[0] for name in state["train_step"]["head"]}
    assert heads == {"none": {"proxy"}, "alone": {"labels"}}.get(source, {"proxy", "labels"})
    assert state["input"]["channels"] == ("L" if task == "colorization" and source != "alone" else "RGB")
    val = json.loads((tmp_path / "results.json").read_text())[0]["val"]
    loss = "loss" if source == "none" else "loss_proxy"
    assert set(val) >= {loss, f"{loss}_constant"} if source != "alone" else not val


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_killed_and_resumed_equals_never_killed(task: str, labels: Path, tmp_path: Path) -> None:
    recipe = ROOT / "recipes" / f"sslpp_{task}.py"
    flags = (*SMALL, "--epochs", "2", "--max-steps-per-stage", "6", "--pseudo-labels", labels)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(recipe, *flags, "--out", whole).returncode == 0
    run_until(
        recipe, *flags, "--out", parts, "--checkpoint-steps", "1", folder=parts, step=2, number=signal.SIGKILL
    )
    for path in (parts / "checkpoints").glob("step-*.pt"):
        if int(path.stem.split("-")[1]) > 3:
            path.unlink()
    done = run(recipe, *flags, "--out", parts)
    assert done.returncode == 0, done.stderr
    assert digests(newest_checkpoint(parts)) == digests(newest_checkpoint(whole))


@pytest.mark.slow
def test_two_ranks(labels: Path, tmp_path: Path) -> None:
    """Run a proxy task that counts over both ranks, with labels of both."""
    for task, source in (("colorization", labels), ("aet", "coupled")):
        flags = (*SMALL, "--max-steps-per-stage", "3", "--pseudo-labels", source, "--num-clusters", "5")
        done = run(ROOT / "recipes" / f"sslpp_{task}.py", *flags, "--out", tmp_path / task, ranks=2)
        assert done.returncode == 0, done.stderr
        weights = newest_checkpoint(tmp_path / task)["train_step"]["head"]
        assert all(bool(torch.isfinite(value.float()).all()) for value in weights.values())


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--lambda", "-1"), ("--lambda -1", "0 or more")),
        (("--no-proxy",), ("leaves nothing to learn", "give --pseudo-labels")),
        (("--pseudo-labels", "nowhere.npz"), ("nowhere.npz",)),
        (
            ("--pseudo-labels", "coupled", "--num-clusters", "481"),
            ("--num-clusters 481 for 480", "at most 480"),
        ),
        (("--pseudo-labels", "coupled", "--num-clusters", "1"), ("--num-clusters 1", "2 or more")),
        (("--backbone", "nin7"), ("--backbone nin7", "nin5")),
    ],
)
def test_bad_input_is_one_line(
    flags: tuple[str, ...],
    words: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    done = starter("sslpp_rotation", monkeypatch, capsys)(*SMALL, "--out", out, *flags)
    refused(done, "sslpp_rotation", *words)
    assert not out.exists()


def test_labels_of_other_data(
    labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    start = starter("sslpp_rotation", monkeypatch, capsys)
    other_data = ("--data", sample_paths().train_32, "--pseudo-labels", labels, "--out", tmp_path)
    refused(start(*SMALL, *other_data), "sslpp_rotation", "labels.npz", "another data set")


def test_a_resume_takes_the_same_labels_wherever_they_lie_and_no_others(
    labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refuse other labels even if they claim the same origin."""
    start, out = starter("sslpp_rotation", monkeypatch, capsys), tmp_path / "run"
    flags = (*SMALL, "--max-steps-per-stage", "1", "--out", out, "--pseudo-labels")
    assert start(*flags, labels).code == 0
    moved = tmp_path / "moved.npz"
    moved.write_bytes(labels.read_bytes())
    done = start(*flags, moved)
    assert done.code == 0, done.err
    with closing(open_data(str(sample_paths().train))) as data:
        stored = read_labels(labels, data)
        other_labels = (stored.labels + 1) % 7
        write_labels(moved, other_labels, 7, data, stored.made_by, configuration=stored.configuration)
    labels_of.cache_clear()
    refused(start(*flags, moved), "sslpp_rotation", "another experiment", "pseudo_labels")
