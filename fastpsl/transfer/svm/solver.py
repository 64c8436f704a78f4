"""Linear SVMs of one class on frozen features: the cost chosen by cross-validation, or of few shots (VISSL's; Goyal et al., section 6.1).

One class of one block is one task, whose outcome is a small file; `work.py` runs many of them.

The solver sees nothing of features but their inner products, so it is given samples in a basis of their own span (`in_own_span`): the same
iterations, and the same SVM but for rounding, in a fraction of the time. Measured on 240 samples of 9,216 features: 0.01 s, not 0.7.
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

# scikit-learn and SciPy are imported where they are used: that takes a second.

_ROWS = 256  # of test features at a time


@dataclass(frozen=True)
class OneClass:
    """One class on one block.

    train, test: features [N, D]. train_targets, test_targets: int8 [N], 1 there, 0 not, -1 only difficult ones (in test also: not
    decoded). number: of the class,
    among `num_classes`. shots: numbers of positives of low-shot learning; none: all of `train`, the cost by cross-validation.
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
        """Of the n pictures that could be decoded: normalised features as `in_own_span` has them, and targets [n]."""
        record = self.train.record
        rows, basis = _train_rows(
            self.train.path, record["digest"], tuple(record["bad"]), self.protocol.norm_epsilon
        )
        return rows, basis, np.delete(self.train_targets, record["bad"])

    def outcome(self) -> dict[str, Any]:
        """Plain values: `cross_validated`'s or `low_shot`'s."""
        return low_shot(self) if self.shots else cross_validated(self)


def cross_validated(task: OneClass) -> dict[str, Any]:
    """The cost with the highest mean AP over the folds (of equal ones the smallest), and what an SVM of it, learned from all of train, has on test.

    Folds are stratified and not shuffled, their AP is scikit-learn's (by steps, not interpolated): `cross_val_score(cv=3,
    scoring="average_precision")`, as VISSL calls it. Difficult ones are negatives here, and left out in the test. "ap" in [0, 1].
    """
    from sklearn.metrics import average_precision_score
    from sklearn.model_selection import StratifiedKFold

    features, basis, targets = task.train_rows()
    signs = np.where(targets == 1, 1, -1)
    aps = np.empty((len(task.costs), task.protocol.folds))
    fits = _Fits(task)
    for fold, (rows, held_out) in enumerate(StratifiedKFold(task.protocol.folds).split(signs, signs)):
        part, truth = features[rows], signs[held_out] == 1
        for number, cost in enumerate(task.costs):
            machine = fits(part, signs[rows], cost)
            aps[number, fold] = average_precision_score(truth, machine.decision_function(features[held_out]))
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
    """ "aps": of each sample, number of shots and cost, the AP in [0, 1] on test, where difficult ones are left out."""
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
    """Rows of k positives and (num_classes - 1) * k negatives of a class, drawn without replacement, and their signs 1 and -1.

    As VISSL draws them, anew for each k, and never of difficult ones (-1 in `targets`).
    """
    random = np.random.default_rng((*seed, k))
    numbers = {1: k, 0: (num_classes - 1) * k}
    rows = [
        random.choice(np.flatnonzero(targets == value), num, replace=False) for value, num in numbers.items()
    ]
    return np.concatenate(rows), np.repeat([1, -1], [len(part) for part in rows])


class _Fits:
    """`fits(features, signs, cost)` is a fitted machine; counts those, and which of them came to the end of their iterations."""

    def __init__(self, task: OneClass):
        self._machine, self._seed = task.protocol.machine, task.seed
        self.num = self.num_not_converged = 0

    def __call__(self, features: np.ndarray, signs: np.ndarray, cost: float) -> "LinearSVC":
        import warnings

        from sklearn.exceptions import ConvergenceWarning
        from sklearn.svm import LinearSVC

        chosen = self._machine
        machine = LinearSVC(
            C=cost, loss=chosen.loss, penalty=chosen.penalty, dual=chosen.dual, tol=chosen.tolerance,
            max_iter=chosen.max_iterations, class_weight={1: chosen.positive_weight, -1: 1.0}, random_state=self._seed,
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # counted instead
            machine.fit(features, signs)
        self.num += 1
        self.num_not_converged += int(np.max(machine.n_iter_) >= chosen.max_iterations)
        return machine


def l2_normalised(features: np.ndarray, epsilon: float) -> np.ndarray:
    """Rows [N, D] divided by their L2 norm and `epsilon`, in float64."""
    rows = np.array(features, np.float64, order="C")
    rows /= np.linalg.norm(rows, axis=1, keepdims=True) + epsilon
    return rows


def in_own_span(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows [n, D] as coordinates [n, min(n, D)] and the orthonormal basis [D, min(n, D)], of which they are the products.

    By QR of the transpose, so that the coordinates are triangular: the solver passes over zeros. It overwrites `features`.
    """
    from scipy.linalg import qr

    basis, coordinates = qr(features.T, overwrite_a=True, mode="economic", check_finite=False)
    return np.ascontiguousarray(coordinates.T), basis


@functools.lru_cache(maxsize=1)
def _train_rows(
    path: Path, digest: str, bad: tuple[int, ...], epsilon: float
) -> tuple[np.ndarray, np.ndarray]:
    """`in_own_span` of a file, for all classes of a block in turn; of VOC2007's trainval 0.6 GB."""
    features = np.load(path, mmap_mode="r")
    return in_own_span(l2_normalised(np.delete(features, bad, 0) if bad else features, epsilon))


def _decisions(weights: np.ndarray, intercepts: np.ndarray, task: OneClass) -> np.ndarray:
    """Float64 [N, m]: signed distances of all samples of test from m SVMs, weights [D, m]."""
    features, epsilon = task.test.features(), task.protocol.norm_epsilon
    parts = (
        l2_normalised(features[start : start + _ROWS], epsilon) for start in range(0, len(features), _ROWS)
    )
    return np.concatenate([rows @ weights + intercepts for rows in parts])
