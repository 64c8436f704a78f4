"""One-versus-all linear SVMs on the features of blocks: protocols, solver and scores.

The protocol is VISSL's (Goyal et al. [23], whom PSL follows in section 4.4.2). Average precision is the
area under the interpolated precision-recall curve, as VISSL and the PASCAL devkit after 2009 define it.

The cost is chosen by cross-validation, or the SVMs learn from a few shots (VISSL; Goyal et al., section
6.1). One class of one block is one task. Its outcome is a small file that is not computed again.

The solver uses only inner products of features. It therefore gets samples in a basis of their span
(`in_own_span`). That gives the same iterations and the same SVM except for rounding, in a fraction of the
time. Measured on 240 samples of 9,216 features: 0.01 s instead of 0.7 s.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fastpsl.engine.distributed import World
from fastpsl.evaluation.feature_file import FeatureFile
from fastpsl.evaluation.features import Extraction
from fastpsl.evaluation.options import EvaluationOptions
from fastpsl.evaluation.outcomes import in_own_span, run_resumable
from fastpsl.evaluation.protocols import PROTOCOLS, Pool
from fastpsl.files.digest import sha256_of_json
from fastpsl.models.backbone import Backbone
from fastpsl.models.weights import Pretrained
from fastpsl.pipelines.datasets.voc.dataset import VOC

if TYPE_CHECKING:
    from sklearn.svm import LinearSVC

Costs = Literal["vissl", "fsb"]
# VISSL's, and the powers of ten of its predecessor, fair_self_supervision_benchmark.
COSTS: dict[Costs, tuple[float, ...]] = {
    "vissl": (0.01, 0.1, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 50.0, 100.0, 1000.0),
    "fsb": (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0),
}


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The settings of scikit-learn's LinearSVC that every SVM shares; a negative's cost has the weight 1."""

    loss: str = "squared_hinge"
    penalty: str = "l2"
    dual: bool = True
    positive_weight: float = 2.0
    tolerance: float = 1e-4
    max_iterations: int = 2000


@dataclass(frozen=True, kw_only=True)
class SvmProtocol:
    """A protocol of linear SVMs."""

    train: tuple[str, ...] = ("2007_trainval",)  # image sets to learn from (`pipelines.voc.VOC`)
    test: tuple[str, ...] = ("2007_test",)
    # "squashed": whole images are resized to squares, as by VISSL and its predecessor.
    crop: Literal["squashed"] = "squashed"
    pools: tuple[Pool, ...] = PROTOCOLS["vissl"].pools  # pools of B1, B2 and so on
    norm_epsilon: float = 1e-5  # added to a sample's L2 norm before its features are divided by it
    machine: Machine = Machine()  # settings of each SVM
    folds: int = 3  # folds of the cross-validation that chooses the cost
    num_samples: int = 5  # draws of low-shot learning for each number of shots
    average_precision: str = "area under the interpolated precision-recall curve"


VISSL = SvmProtocol()


def constants_of(protocol: SvmProtocol, costs: Costs) -> dict[str, Any]:
    """Return the values of the protocol and of the costs, for the settings of result.json."""
    return asdict(protocol) | {"cost_values": list(COSTS[costs])}


def interpolated_ap(targets: np.ndarray, scores: np.ndarray) -> float:
    """Return the average precision in [0, 1].

    The precision of a recall is the highest one at that or a higher recall. Samples of equal score enter
    together, so that their order does not matter. (VISSL orders them as its sort does.) A class without
    positives fails an assertion.
    """
    from sklearn.metrics import precision_recall_curve  # here, because the import takes a second

    counted = targets >= 0
    truth = targets[counted] > 0
    assert truth.any(), "a class without positives"
    precision, recall, _ = precision_recall_curve(truth, scores[counted])
    # The curve goes from recall 1 down to 0. Each point adds a step of recall at the highest precision so
    # far.
    return float(-np.sum(np.diff(recall) * np.maximum.accumulate(precision)[:-1]))


def low_shot_scores(aps: np.ndarray, shots: Sequence[int]) -> dict[int, tuple[float, float]]:
    """Compute mean AP and its standard deviation, in percent, for each number of shots at the best cost.

    `aps` is float [classes, samples, shots, costs] in [0, 1]. As in VISSL, the cost is chosen on the test set
    itself and is the same for all classes. It has the highest mean over classes and samples, and is the first
    of equal ones. The deviation is over the samples, and its variance divided by their number (ddof 0).
    """
    means = 100 * aps.mean(0)
    best = means.mean(0).argmax(1)
    return {
        k: (float(means[:, i, cost].mean()), float(means[:, i, cost].std()))
        for i, (k, cost) in enumerate(zip(shots, best, strict=True))
    }


# scikit-learn and SciPy are imported where they are used, because the import takes a second.

_ROWS = 256  # test features at a time


@dataclass(frozen=True)
class OneClass:
    """A task: the SVMs of one class on one block.

    Features are [N, D]. Targets are int8 [N]: 1 if the class is in the image, 0 if not, -1 if only difficult
    objects are. They are also -1 for test images that could not be decoded. `shots` are numbers of positives
    for low-shot learning. Without any, the SVMs learn from all of `train`.
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
        """Return what the SVMs learn from: coordinates, their basis and targets."""
        digest, bad = self.train.record["digest"], tuple(self.train.record["bad"])
        rows, basis = _train_rows(self.train.path, digest, bad, self.protocol.norm_epsilon)
        return rows, basis, np.delete(self.train_targets, bad)

    def outcome(self) -> dict[str, Any]:
        """Return the result of `cross_validated` or `low_shot`, as plain values."""
        return low_shot(self) if self.shots else cross_validated(self)


def cross_validated(task: OneClass) -> dict[str, Any]:
    """Choose the cost by cross-validation and score an SVM that learns from all of `train` on `test`.

    The cost has the highest mean AP over the folds, and is the smallest of equal ones. Folds are stratified
    and not shuffled. Their AP is scikit-learn's, by steps and not interpolated: `cross_val_score(cv=3,
    scoring="average_precision")`, as VISSL calls it. Difficult images are negatives here and are left out of
    the test. APs are in [0, 1].
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
        "ap": interpolated_ap(task.test_targets, scores), "cost": best, "cross_validated": means.tolist(),
        "fits": fits.num, "not_converged": fits.num_not_converged,
    }  # fmt: skip


def low_shot(task: OneClass) -> dict[str, Any]:
    """Score SVMs that learn from few images on `test`, where difficult images are left out.

    "aps" are in [0, 1], by sample, number of shots and cost.
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
    aps = aps.reshape(task.protocol.num_samples, len(task.shots), len(task.costs))
    return {"aps": aps.tolist(), "fits": fits.num, "not_converged": fits.num_not_converged}


def few(targets: np.ndarray, k: int, num_classes: int, seed: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Draw k positives and (num_classes - 1) * k negatives of a class without replacement, as VISSL does.

    They are drawn anew for each k. Difficult images (-1) are never drawn.
    """
    random = np.random.default_rng((*seed, k))
    nums = {1: k, 0: (num_classes - 1) * k}
    rows = [
        random.choice(np.flatnonzero(targets == value), num, replace=False) for value, num in nums.items()
    ]
    return np.concatenate(rows), np.repeat([1, -1], [len(part) for part in rows])


class _Fits:
    """A callable that fits an SVM, and counts the SVMs and those that did not converge."""

    def __init__(self, task: OneClass):
        self._machine, self._seed = task.protocol.machine, task.seed
        self.num = self.num_not_converged = 0

    def __call__(self, features: np.ndarray, signs: np.ndarray, cost: float) -> "LinearSVC":
        from sklearn.svm import LinearSVC

        settings = self._machine
        machine = LinearSVC(
            C=cost, loss=settings.loss, penalty=settings.penalty, dual=settings.dual, tol=settings.tolerance,
            max_iter=settings.max_iterations, class_weight={1: settings.positive_weight, -1: 1.0},
            random_state=self._seed,
        ).fit(features, signs)  # fmt: skip
        self.num += 1
        self.num_not_converged += int(np.max(machine.n_iter_) >= settings.max_iterations)
        return machine


def l2_normalised(features: np.ndarray, epsilon: float) -> np.ndarray:
    """Divide rows [N, D] by the sum of their L2 norm and `epsilon`, in float64."""
    rows = np.array(features, np.float64, order="C")
    rows /= np.linalg.norm(rows, axis=1, keepdims=True) + epsilon
    return rows


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
    starts = range(0, len(features), _ROWS)
    parts = (l2_normalised(features[start : start + _ROWS], epsilon) for start in starts)
    return np.concatenate([rows @ weights + intercepts for rows in parts])


Outcomes = dict[str, dict[str, dict[str, Any]]]
"""`OneClass.outcome` by block and class name."""


def blocks_of(backbone: Backbone, protocol: SvmProtocol) -> tuple[str, ...]:
    """Return the names of the blocks that the protocol has pools for: B1, B2 and so on.

    Raises:
        ValueError: If the backbone lacks some of them.
    """
    num = len(protocol.pools)
    if backbone.num_blocks < num:
        raise ValueError(
            f"{backbone.name} has the blocks B1 to B{backbone.num_blocks}, and this protocol scores B1 to "
            f"B{num}: give a backbone of {num} blocks or more"
        )
    return tuple(f"B{number}" for number in range(1, num + 1))


def extractions(
    options: EvaluationOptions, weights: Pretrained, data: VOC, protocol: SvmProtocol, world: World
) -> list[Extraction]:
    """Return an extraction of the pooled features, float32, for each of `blocks_of`."""
    assert protocol.crop == "squashed"
    blocks = blocks_of(weights.backbone, protocol)
    works = Extraction.for_blocks(options, weights, data, blocks, world, "float32", protocol.pools)
    return [replace(work, squashed=True) for work in works]


@dataclass(frozen=True)
class Classes:
    """The classes to score."""

    names: tuple[str, ...]  # names of the classes that a test image shows; the others have no AP
    numbers: tuple[int, ...]
    left_out: tuple[str, ...]  # names of the other classes
    train: np.ndarray  # labels of the training images, int8 [N, C], as `VOC.targets`
    test: np.ndarray  # labels of the test images, in the same form

    @classmethod
    def of(cls, train: VOC, test: VOC, protocol: SvmProtocol, shots: Sequence[int]) -> "Classes":
        """Read the classes of two data sets, for these numbers of shots, or none to learn from all images."""
        assert train.class_names is not None and train.class_names == test.class_names
        of_train, of_test = train.targets(), test.targets()
        shown = (of_test == 1).any(0)
        numbers = tuple(np.flatnonzero(shown).tolist())
        if not numbers:
            raise ValueError(f"no image of {test.split} shows a class: nothing can be scored")
        for number in numbers:
            _require_enough(
                of_train[:, number], train.class_names[number], train.split, protocol, shots, len(shown)
            )
        names, left_out = (
            tuple(np.array(train.class_names, object)[where].tolist()) for where in (shown, ~shown)
        )
        return cls(names, numbers, left_out, of_train, of_test)

    @property
    def frequency(self) -> float:
        """The mean share of positives in the test set, in percent, which is the AP of chance."""
        test = self.test[:, self.numbers]
        return float(100 * ((test == 1).sum(0) / (test >= 0).sum(0)).mean())


def _require_enough(
    targets: np.ndarray, name: str, split: str, protocol: SvmProtocol, shots: Sequence[int], num_classes: int
) -> None:
    num, num_without = int((targets == 1).sum()), int((targets == 0).sum())
    if shots and (max(shots) > num or max(shots) * (num_classes - 1) > num_without):
        most = min(num, num_without // max(1, num_classes - 1))
        raise ValueError(
            f"--shots {max(shots)}: {num:,} images of {split} show {name!r} and {num_without:,} do not "
            f"(difficult ones count for neither), and {max(shots)} and {max(shots) * (num_classes - 1):,} "
            f"are drawn; give {f'up to {most} shots' if most > 0 else 'data with more of both'}"
        )
    if not shots and min(num, len(targets) - num) < protocol.folds:
        raise ValueError(
            f"{num:,} of the {len(targets):,} images of {split} show {name!r}: a cross-validation of "
            f"{protocol.folds} folds needs {protocol.folds} that show it and {protocol.folds} that do not; "
            "add such images to the list"
        )


def solve(
    folder: Path,
    blocks: Mapping[str, tuple[FeatureFile, FeatureFile]],
    classes: Classes,
    protocol: SvmProtocol,
    costs: tuple[float, ...],
    shots: tuple[int, ...],
    seed: int,
    num_processes: int,
    world: World,
) -> Outcomes | None:
    """Fit the SVMs of each class on each block, or read their outcomes.

    An outcome is in folder/svm/<block>-<digest>/<class number>.json. It is not computed again for the same
    features and settings.

    Args:
        folder: The run's folder.
        blocks: Features of the training and test images for each block.
        classes: The classes.
        protocol: The protocol.
        costs: Costs to choose from.
        shots: Numbers of positives for low-shot learning; none to learn from all images.
        seed: Seed of the solver and of the draws.
        num_processes: Processes of this rank.
        world: The ranks that share the work.

    Returns:
        The outcomes on rank 0, None on the others.
    """
    import sklearn

    tasks: dict[Path, OneClass] = {}
    for block, (train, test) in blocks.items():
        settings = {
            "features": [train.record["digest"], test.record["digest"]],
            "bad": [train.record["bad"], test.record["bad"]],
            "costs": costs, "shots": shots, "seed": seed, "protocol": asdict(protocol),
            "scikit-learn": sklearn.__version__,
        }  # fmt: skip
        digest = sha256_of_json(settings)
        in_test = classes.test.copy()
        in_test[test.record["bad"]] = -1
        for number in classes.numbers:
            tasks[folder / "svm" / f"{block}-{digest[:16]}" / f"{number:03d}.json"] = OneClass(
                train, test, classes.train[:, number], in_test[:, number], number, classes.train.shape[1],
                costs, protocol, seed, shots,
            )  # fmt: skip
    outcomes = run_resumable(tasks, num_processes, world, "classes")
    if outcomes is None:
        return None
    remaining = iter(outcomes)
    return {block: {name: next(remaining) for name in classes.names} for block in blocks}


def numbers_of(outcomes: Outcomes, shots: Sequence[int]) -> dict[str, float]:
    """Return the scores in percent of outcomes and shots of `solve`.

    They are "mAP_<block>", "mAP" of the best block and "AP_<class>_<block>". For low-shot learning:
    "mAP_<k>_<block>", "sd_<k>_<block>" and "mAP_<k>" of the best block.
    """
    if shots:
        scored = {
            block: low_shot_scores(np.array([outcome["aps"] for outcome in by_class.values()]), shots)
            for block, by_class in outcomes.items()
        }
        numbers = {
            f"{name}_{k}_{block}": scored[block][k][i]
            for i, name in enumerate(("mAP", "sd")) for k in shots for block in scored
        }  # fmt: skip
        return numbers | {f"mAP_{k}": max(scored[block][k][0] for block in scored) for k in shots}
    aps = {
        block: {name: outcome["ap"] for name, outcome in by_class.items()}
        for block, by_class in outcomes.items()
    }
    means = {f"mAP_{block}": 100 * float(np.mean(list(each.values()))) for block, each in aps.items()}
    named = {f"AP_{name}_{block}": 100 * ap for block, each in aps.items() for name, ap in each.items()}
    return means | {"mAP": max(means.values())} | named


def curves_of(
    numbers: Mapping[str, float], blocks: Sequence[str], shots: Sequence[int]
) -> dict[str, dict[int, tuple[float, float]]]:
    """Return the mAP and its standard deviation, in percent, by block and shots."""
    return {b: {k: (numbers[f"mAP_{k}_{b}"], numbers[f"sd_{k}_{b}"]) for k in shots} for b in blocks}


def details_of(outcomes: Outcomes) -> dict[str, Any]:
    """Return the numbers of SVMs and of unconverged ones, and the chosen costs, for result.json."""
    counts = {
        name: sum(outcome[name] for by_class in outcomes.values() for outcome in by_class.values())
        for name in ("fits", "not_converged")
    }
    chosen = {
        block: {name: outcome["cost"] for name, outcome in by_class.items() if "cost" in outcome}
        for block, by_class in outcomes.items()
    }
    return counts | {"chosen_costs": chosen}


def score_lines(
    numbers: Mapping[str, float], classes: Classes, outcomes: Outcomes, shots: Sequence[int]
) -> list[str]:
    """Format a table of `numbers_of` outcomes and shots, and the number of SVMs that did not converge."""
    details, sizes = details_of(outcomes), f"{len(classes.train):,} images, scored on {len(classes.test):,}"
    chance = f"by chance {classes.frequency:.1f} %"
    lines = [f"{len(classes.names)} classes, {details['fits']:,} SVMs of {sizes}; {chance}"]
    if classes.left_out:
        lines.append(f"left out, as no test image shows them: {', '.join(classes.left_out)}")
    lines.append(f"{'mAP %':<8}" + "".join(f"{f'k {k}':>7}" for k in shots))
    names = [f"_{k}" for k in shots] or [""]
    for row, end in (*((block, f"_{block}") for block in outcomes), ("best", "")):
        lines.append(f"{row:<8}" + "".join(f"{numbers[f'mAP{name}{end}']:>7.1f}" for name in names))
    if details["not_converged"]:
        lines.append(
            f"{details['not_converged']:,} of {details['fits']:,} SVMs were stopped at their last iteration, "
            "as the protocol has it"
        )
    return [line.rstrip() for line in lines]
