"""All that a pretext task of your own and its recipe import.

https://fastpsl.github.io/fastpsl/how_to/add_a_task.html shows how they work together.
"""

from typing_extensions import override

from fastpsl import losses, ops
from fastpsl.console.offered import offer_only_all
from fastpsl.engine.dataset_pass import EpochContext
from fastpsl.engine.experiment import Experiment
from fastpsl.engine.optim.optimisers import adam, lars, sgd
from fastpsl.engine.optim.schedules import by_stage, cosine, linear_decay, step_drops
from fastpsl.engine.options import (
    MACHINE,
    AnyBackbone,
    PerStage,
    PretrainOptions,
    SGDOptions,
    at_end,
    per_stage,
)
from fastpsl.engine.plan import Stage
from fastpsl.engine.stage_blocks import Metrics, StageBlocks
from fastpsl.engine.task import Task
from fastpsl.kernels.draws import Keys, Slot, integers, uniforms
from fastpsl.models.convolutional import mean_of_positions
from fastpsl.models.factory import make_backbone
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.views import Input, ViewSpec, center_view, train_view
from fastpsl.scripts.launch import launch
from fastpsl.scripts.recipe import Recipe
from fastpsl.tasks.classify import average_and_linear, cross_entropies, masked_cross_entropy, scored

__all__ = [
    "MACHINE", "AnyBackbone", "Batch", "EpochContext", "Experiment", "Input", "Keys", "Metrics", "PerStage",
    "PretrainOptions", "Recipe", "SGDOptions", "Slot", "Stage", "StageBlocks", "Task", "ViewSpec", "adam",
    "at_end", "average_and_linear", "by_stage", "center_view", "cosine", "cross_entropies", "integers",
    "lars", "launch", "linear_decay", "losses", "make_backbone", "masked_cross_entropy", "mean_of_positions",
    "ops", "override", "per_stage", "scored", "sgd", "step_drops", "train_view", "uniforms",
]  # fmt: skip
offer_only_all(__name__)
