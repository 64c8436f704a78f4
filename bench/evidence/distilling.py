"""Distil with the targets and losses that distill-*.json compare; otherwise as `fastpsl train distill`.

    python bench/evidence/distilling.py --loss seed --features RUNS/features.npy --data photos ...

--features has one feature of each whole image, of `fastpsl features`; without it, the teacher sees each crop.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # recipes/ is not installed

from fastpsl import engine, evaluation, tasks
from fastpsl.engine.distributed import World
from fastpsl.engine.options import MACHINE
from fastpsl.engine.plan import Stage
from fastpsl.engine.stage_blocks import StageBlocks
from fastpsl.evaluation.feature_file import FeatureFile, read_features
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.scripts.launch import launch
from fastpsl.scripts.recipe import Recipe
from fastpsl.tasks.classify import average_and_linear
from fastpsl.tasks.pseudo_labels.k_means import fit_whitening
from recipes.distill import PAPER, SAMPLE
from recipes.distill import Options as DistillOptions
from recipes.distill import build as build_distill


@dataclass(frozen=True, kw_only=True)
class Options(DistillOptions):
    loss: Literal["cosine", "seed", "whitened"] = "cosine"
    """cosine to the centred feature; SEED's cross-entropy of similarities to a queue; cosine to the feature
    whitened by PCA to the student's width.
    """
    features: Path | None = field(default=None, metadata=MACHINE)
    """One feature of each image, [N, D]; without it, the teacher sees the student's crops."""


class File(evaluation.TeacherFeatures):
    """The features of a file, or others that were made of them."""

    def __init__(self, task: tasks.Distill, stages: Sequence[Stage], file: FeatureFile, rows: Tensor):
        super().__init__(task.teacher, stages, task.num_blocks, None)
        self.rows, self.files = rows, dict.fromkeys(self.blocks, file)

    @override
    def read(self, block: int, device: torch.device) -> Tensor:
        return F.normalize(self.rows).half().to(device)


class Cosine(evaluation.DistillStored):
    """A distillation by the cosine to the teacher's features minus their mean."""

    @override
    def stage_head(self, stage: Stage, channels: int) -> torch.nn.Module:
        return average_and_linear(channels, self.rows.shape[1])

    @override
    def start_stage(self, stage: Stage, blocks: StageBlocks, head: torch.nn.Module) -> None:
        self.queue_size = 0
        super().start_stage(stage, blocks, head)
        self.features = self.rows  # whitened ones have another width
        self.mean = self.features.mean(0)

    @override
    def _fill_queue(self) -> None:
        """Do nothing: there is no queue."""

    @property
    def rows(self) -> Tensor:
        assert isinstance(self.store, File)
        return self.store.rows

    @override
    def after_step(self, extras: Sequence[Mapping[str, Tensor]]) -> None:
        """Do nothing: there is no queue."""

    @override
    def compare(self, students: Tensor, targets: Tensor) -> Tensor:
        return 1 - F.cosine_similarity(students.float(), targets - self.mean)


class CosineLive(tasks.Distill):
    """The same with the teacher's features of each crop. Their mean is that of the images so far."""

    @override
    def start_stage(self, stage: Stage, blocks: StageBlocks, head: torch.nn.Module) -> None:
        super().start_stage(stage, blocks, head)
        self.mean, self.num_seen = torch.zeros_like(self.queue[0]), torch.zeros_like(self.queue[0, 0])

    @override
    def _enqueue(self, targets: Tensor, is_skipped: Tensor | None = None) -> None:
        """Do nothing: there is no queue."""

    @override
    def targets(self, inputs: Sequence[Tensor], batch: Batch) -> Tensor:
        targets = super().targets(inputs, batch)
        if torch.is_grad_enabled() or not self.num_seen:  # in training, or before its first step
            sums, num = targets[batch.indices >= 0].sum(0), (batch.indices >= 0).sum()
            self.num_seen += num
            self.mean += (sums - num * self.mean) / self.num_seen
        return targets

    @override
    def compare(self, students: Tensor, targets: Tensor) -> Tensor:
        return 1 - F.cosine_similarity(students.float(), targets - self.mean)

    @override
    def state_dict(self) -> Mapping[str, Any]:
        return {"mean": self.mean, "num_seen": self.num_seen}


def build(options: Options) -> engine.Experiment:
    sees: Any = "crop" if options.features is None else "image"
    experiment = build_distill(replace(options, teacher_sees=sees))
    science, task = {**experiment.science, "loss": options.loss}, experiment.task
    assert isinstance(task, tasks.Distill)
    given: dict[str, Any] = {"num_blocks": task.num_blocks, "size_px": task.size_px}
    if options.features is None:
        if options.loss != "cosine":
            raise ValueError(f"--loss {options.loss}: it is for --features; give both")
        return replace(experiment, task=CosineLive(task.teacher, **given), science=science)
    file = read_features(options.features)
    if file is None:
        raise ValueError(f"--features {options.features}: there is none; run fastpsl features")
    features = torch.from_numpy(np.array(file.features())).float()
    if options.loss == "whitened":
        world = World(0, 1, 0, 1, torch.device("cpu"))
        features = fit_whitening([features], experiment.backbone.channels[-1], world)(features)
    kind = evaluation.DistillStored if options.loss == "seed" else Cosine
    store = File(task, experiment.stages, file, features)
    stored = kind(task.teacher, store=store, **given)
    return replace(experiment, task=stored, science={**science, "features": file.record["digest"]})


RECIPE = Recipe("distilling", __doc__, Options, PAPER, SAMPLE, build, source="default")

if __name__ == "__main__":
    launch(RECIPE)
