"""SVMs of all classes on all blocks: what is to be done, what cannot be, and the numbers of what was."""

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
from fastpsl.pipelines.voc.dataset import VOC
from fastpsl.transfer.svm.protocol import SvmProtocol
from fastpsl.transfer.svm.scores import low_shot_scores
from fastpsl.transfer.svm.solver import OneClass
from fastpsl.transfer.svm.work import run_resumable

Outcomes = dict[str, dict[str, dict[str, Any]]]
"""Of each block, of each class, what `OneClass.outcome` is."""


def blocks_of(backbone: Backbone, protocol: SvmProtocol) -> tuple[str, ...]:
    """B1, B2, …: those that the protocol has pools for. ValueError where the backbone lacks some."""
    num = len(protocol.pools)
    if backbone.num_blocks < num:
        raise ValueError(
            f"{backbone.name} has the blocks B1 to B{backbone.num_blocks}, and this protocol scores B1 to B{num}: "
            f"give a backbone of {num} blocks or more"
        )
    return tuple(f"B{number}" for number in range(1, num + 1))


def extractions(
    options: EvaluationOptions, weights: Pretrained, data: VOC, protocol: SvmProtocol, world: World
) -> list[Extraction]:
    """Of each of `blocks_of` the pooled features, float32."""
    assert protocol.crop == "squashed"
    blocks = blocks_of(weights.backbone, protocol)
    works = Extraction.for_blocks(options, weights, data, blocks, world, "float32", protocol.pools)
    return [replace(work, squashed=True) for work in works]


@dataclass(frozen=True)
class Classes:
    """names, numbers: of the classes that a test picture shows; the others have no AP. left_out: the names of those.

    train, test: int8 [N, C], as `VOC.targets`.
    """

    names: tuple[str, ...]
    numbers: tuple[int, ...]
    left_out: tuple[str, ...]
    train: np.ndarray
    test: np.ndarray

    @classmethod
    def of(cls, train: VOC, test: VOC, protocol: SvmProtocol, shots: Sequence[int]) -> "Classes":
        """ValueError where a class has too few pictures to learn from, or none is shown in test."""
        assert train.class_names is not None and train.class_names == test.class_names
        of_train, of_test = train.targets(), test.targets()
        shown = (of_test == 1).any(0)
        numbers = tuple(np.flatnonzero(shown).tolist())
        if not numbers:
            raise ValueError(f"no picture of {test.split} shows a class: nothing can be scored")
        for number in numbers:
            _require_enough(
                of_train[:, number], train.class_names[number], train.split, protocol, shots, len(shown)
            )
        names = tuple(train.class_names[number] for number in numbers)
        left_out = tuple(name for name, there in zip(train.class_names, shown, strict=True) if not there)
        return cls(names, numbers, left_out, of_train, of_test)

    @property
    def frequency(self) -> float:
        """Percent: the mean share of positives in test, which chance has as its AP."""
        test = self.test[:, self.numbers]
        return float(100 * ((test == 1).sum(0) / (test >= 0).sum(0)).mean())


def _require_enough(
    targets: np.ndarray, name: str, split: str, protocol: SvmProtocol, shots: Sequence[int], num_classes: int
) -> None:
    num, num_without = int((targets == 1).sum()), int((targets == 0).sum())
    if shots and (max(shots) > num or max(shots) * (num_classes - 1) > num_without):
        most = min(num, num_without // max(1, num_classes - 1))
        raise ValueError(
            f"--shots {max(shots)}: {num:,} pictures of {split} show {name!r} and {num_without:,} do not (difficult ones count for "
            f"neither), and {max(shots)} and {max(shots) * (num_classes - 1):,} are drawn: give up to {most} shots"
        )
    if not shots and min(num, len(targets) - num) < protocol.folds:
        raise ValueError(
            f"{num:,} of the {len(targets):,} pictures of {split} show {name!r}: a cross-validation of {protocol.folds} folds needs "
            f"{protocol.folds} that show it and {protocol.folds} that do not"
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
    """Of each block's features (train, test) the outcome for each class, of rank 0; None on the others (`run_resumable`).

    Files folder/svm/<block>-<digest>/<class number>.json: what is there of the same features and settings is not made again.
    """
    import sklearn

    wanted: dict[Path, OneClass] = {}
    for block, (train, test) in blocks.items():
        told = {
            "features": [train.record["digest"], test.record["digest"]],
            "bad": [train.record["bad"], test.record["bad"]],
            "costs": costs, "shots": shots, "seed": seed, "protocol": asdict(protocol), "scikit-learn": sklearn.__version__,
        }  # fmt: skip
        digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
        in_test = classes.test.copy()
        in_test[test.record["bad"]] = -1
        for number in classes.numbers:
            wanted[folder / "svm" / f"{block}-{digest[:16]}" / f"{number:03d}.json"] = OneClass(
                train, test, classes.train[:, number], in_test[:, number], number, classes.train.shape[1],
                costs, protocol, seed, shots,
            )  # fmt: skip
    found = run_resumable(wanted, num_processes, world, "classes")
    if found is None:
        return None
    each = iter(found)
    return {block: {name: next(each) for name in classes.names} for block in blocks}


def numbers_of(outcomes: Outcomes, shots: Sequence[int]) -> dict[str, float]:
    """Percent. "mAP_<block>", "mAP", the best block's, and "AP_<class>_<block>"; of low-shot learning "mAP_<k>_<block>", "sd_<k>_<block>"
    and "mAP_<k>", the best block's."""
    if shots:
        scored = {
            block: low_shot_scores(np.array([one["aps"] for one in of_block.values()]), shots)
            for block, of_block in outcomes.items()
        }
        numbers = {f"mAP_{k}_{block}": scored[block][k][0] for k in shots for block in scored}
        numbers |= {f"sd_{k}_{block}": scored[block][k][1] for k in shots for block in scored}
        return numbers | {f"mAP_{k}": max(scored[block][k][0] for block in scored) for k in shots}
    means = {
        f"mAP_{block}": 100 * float(np.mean([one["ap"] for one in of_block.values()]))
        for block, of_block in outcomes.items()
    }
    each = {
        f"AP_{name}_{block}": 100 * one["ap"]
        for block, of_block in outcomes.items()
        for name, one in of_block.items()
    }
    return means | {"mAP": max(means.values())} | each


def details_of(outcomes: Outcomes) -> dict[str, Any]:
    """For the settings of result.json: how many SVMs were fitted, how many did not converge, and the costs that were chosen."""
    each = [one for of_block in outcomes.values() for one in of_block.values()]
    chosen = {
        block: {name: one["cost"] for name, one in of_block.items() if "cost" in one}
        for block, of_block in outcomes.items()
    }
    return {
        "fits": sum(one["fits"] for one in each),
        "not_converged": sum(one["not_converged"] for one in each),
        "chosen_costs": chosen,
    }


def score_lines(
    numbers: Mapping[str, float], classes: Classes, outcomes: Outcomes, shots: Sequence[int]
) -> list[str]:
    """For people: a table of mAP, and once how many SVMs came to the end of their iterations."""
    details, sizes = details_of(outcomes), f"{len(classes.train):,} pictures, scored on {len(classes.test):,}"
    lines = [
        f"{len(classes.names)} classes, {details['fits']:,} SVMs of {sizes}; by chance {classes.frequency:.1f} %"
    ]
    if classes.left_out:
        lines.append(f"left out, as no test picture shows them: {', '.join(classes.left_out)}")
    names = [f"_{k}" for k in shots] or [""]
    heads = [f"k {k}" for k in shots] or [""]
    lines.append(f"{'mAP %':<8}" + "".join(f"{head:>7}" for head in heads))
    for row, end in (*((block, f"_{block}") for block in outcomes), ("best", "")):
        lines.append(f"{row:<8}" + "".join(f"{numbers[f'mAP{name}{end}']:>7.1f}" for name in names))
    if details["not_converged"]:
        lines.append(
            f"{details['not_converged']:,} of {details['fits']:,} SVMs were stopped at their last iteration, as the protocol has it"
        )
    return [line.rstrip() for line in lines]
