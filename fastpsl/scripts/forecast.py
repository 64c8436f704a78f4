"""Forecasts from a few steps: what --dry-run tells, and the preset that suits a machine without a GPU."""

import contextlib
import itertools
import math
import os
import resource
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

from fastpsl.console.progress import clock, operation
from fastpsl.console.words import gibibytes, number_of
from fastpsl.engine.distributed import World, join_world, share
from fastpsl.engine.experiment import Experiment, place_backbone
from fastpsl.engine.gpu import peak_memory, reset_peak_memory
from fastpsl.engine.options import TrainingOptions, at_end, per_stage
from fastpsl.engine.run import RunData, val_part
from fastpsl.engine.stage_bench import StageBench
from fastpsl.scripts.before_training import lines_before, needed_side, stage_steps, typical_side
from fastpsl.scripts.beginning import begun, with_first_learning
from fastpsl.scripts.command_line import COMMAND
from fastpsl.scripts.presets import CPU_PRESETS, SMALL_BELOW
from fastpsl.scripts.recipe import Recipe

USUAL_S = 1800.0  # of a run that fits
LONG_S = 7200.0  # of a run that is told a shorter command
_MEASURED = 3  # steps and validation batches of each stage
_FEW = 4  # images that tell how many are measured on a CPU
_STAGE_S = 4.0  # of a CPU's steps that are measured of a stage


class Opened(NamedTuple):
    """An experiment on its device, and its data."""

    experiment: Experiment
    data: RunData
    lines: Sequence[str] = ()  # about the weights that it begins with, and what learns of them


def opened(recipe: Recipe[Any], options: Any, world: World) -> Opened:
    """Open the data, build the network and place it on the device. The caller closes the data."""
    options, lines = with_first_learning(recipe, options, world)
    experiment, _, told = begun(recipe, options, world)
    data = experiment.open_data(options, world)
    place_backbone(experiment, options, world)
    return Opened(experiment, data, [*lines, *told])


def dry_run(recipe: Recipe[Any], options: TrainingOptions) -> None:
    """Print what a training would do and about how long it takes, from some steps of each stage.

    Nothing is written. Passes over the data between epochs, which some tasks make, are not measured.
    """
    world = join_world(options.device, timeout_s=10 * options.timeout_s)
    whole = opened(recipe, options, world)
    with contextlib.closing(whole.data):
        lines = [*whole.lines, *lines_before(whole.experiment, whole.data)]
        lines += choice_lines(whole.experiment, options, world)
        with operation("measuring some steps"):
            part = _quick(recipe, whole)
        is_whole = part.data.options.batch_size == options.batch_size
        total_s, steps = whole.experiment.task.seconds_before(), list[int]()
        for number, num_planned in enumerate(stage_steps(whole.experiment, whole.data)):
            stage = whole.experiment.stages[number]
            with operation(f"{stage.name}: measuring some steps"):
                num_steps, step_s, val_s, memory = _stage(whole, part, number, num_planned)
            steps.append(num_steps)
            validated = val_part(whole.data, num_steps, num_planned)
            num_val = validated.num_samples if validated is not None and val_s else 0
            total_s += num_steps * step_s + num_val * val_s
            val = f", validation of {num_val:,} images {clock(num_val * val_s)}" if num_val else ""
            memory = memory if is_whole else ""
            lines.append(
                f"{stage.name}: {number_of(num_steps, 'step')} of {step_s:.3g} s{val}{memory}; it ends about "
                f"{clock(total_s)} after the start"
            )
        measured = f", which had {part.data.options.batch_of()} images" if not is_whole else ""
        lines.append(
            f"dry run: nothing was written; the times are those of few steps{measured}, without start and "
            "checkpoints"
        )
        if total_s > LONG_S:
            # As many steps of each stage as take about half an hour.
            limit = str(max(1, int(max(steps) * USUAL_S / total_s)))
            command = shlex.join([*_command(world), "--max-steps-per-stage", limit])
            lines.append(f"for about half an hour: {command}")
    if world.rank == 0:
        print("\n".join(lines))


def choice_lines(experiment: Experiment, options: TrainingOptions, world: World) -> Iterator[str]:
    """Yield how each stage's steps run on a GPU, and why."""
    if world.device.type == "cuda":
        for stage in experiment.stages:
            reasons = experiment.choose_step(stage, options, world).reasons()
            words = (f"--{name.replace('_', '-')} {value} ({why})" for name, (value, why) in reasons.items())
            yield f"{stage.name}: {'; '.join(words)}"


def _quick(recipe: Recipe[Any], whole: Opened) -> Opened:
    """Return the experiment to measure: on a CPU, where a step takes long, with fewer images.

    The time of a step with the fewest images tells how many.
    """
    world, options = whole.data.world, whole.data.options
    sizes = per_stage(options.batch_size)
    parts = world.size * options.passes_per_step
    if world.device.type != "cpu" or min(sizes) <= _FEW * parts:
        return whole
    few = _with_batch(recipe, _FEW * parts, whole)
    # All ranks must take as many.
    step_s = share(world, _measured(few, len(few.experiment.stages) - 1, num=1, val=False)[0])
    num = int(_FEW * _STAGE_S / ((_MEASURED + 2) * step_s))
    if num * parts >= max(sizes):
        return _with_batch(recipe, max(sizes), whole) if hasattr(options, "queue_size") else whole
    batch = parts << max(_FEW.bit_length() - 1, num.bit_length() - 1)
    return few if batch == _FEW * parts else _with_batch(recipe, batch, whole)


def _stage(
    whole: Opened, part: Opened, number: int, num_planned: int, *, val: bool = True
) -> tuple[int, float, float, str]:
    """Return a stage's steps, the seconds of a step and of a validation image, and the memory in words."""
    step_s, val_s, memory = _measured(part, number, val=val)
    own, few = (each.data.options.batch_of(each.experiment.stages[number]) for each in (whole, part))
    num_steps = min(num_planned, whole.data.options.max_steps_per_stage or num_planned)
    return num_steps, step_s * own / few, val_s, memory


def _with_batch(recipe: Recipe[Any], batch: int, whole: Opened) -> Opened:
    """Return the experiment with batches of at most so many images, of the same open data.

    A queue has room for the keys of one batch, because to fill a long queue takes longer than the
    measurement.
    """
    options = whole.data.options
    least: dict[str, Any] = {
        name: tuple(min(size, batch) for size in given) if isinstance(given, tuple) else min(given, batch)
        for name in ("batch_size", "key_group")
        if (given := getattr(options, name, None)) is not None
    }
    if hasattr(options, "queue_size"):
        least["queue_size"] = math.lcm(*per_stage(least["batch_size"]))
    smaller: Any = replace(options, **least)
    return _with_options(recipe, smaller, whole)


def _with_options(recipe: Recipe[Any], options: Any, whole: Opened) -> Opened:
    """Return the experiment with other options, of the same open data."""
    world = whole.data.world
    experiment, _, _ = begun(recipe, options, world)
    place_backbone(experiment, options, world)
    data = RunData(options, world, lambda _: (whole.data.train, whole.data.val))
    return Opened(experiment, data)


def _measured(
    opened: Opened, number: int, num: int = _MEASURED, *, val: bool = True
) -> tuple[float, float, str]:
    """Return the seconds of a stage's step and of a validation image, and the memory in words."""
    experiment, data = opened.experiment, opened.data
    options, world, stage = replace(data.options, prefetch_batches=1), data.world, experiment.stages[number]
    data.begin_stage(stage)
    reset_peak_memory(world.device)
    bench = StageBench(experiment, number, options, data.train, world, seconds=0, min_steps=num)
    step_s = data.step_size / (bench.both() * world.size)
    val_s, views = 0.0, experiment.val_views(stage)
    if val and data.val is not None and views:
        evaluate = lambda some: bench.train_step.evaluate(some, views, lambda: False)
        with (
            data.loader(data.val, views, train=False) as loader,
            contextlib.closing(loader.epoch(0)) as batches,
        ):
            evaluate([next(batches)])
            started = perf_counter()
            num_batches = min(num, loader.num_steps)
            # A small set has one batch, which is taken again.
            evaluate(itertools.islice(itertools.chain(batches, loader.epoch(1)), num_batches))
            val_s = (perf_counter() - started) / (num_batches * loader.batch_size_per_rank * world.size)
    memory = peak_memory(world.device)
    if memory:
        return step_s, val_s, f", GPU memory {gibibytes(memory['peak_allocated_bytes'])}"
    most_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return step_s, val_s, f", memory {gibibytes(1024 * most_kib)}"


def choose_preset(recipe: Recipe[Any], options_of: Callable[[str], Any]) -> tuple[Any, str]:
    """Choose the preset for a machine without a GPU, by timed steps.

    Args:
        recipe: The recipe.
        options_of: Returns the options of a preset.

    Returns:
        The options of a preset, and a line about it. It is the longest of `CPU_PRESETS` that ends in about
        half an hour and enlarges no image, or else the shortest that the network reads.

    Raises:
        ValueError: The training cannot begin.
    """
    options = {name: options_of(name) for name in CPU_PRESETS}
    sides = {(getattr(o, "size_px", None), getattr(o, "short_side", None)) for o in options.values()}
    are_sized = len(sides) > 1  # else no preset has smaller images
    found, refused = dict[str, float](), list[ValueError]()
    whole: Opened | None = None
    with operation("choosing --preset by timed steps"), contextlib.ExitStack() as stack:
        for name, each in options.items():
            try:
                if whole is None:
                    whole = opened(recipe, each, join_world(each.device, timeout_s=10 * each.timeout_s))
                    stack.callback(whole.data.close)
                else:
                    whole = _as_preset(recipe, each, whole)
            except ValueError as error:  # such as images that are too small for the network
                refused.append(error)
                continue
            found[name] = _steps_s(recipe, whole)
            enlarges = are_sized and typical_side(whole.data) < needed_side(whole.experiment)
            if found[name] <= USUAL_S and not enlarges:
                break
    if whole is None:
        raise refused[0]
    name, seconds = list(found.items())[-1]
    chosen = options[name]
    usual = recipe.usual(chosen)
    whose = "the paper has" if recipe.source == "paper" else "usual are"
    back = "small" if whole.data.train.num_samples < SMALL_BELOW else "paper"
    return chosen, (
        f"--preset {name}, by timed steps on this CPU: {_words(vars(chosen))}, about "
        f"{clock(seconds)} of steps; {whose} {_words(usual)}, which --preset {back} takes"
    )


def _as_preset(recipe: Recipe[Any], options: Any, whole: Opened) -> Opened:
    """Return the experiment with the options of another preset, checked, of the same open data."""
    if options.plan == "continue":  # `begun` may have chosen the block, and need not do so again
        options = replace(options, first_learning=whole.data.options.first_learning)  # type: ignore[attr-defined]
    other = _with_options(recipe, options, whole)
    other.experiment.check(other.data)
    return other


def _steps_s(recipe: Recipe[Any], whole: Opened) -> float:
    """Return about how many seconds all steps take, with what comes before the first."""
    task, part = whole.experiment.task, _quick(recipe, whole)
    # The task times its work before the first step, for `seconds_before`.
    list(task.lines_before(whole.experiment.backbone, whole.experiment.stages, whole.data))
    seconds = task.seconds_before()
    for number, num_planned in enumerate(stage_steps(whole.experiment, whole.data)):
        num_steps, step_s, _, _ = _stage(whole, part, number, num_planned, val=False)
        seconds += num_steps * step_s
    return seconds


def _words(values: Mapping[str, Any]) -> str:
    """Return the network, the side of its images and the length of a training, in words."""
    epochs = f"{' '.join(map(str, values['epochs']))} epoch{'s' * (values['epochs'] != (1,))}"
    side = [f"{at_end(values['size_px'])} px"] if "size_px" in values else []
    return ", ".join([*([values["backbone"]] if "backbone" in values else []), *side, epochs])


def _command(world: World) -> list[str]:
    """Return the words of this command as they were typed, without --dry-run and a limit of steps."""
    if typed := os.environ.get(COMMAND):  # of several processes
        words = [*typed.split(), "--gpus", str(world.size), *sys.argv[1:]]
    else:
        is_ours = Path(sys.argv[0]).name == "fastpsl" or Path(sys.argv[0]).parent.name == "fastpsl"
        words = [*(["fastpsl"] if is_ours else ["python", sys.argv[0]]), *sys.argv[1:]]
    kept, is_value = list[str](), False
    for word in words:
        name = word.partition("=")[0].replace("_", "-")
        if not is_value and name not in ("--dry-run", "--max-steps-per-stage"):
            kept.append(word)
        is_value = name == "--max-steps-per-stage" and "=" not in word
    return kept
