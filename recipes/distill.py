"""Distillation of a network that others trained into one of your choice, on images without labels.

The teacher sees each whole image once, before the first epoch. A crop's features come to lie among those of
other images as the teacher's do, by SEED's loss (arXiv 2101.04731).

    fastpsl train distill --data photos --teacher timm/vit_small_patch14_dinov2 --backbone resnet18
    fastpsl train distill --data photos --teacher runs/large --plan psl --epochs 30 30 40

--plan psl learns block by block: in a stage that ends with block k, the student learns the teacher's block at
the same depth.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from fastpsl import engine, evaluation, models, tasks
from fastpsl.engine import optim
from fastpsl.engine.options import MACHINE, AnyBackbone, PerStage, PretrainOptions, at_end
from fastpsl.scripts.launch import launch
from fastpsl.scripts.recipe import Recipe

PAPER: dict[str, Any] = {
    "backbone": "resnet18",
    "teacher": None,
    "plan": "end_to_end",
    "epochs": (100,),
    "batch_size": 256,
    "lr": 4e-3,  # AdamW, a cosine
    "warmup_epochs": 1.0,
    "weight_decay": 0.05,
    "size_px": 224,
}
SAMPLE: dict[str, Any] = {"epochs": (10,), "batch_size": 32, "lr": 2e-3, "size_px": 32}


@dataclass(frozen=True, kw_only=True)
class Options(PretrainOptions):
    backbone: AnyBackbone
    teacher: str | None = field(metadata=MACHINE)  # a digest tells which it is
    """The network to learn from: timm/NAME[.TAG], an address such as hf://ORG/NAME, a run's folder, a file of
    weights, or FILE.py:CLASS (your own module with its weights, which runs).
    """
    teacher_backbone: str | None = field(default=None, metadata=MACHINE)
    """For a file of weights that does not name its network: the network, as for --backbone."""
    teacher_px: int | None = field(default=None, metadata=MACHINE)
    """Side of the teacher's images; by default that of its training."""
    teacher_sees: Literal["image", "crop"] = "image"
    """image: each whole image, once before the first epoch, for all crops of it; crop: every crop of the
    student, in each step.
    """
    teacher_features: Path | None = field(default=None, metadata=MACHINE)
    """The folder where the teacher's features of whole images are, or are to be, for several students; by
    default one in the run's own.
    """
    lr: float
    """AdamW's learning rate after the warm-up."""
    warmup_epochs: float
    """Epochs in which the rate rises from 0."""
    weight_decay: float
    """Decay of all weights."""
    size_px: PerStage
    """Side of the student's crops: one value, or one for each stage."""


def build(options: Options) -> engine.Experiment:
    if options.teacher_features and options.teacher_sees == "crop":
        raise ValueError(
            f"--teacher-features {options.teacher_features}: they are of whole images; give --teacher-sees "
            "image, or leave --teacher-features out"
        )
    if options.teacher_features and options.teacher_features.is_file():
        raise ValueError(f"--teacher-features {options.teacher_features}: it is a file; give a folder")
    if options.teacher is None:
        raise ValueError(
            "--teacher: give the network to learn from, such as timm/vit_small_patch14_dinov2, a run or a "
            "file of weights"
        )
    backbone = models.make_backbone(options.backbone)  # first, so that its weights do not depend on a teacher
    pretrained = models.open_teacher(options.teacher, options.teacher_backbone, options.max_download_gb)
    teacher = models.Teacher(pretrained, options.teacher_px or pretrained.input.size_px)
    stages = options.stages(tasks.Distill.num_levels, backbone.num_blocks)
    given: dict[str, Any] = {"num_blocks": backbone.num_blocks, "size_px": at_end(options.size_px)}
    if options.teacher_sees == "image":
        store = evaluation.TeacherFeatures(teacher, stages, backbone.num_blocks, options.teacher_features)
        task: tasks.Distill = evaluation.DistillStored(teacher, store=store, **given)
    else:
        task = tasks.Distill(teacher, **given)
    return engine.Experiment(
        task=task,
        backbone=backbone,
        stages=stages,
        schedule=optim.cosine(options.lr, options.warmup_epochs),
        optimiser=partial(optim.adam, weight_decay=options.weight_decay, decoupled=True),
        science=teacher.science(),
    )


def longer(options: Options) -> dict[str, Any]:
    """Return the length of a plan of several stages."""
    return {} if options.plan == "end_to_end" else {"epochs": (30, 30, 40)}


RECIPE = Recipe("distill", __doc__, Options, PAPER, SAMPLE, build, source="default", variant=longer)

if __name__ == "__main__":
    launch(RECIPE)
