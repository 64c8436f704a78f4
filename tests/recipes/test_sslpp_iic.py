"""Test IIC's recipe as a user runs it: labels and images of a run, kill and resume, and errors."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastpsl.engine.options import RunOptions
from fastpsl.evaluation.cluster_report import report
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.sample.betons import sample_paths
from fastpsl.tasks.pseudo_labels.file import labels_of, read_labels
from fastpsl.tasks.pseudo_labels.scores import hungarian_accuracy, many_to_one_accuracy
from tests.programs import ROOT, digests, epoch_records, newest_checkpoint, run, run_until
from tests.recipes.in_process import Start, refused, starter

RECIPE = ROOT / "recipes" / "sslpp_iic.py"
QUICK = ("--workers", "1", "--no-tensorboard", "--checkpoint-minutes", "0")
SIZES = ("--size-px", "16", "--num-copies", "1", "--batch-size", "160")
SMALL = (
    *QUICK,
    *SIZES,
    "--epochs",
    "3",
    "--num-heads",
    "2",
    "--second-clusters",
    "8",
)  # heads A, B and B with 2 steps each on the data below


def few() -> tuple[str, ...]:
    """Return options for a third of the sample's images."""
    return "--data", str(sample_paths().test_32), "--backbone", "resnet18", "--num-clusters", "16"


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Start:
    return starter("sslpp_iic", monkeypatch, capsys)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a whole small run."""
    out = tmp_path_factory.mktemp("iic") / "out"
    done = run(RECIPE, *SMALL, *few(), "--out", out)
    assert done.returncode == 0, done.stderr
    (out / "said.txt").write_text(done.stdout)
    return out


def test_a_run_leaves_its_labels_and_says_what_they_are_worth(trained: Path) -> None:
    lines = (trained / "said.txt").read_text().splitlines()
    assert lines[0].startswith(f"{sample_paths().test_32}: backbone resnet18 (paper resnet34_iic)")
    assert "num_clusters 16 (paper 70)" in lines[0] and "num_heads 2 (paper 1)" in lines[0]
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
    expected["cut"] = any(
        stage["num_steps"] < stage["num_steps_planned"] for stage in state["position"]["summaries"]
    )
    assert expected.items() <= dict(stored.configuration).items()
    assert {"backbone", "augment", "epochs", "num_copies"} <= set(stored.configuration)
    assert (
        labels_of(trained / "labels.npz", RunOptions(data=str(sample_paths().test_32))).labels.tolist()
        == stored.labels.tolist()
    )


@pytest.mark.usefixtures("published_widths")
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


@pytest.mark.usefixtures("published_widths")
def test_a_finished_run_writes_its_labels_again(trained: Path, recipe: Start) -> None:
    before = (trained / "labels.npz").read_bytes()
    (trained / "labels.npz").unlink()
    done = recipe(*SMALL, *few(), "--out", trained)
    assert done.code == 0, done.err
    assert (trained / "labels.npz").read_bytes() == before


@pytest.mark.slow
def test_killed_in_mid_epoch_and_resumed_it_ends_as_never_killed(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    for step in (1, 3):  # while head A learns, and while head B learns
        code, output = run_until(
            RECIPE, *SMALL, *few(), "--checkpoint-steps", "1", "--out", out,
            folder=out, step=step, number=signal.SIGKILL,
        )  # fmt: skip
        assert code == -signal.SIGKILL, output
    done = run(RECIPE, *SMALL, *few(), "--out", out)
    assert done.returncode == 0, done.stderr
    assert digests(newest_checkpoint(out)) == digests(newest_checkpoint(trained))
    for name in ("labels.npz", "epochs.jsonl"):
        assert (out / name).read_bytes() == (trained / name).read_bytes()


def test_images_without_labels_are_enough(recipe: Start, tmp_path: Path) -> None:
    """Train on a folder without classes, as YFCC has none, in RGB for --augment grey."""
    random = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    for number in range(24):
        pixels = random.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "data" / f"{number}.png")
    small = ("--backbone", "resnet18", "--num-clusters", 4, "--num-sub-heads", 2, "--epochs", 1)
    done = recipe(
        *QUICK, *small, "--data", tmp_path / "data", "--batch-size", 12, "--num-copies", 1,
        "--augment", "grey", "--out", tmp_path / "out",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "of 4 clusters are not empty\n" in done.out and "NMI" not in done.out
    assert newest_checkpoint(tmp_path / "out")["input"]["channels"] == "RGB"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--num-copies", 0), "--num-copies 0"),
        (("--num-clusters", 1), "--num-clusters 1"),
        (("--num-clusters", 481), "481 for 480 training images"),
        (("--num-heads", 2, "--second-clusters", 0), "--second-clusters 0"),
        (("--num-sub-heads", 0), "--num-sub-heads 0"),
        (("--crop-share", 0), "--crop-share 0"),
        (("--crop-share", 1.5), "--crop-share 1.5"),
        (("--augment", "blur"), "--augment"),
        (("--accumulate", 2), "--accumulate 2: each part"),
        (("--apex",), "--apex"),
        (("--lr", 0), "above 0"),
    ],
)
def test_what_cannot_be_is_one_line(
    recipe: Start, tmp_path: Path, arguments: tuple[object, ...], words: str
) -> None:
    refused(recipe(*QUICK, *arguments, "--out", tmp_path / "out"), "sslpp_iic", words)
