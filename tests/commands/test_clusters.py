"""`fastpsl clusters` as a user types it: numbers, images, and a one-line error with exit code 2."""

import json
import math
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from fastpsl.evaluation import cluster_report
from fastpsl.evaluation.result_file import read_result
from fastpsl.models.factory import make_backbone
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.datasets.open import open_data
from fastpsl.pipelines.embedded.draw_sample import sample_paths
from fastpsl.pipelines.views import Input
from fastpsl.plots.clusters import NUM_SHOWN
from fastpsl.tables.results import index_runs
from fastpsl.tasks.pseudo_labels.file import write_labels
from fastpsl.tasks.pseudo_labels.scores import ari, hungarian_accuracy, many_to_one_accuracy, nmi
from tests.cli import Cli, refused
from tests.pipelines.photos import jpeg, photo
from tests.pipelines.written import tree, write_labelled
from tests.plots.png_pixels import pixels
from tests.recorded import save_checkpoint

NUM_CLASSES = 20


def drawn_labels() -> np.ndarray:
    """Return labels of the sample's validation images: half by class, in two pseudo-classes, half random."""
    random = np.random.default_rng(0)
    with Beton(sample_paths().test_32) as data:
        true = data.labels()
    by_class = 2 * true + random.integers(0, 2, len(true))
    return np.where(random.random(len(true)) < 0.5, by_class, random.integers(0, NUM_CLASSES, len(true)))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with one checkpoint of a ResNet-18."""
    folder = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(0)
    science = {"recipe": "uic_alexnet", "backbone": "resnet18", "num_classes": NUM_CLASSES, "seed": 3}
    save_checkpoint(folder, make_backbone("resnet18").state_dict(), Input(size_px=32), 7, **science)
    return folder


@pytest.fixture
def run_folder(checkpoint: Path, tmp_path: Path) -> Path:
    """Return the folder of a run that has learned from the sample's validation images."""
    return run_in(tmp_path / "uic-001", checkpoint)


@pytest.fixture(scope="module")
def reported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a report on such a run."""
    folder = run_in(tmp_path_factory.mktemp("runs") / "uic-001", checkpoint)
    lines = cluster_report.report(folder, data=None, labels=None, out=None, seed=0, require_labels=False)
    assert not any("halves of others" in line for line in lines)
    return folder / "clusters"


def run_in(folder: Path, checkpoint: Path) -> Path:
    """Make the folder of a run that has learned from the sample's validation images."""
    shutil.copytree(checkpoint, folder / "checkpoints", copy_function=os.link)
    source = str(sample_paths().test_32)
    (folder / "config.json").write_text(json.dumps({"options": {"data": source}}))
    with Beton(source) as data:
        write_labels(folder / "labels.npz", drawn_labels(), NUM_CLASSES, data, "uic_alexnet")
    return folder


def test_numbers_and_images(run_folder: Path, cli: Cli) -> None:
    code, output, errors = cli("clusters", run_folder)
    assert (code, errors) == (0, "")
    out = run_folder / "clusters"
    names = sorted(path.name for path in out.iterdir())
    assert names == ["contents.png", "filters.png", "result.json", "sizes.png"]
    with Beton(sample_paths().test_32) as data:
        labels, true_labels, digest = drawn_labels(), data.labels(), data.digest()
    record = read_result(out / "result.json")
    numbers = record["numbers"]
    scores = {
        "nmi_true": nmi, "ari": ari, "hungarian_accuracy": hungarian_accuracy,
        "many_to_one_accuracy": many_to_one_accuracy,
    }  # fmt: skip
    wanted = ["entropy_share", "biggest", "nmi_true", "nmi_true_shuffled", *list(scores)[1:]]
    assert list(numbers) == wanted
    for name, score in scores.items():
        assert numbers[name] == pytest.approx(100 * score(labels, true_labels), abs=1e-4)
    assert numbers["biggest"] == pytest.approx(100 * np.bincount(labels).max() / 160, abs=1e-4)
    assert 10 < numbers["nmi_true_shuffled"] < numbers["nmi_true"] - 10
    assert (record["recipe"], record["protocol"], record["cut"]) == ("clusters", "clusters", False)
    assert record["data"] == {"train": digest, "val": None, "num_train": 160, "num_val": None}
    checkpoint, settings = record["checkpoint"], record["settings"]
    assert checkpoint["science"]["recipe"] == "uic_alexnet" and checkpoint["run_step"] == 7
    assert settings | {"num_classes": 20, "num_labelled": 160, "nmi_average": "arithmetic"} == settings
    assert "160 images, 20 classes" in output and "images have one" not in output  # all have a true label
    for words, name in (
        ("NMI", "nmi_true"),
        ("shuffled:", "nmi_true_shuffled"),
        ("(one-to-one)", "hungarian_accuracy"),
        ("many-to-one accuracy", "many_to_one_accuracy"),
    ):
        matches = re.findall(re.escape(words) + r" ([\d.]+) %", output)
        assert float(matches[0]) == pytest.approx(numbers[name], abs=0.051)
    assert output.splitlines()[-1] == f"result {out / 'result.json'}"
    shapes = {path.name: pixels(path).shape for path in out.glob("*.png")}
    assert shapes["contents.png"][1] == 176 + NUM_SHOWN * 126 and (shapes["contents.png"][0] - 6) % 142 == 0
    assert shapes["sizes.png"] == (504, 1320, 3)
    assert shapes["filters.png"] == (8 * (49 + 4) + 4, 8 * (49 + 4) + 4, 3)


def test_a_table_finds_it(reported: Path) -> None:
    collection = index_runs(reported)
    assert [result.record["protocol"] for result in collection.results] == ["clusters"]
    assert not [path for path in collection.unreadable if path.name == "result.json"]


def test_the_seed_shuffles_and_nothing_else(reported: Path, tmp_path: Path, cli: Cli) -> None:
    folders = [reported, tmp_path / "0", tmp_path / "1"]
    for seed, folder in enumerate(folders[1:]):
        assert cli("clusters", reported.parent, "--seed", seed, "--out", folder)[0] == 0
    numbers = [read_result(folder / "result.json")["numbers"] for folder in folders]
    assert numbers[0] == numbers[1]
    changed = {name for name in numbers[0] if numbers[0][name] != numbers[2][name]}
    assert changed == {"nmi_true_shuffled"}
    sheets = [(folder / "contents.png").read_bytes() for folder in folders]
    assert sheets[0] == sheets[1] != sheets[2]


def test_other_labels_and_collapse(run_folder: Path, tmp_path: Path, cli: Cli) -> None:
    with Beton(sample_paths().test_32) as data:
        labels = np.zeros(160, int)
        labels[0] = 1
        path = write_labels(tmp_path / "other.npz", labels, 20, data, "by hand")
    code, output, _ = cli("clusters", run_folder, "--labels", path, "--out", tmp_path / "out")
    assert code == 0 and "(by hand)" in output and "2 not empty" in output and "\ncollapse: " in output
    assert "contents.png of the 2 classes" in output
    # The larger one has 159/160 of the images, and its even share would be 1/20. The warning tells it, too.
    assert output.count("(19.9 times its even share)") == 2
    settings = read_result(tmp_path / "out" / "result.json")["settings"]
    assert (settings["labels"], settings["made_by"], settings["non_empty"]) == (str(path), "by hand", 2)


def test_a_file_of_labels_alone(run_folder: Path, reported: Path, cli: Cli) -> None:
    """The numbers are those of its run, without filters; the default data is the embedded sample."""
    path, source = run_folder / "labels.npz", sample_paths().test_32
    code, output, error = cli("clusters", path, "--data", source)
    out = run_folder / "labels-clusters"
    assert (code, error) == (0, "") and "weights:" not in output and "filters.png" not in output
    assert sorted(path.name for path in out.iterdir()) == ["contents.png", "result.json", "sizes.png"]
    record = read_result(out / "result.json")
    assert record["numbers"] == read_result(reported / "result.json")["numbers"]
    assert record["checkpoint"]["kind"] == "labels" and not record["cut"]
    assert record["settings"]["labels"] == str(path)
    assert not index_runs(out).unreadable
    assert "another data set" in refused(cli("clusters", path))
    assert "give one of the two" in refused(cli("clusters", path, "--data", source, "--labels", path))
    with Beton(sample_paths().train) as data:
        path_of_own_labels = write_labels(run_folder / "ours.npz", np.arange(480) % 8, 8, data, "by hand")
    code, output, _ = cli("clusters", path_of_own_labels)
    assert code == 0 and "NMI 100.0 %" in output and "of 60 to 60 images" in output


def test_a_run_of_iic(tmp_path: Path, cli: Cli) -> None:
    """Its first filters see two gradients, and its labels have entropies."""
    torch.manual_seed(0)
    weights = make_backbone("resnet34_iic", num_channels=2).state_dict()
    science = {"recipe": "sslpp_iic", "backbone": "resnet34_iic", "num_clusters": 20}
    seen = Input("SobelXY", (0.0, 0.0), (1.0, 1.0), 32)
    save_checkpoint(tmp_path / "checkpoints", weights, seen, 9, **science)
    source = sample_paths().test_32
    (tmp_path / "config.json").write_text(json.dumps({"options": {"data": str(source)}}))
    entropy = np.linspace(0, np.log(20), 160)
    configuration = {"source": "iic", "num_clusters": 20}
    more = {"entropy": entropy, "configuration": configuration}
    with Beton(source) as data:
        write_labels(tmp_path / "labels.npz", drawn_labels(), 20, data, "sslpp_iic", **more)  # type: ignore[arg-type]
    code, output, error = cli("clusters", tmp_path)
    assert (code, error) == (0, "")
    record = read_result(tmp_path / "clusters" / "result.json")
    assert record["numbers"]["label_entropy_share"] == pytest.approx(50, abs=1e-3) and record["cut"]
    assert record["settings"]["configuration"] == configuration and record["settings"]["split"] == ""
    assert f"{np.log(20) / 2:.3f} nats on average: 50.0 % of an even one's (median 1.498, 90 % of" in output
    assert f"below {np.quantile(entropy, 0.9):.3f})" in output
    filters = pixels(tmp_path / "clusters" / "filters.png")  # 64 of 3 x 3, both gradients side by side
    assert filters.shape == (11 * (48 + 4) + 4, 6 * (2 * 48 + 4) + 4, 3)


@pytest.fixture
def unlabelled(run_folder: Path, tmp_path: Path) -> Path:
    """Return a flat folder of images without labels, which become the data of the run."""
    tree(tmp_path / "photos", {f"{i:02d}.jpg": jpeg(photo(i, 40, 50)) for i in range(24)})
    with open_data(tmp_path / "photos") as data:  # type: ignore[attr-defined]
        assert (data.labels() < 0).all()
        labels = np.minimum(np.arange(24) // 5, 3)
        write_labels(run_folder / "labels.npz", labels, 5, data, "uic_alexnet")
    return tmp_path / "photos"


def test_without_true_labels(run_folder: Path, unlabelled: Path, cli: Cli) -> None:
    code, output, _ = cli("clusters", run_folder, "--data", unlabelled)
    assert code == 0
    assert "true labels absent: NMI, ARI and accuracies are left out" in output
    assert "contents.png of the 4 classes with the most images" in output
    numbers = read_result(run_folder / "clusters" / "result.json")["numbers"]
    assert list(numbers) == ["entropy_share", "biggest"] and numbers["biggest"] == 37.5
    assert pixels(run_folder / "clusters" / "contents.png").shape[0] == 4 * 142 + 6
    before = {path.name: path.read_bytes() for path in (run_folder / "clusters").iterdir()}
    error = refused(cli("clusters", run_folder, "--data", unlabelled, "--require-labels"))
    assert f"true labels absent in {unlabelled}" in error
    assert before == {path.name: path.read_bytes() for path in (run_folder / "clusters").iterdir()}


def test_what_is_refused(run_folder: Path, tmp_path: Path, cli: Cli) -> None:
    def check(arguments: str, words: str) -> None:
        refused(cli("clusters", *arguments.format(run=run_folder, tmp=tmp_path, data=data).split()), words)

    data, labels = sample_paths().test_32, run_folder / "labels.npz"
    arrays = dict(np.load(labels))
    np.savez(tmp_path / "strange.npz", **arrays | {"data_digest": np.array("f" * 32)})
    np.savez(tmp_path / "range.npz", **arrays | {"num_classes": np.array(3)})
    (tmp_path / "file").touch()
    check("{tmp}/none", "no such folder; give the folder of a run")
    check(f"{{run}} --data {sample_paths().train_32}", "labels 160 images of another data set")
    check("{run} --labels {tmp}/none.npz", "none.npz")
    check("{run} --data {tmp}/none.beton", "none.beton")
    check("{run} --labels {tmp}/strange.npz", "160 images of another data set (digest ffffffff")
    check("{run} --labels {tmp}/range.npz", "and there are classes 0 to 2")
    (run_folder / "config.json").unlink()
    check("{run}", "give --data")
    labels.rename(run_folder / "again.npz")
    check("{run}", "has no labels.npz")
    check("{run} --labels {run}/again.npz --data {data} --out {tmp}/file/x", "cannot be written")
    for path in (run_folder / "checkpoints").iterdir():
        path.unlink()
    check("{run} --labels {run}/again.npz --data {data}", "holds no checkpoint")
    assert not (run_folder / "clusters").exists()


def test_classes_that_were_filled_are_told(run_folder: Path, cli: Cli) -> None:
    """Otherwise a network that predicts one class for everything would look good."""
    with Beton(sample_paths().test_32) as data:
        write_labels(run_folder / "labels.npz", drawn_labels(), NUM_CLASSES, data, "uic_alexnet", num_split=3)
    code, output, _ = cli("clusters", run_folder)
    assert code == 0 and "3 of them were empty and have halves of others" in output
    assert json.loads((run_folder / "clusters" / "result.json").read_text())["settings"]["num_split"] == 3


def test_the_sheet_begins_with_the_purest_class(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is class 1 of three with 80, 40 and 40 images: the others hold images of two true labels."""
    data_path = write_labelled(tmp_path / "some.beton", [*[0, 1] * 40, *[2] * 40, *[0, 3] * 20])
    with Beton(data_path) as data:
        path = write_labels(tmp_path / "labels.npz", np.repeat([0, 1, 2], [80, 40, 40]), 3, data, "by hand")
    shown = list[list[int]]()
    monkeypatch.setattr(cluster_report, "draw_contents", lambda *arguments: shown.append(arguments[3]))
    code, output, _ = cli("clusters", path, "--data", data_path)
    assert code == 0 and shown == [[1, 0, 2]] and "contents.png of the 3 classes" in output


def test_images_without_a_true_label_are_told_and_empty_classes_are_not_counted(
    tmp_path: Path, cli: Cli
) -> None:
    """Thirty of 40 images have a true label, and four of five classes have 20, 10, 5 and 5 images."""
    true = [i % 3 if i < 30 else -1 for i in range(40)]
    some = write_labelled(tmp_path / "some.beton", true)
    with Beton(some) as data:
        labels = np.repeat([0, 1, 3, 4], [20, 10, 5, 5])
        path = write_labels(tmp_path / "labels.npz", labels, 5, data, "by hand")
    code, output, error = cli("clusters", path, "--data", some)
    assert (code, error) == (0, "")
    (line,) = [line for line in output.splitlines() if line.startswith("with the true labels: ")]
    assert line.endswith("; 30 of 40 images have one")
    record = read_result(tmp_path / "labels-clusters" / "result.json")
    settings, numbers = record["settings"], record["numbers"]
    assert (settings["num_classes"], settings["non_empty"], settings["num_labelled"]) == (5, 4, 30)
    entropy = -sum(share * math.log(share) for share in (0.5, 0.25, 0.125, 0.125))
    assert settings["entropy_nats"] == pytest.approx(entropy)
    assert numbers["entropy_share"] == pytest.approx(100 * entropy / math.log(5), abs=1e-4)
    with_one = np.array(true[:30])
    assert numbers["ari"] == pytest.approx(100 * adjusted_rand_score(with_one, labels[:30]), abs=1e-4)
    assert numbers["nmi_true"] == pytest.approx(
        100 * normalized_mutual_info_score(with_one, labels[:30]), abs=1e-4
    )
