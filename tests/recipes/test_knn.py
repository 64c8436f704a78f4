"""Test recipes/knn.py as a user runs it: scores, images, reused features, two ranks, and errors."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastpsl.engine.distributed import World
from fastpsl.evaluation import neighbours, untrained
from fastpsl.evaluation.feature_file import FeatureFile
from fastpsl.evaluation.neighbours import score
from fastpsl.evaluation.result_file import read_result
from fastpsl.models.factory import make_backbone
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.embedded.draw_sample import sample_paths
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.plots.neighbours import draw_neighbours
from tests.engine.tiny import one_process
from tests.pipelines.written import write_labelled, write_raw
from tests.recipes.in_process import refused, start

RECIPE = "knn"
recipe = partial(start, RECIPE)
SMALL = ("--size-px", "32", "--workers", "1")
RANDOM = ("--random-weights", "--backbone", "resnet18")
ALEXNET = ("--random-weights", "--backbone", "alexnet")


def numbers_by_hand(folder: Path, ks: tuple[int, ...], temperature: float) -> dict[str, float]:
    """Compute the scores from the features in the folder, query by query."""
    bank, queries = (np.load(folder / f"{name}.npy").astype(np.float64) for name in ("train", "val"))
    labels, truth = (np.load(folder / f"{name}-labels.npy") for name in ("train", "val"))
    bank, queries = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (bank, queries))
    names = [f"top{n}_k{k}" for k in ks for n in (1, 5)]
    numbers = dict.fromkeys(names + [f"top1_k{k}_majority" for k in ks], 0.0)
    for query, label in zip(queries, truth, strict=True):
        similarities = bank @ query
        order = np.argsort(-similarities, kind="stable")
        for k in ks:
            votes, scores = list(labels[order[:k]]), np.zeros(8)
            for row in order[:k]:
                scores[labels[row]] += np.exp(similarities[row] / temperature)
            ranked = [c for c in np.argsort(-scores, kind="stable") if scores[c] > 0]
            winner = max(votes, key=lambda c: (votes.count(c), -votes.index(c)))
            numbers[f"top1_k{k}"] += ranked[0] == label
            numbers[f"top5_k{k}"] += label in ranked[:5]
            numbers[f"top1_k{k}_majority"] += winner == label
    return {name: 100 * value / len(truth) for name, value in numbers.items()}


def test_scores_result_and_figure_of_the_sample(tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcome = recipe(*SMALL, "--out", out).ok()
    lines = outcome.out.splitlines()
    assert lines[0].startswith("the embedded sample: k 1 5 10 20 (default 10 20 100 200)")
    assert lines[1].startswith("weights: resnet18, random weights; input RGB")
    assert lines[2] == "160 validation images, neighbours of 480; B5 of resnet18"
    assert " ".join(lines[3].split()) == "weighted % k 1 k 5 k 10 k 20 mean"
    assert " ".join(lines[5].split()) == "majority % k 1 k 5 k 10 k 20 mean"
    assert lines[7:] == [f"result {out / 'result.json'}", f"neighbours {out / 'neighbours.png'}"]
    result = json.loads((out / "result.json").read_text())
    for line, end in ((4, ""), (6, "_majority")):
        reported = [result["numbers"][f"top1_k{k}{end}"] for k in (1, 5, 10, 20)]
        assert lines[line].split() == ["B5", *(f"{value:.1f}" for value in (*reported, np.mean(reported)))]
    assert result["numbers"] == pytest.approx(numbers_by_hand(out, (1, 5, 10, 20), 0.07))
    assert 5 < result["numbers"]["top1_k1"] < 100  # chance is 12.5
    assert (result["recipe"], result["protocol"], result["cut"]) == ("knn", "knn/both", False)
    assert result["checkpoint"]["kind"] == "random" and result["settings"]["temperature"] == 0.07
    assert result["data"]["num_train"] == 480 and result["data"]["num_val"] == 160
    with Image.open(out / "neighbours.png") as image:
        assert image.size[0] > 900 and image.size[1] > 900

    written = {path: path.stat().st_mtime_ns for path in out.glob("*.npy")}
    outcome = recipe(*SMALL, "--out", out, "--k 3 --vote majority --batch-size 16")
    assert outcome.code == 0 and {path: path.stat().st_mtime_ns for path in written} == written
    result = json.loads((out / "result.json").read_text())
    assert list(result["numbers"]) == ["top1_k3_majority"] and result["protocol"] == "knn/majority"
    outcome = recipe(*SMALL, "--out", out, "--block B3 --k 5 --vote weighted")
    assert outcome.code == 0 and "B3 of resnet18" in outcome.out
    assert np.load(out / "train.npy").shape == (480, 64)
    result = json.loads((out / "result.json").read_text())
    assert list(result["numbers"]) == ["top1_k5", "top5_k5"]


def test_an_untrained_network_stands_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its numbers are those of random weights; they are made once, and are kept for both votes."""
    monkeypatch.setattr(untrained, "cache_folder", lambda: tmp_path / "cache")
    torch.manual_seed(1)
    torch.save(make_backbone("resnet18").state_dict(), tmp_path / "net.pth")
    common = (*SMALL, "--backbone resnet18 --seed 3 --k 3 5 --block B1 final --out")
    paths = sample_paths()
    images = ("--data", paths.train_32, "--val", paths.test_32)
    random = recipe("--random-weights", *images, *common, tmp_path / "random").ok()
    outcome = recipe(tmp_path / "net.pth", *images, *common, tmp_path / "out").ok()
    results = [read_result(tmp_path / f"{name}/result.json") for name in ("out", "random")]
    numbers, floor = (result["numbers"] for result in results)
    assert "\nuntrained" not in random.out and len(floor) == 12
    assert {name: numbers.pop(f"untrained_{name}") for name in floor} == floor != numbers
    values = [floor[f"top1_k{k}_B5"] for k in (3, 5)]
    line = " ".join(f"{value:.1f}" for value in (*values, np.mean(values)))
    assert f"untrained B5 {line}" in [" ".join(line.split()) for line in outcome.out.splitlines()]
    assert not (tmp_path / "out/untrained").exists()
    monkeypatch.setattr(neighbours, "extract", no_untrained(neighbours.extract))
    recipe(tmp_path / "net.pth", *images, "--vote majority", *common, tmp_path / "again").ok()
    numbers = json.loads((tmp_path / "again/result.json").read_text())["numbers"]
    assert len(numbers) == 8 and numbers["untrained_top1_k5_majority_B5"] == floor["top1_k5_majority_B5"]
    without = recipe(tmp_path / "net.pth", *images, *common, tmp_path / "without", "--no-floor").ok()
    kept = json.loads((tmp_path / "without/result.json").read_text())["numbers"]
    assert kept.keys() == floor.keys() and "\nuntrained" not in without.out


def no_untrained(extract: Any) -> Any:
    def extracted(works: Any, outs: list[Path], *more: Any, **options: Any) -> Any:
        assert all(out.parent.name != "untrained" for out in outs)
        return extract(works, outs, *more, **options)

    return extracted


@pytest.mark.slow
def test_the_last_of_seven_blocks(tmp_path: Path) -> None:
    size = ("--size-px", "64", "--block", "b7", "--k", "5", "--out", tmp_path / "out")
    outcome = recipe(*SMALL, *ALEXNET, *size)
    assert outcome.code == 0 and "B7 of alexnet" in outcome.out, outcome
    assert np.load(tmp_path / "out" / "val.npy").shape == (160, 32)


@pytest.mark.slow
def test_several_blocks_are_each_as_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare numbers and files bit for bit; images are decoded only once."""
    passes: list[Loader] = []
    opened = Loader.epoch

    def noted(loader: Loader, *steps: Any) -> Any:
        passes.append(loader)
        return opened(loader, *steps)

    monkeypatch.setattr(Loader, "epoch", noted)
    options = (*SMALL, "--whole", "--vote", "majority", "--k", 1, 3, 15)
    outcome = recipe(*options, "--block B2 conv4_x final --out", tmp_path / "all").ok()
    assert len(passes) == 2 + 3 * 2  # one each for train and val, and two for each sheet
    crops: list[Any] = [loader.views[0].crop for loader in passes]
    assert all(crop.shorter_px == crop.size_px for crop in crops)  # --whole holds for the sheets, too
    numbers = json.loads((tmp_path / "all" / "result.json").read_text())["numbers"]
    lines = outcome.out.splitlines()[2:]
    assert lines[0] == "160 validation images, neighbours of 480; B2, B4, B5 of resnet18"
    assert " ".join(lines[1].split()) == "majority % k 1 k 3 k 15 mean"
    table = []
    for number, block in enumerate(("B2", "B4", "B5")):
        out = tmp_path / block
        recipe(*options, "--block", block, "--out", out).ok()
        alone = json.loads((out / "result.json").read_text())["numbers"]
        assert list(alone) == ["top1_k1_majority", "top1_k3_majority", "top1_k15_majority"]
        assert alone == {name: numbers[f"{name}_{block}"] for name in alone}
        assert alone == pytest.approx({name: numbers_by_hand(out, (1, 3, 15), 0.07)[name] for name in alone})
        for name in ("train", "val"):
            several = tmp_path / "all" / f"{name}_{block}.npy"
            assert several.read_bytes() == (out / f"{name}.npy").read_bytes()
            paths = (several, out / f"{name}.npy")
            reported = [json.loads(path.with_suffix(".json").read_text()) for path in paths]
            assert reported[0]["digest"] == reported[1]["digest"]
        table.append([*alone.values(), np.mean(list(alone.values()))])
        assert lines[2 + number].split() == [block, *(f"{value:.1f}" for value in table[-1])]
        assert (tmp_path / "all" / f"neighbours_{block}.png").exists()
    assert lines[5].split() == ["mean", *(f"{value:.1f}" for value in np.mean(table, 0))]
    assert len(numbers) == 9 and len(set(map(tuple, table))) == 3


def test_images_that_could_not_be_decoded_are_neither_scored_nor_found(tmp_path: Path) -> None:
    def written(name: str, rows: np.ndarray, labels: np.ndarray, bad: list[int]) -> FeatureFile:
        np.save(tmp_path / f"{name}.npy", rows.astype(np.float32))
        np.save(tmp_path / f"{name}-labels.npy", labels.astype(np.int32))
        record = {"labels": f"{name}-labels.npy", "shape": list(rows.shape), "bad": bad}
        return FeatureFile(tmp_path / f"{name}.npy", record)

    random, damaged, whole = np.random.default_rng(0), [], []
    for name, num, bad in (("train", 60, [3, 7, 59]), ("val", 30, [0, 5])):
        rows, labels = random.normal(size=(num, 6)), np.arange(num) % 3
        rows[bad] = np.nan
        damaged.append(written(name, rows, labels, bad))
        rows, labels = np.delete(rows, bad, 0), np.delete(labels, bad)
        whole.append(written(f"{name}-whole", rows, labels, []))
    found, expected = (score(train, val, (1, 5, 57), 0.07, one_process()) for train, val in (damaged, whole))
    assert (found.num, found.num_bank) == (expected.num, expected.num_bank) == (28, 57)
    assert found.queries.tolist() == [i for i in range(30) if i not in (0, 5)]
    assert found.correct == expected.correct and found.numbers("both") == expected.numbers("both")


def test_labels_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    two = write_labelled(tmp_path / "two.beton", [0, 1] * 4, ["boat", "house"])
    three = write_labelled(tmp_path / "three.beton", [0, 1, 2, 0], ["boat", "house", "tree"])
    without = write_labelled(tmp_path / "without.beton", [0, -1, 1, 0])
    for train, val, texts in (
        (without, two, ("needs labels", "1 of 4")),
        (two, without, ("needs labels", "1 of 4")),
        (two, three, ("tree",)),
    ):
        arguments = ("--data", train, "--val", val, *RANDOM, *SMALL, "--k 1 --out", tmp_path / "out")
        refused(recipe(*arguments), *texts)
    assert not (tmp_path / "out").exists()


def by_others(folder: Path, own: list[int]) -> float:
    """Return the score of the nearest neighbour but for each image's `own` row, from the features."""
    bank, queries = (np.load(folder / f"{name}.npy").astype(np.float64) for name in ("train", "val"))
    labels, truth = (np.load(folder / f"{name}-labels.npy") for name in ("train", "val"))
    bank, queries = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (bank, queries))
    cosines = queries @ bank.T
    cosines[np.arange(len(own)), own] = -2
    return 100 * float((labels[cosines.argmax(1)] == truth).mean())


def test_a_set_against_itself_is_scored_each_without_itself(tmp_path: Path) -> None:
    """A copy and another order are the same images. Noise has no class: it would be right by itself alone."""
    labels, images = [0, 1, 2, 3] * 5, np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8)
    data, turned = tmp_path / "data.beton", tmp_path / "turned.beton"
    write_raw(data, images, labels)
    write_raw(turned, images[::-1], labels[::-1])
    shutil.copy(data, tmp_path / "copy.beton")
    sets = ("--data", data, *RANDOM, *SMALL, "--vote weighted")
    for name, own in (("data", range(20)), ("copy", range(20)), ("turned", range(19, -1, -1))):
        out = tmp_path / name
        outcome = recipe(*sets, "--val", tmp_path / f"{name}.beton", "--k 1 19 --out", out).ok()
        lines, record = outcome.out.splitlines(), read_result(out / "result.json")
        words = "the validation images are the training images (the same stored bytes): each without itself"
        first = lines.index(words)
        assert lines[first + 1] == "20 validation images, neighbours of 19; B5 of resnet18"
        assert record["numbers"]["top1_k1"] == pytest.approx(by_others(out, list(own)))
        assert record["numbers"]["top1_k1"] < 60
        assert (record["settings"]["each_without_itself"], record["settings"]["shared_images"]) == (True, 20)
    refused(recipe(*sets, "--val", data, "--k 20 --out", tmp_path / "out"), "--k 20", "has 19 images")
    # Of the usual numbers, those that are left.
    usual = recipe(*sets, "--val", data, "--k 10 20 100 200 --out", tmp_path / "data").ok()
    assert read_result(tmp_path / "data" / "result.json")["settings"]["k"] == [10] and "k 20" not in usual.out


def test_validation_images_that_are_training_images_are_told_and_scored_as_before(tmp_path: Path) -> None:
    labels, images = [0, 1] * 12, np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3), np.uint8)
    train, val = (tmp_path / f"{name}.beton" for name in ("train", "val"))
    write_raw(train, images[:16], labels[:16])
    write_raw(val, images[13:], labels[13:])
    options = ("--data", train, "--val", val, *RANDOM, *SMALL, "--k 1 5 --out", tmp_path / "out")
    lines = recipe(*options).ok().out.splitlines()
    first = "3 of 11 validation images are training images (the same stored bytes): the score is too high"
    assert [line for line in lines if line.startswith(first)]
    assert any(line.startswith("11 validation images, neighbours of 16") for line in lines)
    record = read_result(tmp_path / "out" / "result.json")
    assert record["numbers"] == pytest.approx(numbers_by_hand(tmp_path / "out", (1, 5), 0.07))
    assert (record["settings"]["each_without_itself"], record["settings"]["shared_images"]) == (False, 3)


def test_frames_tell_the_neighbours_class(tmp_path: Path) -> None:
    """Read the frame of every neighbour back from the image."""
    rows = np.array([[3, 10, 0, 3], [8, 1, 16, 0]])
    with Beton(sample_paths().test_32) as val, Beton(sample_paths().train_32) as train:
        queries = np.array([3, 0])
        shares, options = np.full((2, 4), 0.5), {"num_threads": 1}
        path = draw_neighbours(tmp_path / "sheet.png", val, train, queries, rows, shares, options)
        same = train.labels()[rows] == val.labels()[queries][:, None]
    with Image.open(path) as opened:
        image = np.asarray(opened.convert("RGB")).astype(int)
    for i in range(2):
        for j in range(4):
            red, green, _ = image[8 + i * 158 + 30, 18 + 1 + (j + 1) * 126]
            assert (green > red) == same[i, j], (i, j)
    assert same.any() and not same.all()


def test_the_chart_shows_a_ranks_own_queries_with_their_own_neighbours(tmp_path: Path) -> None:
    """Rank 1 of 2 has every second image of those that could be decoded; rows are found by a plain sort.

    The chart has more neighbours than the largest k.
    """
    files, random = [], np.random.default_rng(1)
    for name, num, bad in (("train", 40, [4]), ("val", 50, [0, 6])):
        rows, labels = random.normal(size=(num, 5)).astype(np.float32), np.arange(num) % 4
        rows[bad] = np.nan
        np.save(tmp_path / f"{name}.npy", rows)
        np.save(tmp_path / f"{name}-labels.npy", labels.astype(np.int32))
        record = {"labels": f"{name}-labels.npy", "shape": [num, 5], "bad": bad}
        files.append(FeatureFile(tmp_path / f"{name}.npy", record))
    counted: list[torch.Tensor] = []

    def own_sum(world: World, values: torch.Tensor) -> torch.Tensor:
        counted.append(values)
        return values

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(neighbours, "sum_over_ranks", own_sum)
        scores = score(files[0], files[1], (1, 2), 0.07, World(1, 2, 1, 2, torch.device("cpu")))
    own = [i for i in range(50) if i not in (0, 6)][1::2]
    assert scores.queries.tolist() == own and scores.num == 48 and len(counted) == 1
    queries, rows, similarities = scores.shown(seed=5)
    assert len(set(queries.tolist())) == 8 and set(queries.tolist()) <= set(own)
    assert rows.shape == similarities.shape == (8, 7)
    bank = np.delete(files[0].features().astype(np.float64), 4, 0)
    places = np.delete(np.arange(40), 4)
    bank /= np.linalg.norm(bank, axis=1, keepdims=True)
    for query, found, values in zip(queries, rows, similarities, strict=True):
        features = files[1].features()[query].astype(np.float64)
        cosines = bank @ (features / np.linalg.norm(features))
        order = np.argsort(-cosines)[:7]
        assert found.tolist() == places[order].tolist()
        assert values == pytest.approx(cosines[order], abs=1e-5)
    assert scores.shown(seed=6)[0].tolist() != queries.tolist() == scores.shown(seed=5)[0].tolist()
