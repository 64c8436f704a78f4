"""The recipes of UIC and DeepCluster as a user runs them: labels, fine-tuning, resume and two ranks."""

from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastpsl.models.factory import make_backbone
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.beton.write import write_beton
from fastpsl.pipelines.embedded.draw_sample import sample_paths
from fastpsl.pipelines.interface.source import Sample
from fastpsl.scripts.recipe_files import find_recipe
from fastpsl.tasks.pseudo_labels.file import read_labels, write_labels
from tests.cli import Cli
from tests.programs import epoch_records, newest_checkpoint
from tests.recipes.in_process import Outcome, cut_back, differences, goes_on, ran, refused, start, words

UIC = "uic_alexnet"
QUICK = ("--workers", "1", "--no-tensorboard", "--checkpoint-minutes", "0")
SMALL_UIC = (*QUICK, "--backbone", "resnet18", "--size-px", "32", "--epochs", "2")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a whole small run with a checkpoint of every third step."""
    out = tmp_path_factory.mktemp("uic") / "out"
    start(UIC, *SMALL_UIC, "--checkpoint-steps 3 --keep-checkpoints 99 --out", out).ok()
    return out


def test_smallest_run_of_the_papers_network(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = start(UIC, *QUICK, "--max-steps-per-stage 1 --out", out).ok()
    lines = done.results
    changed = differences(out)
    assert (changed["epochs"], changed["num_clusters"]) == ([[12], [500]], [16, 3000])
    assert "after epoch 0: non_empty" in done.err
    names = ("labels.npz", "labels.png", "curve.png", "contact-sheet-G1.png")
    assert all((out / name).stat().st_size > 0 for name in names)
    assert lines[-2:] == [f"labels {out / 'labels.npz'}", f"label curves {out / 'labels.png'}"]
    state = newest_checkpoint(out)
    assert state["input"]["channels"] == "SobelXY"
    assert state["backbone"]["features.0.weight"].shape == (96, 2, 11, 11)
    assert [line["run_step"] for line in epoch_records(out)] == [1, 1]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "channels"), [("uic_r50", "RGB"), ("uic_cifar10", "SobelXY")])
def test_smallest_runs_of_the_others(name: str, channels: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    start(name, *QUICK, "--max-steps-per-stage 1 --size-px 16 --out", out).ok()
    assert (out / "labels.npz").exists() and newest_checkpoint(out)["input"]["channels"] == channels


@pytest.mark.slow
def test_a_resident_set_has_labels_by_centre_crops(tmp_path: Path) -> None:
    data = words("--data", sample_paths().train_32, "--decoder resident --label-view center --size-px 24")
    small = ("--backbone", "resnet18", "--batch-size", 32, "--num-clusters", 8, "--epochs", 2)
    start("uic_cifar10", *QUICK, *data, *small, "--max-steps-per-stage 17 --out", tmp_path / "out").ok()
    assert [line["epoch"] for line in epoch_records(tmp_path / "out")] == [0, 1]


@pytest.mark.slow
def test_labels_are_left_for_others(trained: Path) -> None:
    with Beton(sample_paths().train) as data:
        stored = read_labels(trained / "labels.npz", data)
    assert stored.num_classes == 16 and stored.made_by == "uic_alexnet"
    assert len(np.unique(stored.labels)) == 16
    assert stored.labels.tolist() == newest_checkpoint(trained)["task"]["store"]["current"].tolist()


@pytest.mark.slow
def test_finished_and_started_again_it_leaves_the_same(trained: Path) -> None:
    before = (trained / "labels.npz").read_bytes()
    start(UIC, *SMALL_UIC, "--out", trained).ok()
    assert (trained / "labels.npz").read_bytes() == before


@pytest.mark.slow
def test_fine_tuned_on_the_labels_of_its_own_centre_crops(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "tuned"
    start(UIC, *SMALL_UIC, "--fine-tune", trained, "--max-steps-per-stage 1 --lr 1e-6 --out", out).ok()
    before, after = newest_checkpoint(trained), newest_checkpoint(out)
    name = "conv1.weight"
    assert after["backbone"][name].allclose(before["backbone"][name], atol=1e-4)
    weights = [each["train_step"]["head"]["2.weight"] for each in (before, after)]
    assert weights[1].allclose(weights[0], atol=1e-4)
    refused(
        start(UIC, *SMALL_UIC, "--fine-tune", trained, "--num-clusters 8 --out", tmp_path / "a"),
        "num-clusters 16, not 8",
    )
    assert after["science"]["fine_tuned"] == before["science"] and len(after["science"]["fine_tune"]) == 64
    psl = ("--plan", "psl", "--epochs", 1, 1)
    outcome = start(UIC, *SMALL_UIC, "--fine-tune", trained, *psl, "--out", tmp_path / "c")
    refused(outcome, "give --plan end_to_end")
    refused(start(UIC, *SMALL_UIC, "--fine-tune", tmp_path / "none", "--out", tmp_path / "b"), "none")


def test_the_papers_fine_tuning_has_its_own_length(tmp_path: Path) -> None:
    arguments = ["--data", str(sample_paths().train), "--fine-tune", str(tmp_path), "--preset", "paper"]
    parsed: Any = lambda *more: find_recipe(UIC).parse([*arguments, *more], log=print)
    assert parsed().epochs == (30,) and parsed("--epochs", "500").epochs == (500,)


def test_a_file_of_labels_must_be_the_datas(tmp_path: Path) -> None:
    def by(path: Path, *more: object) -> Outcome:
        steps = "--max-steps-per-stage 1"
        return start(UIC, *SMALL_UIC, "--pseudo-labels", path, *more, steps, "--out", tmp_path / "out")

    labels = tmp_path / "labels.npz"
    with Beton(sample_paths().train) as data:
        write_labels(labels, np.arange(data.num_samples) % 16, 16, data, "test")
    done = by(labels)
    assert done.code == 0, done.err
    state = newest_checkpoint(tmp_path / "out")
    assert state["task"]["store"]["current"].tolist() == 30 * list(range(16))
    assert state["science"]["labels"] == sha256(labels.read_bytes()).hexdigest()
    names = ("short", "other", "wrong", "test")
    short, other_data, wrong, test = (tmp_path / f"{name}.npz" for name in names)
    with np.load(labels) as arrays:
        rows = {name: arrays[name][:-1] for name in ("labels", "indices", "entropy")}
        np.savez(short, **{**arrays, **rows})
        np.savez(other_data, **{**arrays, "data_digest": "0" * 32})
        np.savez(wrong, **{**arrays, "num_classes": 8})
    with Beton(sample_paths().test) as data:
        write_labels(test, np.arange(data.num_samples) % 16, 16, data, "test")
    refused(by(short), "short.npz", "sample 479 not at all")
    refused(by(other_data), "other.npz", "another data set")
    refused(by(wrong), "wrong.npz", "classes 0 to 7")
    refused(by(test), "test.npz", "the test images")
    refused(by(tmp_path / "none.npz"), "none.npz")
    refused(by(labels, "--num-clusters 8"), "16 classes, not 8")


@pytest.mark.slow
def test_killed_in_mid_epoch_it_ends_as_never_killed(trained: Path) -> None:
    """Resume from the first epoch and from the second."""
    goes_on(UIC, *SMALL_UIC, whole=trained, steps=(3, 18), files=("epochs.jsonl",))


@pytest.mark.slow
def test_what_two_ranks_have_begun_goes_on_as_one(tmp_path: Path) -> None:
    """Resume from step 20 in the second epoch, when two ranks have computed its labels so far."""
    arguments = (*SMALL_UIC[:-1], "3")
    ran(UIC, *arguments, "--checkpoint-steps 20 --out", tmp_path / "two", ranks=2)
    cut_back(tmp_path / "two", tmp_path / "one", 20)
    state = newest_checkpoint(tmp_path / "one")["task"]["store"]
    assert (state["written"] >= 0).any() and state["num_positions"] == 5 * 32
    start(UIC, *arguments, "--out", tmp_path / "one").ok()
    lines = epoch_records(tmp_path / "one")
    assert [line["run_step"] for line in lines] == [1, 15, 30, 45]
    # 480 draws of 480 images
    assert all(line["num_not_drawn"] == line["num_repeated"] for line in lines[1:])


DEEPCLUSTER = "deepcluster_alexnet"
SMALL_DEEPCLUSTER = words(
    "--data",
    sample_paths().train_32,
    "--backbone resnet18 --size-px 32 --input-channels SobelXY --num-clusters 16",
    "--pca-width 32 --batch-size 60 --workers 1 --no-tensorboard --epochs 2",
    "--max-steps-per-stage 1",
)


@pytest.mark.slow
def test_the_sample_by_one_step(tmp_path: Path) -> None:
    small = "--max-steps-per-stage 1 --no-tensorboard --size-px 64 --pca-width 32 --out"
    outcome = start(DEEPCLUSTER, small, tmp_path / "out").ok()
    assert "labels.npz" in outcome.out and "labels.png" in outcome.out
    with np.load(tmp_path / "out" / "labels.npz") as file:
        assert file["labels"].shape == (480,) and np.unique(file["labels"]).tolist() == list(range(16))
    (line,) = epoch_records(tmp_path / "out")
    assert line["nmi_true"] > line["nmi_true_shuffled"] and line["nmi_previous"] is None
    head = newest_checkpoint(tmp_path / "out")["train_step"]["head"]
    assert sorted(value.shape for value in head.values()) == [(16,), (16, 32)]


@pytest.mark.slow
def test_two_ranks_cluster_as_one(tmp_path: Path) -> None:
    """Compare the labels before the first step, which are equal except for rounding at a border."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the processes of tests.programs
    start(DEEPCLUSTER, *SMALL_DEEPCLUSTER, "--out", tmp_path / "one").ok()
    torch.set_num_threads(before)
    ran(DEEPCLUSTER, *SMALL_DEEPCLUSTER, "--out", tmp_path / "two", ranks=2)
    one_rank, both_ranks = (np.load(tmp_path / name / "labels.npz")["labels"] for name in ("one", "two"))
    assert (one_rank != both_ranks).sum() <= 2
    (epoch,), (epoch_of_two,) = epoch_records(tmp_path / "one"), epoch_records(tmp_path / "two")
    assert epoch["distance"] == pytest.approx(epoch_of_two["distance"], rel=1e-4)


@pytest.mark.parametrize("name", [UIC, "sslpp_rotation"])
def test_clusters_of_a_networks_features_are_learned(name: str, tmp_path: Path, cli: Cli) -> None:
    """Of the sample, and of equal images, which leave one of three clusters empty."""
    weights, equal = tmp_path / "nin3.pth", tmp_path / "equal.beton"
    torch.save(make_backbone("nin3").state_dict(), weights)
    grey = [Sample(str(i), np.full((32, 32, 3), 200 * (i % 2), np.uint8), -1) for i in range(40)]
    write_beton(grey, equal, num_samples=40)
    network = words("--backbone nin3 --input-channels RGB --input-mean .5 .5 .5 --input-std .25 .25 .25")
    small = (*QUICK, "--backbone", "resnet18", *words("--size-px 32 --batch-size 8 --max-steps-per-stage 2"))
    for data, clusters in ((sample_paths().train, 16), (equal, 3)):
        labels, out = tmp_path / f"{clusters}.npz", tmp_path / f"{clusters}"
        arguments = ("--weights", weights, *network, "--size-px", 32, "--num-clusters", clusters)
        assert cli("labels", "features", *arguments, "--data", data, "--out", labels).code == 0
        given = ("--data", data, "--val none --pseudo-labels", labels, "--out", out)
        number = ("--num-clusters", clusters) if name == UIC else ()
        start(name, *small, *number, *given).ok()
        with Beton(data) as opened:
            made = read_labels(labels, opened)
        assert len(set(made.labels.tolist())) == (16 if clusters == 16 else 2)
        state = newest_checkpoint(out)
        if name == UIC:
            assert state["science"]["labels"] == sha256(labels.read_bytes()).hexdigest()
        else:
            assert state["science"]["pseudo_labels"] == {**made.configuration, "digest": made.digest()}
