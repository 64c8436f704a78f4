"""The experiment of a recipe with the weights that it begins with."""

import contextlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastpsl.console.progress import operation
from fastpsl.console.words import gigabytes, number_of
from fastpsl.engine.distributed import World, share, take_tensors_of_rank_0
from fastpsl.engine.experiment import Experiment
from fastpsl.engine.gpu import torch_seed
from fastpsl.engine.options import INITIAL_WEIGHTS, PretrainOptions, TrainingOptions
from fastpsl.engine.plan import Stage
from fastpsl.models.backbone import Backbone
from fastpsl.models.checkpoint import bytes_of
from fastpsl.models.given import Given, module_record
from fastpsl.models.initial_weights import begin_with, lines_of
from fastpsl.models.weights import sha256_of_tensors
from fastpsl.pipelines.views import Input
from fastpsl.scripts.recipe import Recipe, Training, origin_of_config


def begun(
    recipe: Recipe[Any], options: TrainingOptions, world: World
) -> tuple[Experiment, dict[str, Any], list[str]]:
    """Return the experiment, the part of its science that tells its first weights, and lines about these.

    A run that goes on has its weights in the checkpoint, so --init is not read.
    """
    given = isinstance(getattr(options, "backbone", None), Given)
    plan, init = getattr(options, "plan", ""), getattr(options, "init", None)
    if not (init or options.goes_on() or given):
        if plan == "continue":
            raise ValueError(
                "--plan continue without --init: no block has weights that could stay; give --init WEIGHTS"
            )
        if getattr(options, "learning_batchnorm", "train") == "eval":
            raise ValueError(
                "--learning-batchnorm eval without --init: random weights have no statistics; give --init "
                "WEIGHTS, or --learning-batchnorm train"
            )
    torch.manual_seed(torch_seed(options.seed))  # initial weights
    with operation("building the network"):
        experiment = recipe.build(options)
    if not isinstance(options, PretrainOptions):
        return experiment, {}, []
    name = getattr(options, "backbone", experiment.backbone.name)
    science = module_record(name) if isinstance(name, Given) else {}
    if options.init is None or options.goes_on():
        return experiment, *_of_module(experiment.backbone, name, science, world)
    input = Input.from_dict(experiment.task.input_record(experiment.stages[0].level))
    with operation(f"{options.init}: reading it"):
        origin = begin_with(
            options.init, experiment.backbone, name, input,
            partial=options.init_partial, max_download_gb=options.max_download_gb,
        )  # fmt: skip
    unfit = number_of(len(origin["not_taken"]), "tensor") if origin["not_taken"] else ""
    if unfit and plan == "continue":
        raise ValueError(
            f"--plan continue with --init-partial: {unfit} of {options.init} do not fit, and blocks that "
            "stay need all; use another plan"
        )
    if unfit and options.learning_batchnorm == "eval":
        raise ValueError(
            f"--learning-batchnorm eval with --init-partial: {unfit} of {options.init} do not fit, and "
            "statistics that stay need all; give --learning-batchnorm train"
        )
    take_tensors_of_rank_0(experiment.backbone.state_dict().values(), world)
    lines = lines_of(origin)
    before = origin_of_config(options.config) if options.config else {}
    if before.get("path") == origin["path"] and before.get("sha256") not in (None, origin["sha256"]):
        lines.append(
            f"warning: {options.init} is not what --config {options.config} began with: its sha256 was "
            f"{before['sha256'][:8]}…"
        )
    return seeing(experiment, origin), science | {INITIAL_WEIGHTS: origin}, lines


def with_first_learning(
    recipe: Recipe[Training], options: Training, world: World
) -> tuple[Training, list[str]]:
    """Return the options with the first block that learns, and a line about it if none was given.

    A run that goes on has the block of its start.
    """
    is_open = getattr(options, "plan", "") == "continue" and getattr(options, "first_learning", "") is None
    if not is_open or options.goes_on():
        return options, []
    from fastpsl.engine.first_learning import choose_first_learning

    experiment, _, _ = begun(recipe, options, world)
    with contextlib.closing(experiment.open_data(options, world)) as data:
        first, line = choose_first_learning(experiment, data)
    return replace(options, first_learning=first), [line]  # type: ignore[call-arg]


def require_room(experiment: Experiment, options: TrainingOptions, world: World) -> None:
    """Check that the checkpoints of the stages' ends fit on rank 0's disk, and one that is being written.

    Raises:
        ValueError: They do not fit in what is free.
    """
    lacking = share(world, _lacking_room(experiment, options) if world.rank == 0 else None)
    if lacking:
        out, free, num, needed = lacking
        raise ValueError(
            f"{out}: its disk has {gigabytes(free)} free, and {num} checkpoints need at least "
            f"{gigabytes(needed)}; give --out on another disk, fewer --keep-checkpoints, or free some space"
        )


def _lacking_room(experiment: Experiment, options: TrainingOptions) -> tuple[str, int, int, int] | None:
    """Return --out, its free bytes, the number of checkpoints and their bytes; None if they may fit."""
    if options.goes_on():
        return None
    out = (options.out or Path("runs")).absolute()
    try:
        disk = shutil.disk_usage(next(path for path in (out, *out.parents) if path.exists()))
    except OSError:  # the file system does not tell
        return None
    kept = [_least_bytes(experiment, stage) for stage in experiment.stages][-options.keep_checkpoints :]
    needed = sum(kept) + kept[-1]
    tells_none = disk.total == 0  # as some file systems do
    return None if tells_none or needed <= disk.free else (str(out), disk.free, len(kept) + 1, needed)


def _least_bytes(experiment: Experiment, stage: Stage) -> int:
    """Return the least bytes of a stage's checkpoint: the backbone, and momenta of blocks that learn."""
    blocks = nn.ModuleList(experiment.backbone.blocks()[stage.first_learning - 1 : stage.last_block])
    weights = {f"blocks.{name}": each for name, each in blocks.named_parameters()}
    # The optimiser gets a number instead of each weight, and one of a head, of which nothing is known.
    small = {name: nn.Parameter(torch.zeros((1,) * each.ndim)) for name, each in weights.items()}
    state = experiment.optimiser([*small.items(), ("head.weight", nn.Parameter(torch.zeros(1, 1)))]).state
    num_bytes = bytes_of(experiment.backbone.state_dict().values())
    for name, number in small.items():
        like = [each for each in state.get(number, {}).values() if getattr(each, "shape", ()) == number.shape]
        num_bytes += len(like) * weights[name].nbytes
    return num_bytes


def seeing(experiment: Experiment, origin: dict[str, Any] | None) -> Experiment:
    """Return the experiment whose views have the statistics of its first weights, if these are known."""
    if origin is None or "input" not in origin:
        return experiment
    return replace(experiment, input=Input.from_dict(origin["input"]))


def _of_module(
    backbone: Backbone, name: str, science: dict[str, Any], world: World
) -> tuple[dict[str, Any], list[str]]:
    """Return the record of a module that a program gave as the backbone; all ranks take rank 0's weights."""
    if not isinstance(name, Given):
        return {}, []
    take_tensors_of_rank_0(backbone.state_dict().values(), world)
    origin = {"kind": "module", "sha256": sha256_of_tensors(backbone.state_dict())}
    line = "the backbone begins from the weights of the module that was given"
    return science | {INITIAL_WEIGHTS: origin}, [line]
