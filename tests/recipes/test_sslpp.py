"""The recipes of SSL++ as a user runs them: the paper's values, all kinds of labels, heads, and resume."""

import itertools
import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastpsl.engine.optim.schedules import Moment
from fastpsl.engine.options import RunOptions
from fastpsl.evaluation.cluster_report import report
from fastpsl.kernels.crops import RandomResizedCrop, ShorterSideCrop
from fastpsl.kernels.geometry import Flip, Shift
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.datasets.open import open_data
from fastpsl.pipelines.embedded.draw_sample import sample_paths
from fastpsl.pipelines.views import Crop, Op, ViewSpec, center_view
from fastpsl.scripts.recipe_files import find_recipe
from fastpsl.tasks.pseudo_labels.file import labels_of, read_labels, write_labels
from fastpsl.tasks.pseudo_labels.scores import hungarian_accuracy, many_to_one_accuracy
from tests.programs import epoch_records, newest_checkpoint
from tests.recipes.in_process import built, differences, goes_on, ran, refused, start, words

TASKS = ("colorization", "context", "rotation", "aet")
SMALL_SSLPP = words("--backbone resnet18 --workers 1 --no-tensorboard --size-px 32")
FOUR_STEPS = "--batch-size 8 --max-steps-per-stage 4 --checkpoint-steps 2"


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
    options, experiment = built(
        f"sslpp_{task}", data="T.beton", pseudo_labels="coupled", seed=5, device="cpu"
    )
    assert experiment.task.seed == 5  # of the clusters and of each epoch's classifier
    assert options.batch_size == batch_size and [stage.epochs for stage in experiment.stages] == [epochs]
    for epoch, rate in rates.items():
        moment = Moment(epoch * 10, epochs * 10, 0, epochs, epochs)
        assert experiment.schedule(moment) == pytest.approx(rate), epoch
    optimiser = experiment.optimiser(experiment.backbone.named_parameters())
    groups = [group for group in optimiser.param_groups if group["params"]]
    assert all(group["weight_decay"] == 5e-4 for group in groups)
    if nesterov is None:
        assert type(optimiser) is torch.optim.Adam and optimiser.defaults["betas"] == (0.9, 0.999)
    else:
        assert all((group["momentum"], group["nesterov"]) == (0.9, nesterov) for group in groups)
    assert experiment.backbone.name == "nin4" and experiment.task.weight == weight
    assert experiment.task.num_classes == 70
    assert experiment.inputs_per_image() == ({"E": 4} if task == "rotation" else {})
    # 512 network inputs of rotation are 128 images, or 512 that are not rotated.
    plain = find_recipe(f"sslpp_{task}").variant(replace(options, proxy=False))
    assert plain == ({"batch_size": 512} if task == "rotation" else {})
    # Labels are computed from whole images, as the network sees them.
    input = experiment.task.views(1)[0].input()
    assert experiment.task.pass_views(1) == (center_view(input, 32, whole=True),)


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
    asked_too = {"data": "T.beton", "pseudo_labels": "coupled", "proxy": False}
    _, experiment = built(f"sslpp_{task}", **asked_too, **asked)  # type: ignore[arg-type]
    plain = ViewSpec(crop, ops, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert experiment.task.plain == plain and experiment.task.views(1) == (plain,)


# Each task and each kind of labels once; `make test-all` runs all pairs.
QUICK = {("colorization", "alone"), ("context", "none"), ("rotation", "coupled"), ("aet", "file")}
PAIRS = [
    pytest.param(*pair, marks=() if pair in QUICK else pytest.mark.slow)
    for pair in itertools.product(TASKS, ("none", "file", "alone", "coupled"))
]


@pytest.mark.parametrize(("task", "source"), PAIRS)
def test_each_task_with_each_kind_of_labels(task: str, source: str, labels: Path, tmp_path: Path) -> None:
    flags: dict[str, tuple[object, ...]] = {
        "none": (),
        "file": ("--pseudo-labels", labels, "--lambda", "0.5"),
        "alone": ("--pseudo-labels", labels, "--no-proxy"),
        "coupled": ("--pseudo-labels", "coupled", "--num-clusters", "5"),
    }
    start(f"sslpp_{task}", *SMALL_SSLPP, "--max-steps-per-stage 1 --out", tmp_path, *flags[source]).ok()
    state = newest_checkpoint(tmp_path)
    expected = {"none": {"source": "none"}, "coupled": {"source": "coupled", "num_classes": 5}}
    with closing(open_data(str(sample_paths().train))) as data:
        of_file = {
            "source": "random", "seed": 0, "num_classes": 7, "digest": read_labels(labels, data).digest(),
        }  # fmt: skip
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
    arguments = (f"sslpp_{task}", *SMALL_SSLPP, FOUR_STEPS, "--pseudo-labels", labels)
    start(*arguments, "--out", tmp_path / "whole").ok()
    goes_on(*arguments, whole=tmp_path / "whole", steps=(2,))


@pytest.mark.slow
def test_two_ranks(labels: Path, tmp_path: Path) -> None:
    """Run a proxy task that counts over both ranks, with labels of both."""
    for task, source in (("colorization", labels), ("aet", "coupled")):
        few = "--max-steps-per-stage 1 --batch-size 60 --num-clusters 5 --pseudo-labels"
        ran(f"sslpp_{task}", *SMALL_SSLPP, few, source, "--out", tmp_path / task, ranks=2)
        weights = newest_checkpoint(tmp_path / task)["train_step"]["head"]
        assert all(bool(torch.isfinite(value.float()).all()) for value in weights.values())


def test_labels_of_other_data(labels: Path, tmp_path: Path) -> None:
    other_data = ("--data", sample_paths().train_32, "--pseudo-labels", labels, "--out", tmp_path)
    refused(start("sslpp_rotation", *SMALL_SSLPP, *other_data), "labels.npz", "another data set")


def test_a_resume_takes_the_same_labels_wherever_they_lie_and_no_others(labels: Path, tmp_path: Path) -> None:
    """Refuse other labels even if they claim the same origin."""
    out = tmp_path / "run"
    flags = (*SMALL_SSLPP, "--max-steps-per-stage", "1", "--out", out, "--pseudo-labels")
    start("sslpp_rotation", *flags, labels).ok()
    moved = tmp_path / "moved.npz"
    moved.write_bytes(labels.read_bytes())
    start("sslpp_rotation", *flags, moved).ok()
    with closing(open_data(str(sample_paths().train))) as data:
        stored = read_labels(labels, data)
        other_labels = (stored.labels + 1) % 7
        write_labels(moved, other_labels, 7, data, stored.made_by, configuration=stored.configuration)
    labels_of.cache_clear()
    refused(start("sslpp_rotation", *flags, moved), "another experiment", "pseudo_labels")


IIC = "sslpp_iic"
IIC_QUICK = ("--workers", "1", "--no-tensorboard", "--checkpoint-minutes", "0")
SIZES = ("--size-px", "16", "--num-copies", "1", "--batch-size", "160")
SMALL_IIC = words(
    *IIC_QUICK, *SIZES, "--epochs 3 --num-heads 2 --second-clusters 8"
)  # heads A, B and B with 2 steps each on the data below


def few() -> tuple[str, ...]:
    """Return options for a third of the sample's images."""
    return (
        "--data", str(sample_paths().test_32), "--val", "none", "--backbone", "resnet18", "--num-clusters",
        "16",
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a whole small run."""
    out = tmp_path_factory.mktemp("iic") / "out"
    done = start(IIC, *SMALL_IIC, *few(), "--checkpoint-steps 1 --keep-checkpoints 9 --out", out).ok()
    (out / "said.txt").write_text("\n".join(done.results))
    return out


def test_a_run_leaves_its_labels_and_says_what_they_are_worth(trained: Path) -> None:
    lines = (trained / "said.txt").read_text().splitlines()
    changed = differences(trained)
    assert changed["backbone"] == ["resnet18", "resnet34_iic"]
    assert (changed["num_clusters"], changed["num_heads"]) == ([16, 70], [2, 1])
    record = newest_checkpoint(trained)["task"]
    num = len(np.unique(record["labels"].numpy()))
    assert lines[-3].startswith(
        f"labels by sub-head {record['best_sub_head'] + 1} of 5, which had the lowest loss; "
        f"{num} of 16 clusters are not empty; with the true labels NMI 0."
    )
    assert lines[-2:] == [f"labels {trained / 'labels.npz'}", f"label curves {trained / 'labels.png'}"]
    names = ("labels.png", "curve.png", "contact-sheet-G1.png")
    assert all((trained / name).stat().st_size > 0 for name in names)


def test_the_file_holds_the_checkpoints_labels_and_how_they_were_made(trained: Path) -> None:
    state = newest_checkpoint(trained)
    with Beton(sample_paths().test_32) as data:
        stored = read_labels(trained / "labels.npz", data)
    assert stored.labels.tolist() == state["task"]["labels"].tolist()
    assert stored.entropy.tolist() == state["task"]["entropy"].tolist() and np.isfinite(stored.entropy).all()
    assert (stored.num_classes, stored.num_split, stored.made_by) == (16, 0, "sslpp_iic")
    expected = {"source": "iic", "recipe": "sslpp_iic", "num_clusters": 16, "num_heads": 2, "seed": 0}
    stages = state["position"]["summaries"]
    expected["cut"] = any(stage["num_steps"] < stage["num_steps_planned"] for stage in stages)
    assert expected.items() <= dict(stored.configuration).items()
    assert {"backbone", "augment", "epochs", "num_copies"} <= set(stored.configuration)
    assert (
        labels_of(trained / "labels.npz", RunOptions(data=str(sample_paths().test_32))).labels.tolist()
        == stored.labels.tolist()
    )


def test_the_second_heads_clusters_are_scored_one_to_one(trained: Path, tmp_path: Path) -> None:
    """At the run's end and by `fastpsl clusters`; the file is not taken for the first head's."""
    second = newest_checkpoint(trained)["task"]["second_labels"].numpy()
    with Beton(sample_paths().test_32) as data:
        stored, true = read_labels(trained / "labels_b.npz", data), data.labels()
    assert np.array_equal(stored.labels, second) and stored.num_classes == 8
    assert stored.configuration["source"] == "iic_b"
    accuracy, purity = hungarian_accuracy(second, true), many_to_one_accuracy(second, true)
    said = (trained / "said.txt").read_text()
    assert f"; the second head's 8 clusters: accuracy {100 * accuracy:.1f} % matched one to one\n" in said
    lines = report(trained, data=None, labels=None, out=tmp_path, seed=0, require_labels=True)
    assert f"(one-to-one) {100 * accuracy:.1f} %" in lines[-3]
    numbers = json.loads((tmp_path / "result.json").read_text())["numbers"]
    assert numbers["hungarian_accuracy_b"] == pytest.approx(100 * accuracy, abs=1e-4)
    assert numbers["many_to_one_accuracy_b"] == pytest.approx(100 * purity, abs=1e-4)
    with Beton(sample_paths().test_32) as data:
        first = read_labels(trained / "labels.npz", data).labels
    assert numbers["hungarian_accuracy"] == pytest.approx(100 * hungarian_accuracy(first, true), abs=1e-4)


def test_each_head_has_figures_of_its_own(trained: Path) -> None:
    first, *others = epoch_records(trained)
    assert first["mutual_information"] > 0 and 1 <= first["non_empty"] <= 16
    assert all("mutual_information" not in line for line in others) and len(others) == 2
    assert all(line["mutual_information_b"] > 0 and 1 <= line["non_empty_b"] <= 8 for line in others)


def test_a_finished_run_writes_its_labels_again(trained: Path) -> None:
    before = (trained / "labels.npz").read_bytes()
    (trained / "labels.npz").unlink()
    start(IIC, *SMALL_IIC, *few(), "--out", trained).ok()
    assert (trained / "labels.npz").read_bytes() == before


@pytest.mark.slow
def test_killed_in_mid_epoch_it_ends_as_never_killed(trained: Path) -> None:
    """Resume while head A learns, and while head B learns."""
    goes_on(IIC, *SMALL_IIC, *few(), whole=trained, steps=(1, 3), files=("labels.npz", "epochs.jsonl"))


def test_images_without_labels_are_enough(tmp_path: Path) -> None:
    """Train on a folder without classes, as YFCC has none, in RGB for --augment grey."""
    random = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    for number in range(24):
        pixels = random.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "data" / f"{number}.png")
    small = ("--backbone", "resnet18", "--num-clusters", 4, "--num-sub-heads", 2, "--epochs", 1)
    done = start(
        IIC, *IIC_QUICK, *small, "--data", tmp_path / "data",
        "--batch-size 12 --num-copies 1 --augment grey --out", tmp_path / "out",
    ).ok()  # fmt: skip
    assert "of 4 clusters are not empty\n" in done.out and "NMI" not in done.out
    assert newest_checkpoint(tmp_path / "out")["input"]["channels"] == "RGB"
