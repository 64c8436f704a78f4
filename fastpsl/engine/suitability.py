"""What a run tells before it starts: its number of steps, and values that do not suit the data."""

from collections.abc import Iterator

import numpy as np

from fastpsl.console.words import number_of
from fastpsl.engine.experiment import Experiment
from fastpsl.engine.options import flag
from fastpsl.engine.presets import MAX_BATCH_SHARE, MIN_STEPS
from fastpsl.engine.run_data import RunData
from fastpsl.pipelines.data.dataset import Dataset, spread_indices

_SAMPLED = 1000  # images whose sizes are looked at
_SIZES = ("short_side", "cell_px", "tile_px", "size_px")


def data_line(data: RunData) -> str:
    """Return the numbers of images and classes, for training and for validation, in words."""
    parts = [(data.train, "training"), (data.val, "validation")]
    return ", ".join(_size(part, what) if part else f"no {what} images" for part, what in parts)


def _size(data: Dataset, what: str) -> str:
    classes = (
        f"in {number_of(data.num_classes, 'class', 'classes')}" if data.num_classes else "without labels"
    )
    return f"{number_of(data.num_samples, f'{what} image')} {classes}"


def length_line(experiment: Experiment, data: RunData) -> str:
    """Return the number of steps of each stage and of all, in words.

    Where a task makes several network inputs of an image, it has their number per step, too.
    """
    steps = stage_steps(experiment, data)
    names = [f"{stage.name} {num:,}" for stage, num in zip(experiment.stages, steps, strict=True)]
    parts = f" ({', '.join(names)})" if len(names) > 1 else ""
    limit = data.options.max_steps_per_stage
    cut = f"; --max-steps-per-stage cuts each at {limit:,}" if limit is not None else ""
    inputs = [
        f"{name} {data.options.batch_size * number:,}"
        for name, number in experiment.inputs_per_image().items()
    ]
    made = f"; network inputs per step: {', '.join(inputs)}" if inputs else ""
    return f"{number_of(sum(steps), 'step')}{parts}{made}{cut}"


def stage_steps(experiment: Experiment, data: RunData) -> list[int]:
    """Return the number of steps of each stage."""
    per_epoch = data.train.num_samples // data.options.batch_size
    return [stage.num_steps or stage.epochs * per_epoch for stage in experiment.stages]


def unsuitable(experiment: Experiment, data: RunData) -> Iterator[str]:
    """Yield a line for each value that does not suit the data, with the options to use instead."""
    options, num_images = data.options, data.train.num_samples
    few = [
        f"{stage.name} has {num:,}"
        for stage, num in zip(experiment.stages, stage_steps(experiment, data), strict=True)
        if num < MIN_STEPS
    ]
    if few:
        yield (
            f"stages of fewer than {MIN_STEPS:,} steps learn little: {', '.join(few)}; give more --epochs, a "
            "smaller --batch-size, or --preset small"
        )
    warmup, epochs = getattr(options, "warmup_epochs", 0), sum(stage.epochs for stage in experiment.stages)
    if 0 < epochs <= warmup:
        yield (
            f"the rate rises for {warmup:g} epochs, and the run has {epochs}, so it never reaches --lr: give "
            "a smaller --warmup-epochs"
        )
    if options.batch_size > MAX_BATCH_SHARE * num_images:
        limit = max(2, int(MAX_BATCH_SHARE * num_images))
        yield (
            f"a step has {options.batch_size / num_images:.0%} of the {num_images:,} images: give "
            f"--batch-size {limit} or less, or --preset small"
        )
    needed = max(
        (
            getattr(view.crop, "shorter_px", view.crop.size_px)
            for stage in experiment.stages
            for view in experiment.task.views(stage.level)
        ),
        default=0,
    )
    rows = data.train.rows(spread_indices(num_images, _SAMPLED))
    side = int(np.median(np.minimum(rows.height, rows.width)))
    if side < needed:
        flags = [flag(name) for name in _SIZES if hasattr(options, name)]
        yield (
            f"half of the images have a side of {side} px or less and are enlarged to {needed} px: "
            f"give smaller {', '.join(flags)}"
        )
