"""Fit the linear SVMs of one class on frozen features.

The cost is chosen by cross-validation, or the SVMs learn from a few shots (VISSL; Goyal et al., section 6.1).
One class of one block is one task, and its outcome is a small file; `work.py` runs many of them.

The solver uses only inner products of features. It therefore gets samples in a basis of their span
(`in_own_span`). That gives the same iterations and the same SVM except for rounding, in a fraction of the
time. Measured on 240 samples of 9,216 features: 0.01 s instead of 0.7 s.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastpsl.evaluation.feature_file import FeatureFile
from fastpsl.transfer.svm.protocol import SvmProtocol
from fastpsl.transfer.svm.scores import interpolated_ap

if TYPE_CHECKING:
    from sklearn.svm import LinearSVC

# scikit-learn and SciPy are imported where they are used, because the import takes a second.

_ROWS = 256  # test features at a time


@dataclass(frozen=True)
class OneClass:
    """A task: the SVMs of one class on one block.

    Attributes:
        train: Features of the training images [N, D].
        test: Features of the test images [N, D].
        train_targets: int8 [N]: 1 if the class is in the image, 0 if not, -1 if only difficult objects are.
        test_targets: The same of the test images, and -1 for images that could not be decoded.
        number: Number of the class.
        num_classes: Number of all classes.
        costs: Costs to choose from.
        protocol: The protocol.
        seed: Seed of the solver and of the draws.
        shots: Numbers of positives for low-shot learning. Without any, the SVMs learn from all of `train`.
    """

    train: FeatureFile
    test: FeatureFile
    train_targets: np.ndarray
    test_targets: np.ndarray
    number: int
    num_classes: int
    costs: tuple[float, ...]
    protocol: SvmProtocol
    seed: int
    shots: tuple[int, ...] = ()

    def train_rows(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return what the SVMs learn from.

        Returns:
            The normalised features of the n images that could be decoded, as coordinates and basis
            (`in_own_span`), and their targets [n].
        """
        record = self.train.record
        rows, basis = _train_rows(
            self.train.path, record["digest"], tuple(record["bad"]), self.protocol.norm_epsilon
        )
        return rows, basis, np.delete(self.train_targets, record["bad"])

    def outcome(self) -> dict[str, Any]:
        """Return the result of `cross_validated` or `low_shot`, as plain values."""
        return low_shot(self) if self.shots else cross_validated(self)


def cross_validated(task: OneClass) -> dict[str, Any]:
    """Choose the cost by cross-validation and score an SVM that learns from all of `train` on `test`.

    The cost has the highest mean AP over the folds, and is the smallest of equal ones. Folds are stratified
    and not shuffled. Their AP is scikit-learn's, by steps and not interpolated: `cross_val_score(cv=3,
    scoring="average_precision")`, as VISSL calls it. Difficult images are negatives here and are left out of
    the test.

    Args:
        task: The class and block.

    Returns:
        "ap" in [0, 1], the chosen "cost", the means of AP by cost and the numbers of fits.
    """
    from sklearn.metrics import average_precision_score
    from sklearn.model_selection import StratifiedKFold

    features, basis, targets = task.train_rows()
    signs = np.where(targets == 1, 1, -1)
    aps = np.empty((len(task.costs), task.protocol.folds))
    fits = _Fits(task)
    for fold, (rows, val) in enumerate(StratifiedKFold(task.protocol.folds).split(signs, signs)):
        part, truth = features[rows], signs[val] == 1
        for number, cost in enumerate(task.costs):
            machine = fits(part, signs[rows], cost)
            aps[number, fold] = average_precision_score(truth, machine.decision_function(features[val]))
    means = aps.mean(1)
    best = min(cost for cost, mean in zip(task.costs, means, strict=True) if mean == means.max())
    machine = fits(features, signs, best)
    scores = _decisions(basis @ machine.coef_.T, machine.intercept_, task)[:, 0]
    return {
        "ap": interpolated_ap(task.test_targets, scores),
        "cost": best,
        "cross_validated": means.tolist(),
        "fits": fits.num,
        "not_converged": fits.num_not_converged,
    }


def low_shot(task: OneClass) -> dict[str, Any]:
    """Score SVMs that learn from few images on `test`, where difficult images are left out.

    Args:
        task: The class and block.

    Returns:
        "aps" in [0, 1] by sample, number of shots and cost, and the numbers of fits.
    """
    features, basis, targets = task.train_rows()
    fits, weights, intercepts = _Fits(task), [], []
    for sample in range(task.protocol.num_samples):
        for k in task.shots:
            rows, signs = few(targets, k, task.num_classes, (task.seed, sample, task.number))
            part, part_basis = in_own_span(features[rows])
            machines = [fits(part, signs, cost) for cost in task.costs]
            weights += [part_basis @ machine.coef_[0] for machine in machines]
            intercepts += [machine.intercept_[0] for machine in machines]
    scores = _decisions(basis @ np.stack(weights, 1), np.array(intercepts), task)
    aps = np.array([interpolated_ap(task.test_targets, column) for column in scores.T])
    shape = (task.protocol.num_samples, len(task.shots), len(task.costs))
    return {
        "aps": aps.reshape(shape).tolist(),
        "fits": fits.num,
        "not_converged": fits.num_not_converged,
    }


def few(targets: np.ndarray, k: int, num_classes: int, seed: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Draw k positives and (num_classes - 1) * k negatives of a class without replacement, as VISSL does.

    They are drawn anew for each k. Difficult images (-1) are never drawn.

    Args:
        targets: int8 [N], as in `OneClass`.
        k: Number of positives.
        num_classes: Number of all classes.
        seed: Seed of the draws.

    Returns:
        The rows, and their signs 1 and -1.
    """
    random = np.random.default_rng((*seed, k))
    numbers = {1: k, 0: (num_classes - 1) * k}
    rows = [
        random.choice(np.flatnonzero(targets == value), num, replace=False) for value, num in numbers.items()
    ]
    return np.concatenate(rows), np.repeat([1, -1], [len(part) for part in rows])


class _Fits:
    """A callable that fits an SVM, and counts the SVMs and those that did not converge."""

    def __init__(self, task: OneClass):
        self._machine, self._seed = task.protocol.machine, task.seed
        self.num = self.num_not_converged = 0

    def __call__(self, features: np.ndarray, signs: np.ndarray, cost: float) -> "LinearSVC":
        import warnings

        from sklearn.exceptions import ConvergenceWarning
        from sklearn.svm import LinearSVC

        settings = self._machine
        machine = LinearSVC(
            C=cost, loss=settings.loss, penalty=settings.penalty, dual=settings.dual, tol=settings.tolerance,
            max_iter=settings.max_iterations, class_weight={1: settings.positive_weight, -1: 1.0},
            random_state=self._seed,
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # because they are counted
            machine.fit(features, signs)
        self.num += 1
        self.num_not_converged += int(np.max(machine.n_iter_) >= settings.max_iterations)
        return machine


def l2_normalised(features: np.ndarray, epsilon: float) -> np.ndarray:
    """Divide rows [N, D] by the sum of their L2 norm and `epsilon`, in float64."""
    rows = np.array(features, np.float64, order="C")
    rows /= np.linalg.norm(rows, axis=1, keepdims=True) + epsilon
    return rows


def in_own_span(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Write rows as products of coordinates and an orthonormal basis, by QR of the transpose.

    The coordinates are triangular, and the solver skips zeros.

    Args:
        features: Rows [n, D]; they are overwritten.

    Returns:
        The coordinates [n, min(n, D)] and the basis [D, min(n, D)].
    """
    from scipy.linalg import qr

    basis, coordinates = qr(features.T, overwrite_a=True, mode="economic", check_finite=False)
    return np.ascontiguousarray(coordinates.T), basis


@functools.lru_cache(maxsize=1)
def _train_rows(
    path: Path, digest: str, bad: tuple[int, ...], epsilon: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return `in_own_span` of a file, cached for all classes of a block; 0.6 GB for VOC2007's trainval."""
    features = np.load(path, mmap_mode="r")
    return in_own_span(l2_normalised(np.delete(features, bad, 0) if bad else features, epsilon))


def _decisions(weights: np.ndarray, intercepts: np.ndarray, task: OneClass) -> np.ndarray:
    """Return the signed distances, float64 [N, m], of all test samples from m SVMs with weights [D, m]."""
    features, epsilon = task.test.features(), task.protocol.norm_epsilon
    parts = (
        l2_normalised(features[start : start + _ROWS], epsilon) for start in range(0, len(features), _ROWS)
    )
    return np.concatenate([rows @ weights + intercepts for rows in parts])
