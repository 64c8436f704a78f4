"""Test recipes/voc_svm.py as a user runs it: the protocol, numbers by hand, low-shot, ranks, and errors."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.svm import LinearSVC

from fastpsl.pipelines.datasets.voc.dataset import VOC
from fastpsl.pipelines.embedded.draw_voc import draw_voc
from fastpsl.transfer.svm.svm import COSTS, VISSL, Classes, constants_of
from tests.recipes.in_process import ran, refused, start

RECIPE = "voc_svm"
recipe = partial(start, RECIPE)
BLOCKS = ("B1", "B2", "B3", "B4", "B5")
SMALL = ("--size-px", "48", "--workers", "1", "--batch-size", "16")
RANDOM = ("--random-weights", "--backbone", "resnet18")


@pytest.fixture(scope="module")
def devkit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_voc(tmp_path_factory.mktemp("drawn") / "VOCdevkit", 36, 20, side_px=64)


def read(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return content


def outcomes(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the content of the files in each block's newest folder, class by class."""
    return {
        block: [
            json.loads(path.read_text())
            for path in sorted(next((folder / "svm").glob(f"{block}-*")).iterdir())
        ]
        for block in BLOCKS
    }


def test_scores_result_and_image(devkit: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcome = recipe(*SMALL, *RANDOM, "--data", devkit, "--out", out).ok()
    result, lines = read(out), outcome.out.splitlines()
    assert (result["recipe"], result["protocol"], result["cut"]) == ("voc_svm", "svm/vissl", False)
    reported = json.loads(json.dumps(constants_of(VISSL, "vissl")))
    assert {name: result["settings"][name] for name in reported} == reported
    assert result["settings"]["cost_values"] == list(COSTS["vissl"])
    assert result["settings"]["crop"] == "squashed"
    with VOC(devkit, VISSL.train, "boxes") as train, VOC(devkit, VISSL.test, "boxes") as test:
        assert result["data"] == {
            "train": train.digest(), "val": test.digest(), "num_train": 36, "num_val": 20,
        }  # fmt: skip
        names = train.class_names
    assert names is not None
    numbers, found = result["numbers"], outcomes(out)
    means = []
    for block, of_block in found.items():
        assert len(of_block) == 3
        for name, class_outcome in zip(names, of_block, strict=True):
            assert numbers[f"AP_{name}_{block}"] == pytest.approx(100 * class_outcome["ap"], abs=1e-3)
            assert class_outcome["cross_validated"][COSTS["vissl"].index(class_outcome["cost"])] == max(
                class_outcome["cross_validated"]
            )
            assert result["settings"]["chosen_costs"][block][name] == class_outcome["cost"]
            assert class_outcome["fits"] == 34
        means.append(100 * sum(class_outcome["ap"] for class_outcome in of_block) / 3)
        assert numbers[f"mAP_{block}"] == pytest.approx(means[-1], abs=1e-3)
    assert numbers["mAP"] == pytest.approx(max(means), abs=1e-3) and len(numbers) == 5 + 1 + 15
    assert result["settings"]["fits"] == 15 * 34
    assert lines[2].startswith("3 classes, 510 SVMs of 36 images, scored on 20; by chance ")
    table = [line.split() for line in lines if line[:2] in BLOCKS or line.startswith("best")]
    values = zip((*BLOCKS, "best"), (*means, max(means)), strict=True)
    assert table == [[name, f"{value:.1f}"] for name, value in values]
    assert lines[-2:] == [f"result {out / 'result.json'}", f"chart {out / 'result.png'}"]
    record = json.loads((out / "train_B3.json").read_text())
    assert record["squashed"] and record["pool"]["window"] == [28, 13, 5, 0] and record["dtype"] == "float32"
    with Image.open(out / "result.png") as image:
        assert min(image.size) > 600


@pytest.mark.slow
def test_what_is_there_serves_again_and_other_costs_do_not_disturb_it(
    devkit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit, fitted = LinearSVC.fit, []

    def counted(machine: LinearSVC, *arguments: Any) -> LinearSVC:
        fitted.append(machine.C)
        if len(fitted) == 100:
            raise KeyboardInterrupt
        return fit(machine, *arguments)

    monkeypatch.setattr(LinearSVC, "fit", counted)
    options = (*SMALL, *RANDOM, "--data", devkit, "--out", tmp_path / "out", "--costs", "fsb")
    assert recipe(*options).code == 75 and len(list((tmp_path / "out" / "svm").rglob("*.json"))) == 3
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.npy")}
    assert len(written) == 10
    fitted.extend([0] * 100)
    outcome = recipe(*options)
    assert outcome.code == 0 and len(fitted) == 200 + 12 * 31, outcome
    assert written == {path: path.stat().st_mtime_ns for path in written}
    settings = read(tmp_path / "out")["settings"]
    assert settings["cost_values"] == list(COSTS["fsb"]) and settings["fits"] == 15 * 31
    assert recipe(*options).code == 0 and len(fitted) == 200 + 12 * 31


@pytest.mark.slow
def test_low_shot(devkit: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcome = recipe(*SMALL, *RANDOM, "--data", devkit, "--out", out, "--low-shot --shots 1 4").ok()
    result = read(out)
    assert result["protocol"] == "svm/low_shot" and result["settings"]["shots"] == [1, 4]
    assert result["settings"]["num_samples"] == 5 and result["settings"]["fits"] == 15 * 5 * 2 * 11
    numbers = result["numbers"]
    best = {1: 0.0, 4: 0.0}
    for block, of_block in outcomes(out).items():
        aps = np.array([class_outcome["aps"] for class_outcome in of_block])
        assert aps.shape == (3, 5, 2, 11)
        for i, k in enumerate((1, 4)):
            by_cost = [aps[:, :, i, cost].mean() for cost in range(11)]
            chosen = by_cost.index(max(by_cost))
            samples = [100 * aps[:, sample, i, chosen].mean() for sample in range(5)]
            assert numbers[f"mAP_{k}_{block}"] == pytest.approx(np.mean(samples), abs=1e-3)
            assert numbers[f"sd_{k}_{block}"] == pytest.approx(np.std(samples), abs=1e-3)
            best[k] = max(best[k], numbers[f"mAP_{k}_{block}"])
    assert numbers["mAP_1"] == best[1] and numbers["mAP_4"] == best[4] and len(numbers) == 2 * 11
    assert (out / "result.png").exists() and "k 1    k 4" in outcome.out


@pytest.mark.slow
def test_two_ranks_make_the_same_files(devkit: Path, tmp_path: Path) -> None:
    one_rank, both_ranks = tmp_path / "one", tmp_path / "two"
    options = (*SMALL, *RANDOM, "--low-shot --shots 2 --data", devkit)
    recipe(*options, "--out", one_rank).ok()
    # The same features, because two ranks' batches round sums in another way.
    shutil.copytree(one_rank, both_ranks)
    shutil.rmtree(both_ranks / "svm")
    (both_ranks / "result.json").unlink()
    ran(RECIPE, *options, "--out", both_ranks, ranks=2)
    files = {path.relative_to(one_rank): path.read_bytes() for path in (one_rank / "svm").rglob("*.json")}
    assert len(files) == 15
    assert files == {
        path.relative_to(both_ranks): path.read_bytes() for path in (both_ranks / "svm").rglob("*.json")
    }
    assert read(both_ranks)["numbers"] == read(one_rank)["numbers"]


@pytest.mark.nightly
def test_random_features_tell_the_drawn_shapes(tmp_path: Path) -> None:
    """Check 240 images, where chance is 48.9 %."""
    outcome = recipe("--workers 1 --out", tmp_path / "out").ok()
    assert outcome.out.startswith("the embedded sample: shots") and "by chance 48.9 %" in outcome.out
    assert read(tmp_path / "out")["numbers"]["mAP"] > 62


def test_a_class_that_no_test_image_shows(devkit: Path, tmp_path: Path) -> None:
    place = tmp_path / "VOCdevkit"
    shutil.copytree(devkit, place)
    names = (place / "classes.txt").read_text().split()
    (place / "classes.txt").write_text("\n".join(["absent", *names]) + "\n")
    with VOC(place, VISSL.train, "boxes") as train, VOC(place, VISSL.test, "boxes") as test:
        classes = Classes.of(train, test, VISSL, ())
        assert classes.names == tuple(names) and classes.left_out == ("absent",)
        assert (classes.train[:, 0] == 0).all() and classes.numbers == (1, 2, 3)
        shares = [(classes.test[:, i] == 1).sum() / (classes.test[:, i] >= 0).sum() for i in classes.numbers]
        assert classes.frequency == pytest.approx(100 * np.mean(shares))


def test_more_images_than_there_are_are_refused(devkit: Path, tmp_path: Path) -> None:
    with VOC(devkit, VISSL.train, "boxes") as train:
        targets, names = train.targets(), train.class_names
    assert names is not None
    few = int((targets == 1).sum(0).min())
    name = names[int(np.flatnonzero((targets == 1).sum(0) < 30)[0])]
    single = tmp_path / "single"
    shutil.copytree(devkit, single)
    lists = single / "VOC2007" / "ImageSets" / "Main" / "trainval.txt"
    lists.write_text("\n".join(lists.read_text().split()[:2]) + "\n")
    low_shot = ("--data", devkit, "--low-shot --shots")
    for arguments, texts in (
        ((*low_shot, 30), ("--shots 30", repr(name), "2007_trainval", "give up to")),
        ((*low_shot, few), (f"--shots {few}", f"{2 * few} are drawn", "do not")),
        (("--data", single), ("of the 2 images of 2007_trainval", "3 folds")),
    ):
        refused(recipe(*SMALL, *RANDOM, *arguments, "--out", tmp_path / "out"), *texts)
    assert not (tmp_path / "out").exists()
