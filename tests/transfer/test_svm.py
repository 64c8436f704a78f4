"""Test SVMs on frozen features: average precision, VISSL's protocol, and files of several processes."""

import itertools
import json
import multiprocessing
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score
from sklearn.model_selection import cross_val_score
from sklearn.svm import LinearSVC

from fastpsl.evaluation.feature_file import FeatureFile
from fastpsl.evaluation.outcomes import in_own_span, run_resumable
from fastpsl.transfer.svm import svm
from fastpsl.transfer.svm.svm import (
    COSTS,
    VISSL,
    Classes,
    OneClass,
    cross_validated,
    few,
    interpolated_ap,
    l2_normalised,
    low_shot_scores,
    solve,
)
from tests.engine.tiny import one_process
from tests.transfer.threads import Failing


def devkit_ap(targets: Sequence[int], scores: Sequence[float]) -> float:
    """Return the AP of scores without ties: the highest precision at each or a higher recall, in loops."""
    ranked = [t for _, t in sorted(zip(scores, targets, strict=True), reverse=True) if t >= 0]
    points, right = [], 0
    for rank, target in enumerate(ranked, start=1):
        right += target
        points.append((right / sum(ranked), right / rank))
    area, before = 0.0, 0.0
    for recall, _ in points:
        area += (recall - before) * max(p for r, p in points if r >= recall)
        before = recall
    return area


@pytest.mark.parametrize(
    ("targets", "scores", "expected"),
    [
        ([1, 1, 0, 0], [4, 3, 2, 1], 1.0),
        ([0, 0, 1], [3, 2, 1], 1 / 3),
        # The precisions at the positives are 1/1, 2/4 and 3/5. At a recall of 2/3 that of recall 1 is higher.
        ([1, 0, 0, 1, 1], [5, 4, 3, 2, 1], 1 / 3 + 2 / 3 * 3 / 5),
        # A difficult image at the top does not count.
        ([-1, 1, 0, 1], [9, 3, 2, 1], 1 / 2 + 1 / 2 * 2 / 3),
        # Two images are tied at the top, one of them right. Both enter at once with a precision of 1/2, then
        # 2/3.
        ([1, 0, 1], [2, 2, 1], 2 / 3),
        ([0, 1, 1], [2, 2, 1], 2 / 3),
        ([1, 0, 0, 0], [1, 1, 1, 1], 1 / 4),  # if all are tied it is the frequency
        ([1, 1], [1, 2], 1.0),
    ],
)
def test_interpolated_ap_by_hand(targets: list[int], scores: list[float], expected: float) -> None:
    assert interpolated_ap(np.array(targets, np.int8), np.array(scores, float)) == pytest.approx(expected)


def test_interpolated_ap_of_random_rankings_and_of_a_class_without_positives() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        targets = random.integers(-1, 2, 60)
        scores = random.permutation(60).astype(float)
        result = interpolated_ap(targets.astype(np.int8), scores)
        assert result == pytest.approx(devkit_ap(targets.tolist(), scores.tolist()))
        counted = targets >= 0
        assert result >= average_precision_score(targets[counted], scores[counted])
    with pytest.raises(AssertionError, match="without positives"):
        interpolated_ap(np.array([0, -1, 0], np.int8), np.zeros(3))


def test_low_shot_scores_by_hand() -> None:
    """Two classes and samples have means of .3 and .5 at the first cost, and .6 and .7 at the second."""
    aps = np.array([[[[0.2, 0.7]], [[0.4, 0.8]]], [[[0.4, 0.5]], [[0.6, 0.6]]]])
    assert low_shot_scores(aps, (4,)) == {4: (pytest.approx(65.0), pytest.approx(5.0))}
    uneven = np.array([[[[0.9, 0.6]], [[0.1, 0.6]]]])  # the first cost is best on one sample, not on both
    assert low_shot_scores(uneven, (4,)) == {4: (pytest.approx(60.0), pytest.approx(0.0))}
    equal = np.repeat(aps[..., :1], 2, -1)
    assert low_shot_scores(equal, (4,)) == {4: (pytest.approx(40.0), pytest.approx(10.0))}


def test_l2_normalised_by_hand() -> None:
    result = l2_normalised(np.array([[3, 4], [0, 0]], np.float16), 1e-5)
    assert result.dtype == np.float64
    assert result.tolist() == [[3 / (5 + 1e-5), 4 / (5 + 1e-5)], [0.0, 0.0]]


@pytest.mark.parametrize("shape", [(7, 30), (30, 7), (1, 5), (9, 9)])
def test_rows_in_their_own_span(shape: tuple[int, int]) -> None:
    features = np.random.default_rng(0).normal(size=shape)
    rows, basis = in_own_span(features.copy())
    assert rows.shape == (shape[0], min(shape)) and basis.shape == (shape[1], min(shape))
    np.testing.assert_allclose(rows @ basis.T, features, atol=1e-12)
    np.testing.assert_allclose(rows @ rows.T, features @ features.T, atol=1e-12)
    assert (np.triu(rows, 1) == 0).all()


NUM_CLASSES = 3
COSTS_TRIED = (0.1, 1.0, 10.0)


def one_class(
    folder: Path,
    *,
    margin: float,
    bad: Sequence[int] = (),
    shuffled: bool = False,
    difficult: bool = True,
    num: int = 120,
    width: int = 200,
) -> OneClass:
    """Return the task of a class of 30 % of the images, `margin` away; every seventh image is difficult."""
    random = np.random.default_rng(0)
    direction, files, targets = random.normal(size=width), [], []
    for name in ("train", "test"):
        is_positive = (random.random(num) < 0.3).astype(np.int8)
        rows = np.abs(random.normal(size=(num, width)) + margin * is_positive[:, None] * direction + 3)
        labels = np.random.default_rng(5).permutation(is_positive) if shuffled else is_positive
        hard = difficult & (np.arange(num) % 7 == 3)
        targets.append(np.where(hard, np.int8(-1), labels).astype(np.int8))
        rows[list(bad)] = np.nan
        np.save(folder / f"{name}.npy", rows.astype(np.float32))
        files.append(FeatureFile(folder / f"{name}.npy", {"digest": f"{folder}", "bad": list(bad)}))
    targets[1][list(bad)] = -1
    return OneClass(*files, *targets, 1, NUM_CLASSES, COSTS_TRIED, VISSL, 0)  # type: ignore[arg-type, call-arg]


def plain_svc(cost: float) -> LinearSVC:
    return LinearSVC(
        C=cost, class_weight={1: 2, -1: 1}, tol=1e-4, max_iter=2000, dual=True, loss="squared_hinge",
        penalty="l2", random_state=0,
    )  # fmt: skip


def normalised_by_hand(file: FeatureFile) -> np.ndarray:
    rows = [row.astype(float) for row in np.load(file.path)]
    return np.array([row / (sum(value * value for value in row) ** 0.5 + 1e-5) for row in rows])


def test_cross_validation_is_vissls(tmp_path: Path) -> None:
    """Compare with cross_val_score(cv=3) of a plain LinearSVC, with difficult images as negatives."""
    work = one_class(tmp_path, margin=0.1)
    train, test = (normalised_by_hand(file) for file in (work.train, work.test))
    signs = np.where(work.train_targets == 1, 1, -1)
    assert (work.train_targets == -1).sum() > 5
    score: Any = partial(cross_val_score, cv=3, scoring="average_precision")
    means = [score(plain_svc(cost), train, signs).mean() for cost in COSTS_TRIED]
    outcome = work.outcome()
    assert outcome["cross_validated"] == pytest.approx(means, abs=1e-9) and len(set(means)) > 1
    assert outcome["cost"] == COSTS_TRIED[int(np.argmax(means))]
    scores = plain_svc(outcome["cost"]).fit(train, signs).decision_function(test)
    assert outcome["ap"] == pytest.approx(devkit_ap(work.test_targets.tolist(), scores.tolist()), abs=1e-9)
    assert (outcome["fits"], outcome["not_converged"]) == (3 * 3 + 1, 0)


def test_of_equally_good_costs_the_smallest(tmp_path: Path) -> None:
    """Check a class that every cost separates, for two orders of the costs."""
    for costs in ((1.0, 0.1, 10.0), (10.0, 1.0, 0.1)):
        outcome = replace(one_class(tmp_path, margin=3.0, difficult=False), costs=costs).outcome()
        assert outcome["cross_validated"] == [1.0] * 3
        assert outcome["cost"] == 0.1 and outcome["ap"] == pytest.approx(1.0)


def test_shuffled_targets_have_the_classes_frequency(tmp_path: Path) -> None:
    work = one_class(tmp_path, margin=3.0, difficult=False, shuffled=True)
    test = work.test_targets[work.test_targets >= 0]
    assert work.outcome()["ap"] < (test == 1).mean() + 0.15


def test_images_that_could_not_be_decoded_are_left_out(tmp_path: Path) -> None:
    work = one_class(tmp_path, margin=0.1, bad=(2, 50))
    rows, _, targets = work.train_rows()
    assert len(rows) == len(targets) == 118 and np.isfinite(rows).all()
    train = np.delete(normalised_by_hand(work.train), [2, 50], 0)
    np.testing.assert_allclose(rows @ rows.T, train @ train.T, atol=1e-12)
    assert targets.tolist() == np.delete(work.train_targets, [2, 50]).tolist()
    assert 0.3 < work.outcome()["ap"] <= 1


def test_images_of_the_test_that_could_not_be_decoded_are_not_scored(tmp_path: Path) -> None:
    work, bad = one_class(tmp_path, margin=0.1, bad=(4, 9)), [4, 9]
    labels = work.test_targets.copy()
    labels[bad] = 1, 0
    classes = Classes(("one",), (0,), (), work.train_targets[:, None], labels[:, None])
    files = {"B1": (work.train, work.test)}
    outcomes = solve(tmp_path, files, classes, VISSL, COSTS_TRIED, (), 0, 1, one_process())
    assert outcomes is not None and labels[bad].tolist() == [1, 0]
    assert outcomes["B1"]["one"]["ap"] == pytest.approx(work.outcome()["ap"], abs=1e-12)


def test_machines_that_do_not_converge_are_counted_and_not_spoken_of(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    short = replace(VISSL, machine=replace(VISSL.machine, max_iterations=3))
    task = replace(one_class(tmp_path, margin=0.1), costs=(0.001, 100.0), protocol=short)
    (outcome,) = run_resumable({tmp_path / "outcome.json": task}, 1, one_process(), "classes") or []
    assert outcome["fits"] == 7 and 3 <= outcome["not_converged"] <= 7 and not list(recwarn)


def test_a_few_of_each_are_vissls(tmp_path: Path) -> None:
    """Check k positives and (classes - 1) * k negatives, drawn anew for each sample and k."""
    targets = np.random.default_rng(1).integers(-1, 2, 300).astype(np.int8)
    drawn = {}
    for (k, num_classes), sample in itertools.product(((1, 20), (4, 4), (8, 4)), range(3)):
        rows, signs = few(targets, k, num_classes, (0, sample, 5))
        assert signs.tolist() == [1] * k + [-1] * (num_classes - 1) * k
        assert (targets[rows] == (signs == 1)).all() and len(set(rows.tolist())) == len(rows)
        drawn[k, sample] = tuple(rows.tolist())
    assert len(set(drawn.values())) == 9
    again, _ = few(targets, 8, 4, (0, 2, 5))
    assert tuple(again.tolist()) == drawn[8, 2]


def test_each_number_of_shots_has_draws_of_its_own() -> None:
    """They do not begin with those of fewer shots, as one generator's would."""
    targets = np.array([1, 0, 0, -1] * 50, np.int8)
    for k in (1, 2, 4):
        random, (rows, signs) = np.random.default_rng((7, 3, 5, k)), few(targets, k, 4, (7, 3, 5))
        pairs = ((1, k), (0, 3 * k))
        drawn = [random.choice(np.flatnonzero(targets == value), num, False) for value, num in pairs]
        assert rows.tolist() == np.concatenate(drawn).tolist() and signs.tolist() == [1] * k + [-1] * 3 * k


def test_folds_and_tolerance_are_the_protocols(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit, fitted = LinearSVC.fit, list[tuple[float, int]]()

    def note(machine: LinearSVC, *arguments: Any) -> LinearSVC:
        fitted.append((machine.tol, len(arguments[0])))
        return fit(machine, *arguments)

    monkeypatch.setattr(LinearSVC, "fit", note)
    machine = replace(VISSL.machine, tolerance=0.05)
    protocol = replace(VISSL, folds=2, machine=machine)
    work = replace(one_class(tmp_path, margin=0.3), costs=(1.0,), protocol=protocol)
    num = len(work.train_targets)
    assert cross_validated(work)["fits"] == 3
    assert fitted == [(0.05, num // 2), (0.05, num // 2), (0.05, num)]


def test_low_shot_is_plain_svms_of_the_drawn(tmp_path: Path) -> None:
    work = replace(one_class(tmp_path, margin=0.4), shots=(2, 5), costs=(0.1, 10.0))
    outcome = work.outcome()
    aps = np.array(outcome["aps"])
    assert aps.shape == (5, 2, 2) and outcome["fits"] == 20
    train, test = (normalised_by_hand(file) for file in (work.train, work.test))
    for sample, (i, k), (j, cost) in itertools.product(range(5), enumerate((2, 5)), enumerate((0.1, 10.0))):
        rows, signs = few(work.train_targets, k, NUM_CLASSES, (0, sample, 1))
        scores = plain_svc(cost).fit(train[rows], signs).decision_function(test)
        expected = devkit_ap(work.test_targets.tolist(), scores.tolist())
        assert aps[sample, i, j] == pytest.approx(expected, abs=1e-9)
    assert aps[:, 1].mean() > aps[:, 0].mean()


def tasks_of(folder: Path, work: OneClass) -> dict[Path, OneClass]:
    return {folder / "svm" / f"{seed}.json": replace(work, seed=seed) for seed in range(4)}


def test_outcomes_are_made_once_and_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pieces = tasks_of(tmp_path, one_class(tmp_path, margin=0.1))
    fit, fitted = LinearSVC.fit, []

    def counted(machine: LinearSVC, *arguments: Any) -> LinearSVC:
        fitted.append(machine)
        if len(fitted) == 25:  # in the middle of the third task
            raise KeyboardInterrupt
        return fit(machine, *arguments)

    monkeypatch.setattr(LinearSVC, "fit", counted)
    with pytest.raises(KeyboardInterrupt):
        run_resumable(pieces, 1, one_process(), "classes")
    assert sorted(path.name for path in (tmp_path / "svm").iterdir()) == ["0.json", "1.json"]
    fitted.clear()
    fitted.extend([None] * 100)  # so that the interruption does not come again
    outcomes = run_resumable(pieces, 1, one_process(), "classes")
    assert len(fitted) - 100 == 2 * 10
    assert outcomes == [json.loads(path.read_text()) for path in pieces]
    assert run_resumable(pieces, 1, one_process(), "classes") == outcomes and len(fitted) - 100 == 2 * 10


@pytest.mark.slow
def test_bytes_are_those_of_one_process(tmp_path: Path) -> None:
    work, files = one_class(tmp_path, margin=0.1), []
    for num in (1, 2):
        pieces = tasks_of(tmp_path / str(num), work)
        assert run_resumable(pieces, num, one_process(), "classes") is not None
        files.append([path.read_bytes() for path in pieces])
    assert files[0] == files[1] and len(set(files[0])) > 1
    assert not multiprocessing.active_children()


def test_ranks_share_all_of_it_whoever_comes_first(tmp_path: Path) -> None:
    """Run three ranks one after another; the last is rank 0, which waits for the files of the others."""
    work = one_class(tmp_path, margin=0.1)
    pieces, alone = tasks_of(tmp_path / "ranks", work), tasks_of(tmp_path / "alone", work)
    for rank in (2, 1):
        world = replace(one_process(), rank=rank, size=3)
        assert run_resumable(pieces, 1, world, "classes") is None
    assert len(list((tmp_path / "ranks" / "svm").iterdir())) == 3
    outcomes = run_resumable(pieces, 1, replace(one_process(), size=3), "classes")
    assert outcomes == run_resumable(alone, 1, one_process(), "classes")


@pytest.mark.slow
def test_a_process_that_is_ended_and_one_that_fails(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.json" for i in range(3)]
    with pytest.raises(ValueError, match="one of 2 processes was ended from outside.*fewer --workers"):
        run_resumable(dict.fromkeys(paths, Failing(True)), 2, one_process(), "classes")
    with pytest.raises(OSError, match="no such features"):
        run_resumable(dict.fromkeys(paths, Failing(False)), 2, one_process(), "classes")
    assert not list(tmp_path.iterdir()) and not multiprocessing.active_children()


def test_the_protocol_is_the_published_one() -> None:
    """Compare with VISSL's eval_resnet_8gpu_transfer_voc07_svm and svm_trainer.py."""
    assert COSTS["vissl"] == (0.01, 0.1, 1, 2, 5, 10, 15, 20, 50, 100, 1000)
    assert COSTS["fsb"] == pytest.approx([10.0**power for power in range(-7, 3)])
    machine = VISSL.machine
    assert (machine.loss, machine.penalty, machine.dual, machine.positive_weight) == (
        "squared_hinge", "l2", True, 2.0,
    )  # fmt: skip
    assert (machine.tolerance, machine.max_iterations, VISSL.folds, VISSL.num_samples) == (1e-4, 2000, 3, 5)
    assert (VISSL.train, VISSL.test, VISSL.norm_epsilon) == (("2007_trainval",), ("2007_test",), 1e-5)
    assert [pool.window for pool in VISSL.pools] == [
        (112, 10, 10, 4), (56, 16, 8, 0), (28, 13, 5, 0), (14, 8, 3, 0), (7, 6, 1, 0),
    ]  # fmt: skip


def images_of(split: str, num_with: int, num_without: int, num_difficult: int = 0) -> Any:
    """Return a data set of three classes; the first is in `num_with` images, the others in many."""
    first = np.repeat([1, 0, -1], [num_with, num_without, num_difficult])
    others = np.arange(len(first)) % 2
    targets = np.stack([first, others, 1 - others], 1).astype(np.int8)
    return SimpleNamespace(class_names=["a", "b", "c"], targets=lambda: targets, split=split)


def test_the_number_of_shots_that_can_be_drawn_is_told() -> None:
    """Two negatives are drawn for each positive: 17 give 8 shots, and 7 positives give 7."""
    test = images_of("test", 5, 5)
    for num_with, num_without, most in ((12, 17, 8), (7, 30, 7)):
        train = images_of("trainval", num_with, num_without, 3)
        assert Classes.of(train, test, VISSL, (1, most)).numbers == (0, 1, 2)
        message = rf"--shots {most + 1}: .* {2 * (most + 1)} are drawn; give up to {most} shots"
        with pytest.raises(ValueError, match=message):
            Classes.of(train, test, VISSL, (1, most + 1))


def test_outcomes_are_of_their_settings_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other seeds, shots, costs, protocols, features and bad images have other files."""
    asked: list[dict[Path, OneClass]] = []

    def noted(tasks: dict[Path, OneClass], *_: Any) -> None:
        asked.append(tasks)

    monkeypatch.setattr(svm, "run_resumable", noted)
    targets = np.arange(12).reshape(4, 3).astype(np.int8) % 2
    classes = Classes(("b", "c"), (1, 2), ("a",), targets, 1 - targets)
    features = {
        name: FeatureFile(tmp_path / name, {"digest": name, "bad": [0] if name == "broken" else []})
        for name in ("train", "test", "other", "broken")
    }
    same: dict[str, Any] = {
        "train": "train", "test": "test", "protocol": VISSL, "costs": (1.0, 2.0), "shots": (1, 2), "seed": 3,
    }  # fmt: skip
    changes: tuple[dict[str, Any], ...] = (
        {}, {"seed": 4}, {"shots": (1,)}, {"costs": (1.0,)}, {"train": "other"}, {"test": "other"},
        {"test": "broken"}, {"protocol": replace(VISSL, folds=4)}, {},
    )  # fmt: skip
    for change in changes:
        chosen = same | change
        files = features[chosen["train"]], features[chosen["test"]]
        settings = chosen["protocol"], chosen["costs"], chosen["shots"], chosen["seed"]
        assert solve(tmp_path, {"B2": files}, classes, *settings, 1, one_process()) is None
    folders = [{path.parent for path in tasks} for tasks in asked]
    assert folders[0] == folders[-1] and all(len(each) == 1 for each in folders)
    assert len(set().union(*folders)) == len(changes) - 1
    assert [path.name for path in asked[0]] == ["001.json", "002.json"]
    task = list(asked[0].values())[1]
    # The draws of negatives count all classes, also those that no test image shows.
    assert (task.number, task.num_classes, task.costs, task.shots, task.seed) == (2, 3, (1.0, 2.0), (1, 2), 3)
    assert task.train_targets.tolist() == targets[:, 2].tolist()
    assert task.test_targets.tolist() == (1 - targets[:, 2]).tolist()


def test_fits_that_were_stopped_are_told() -> None:
    outcomes: dict[str, Any] = {
        "B1": {"a": {"ap": 0.5, "cost": 1.0, "fits": 1000, "not_converged": 700}},
        "B2": {"a": {"ap": 0.25, "cost": 2.0, "fits": 500, "not_converged": 501}},
    }
    assert svm.details_of(outcomes) == {
        "fits": 1500, "not_converged": 1201, "chosen_costs": {"B1": {"a": 1.0}, "B2": {"a": 2.0}},
    }  # fmt: skip
    targets = np.array([[1], [0], [0], [-1]], np.int8)
    classes = Classes(("a",), (0,), (), targets, targets)
    numbers = svm.numbers_of(outcomes, ())
    assert numbers == {"mAP_B1": 50.0, "mAP_B2": 25.0, "mAP": 50.0, "AP_a_B1": 50.0, "AP_a_B2": 25.0}
    lines = svm.score_lines(numbers, classes, outcomes, ())
    assert lines[0] == "1 classes, 1,500 SVMs of 4 images, scored on 4; by chance 33.3 %"
    assert lines[-1].startswith("1,201 of 1,500 SVMs were stopped")
