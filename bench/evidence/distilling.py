"""Distil with the targets and losses that distill-*.json compare; otherwise as `fastpsl train distill`.

    python bench/evidence/distilling.py --loss seed --features RUNS/features.npy --data photos ...

--features has one feature of each whole image, of `fastpsl features`; without it, the teacher sees each crop.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # recipes/ is not installed

from fastpsl import engine, models, tasks
from fastpsl.engine.distributed import World
from fastpsl.engine.options import MACHINE
from fastpsl.engine.plan import Stage
from fastpsl.engine.stage_blocks import StageBlocks
from fastpsl.evaluation.feature_file import read_features
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.views import ViewSpec
from fastpsl.scripts.launch import launch
from fastpsl.scripts.recipe import Recipe
from fastpsl.tasks.classify import average_and_linear
from fastpsl.tasks.contrastive.info_nce import enqueue
from fastpsl.tasks.pseudo_labels.k_means import fit_whitening
from recipes.distill import PAPER, SAMPLE
from recipes.distill import Options as DistillOptions
from recipes.distill import build as build_distill

QUEUE = 65_536  # SEED's, arXiv 2101.04731; of fewer images, all but a fifth
TEACHER_T, STUDENT_T = 0.01, 0.2  # SEED's


@dataclass(frozen=True, kw_only=True)
class Options(DistillOptions):
    loss: Literal["cosine", "seed", "whitened"] = "cosine"
    """cosine to the centred feature; SEED's cross-entropy of similarities to a queue; cosine to the feature
    whitened by PCA to the student's width.
    """
    features: Path | None = field(default=None, metadata=MACHINE)
    """One feature of each image, [N, D]; without it, the teacher sees the student's crops."""


class PerImage(tasks.Distill):
    """A distillation from one feature of each whole image, which stands for every crop of it."""

    def __init__(self, teacher: models.Teacher, num_blocks: int, size_px: int, features: Tensor):
        super().__init__(teacher, num_blocks, size_px=size_px)
        self.features, self.mean = features, features.mean(0)

    @override
    def _set_block(self, block: int) -> None:
        assert block == self.num_blocks, "the file has the last block's features alone"
        self.num_seen = torch.zeros(())

    @override
    def views(self, level: int) -> tuple[ViewSpec, ...]:
        return super().views(level)[:1]

    @override
    def stage_head(self, stage: Stage, channels: int) -> torch.nn.Module:
        return average_and_linear(channels, self.features.shape[1])

    @override
    def num_warm_up_batches(self, stage: Stage) -> int:
        return 0

    @override
    def targets(self, inputs: Sequence[Tensor], batch: Batch) -> Tensor:
        return self.features[batch.indices.clamp(min=0)]

    @override
    def _add(self, targets: Tensor, valid: Tensor) -> None:
        """Leave the mean, which is that of all images."""

    @override
    def lines_before(self, *_: object) -> Iterator[str]:
        yield f"the teacher's features are stored: {tuple(self.features.shape)}"


class Queued(PerImage):
    """A distillation by SEED's loss: similarities to a queue are to be distributed as the teacher's.

    The queue is full from the start, so that the few steps of a plan all have it.
    """

    @override
    def start_stage(self, stage: Stage, blocks: StageBlocks, head: torch.nn.Module) -> None:
        super().start_stage(stage, blocks, head)
        self.mean = torch.zeros_like(self.mean)  # SEED centres nothing
        order = torch.randperm(len(self.features), generator=torch.Generator().manual_seed(0))
        num = min(QUEUE, 4 * len(self.features) // 5)
        self.queue, self.slot = F.normalize(self.features[order[:num]]), torch.zeros((), dtype=torch.long)

    @override
    def distances(self, students: Tensor, targets: Tensor) -> Tensor:
        students, targets = F.normalize(students), F.normalize(targets)

        def logits(rows: Tensor) -> Tensor:
            return torch.cat([rows @ self.queue.T, (rows * targets).sum(1, keepdim=True)], 1)

        expected = (logits(targets) / TEACHER_T).softmax(1)
        losses = F.cross_entropy(logits(students) / STUDENT_T, expected, reduction="none")
        self.newest = targets
        return losses

    @override
    def after_step(self, extras: Sequence[Mapping[str, Tensor]]) -> None:
        super().after_step(extras)
        enqueue(self.queue, self.slot, self.newest)

    @override
    def step_state(self) -> Iterator[Tensor]:
        yield from (*super().step_state(), self.queue, self.slot)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "queue": self.queue, "slot": self.slot}

    @override
    def load_state_dict(self, state: Any) -> None:
        super().load_state_dict(state)
        self.queue.copy_(state["queue"])
        self.slot.copy_(state["slot"])


def build(options: Options) -> engine.Experiment:
    experiment = build_distill(options)
    live, science = experiment.task, {**experiment.science, "loss": options.loss}
    assert isinstance(live, tasks.Distill)
    if options.features is None:
        if options.loss != "cosine":
            raise ValueError(f"--loss {options.loss}: it is for --features; give both")
        return replace(experiment, science=science)
    file = read_features(options.features)
    if file is None:
        raise ValueError(f"--features {options.features}: there is none; run fastpsl features")
    features = torch.from_numpy(file.features()).float()
    if options.loss == "whitened":
        world = World(0, 1, 0, 1, torch.device("cpu"))
        features = fit_whitening([features], experiment.backbone.channels[-1], world)(features)
    kind = Queued if options.loss == "seed" else PerImage
    task = kind(live.teacher, live.num_blocks, live.size_px, features)
    return replace(experiment, task=task, science={**science, "features": file.record["digest"]})


RECIPE = Recipe("distilling", __doc__, Options, PAPER, SAMPLE, build, source="default")

if __name__ == "__main__":
    launch(RECIPE)
