"""The lines that a training prints before its first step, and --dry-run, which measures a few steps."""

import contextlib
import itertools
import resource
from collections.abc import Iterator
from itertools import islice
from time import perf_counter
from typing import Any

import numpy as np

from fastpsl.console.progress import clock, operation
from fastpsl.console.words import gibibytes, number_of, number_of_weights
from fastpsl.engine.distributed import join_world
from fastpsl.engine.experiment import Experiment, place_backbone
from fastpsl.engine.gpu import peak_memory, reset_peak_memory
from fastpsl.engine.options import PretrainOptions, TrainingOptions, flag, share_of
from fastpsl.engine.run import RunData, val_part
from fastpsl.engine.stage_bench import StageBench
from fastpsl.pipelines.data.dataset import Dataset, spread_indices
from fastpsl.pipelines.views import Crop
from fastpsl.scripts.beginning import begun, with_first_learning
from fastpsl.scripts.presets import MAX_BATCH_SHARE, MIN_STEPS, SMALL_BELOW, why_none_held_back
from fastpsl.scripts.recipe import Recipe

_SAMPLED = 1000  # images whose sizes are looked at
_SIZES = ("short_side", "tile_px", "size_px")
_MEASURED = 3  # steps and validation batches of each stage


def lines_before(experiment: Experiment, data: RunData) -> Iterator[str]:
    """Yield what to tell before the first step: images, network, steps, and what does not suit."""
    yield data_line(data)
    yield network_line(experiment, data)
    yield from experiment.task.lines_before(experiment.backbone, experiment.stages, data)
    yield length_line(experiment, data)
    if data.options.data is not None and isinstance(data.options, PretrainOptions):
        for line in unsuitable(experiment, data):
            yield f"warning: {line}"


def data_line(data: RunData) -> str:
    """Return the images and classes to train on, and those for validation, in words."""
    options = data.options
    text = f"{options.data or 'the embedded sample'}: {_size(data.train, 'training image')}"
    if data.val is None:
        return f"{text}, no validation images{_why_without_val(data)}"
    if share_of(options.val):
        held = number_of(data.val.num_samples, "more is", "more are")
        return f"{text}; {held} held back for validation, by name (--val {options.val}; none: --val none)"
    return f"{text}, {_size(data.val, 'validation image')}"


def _size(data: Dataset, what: str) -> str:
    classes = (
        f"in {number_of(data.num_classes, 'class', 'classes')}" if data.num_classes else "without labels"
    )
    return f"{number_of(data.num_samples, what)} {classes}"


def _why_without_val(data: RunData) -> str:
    """Return why none were held back, if a share was asked for or with --preset small; else ""."""
    options, reason = data.options, ""
    if share_of(options.val):
        reason = f"--val {options.val} holds none back"
    elif options.val is None and options.data is not None and getattr(options, "preset", "") == "small":
        reason = why_none_held_back(options)
    return f": {reason}" if reason else ""  # the monitor tells why there is no kNN


def network_line(experiment: Experiment, data: RunData) -> str:
    """Return the backbone, its weights, the sizes of its images, and where it is computed."""
    options, device = data.options, data.world.device
    num = sum(weights.numel() for weights in experiment.backbone.parameters())
    name = getattr(options, "backbone", None) or experiment.backbone.name
    sizes = sorted({crop.size_px for crop in _crops(experiment)})
    of_px = f", images of {' and '.join(map(str, sizes))} px" if sizes else ""
    where = number_of(data.world.size, "GPU") if device.type == "cuda" else "the CPU"
    precision = options.resolved_precision(device)
    return f"network: {name}, {number_of_weights(num)}{of_px}, in {precision} on {where}"


def _crops(experiment: Experiment) -> list[Crop]:
    """Return how each view of each stage that the backbone reads is cut from its image."""
    views = [view for stage in experiment.stages for view in experiment.views(stage)]
    return [view.crop for view in views if view.follows is None]


def length_line(experiment: Experiment, data: RunData) -> str:
    """Return the number of steps of each stage and of all, in words.

    Where a task makes several network inputs of an image, it has their number per step, too.
    """
    steps = stage_steps(experiment, data)
    names = [f"{stage.name} {num:,}" for stage, num in zip(experiment.stages, steps, strict=True)]
    parts = f" ({', '.join(names)})" if len(names) > 1 else ""
    limit = data.options.max_steps_per_stage
    cut = f"; --max-steps-per-stage cuts each at {limit:,}" if limit is not None else ""
    sizes = [data.options.batch_of(stage) for stage in experiment.stages]
    numbers = experiment.inputs_per_image()
    inputs = [
        f"{stage.name} {size * numbers[stage.name]:,}"
        for stage, size in zip(experiment.stages, sizes, strict=True)
        if stage.name in numbers
    ]
    made = f"; network inputs per step: {', '.join(inputs)}" if inputs else ""
    preset = getattr(data.options, "preset", None)
    reason = f", for fewer than {SMALL_BELOW:,} images" if preset == "small" else ""
    values = f"; --preset {preset}{reason}" if preset else ""
    several = f"{', '.join(map(str, sizes[:-1]))} and {sizes[-1]} images"
    images = number_of(sizes[0], "image") if len(set(sizes)) == 1 else several
    return f"{number_of(sum(steps), 'step')} of {images}{parts}{values}{made}{cut}"


def stage_steps(experiment: Experiment, data: RunData) -> list[int]:
    """Return the number of steps of each stage."""
    num, batch_of = data.train.num_samples, data.options.batch_of
    return [stage.num_steps or stage.epochs * (num // batch_of(stage)) for stage in experiment.stages]


def unsuitable(experiment: Experiment, data: RunData) -> Iterator[str]:
    """Yield a line for each value that does not suit the data, with the options to use instead."""
    options, num_images = data.options, data.train.num_samples
    or_small = "" if getattr(options, "preset", "") == "small" else ", or --preset small"
    few = [
        f"{stage.name} has {num:,}"
        for stage, num in zip(experiment.stages, stage_steps(experiment, data), strict=True)
        if num < MIN_STEPS
    ]
    if few:
        yield (
            f"stages of fewer than {MIN_STEPS:,} steps learn little: {', '.join(few)}; give more --epochs "
            f"or a smaller --batch-size{or_small}"
        )
    warmup, epochs = getattr(options, "warmup_epochs", 0), sum(stage.epochs for stage in experiment.stages)
    if 0 < epochs <= warmup:
        yield (
            f"the rate rises for {warmup:g} epochs, and the run has {epochs}, so it never reaches --lr: give "
            "a smaller --warmup-epochs"
        )
    limit = max(2, int(MAX_BATCH_SHARE * num_images))
    if options.batch_of() > limit:
        yield (
            f"a step has {options.batch_of() / num_images:.0%} of the {num_images:,} images: give "
            f"--batch-size {limit} or less{or_small}"
        )
    sides = (getattr(crop, "shorter_px", crop.size_px) for crop in _crops(experiment))
    needed = max(sides, default=0)
    rows = data.train.rows(spread_indices(num_images, _SAMPLED))
    side = int(np.median(np.minimum(rows.height, rows.width)))
    if side < needed:
        flags = [flag(name) for name in _SIZES if getattr(options, name, None)]
        yield (
            f"half of the images have a side of {side} px or less and are enlarged to {needed} px: "
            f"give smaller {', '.join(flags)}"
        )


def dry_run(recipe: Recipe[Any], options: TrainingOptions) -> None:
    """Print what a training would do and about how long it takes, from some steps of each stage.

    Nothing is written. Passes over the data between epochs, which some tasks make, are not measured.
    """
    world = join_world(options.device, timeout_s=10 * options.timeout_s)
    options, lines = with_first_learning(recipe, options, world)
    experiment, _, told = begun(recipe, options, world)
    with contextlib.closing(experiment.open_data(options, world)) as data:
        lines += [*told, *lines_before(experiment, data)]
        place_backbone(experiment, options, world)
        total_s = experiment.task.seconds_before()
        for number, num_planned in enumerate(stage_steps(experiment, data)):
            stage = experiment.stages[number]
            data.begin_stage(stage)
            num_steps = min(num_planned, options.max_steps_per_stage or num_planned)
            with operation(f"{stage.name}: measuring some steps"):
                step_s, val_s, memory = _measured(experiment, number, data)
            part = val_part(data, num_steps, num_planned)
            num_val = part.num_samples if part is not None and val_s else 0
            stage_s = num_steps * step_s + num_val * val_s
            total_s += stage_s
            val = f", validation of {num_val:,} images {clock(num_val * val_s)}" if num_val else ""
            lines.append(
                f"{stage.name}: {number_of(num_steps, 'step')} of {step_s:.3g} s{val}{memory}; it ends about "
                f"{clock(total_s)} after the start"
            )
    if world.rank == 0:
        print("\n".join(lines))
        print("dry run: nothing was written; the times are those of few steps, without start and checkpoints")


def _measured(experiment: Experiment, number: int, data: RunData) -> tuple[float, float, str]:
    """Return the seconds of a stage's step and of a validation image, and the memory in words."""
    options, world, stage = data.options, data.world, experiment.stages[number]
    reset_peak_memory(world.device)
    bench = StageBench(experiment, number, options, data.train, world, seconds=0, min_steps=_MEASURED)
    step_s = data.step_size / (bench.both() * world.size)
    val_s, views = 0.0, experiment.val_views(stage)
    if data.val is not None and views:
        evaluate = lambda some: bench.train_step.evaluate(some, views, lambda: False)
        with (
            data.loader(data.val, views, train=False) as loader,
            contextlib.closing(loader.epoch(0)) as batches,
        ):
            evaluate([next(batches)])
            started = perf_counter()
            num_batches = min(_MEASURED, loader.num_steps)
            # A small set has one batch, which is taken again.
            evaluate(islice(itertools.chain(batches, loader.epoch(1)), num_batches))
            val_s = (perf_counter() - started) / (num_batches * loader.batch_size_per_rank * world.size)
    memory = peak_memory(world.device)
    if memory:
        return step_s, val_s, f", GPU memory {gibibytes(memory['peak_allocated_bytes'])}"
    most_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return step_s, val_s, f", memory {gibibytes(1024 * most_kib)}"
