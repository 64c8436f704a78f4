"""Test recipes/few_labels.py: draws, scores beside a plain script, floors that are kept, and fine-tuning."""

import itertools
import json
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.preprocessing import Normalizer, StandardScaler
from torch import nn

import fastpsl
from fastpsl.evaluation import fine_tuning, logistic, untrained
from fastpsl.evaluation.few_labels import draw_few
from fastpsl.evaluation.result_file import read_result
from fastpsl.models.factory import make_backbone
from fastpsl.models.weights import random_weights
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.datasets.subset import Synthetic
from fastpsl.pipelines.embedded.draw_sample import sample_paths
from fastpsl.pipelines.interface.dataset import Dataset
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.views import Input, ViewSpec, center_view
from fastpsl.tables.comparison import compare
from tests.files.test_remote_http import serving
from tests.models.test_export import checkpoint
from tests.pipelines.written import write_labelled
from tests.recipes.in_process import refused, start
from tests.tables.test_runs import write_run

recipe = partial(start, "few_labels")
SMALL = ("--size-px 32 --batch-size 16 --workers 1",)
RANDOM = ("--random-weights --backbone nin3",)


@pytest.fixture(autouse=True)
def few_costs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Choose between two strengths, which takes a quarter of the time, and keep floors in a fresh cache."""
    monkeypatch.setattr(logistic, "COSTS", (1.0, 100.0))
    monkeypatch.setattr(untrained, "cache_folder", lambda: tmp_path / "cache")


@pytest.fixture
def noise(tmp_path: Path) -> tuple[Any, ...]:
    """Write images of three classes, 15 to learn from and 6 to score."""
    train, val = tmp_path / "train.beton", tmp_path / "val.beton"
    for path, num in ((train, 5), (val, 2)):
        write_labelled(path, [0, 1, 2] * num, ["a", "b", "c"])
    return "--data", train, "--val", val


def result(folder: Path) -> dict[str, Any]:
    return read_result(folder / "result.json")


def test_draws_are_nested_balanced_and_of_the_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = [0, 1, 2, -1] * 10 + [2] * 30
    data = Synthetic(len(labels), 3)
    monkeypatch.setattr(data, "labels", lambda: np.array(labels, np.int32))
    draws = draw_few(data, (1, 4, 10), 3, seed=5)
    for draw in range(3):
        for num, each in draws.images.items():
            assert each[draw].tolist() == sorted(set(each[draw].tolist()))
            assert [sum(labels[i] == c for i in each[draw]) for c in range(3)] == [num] * 3
            assert np.array_equal(draws.pool.positions[draws.rows(num, draw)], each[draw])
        for small, large in pairwise(draws.images.values()):
            assert set(small[draw].tolist()) < set(large[draw].tolist())
    drawn = {i for each in draws.images.values() for images in each for i in images.tolist()}
    assert draws.pool.indices.tolist() == sorted(drawn)
    assert len({tuple(images.tolist()) for images in draws.images[4]}) == 3
    again, other = (draw_few(data, (4,), 3, seed) for seed in (5, 6))
    assert all(map(np.array_equal, again.images[4], draws.images[4]))
    assert not all(map(np.array_equal, other.images[4], draws.images[4]))
    # Over many draws, each of ten images of a class comes as often as another.
    counts = np.bincount(np.concatenate(draw_few(data, (4,), 400, 0).images[4]), minlength=40)[:40:4]
    assert counts.sum() == 1600 and abs(counts - 160).max() < 50


def features_of(data: Dataset, view: ViewSpec, blocks: list[Any]) -> list[np.ndarray]:
    """Compute each block's mean over positions, in float64."""
    found: list[list[np.ndarray]] = [[] for _ in blocks]
    with Loader(data, [view], batch_size_per_rank=16, train=False, num_threads=1) as loader:
        for batch in loader.epoch(0):
            mean, std = (torch.tensor(each)[:, None, None] for each in (view.mean, view.std))
            images = (batch.images[0].float() / 255 - mean) / std
            with torch.no_grad():
                for block, kept in zip(blocks, found, strict=True):
                    images = block(images)
                    kept.append(images.mean((2, 3)).double().numpy())
    return [np.concatenate(each) for each in found]


def by_a_plain_script(
    network: Any, view: ViewSpec, data: list[Beton], nums: tuple[int, ...], scaler: Any
) -> dict[str, list[float]]:
    """Return the accuracies in percent of each draw, by number and block."""
    bank, queries = (features_of(each, view, network.blocks()) for each in data)
    found = dict[str, list[float]]()
    for num, draws in draw_few(data[0], nums, 2, 3).images.items():
        for images, block in itertools.product(draws, range(len(bank))):
            scaled, labels = scaler.fit_transform(bank[block][images]), data[0].labels()[images]
            cost = 1.0
            if num >= 3:
                machines = [LogisticRegression(C=c, max_iter=1000) for c in (1.0, 100.0)]
                scores = [cross_val_score(m, scaled, labels, cv=min(5, num)).mean() for m in machines]
                cost = 1.0 if scores[0] >= scores[1] else 100.0
            machine = LogisticRegression(C=cost, max_iter=1000).fit(scaled, labels)
            right = machine.predict(scaler.transform(queries[block])) == data[1].labels()
            found.setdefault(f"{num}_B{block + 1}", []).append(100 * right.mean())
    return found


def test_scores_are_those_of_a_plain_script(tmp_path: Path) -> None:
    command = (*SMALL, *RANDOM, "--labels-per-class 2 4 --draws 2 --seed 3 --pixels --out", tmp_path)
    outcome = recipe(*command).ok()
    network = random_weights("nin3", 3).backbone.eval()
    with Beton(sample_paths().train) as train, Beton(sample_paths().test) as val:
        data = [train, val]
        expected = by_a_plain_script(network, center_view(Input(), 32), data, (2, 4), Normalizer())
        flat = SimpleNamespace(blocks=lambda: [nn.Sequential(nn.Flatten(), nn.Unflatten(1, (-1, 1, 1)))])
        view = center_view(Input("RGB", (0.0,) * 3, (1.0,) * 3, 32), 32, whole=True)
        standard = by_a_plain_script(flat, view, data, (2, 4), StandardScaler())
    for folder, wanted in (("random", expected), ("pixels", standard)):
        numbers = result(tmp_path / folder)["numbers"]
        for name, accuracies in wanted.items():
            # Two of 160 images, because fits begin elsewhere and end within a tolerance.
            assert numbers[f"top1_{name}"] == pytest.approx(np.mean(accuracies), abs=1.3)
            assert numbers[f"sd_{name}"] == pytest.approx(np.std(accuracies, ddof=1), abs=1.8)
    record = result(tmp_path / "random")
    assert (record["recipe"], record["protocol"]) == ("few_labels", "few_labels/linear")
    assert record["checkpoint"]["sha256"] == random_weights("nin3", 3).record["sha256"]
    judged = record["settings"]["block"]
    assert record["numbers"]["top1_4"] == record["numbers"][f"top1_4_{judged}"]
    assert f"judged by {judged}" in outcome.out and (tmp_path / "result.png").stat().st_size > 5000


def test_other_draws_of_the_same_images_are_scored_anew(tmp_path: Path, noise: tuple[Any, ...]) -> None:
    """Six draws have all images, so the features of both seeds are the same files."""
    torch.manual_seed(9)
    torch.save(make_backbone("nin3").state_dict(), tmp_path / "net.pt")
    given = "--backbone nin3 --input-channels RGB --input-mean .5 .5 .5 --input-std .25 .25 .25"
    command = (tmp_path / "net.pt", given, *SMALL, *noise, "--labels-per-class 4 --draws 6 --out")
    for out, seed in (("one", 0), ("one", 1), ("fresh", 1)):
        recipe(*command, tmp_path / out, f"--seed {seed}").ok()
    assert result(tmp_path / "one")["numbers"] == result(tmp_path / "fresh")["numbers"]
    assert len(list((tmp_path / "one/few-labels").iterdir())) == 2 * 3 * 6


def test_the_block_to_judge_by() -> None:
    """It is the best in cross-validation at the largest number, whatever the validation images say."""

    def outcomes(cross_validated: dict[str, list[float | None]]) -> tuple[list[Any], list[Any]]:
        keys = [(block, num) for block in cross_validated for num in (1, 5) for _ in range(2)]
        made = [
            {"accuracy": 0.9 if block == "B1" else 0.5, "cost": 1.0, "fits": 1, "not_converged": 0,
             "cross_validated_accuracy": None if num == 1 else cross_validated[block][place % 2]}
            for place, (block, num) in enumerate(keys)
        ]  # fmt: skip
        return keys, made

    scored = {"B1": [0.5, 0.5], "B2": [0.2, 0.9], "B3": [0.6, 0.5]}
    scores = logistic._scores(*outcomes(scored), None)  # type: ignore[arg-type]
    assert scores.block == "B2" and scores.curve() == {1: (50, 0), 5: (50, 0)}
    assert scores.curve("B1") == {1: (90, 0), 5: (90, 0)} and scores.counts["fits"] == 12
    assert logistic._scores(*outcomes(scored), "B1").block == "B1"  # type: ignore[arg-type]
    too_few: dict[str, list[float | None]] = {block: [None, None] for block in scored}
    assert logistic._scores(*outcomes(too_few), None).block == "B3"


def test_a_floor_is_made_once_and_a_run_stands_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noise: tuple[Any, ...]
) -> None:
    weights = tmp_path / "net.pt"
    torch.manual_seed(9)
    torch.save(make_backbone("nin3").state_dict(), weights)
    given = ("--backbone nin3 --input-channels RGB --input-mean .5 .5 .5 --input-std .25 .25 .25",)
    common = (*SMALL, *noise, "--labels-per-class 4 --draws 1")
    first = recipe(weights, *given, *common, "--out", tmp_path / "a").ok()
    numbers = result(tmp_path / "a")["numbers"]
    assert "untrained, B" in first.out and not (tmp_path / "a/untrained").exists()
    recipe(*RANDOM, *given[0].split()[2:], *common, "--out", tmp_path / "random").ok()
    random = result(tmp_path / "random")
    assert numbers["untrained_top1_4"] == random["numbers"]["top1_4"]
    assert "untrained_top1_4" not in random["numbers"]
    recipe(weights, *given, *common, "--no-floor", "--out", tmp_path / "without").ok()
    kept = result(tmp_path / "without")["numbers"]
    assert kept == {name: value for name, value in numbers.items() if "untrained" not in name}

    extracted: list[Path] = []

    def noted(works: Any, outs: list[Path], world: Any, **options: Any) -> Any:
        extracted.extend(outs)
        return extract(works, outs, world, **options)

    extract = logistic.extract
    monkeypatch.setattr(logistic, "extract", noted)
    recipe(weights, *given, *common, "--out", tmp_path / "b").ok()
    assert result(tmp_path / "b")["numbers"] == numbers
    assert {path.parent.name for path in extracted} == {"b"}
    (kept,) = (tmp_path / "cache/untrained").iterdir()
    for damage in ("{", '{"block": "B1", "numbers": {"top1_4": 1}}'):
        kept.write_text(damage)
        extracted.clear()
        recipe(weights, *given, *common, "--out", tmp_path / "b").ok()
        assert result(tmp_path / "b")["numbers"] == numbers and "untrained" in str(extracted)
    for other in ("--seed 1", "--size-px 40", "--draws 2"):
        recipe(weights, *given, *common, other, "--out", tmp_path / "b").ok()
    assert len(list(kept.parent.iterdir())) == 4


def test_several_networks_stand_beside_each_other_and_in_a_comparison(
    tmp_path: Path, noise: tuple[Any, ...]
) -> None:
    runs = [tmp_path / name for name in ("a", "b", "c")]
    for run in runs:
        write_run(run)
    weights = [run / "net.pt" for run in runs[:2]]
    for seed, path in enumerate(weights):
        torch.manual_seed(seed)
        torch.save(make_backbone("nin3").state_dict(), path)
    given = "--backbone nin3 --input-channels RGB --input-mean .5 .5 .5 --input-std .25 .25 .25"
    common = (*SMALL, *noise, given, "--labels-per-class 1 4 --draws 2 --out")
    recipe(*weights, *common, tmp_path / "few").ok()
    first, second = (result(tmp_path / "few" / str(place)) for place in (1, 2))
    assert [first["checkpoint"]["path"], second["checkpoint"]["path"]] == [str(path) for path in weights]
    alone = recipe(weights[1], *common, tmp_path / "alone").ok()
    assert result(tmp_path / "alone")["numbers"] == second["numbers"] and "± " in alone.out
    lines = {line.title: line.cells for line in compare(runs).figures}
    for num in (1, 4):
        cells = lines[f"few labels, {num} a class, %"]
        assert cells[2] == "–"
        for cell, record in zip(cells, (first, second), strict=False):
            score, deviation, floor = (
                record["numbers"][f"{name}_{num}"] for name in ("top1", "sd", "untrained_top1")
            )
            assert cell == f"{score:.1f} ± {deviation:.1f} ({floor:.1f})"
    path = tmp_path / "alone/result.json"
    newer = json.loads(path.read_text()) | {"date": "2999-01-01"}
    newer["numbers"]["top1_4"], newer["settings"]["seed"] = 99.0, 7
    newer["numbers"][f"top1_{'9' * 5000}"] = 1.0  # more digits than Python makes an integer of
    path.write_text(json.dumps(newer))
    comparison = compare(runs)
    lines = {line.title: line.cells for line in comparison.figures}
    assert lines["few labels, 4 a class, %"][1].startswith("99.0 ±")
    assert "other images, draws or classifiers" in comparison.notes[-1]


def test_networks_from_elsewhere_see_images_of_their_own_size(
    tmp_path: Path, noise: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run's of 48 px, a file's at a server, whose JSON beside it names timm's model and its input."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run = tmp_path / "run"
    checkpoint(run, "nin3", Input(size_px=48))
    tensors = save(timm.create_model("resnet10t", num_classes=0).state_dict())
    statistics = {"mean": [0.5] * 3, "std": [0.25] * 3, "input_size": [3, 96, 96]}
    config = json.dumps({"architecture": "resnet10t", "pretrained_cfg": statistics}).encode()
    files = {"net/model.safetensors": tensors, "net/config.json": config}
    with serving({name: (data, len(data)) for name, data in files.items()}) as server:
        networks = (run, f"{server.address}/net")
        small = "--batch-size 8 --workers 1 --labels-per-class 1 --draws 1"
        recipe(*networks, small, *noise, "--out", tmp_path / "few").ok()
    first, second = (result(tmp_path / "few" / str(place)) for place in (1, 2))
    assert [each["settings"]["size_px"] for each in (first, second)] == [48, 96]
    assert [each["checkpoint"]["backbone"] for each in (first, second)] == ["nin3", "timm/resnet10t"]
    assert second["checkpoint"]["input"]["std"] == [0.25] * 3


def test_fine_tuning_learns_from_the_draws_and_is_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noise: tuple[Any, ...]
) -> None:
    tuned = "--labels-per-class 2 3 --draws 2 --classifier finetune --epochs 2 --lr .05 --out"
    command = (*SMALL, *RANDOM, *noise, tuned)
    outcome = recipe(*command, tmp_path).ok()
    numbers = result(tmp_path)["numbers"]
    assert "fine-tuned" in outcome.out and result(tmp_path)["protocol"] == "few_labels/finetune"
    with Beton(noise[1]) as train:
        drawn = draw_few(train, (2, 3), 2, 0)
    for num, draws in drawn.images.items():
        scored = []
        for draw, images in enumerate(draws):
            (folder,) = (path for path in tmp_path.glob(f"tuned-{num}-{draw}-*") if path.is_dir())
            assert (folder / "label-list.txt").read_text().split() == [str(i) for i in images]
            config = json.loads((folder / "config.json").read_text())["options"]
            assert (config["batch_size"], config["epochs"], config["lr"]) == (3 * num, 2, 0.05)
            assert not (folder / "checkpoints").exists()
            scored.append(result(folder)["numbers"]["top1"])
        assert numbers[f"top1_{num}"] == pytest.approx(np.mean(scored), abs=1e-4)
        assert numbers[f"sd_{num}"] == pytest.approx(np.std(scored, ddof=1), abs=1e-4)
    training = fine_tuning.train
    monkeypatch.setattr(fine_tuning, "train", None)
    recipe(*command, tmp_path).ok()
    assert result(tmp_path)["numbers"] == numbers
    monkeypatch.setattr(fine_tuning, "train", training)
    for path in tmp_path.glob("val.beton*"):
        path.unlink()
    write_labelled(noise[3], [0, 1, 2], ["a", "b", "c"])  # others under the same name
    recipe(*command, tmp_path, "--labels-per-class 2 --draws 1").ok()
    assert len(list(tmp_path.glob("tuned-2-0-*.txt"))) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--labels-per-class 61", "--labels-per-class 61: bricks has 60 images; give 60 or fewer"),
        ("--labels-per-class 0", "--labels-per-class 0: give numbers of 1 or more, each once"),
        ("--labels-per-class 5 5", "--labels-per-class 5 5: give numbers of 1 or more, each once"),
        ("--labels-per-class 5 --draws 0", "--draws 0: it must be 1 or more"),
        ("--labels-per-class 5 --block B9", "B9"),
        ("--labels-per-class 5 --size-px 1", "reads images of 4 px or more"),
    ],
)
def test_what_cannot_be_drawn_or_scored_is_refused(tmp_path: Path, arguments: str, message: str) -> None:
    refused(recipe(*SMALL, *RANDOM, arguments, "--out", tmp_path), message)


def test_one_class_is_refused_and_uneven_and_missing_labels_are_told(tmp_path: Path) -> None:
    one, uneven, val = tmp_path / "one.beton", tmp_path / "uneven.beton", tmp_path / "val.beton"
    write_labelled(one, [0] * 6, ["a"])
    write_labelled(uneven, [0, 0, 0, 1, 1, -1] * 2, ["a", "b"])
    write_labelled(val, [0, 1, -1, 1], ["a", "b"])
    command = (*SMALL, *RANDOM, "--labels-per-class 2 --draws 1 --data")
    refused(
        recipe(*command, one, "--val", one, "--out", tmp_path / "x"), "the data has 1 class, and a classifier"
    )
    out = recipe(*command, uneven, "--val", val, "--out", tmp_path / "y").ok().out
    assert "classes have 4 to 6 training images: each gives equally many" in out
    assert "2 of 12 training images without a label are not drawn" in out
    assert "1 of 4 validation images without a label is not scored" in out
    record = result(tmp_path / "y")
    assert record["numbers"]["top1_2"] in (0, 33.3333, 66.6667, 100)
    with Beton(uneven) as data:  # its first four images are those to score
        num_shared = int((draw_few(data, (2,), 1, 0).pool.indices < 4).sum())
    assert num_shared and record["settings"]["shared_images"] == num_shared
    assert f"{num_shared} of 4 validation images" in out


def test_the_call_returns_the_numbers(tmp_path: Path) -> None:
    numbers = fastpsl.evaluate.few_labels(
        None, labels_per_class=(2,), draws=1, random_weights=True, backbone="nin3", size_px=32, workers=1,
        out=tmp_path,
    )  # fmt: skip
    assert numbers == result(tmp_path)["numbers"] and 0 < numbers["top1_2"] < 100
