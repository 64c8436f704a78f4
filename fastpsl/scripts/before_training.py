"""The lines that a training prints before its first step."""

from collections.abc import Iterator

import numpy as np

from fastpsl.console.words import number_of, number_of_weights
from fastpsl.engine.experiment import Experiment
from fastpsl.engine.options import PretrainOptions, flag, per_stage, share_of
from fastpsl.engine.run import RunData
from fastpsl.models.names import is_module
from fastpsl.pipelines.interface.dataset import Dataset, spread_indices
from fastpsl.pipelines.interface.reading import PLAIN
from fastpsl.pipelines.views import Crop
from fastpsl.scripts import advice
from fastpsl.scripts.presets import HELD_BACK, SMALL_BELOW, holds_back, why_none_held_back

_SAMPLED = 1000  # images whose sizes are looked at


def lines_before(experiment: Experiment, data: RunData) -> Iterator[str]:
    """Yield what to tell before the first step: images, network, steps, and what does not suit."""
    yield data_line(data)
    yield network_line(experiment, data)
    yield from experiment.task.lines_before(experiment.backbone, experiment.stages, data)
    yield length_line(experiment, data)
    if data.options.data is not None and isinstance(data.options, PretrainOptions):
        for line in unsuitable(experiment, data):
            yield f"warning: {line}"
        yield from instead(experiment, data)


def instead(experiment: Experiment, data: RunData) -> list[str]:
    """Return what worked better on so few images than a training from random weights; [] elsewhere."""
    options = data.options
    num = data.train.num_samples + (data.val.num_samples if data.val and share_of(options.val) else 0)
    others = experiment.task.needs_labels or hasattr(options, "teacher") or getattr(options, "init", None)
    # A module may come with weights, and published networks read colours of 8 bits.
    others = others or is_module(getattr(options, "backbone", "")) or data.train.reading != PLAIN
    if options.data is None or others or num >= advice.FEW_IMAGES:
        return []
    val = options.val if data.val is not None and options.val else HELD_BACK
    return advice.on_few_images(options.data, val if data.train.num_classes > 1 else None)


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
    classes = number_of(data.num_classes, "class", "classes")
    return f"{number_of(data.num_samples, what)} {f'in {classes}' if data.num_classes else 'without labels'}"


def _why_without_val(data: RunData) -> str:
    """Return why no validation images were held back, if --val or the preset holds some back; else ""."""
    options, reason = data.options, ""
    if share_of(options.val):
        reason = f"--val {options.val} holds none back"
    elif options.val is None and options.data is not None and holds_back(getattr(options, "preset", "")):
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
    pairs = [(stage.name, size) for stage, size in zip(experiment.stages, sizes, strict=True)]
    inputs = [f"{name} {size * numbers[name]:,}" for name, size in pairs if name in numbers]
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
    """Yield a line for each value that does not suit the data, with the value to give instead."""
    options, num_images = data.options, data.train.num_samples
    limit = max(2, int(advice.MAX_BATCH_SHARE * num_images))
    if options.batch_of() > limit:
        yield advice.BATCH.line.format(
            share=options.batch_of() / num_images, num_images=num_images, limit=limit
        )
    steps = zip(experiment.stages, stage_steps(experiment, data), strict=True)
    if few := [f"{stage.name} has {num:,}" for stage, num in steps if num < advice.FEW_STEPS]:
        more = list[str]()
        for stage in experiment.stages:
            per_epoch = max(1, num_images // min(limit, options.batch_of(stage)))
            more.append(str(max(stage.epochs, -(-advice.FEW_STEPS // per_epoch))))
        yield advice.STEPS.line.format(few=", ".join(few), epochs=" ".join(more))
    warmup, epochs = getattr(options, "warmup_epochs", 0), sum(stage.epochs for stage in experiment.stages)
    if 0 < epochs <= warmup:
        yield advice.WARM_UP.line.format(warmup=warmup, epochs=epochs, fitting=epochs / 10)
    needed, side = needed_side(experiment), typical_side(data)
    if side < needed:
        unit = getattr(options, "grid", 1)  # of a jigsaw, whose window has as many cells on a side
        sizes = list[str]()
        for name in ("short_side", "tile_px", "size_px"):
            if (given := getattr(options, name, None)) is not None:
                fitting = [max(1, each * side // needed // unit) * unit for each in per_stage(given)]
                sizes.append(f"{flag(name)} {' '.join(map(str, fitting))}")
        yield advice.SIDES.line.format(side=side, needed=needed, sides=" ".join(sizes))


def needed_side(experiment: Experiment) -> int:
    """Return the shorter side that the crops of all stages need of an image, in px; 0 without crops."""
    return max((getattr(crop, "shorter_px", crop.size_px) for crop in _crops(experiment)), default=0)


def typical_side(data: RunData) -> int:
    """Return the median of the shorter sides of the training images, in px."""
    rows = data.train.rows(spread_indices(data.train.num_samples, _SAMPLED))
    return int(np.median(np.minimum(rows.height, rows.width)))
