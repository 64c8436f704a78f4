"""Fit the SVMs of all classes on all blocks and report their scores."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fastpsl.engine.distributed import World
from fastpsl.evaluation.feature_file import FeatureFile
from fastpsl.evaluation.features import Extraction
from fastpsl.evaluation.options import EvaluationOptions
from fastpsl.models.backbone import Backbone
from fastpsl.models.weights import Pretrained
from fastpsl.pipelines.datasets.voc.dataset import VOC
from fastpsl.transfer.svm.protocol import SvmProtocol
from fastpsl.transfer.svm.scores import low_shot_scores
from fastpsl.transfer.svm.solver import OneClass
from fastpsl.transfer.svm.work import run_resumable

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
            f"B{num}: "
            f"give a backbone of {num} blocks or more"
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
    """The classes to score.

    Attributes:
        names: Names of the classes that a test image shows; the others have no AP.
        numbers: Their numbers.
        left_out: Names of the other classes.
        train: Labels of the training images, int8 [N, C], as `VOC.targets`.
        test: Labels of the test images, in the same form.
    """

    names: tuple[str, ...]
    numbers: tuple[int, ...]
    left_out: tuple[str, ...]
    train: np.ndarray
    test: np.ndarray

    @classmethod
    def of(cls, train: VOC, test: VOC, protocol: SvmProtocol, shots: Sequence[int]) -> "Classes":
        """Read the classes of two data sets.

        Args:
            train: Training images.
            test: Test images.
            protocol: The protocol.
            shots: Numbers of positives for low-shot learning; none to learn from all images.

        Raises:
            ValueError: If a class has too few training images, or no test image shows a class.
        """
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
        names = tuple(train.class_names[number] for number in numbers)
        left_out = tuple(
            name for name, is_shown in zip(train.class_names, shown, strict=True) if not is_shown
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
        The outcomes on rank 0, None on the others (`run_resumable`).
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
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
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
    """Return the scores in percent.

    Args:
        outcomes: From `solve`.
        shots: As for `solve`.

    Returns:
        "mAP_<block>", "mAP" of the best block and "AP_<class>_<block>". For low-shot learning:
        "mAP_<k>_<block>", "sd_<k>_<block>" and "mAP_<k>" of the best block.
    """
    if shots:
        scored = {
            block: low_shot_scores(np.array([outcome["aps"] for outcome in by_class.values()]), shots)
            for block, by_class in outcomes.items()
        }
        numbers = {f"mAP_{k}_{block}": scored[block][k][0] for k in shots for block in scored}
        numbers |= {f"sd_{k}_{block}": scored[block][k][1] for k in shots for block in scored}
        return numbers | {f"mAP_{k}": max(scored[block][k][0] for block in scored) for k in shots}
    means = {
        f"mAP_{block}": 100 * float(np.mean([outcome["ap"] for outcome in by_class.values()]))
        for block, by_class in outcomes.items()
    }
    aps = {
        f"AP_{name}_{block}": 100 * outcome["ap"]
        for block, by_class in outcomes.items()
        for name, outcome in by_class.items()
    }
    return means | {"mAP": max(means.values())} | aps


def details_of(outcomes: Outcomes) -> dict[str, Any]:
    """Return the numbers of SVMs and of unconverged ones, and the chosen costs, for result.json."""
    all_outcomes = [outcome for by_class in outcomes.values() for outcome in by_class.values()]
    chosen = {
        block: {name: outcome["cost"] for name, outcome in by_class.items() if "cost" in outcome}
        for block, by_class in outcomes.items()
    }
    return {
        "fits": sum(outcome["fits"] for outcome in all_outcomes),
        "not_converged": sum(outcome["not_converged"] for outcome in all_outcomes),
        "chosen_costs": chosen,
    }


def score_lines(
    numbers: Mapping[str, float], classes: Classes, outcomes: Outcomes, shots: Sequence[int]
) -> list[str]:
    """Format a table of mAP and the number of SVMs that did not converge.

    Args:
        numbers: From `numbers_of`.
        classes: The classes.
        outcomes: From `solve`.
        shots: As for `solve`.
    """
    details, sizes = details_of(outcomes), f"{len(classes.train):,} images, scored on {len(classes.test):,}"
    chance = f"by chance {classes.frequency:.1f} %"
    lines = [f"{len(classes.names)} classes, {details['fits']:,} SVMs of {sizes}; {chance}"]
    if classes.left_out:
        lines.append(f"left out, as no test image shows them: {', '.join(classes.left_out)}")
    names = [f"_{k}" for k in shots] or [""]
    heads = [f"k {k}" for k in shots] or [""]
    lines.append(f"{'mAP %':<8}" + "".join(f"{head:>7}" for head in heads))
    for row, end in (*((block, f"_{block}") for block in outcomes), ("best", "")):
        lines.append(f"{row:<8}" + "".join(f"{numbers[f'mAP{name}{end}']:>7.1f}" for name in names))
    if details["not_converged"]:
        lines.append(
            f"{details['not_converged']:,} of {details['fits']:,} SVMs were stopped at their last iteration, "
            "as the protocol has it"
        )
    return [line.rstrip() for line in lines]
