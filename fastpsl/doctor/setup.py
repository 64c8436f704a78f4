"""The setup of a measurement: a recipe with its options, on its data, as one of the ranks that will train."""

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fastpsl.console.terminal import number_in
from fastpsl.console.words import number_of
from fastpsl.engine.distributed import World, join_world
from fastpsl.engine.experiment import Experiment, place_backbone
from fastpsl.engine.gpu import torch_seed
from fastpsl.engine.options import NO_VAL, TrainingOptions, per_stage, share_of
from fastpsl.engine.run import RunData
from fastpsl.engine.stage_bench import StageBench
from fastpsl.files.workers import default_num_threads
from fastpsl.pipelines.datasets.subset import Synthetic
from fastpsl.scripts.launch import for_machine
from fastpsl.scripts.presets import CPU_PRESETS
from fastpsl.scripts.recipe import Evaluation, Recipe
from fastpsl.scripts.recipe_files import TRAIN, load_script, recipe_path

DEFAULT = "jigsaw_r50.py"
DEFAULT_OPTIONS = ("--backbone", "resnet18")  # two cores measure it in less than a minute
_REMEDY = "give a recipe that trains; `fastpsl recipes copy jigsaw my_jigsaw.py` writes one"


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe's script at a path, with the options that its arguments give."""

    path: Path
    arguments: tuple[str, ...]
    options: TrainingOptions
    recipe: Recipe[Any]

    def build(self, options: TrainingOptions) -> Experiment:
        """Build the experiment without the recipe's prints; raise a one-line ValueError if that fails."""
        with contextlib.redirect_stdout(io.StringIO()), one_line(self.path, "build()"):
            experiment: Any = self.recipe.build(options)
        if not isinstance(experiment, Experiment):
            raise ValueError(  # noqa: TRY004 - a user error
                f"{self.path}: its build() gives {type(experiment).__name__}; let it return an Experiment"
            )
        return experiment


def default_recipe() -> Path | None:
    """Return the path of the installed jigsaw recipe, or of this checkout's; None if there is neither."""
    return recipe_path(Path(DEFAULT).stem)


def load_recipe(path: Path, arguments: Sequence[str], *, by_machine: bool = False) -> LoadedRecipe:
    """Load the script at `path` and parse its arguments; the machine may choose the preset, as of a name."""
    if reason := _no_file(path):
        raise ValueError(f"{reason}; {_REMEDY}")
    if path.suffix != ".py":
        raise ValueError(f"{path}: is no recipe; {_REMEDY}")
    with contextlib.redirect_stdout(io.StringIO()), one_line(path, "loading it"):
        try:
            script = load_script(path)
        except SystemExit:
            raise ValueError(
                'it runs and ends when it is imported; put its last line under if __name__ == "__main__"'
            ) from None
    recipe = getattr(script, "RECIPE", None)
    if isinstance(recipe, Evaluation):
        reason = "it is an evaluation, of which nothing is trained in stages"
        raise ValueError(f"{path}: {reason}; {_REMEDY}")  # noqa: TRY004 - a user error
    if not isinstance(recipe, Recipe):
        raise ValueError(f"{path}: has no RECIPE, so it is no recipe; {_REMEDY}")  # noqa: TRY004
    with one_line(path, "parsing its options"):

        def options_of(preset: str | None, log: Callable[[str], object]) -> Any:
            words = [*arguments, *(["--preset", preset] if preset else [])]
            return recipe.parse(words, prog=str(path), log=lambda line: None, by_machine=by_machine)

        options, _ = for_machine(recipe, options_of, by_machine=by_machine)
        if by_machine and options.preset in CPU_PRESETS and "--preset" not in arguments:
            arguments = [*arguments, "--preset", options.preset]
        if share_of(options.val):  # all images are looked at
            options = replace(options, val=NO_VAL)
    return LoadedRecipe(path, tuple(arguments), options, recipe)


def _no_file(path: Path) -> str:
    """Return the reason why `path` is no file, or "" if it is one."""
    if path == Path():
        return "the recipe's path is empty, or this folder"
    if path.is_dir():
        return f"{path}: is a folder, not a script"
    if not path.exists():
        return f"{path}: no such recipe"
    return "" if path.is_file() else f"{path}: is a device or a pipe, not a script"


@contextlib.contextmanager
def one_line(place: object, what: str = "", *, when_too_large: str = "lower --batch-size") -> Iterator[None]:
    """Raise an error as a one-line ValueError that names the place; the recipe itself shows its traceback."""
    in_line = lambda error: " ".join(str(error).split())
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        reason = in_line(error)[:120]
        raise ValueError(f"{place}: the GPU has too little memory ({reason}); {when_too_large}") from error
    except (ValueError, OSError) as error:
        raise ValueError(f"{place}: {in_line(error)}") from error
    except Exception as error:
        part, reason = f"{place}: {what}" if what else place, f"{in_line(error)[:300]}"
        raise ValueError(
            f"{part} fails ({type(error).__name__}: {reason}); start the recipe itself for more"
        ) from error


@contextlib.contextmanager
def opened_stage(
    name: str, arguments: Sequence[str], stage: str, world: World | None = None
) -> Iterator[StageBench]:
    """Yield a benchmark of a stage of the recipe with this name, on synthetic data, and release its step.

    `world` is what the process has joined; without one, it trains alone.
    """
    path = recipe_path(TRAIN[name])
    assert path is not None
    recipe, world = load_recipe(path, arguments), world or join_world("auto", 60.0)
    options = replace(recipe.options, workers=1)
    experiment = _build(recipe, options)
    assert experiment is not None
    (number,) = _stage_indices(experiment, (stage,))
    with contextlib.closing(experiment.open_data(options, world)):
        place_backbone(experiment, options, world)
        bench = StageBench(experiment, number, options, Synthetic(1000), world)
        try:
            yield bench
        finally:
            bench.train_step.release()


@dataclass(frozen=True)
class DoctorSetup:
    """A recipe that is ready to be measured."""

    recipe: LoadedRecipe | None  # None if none is named and the default recipe is not found
    options: TrainingOptions  # of one of the ranks, which runs alone here
    num_ranks: int  # that will train
    world: World
    experiment: Experiment | None  # None without a recipe
    opened: RunData
    stages: tuple[int, ...]  # indices of those to measure

    @property
    def num_threads(self) -> int:
        """The number of decoding threads."""
        assert self.options.workers is not None
        return self.options.workers


def open_setup(recipe: LoadedRecipe | None, num_ranks: int | None, stages: Sequence[str]) -> DoctorSetup:
    """Open and check the data, and place the experiment on its device."""
    if number_in("WORLD_SIZE", 1) > 1:
        raise ValueError("doctor measures one rank: start it without torchrun, and give --gpus NUM")
    options = TrainingOptions(batch_size=32) if recipe is None else recipe.options
    world = join_world(options.device, timeout_s=10 * options.timeout_s)
    whole_experiment = _build(recipe, options)
    stage_indices = _stage_indices(whole_experiment, stages)
    num_ranks = _num_ranks(num_ranks, options, world)
    # One rank's share of batch, lanes and cores, as under torchrun.
    sizes = per_stage(options.batch_size)
    shares = [options.rank_batch(num_ranks, size) * options.accumulate for size in sizes]
    options = replace(
        options,
        batch_size=shares[0] if len(shares) == 1 else tuple(shares),  # type: ignore[arg-type]
        lanes=max(1, options.lanes // num_ranks),
        workers=options.workers or max(1, default_num_threads() // num_ranks),
    )
    try:
        # Built again, because a task depends on its batch size (NT-Xent's negatives, the batches that fill
        # MoCo's queue), which is the rank's share here.
        experiment = whole_experiment if num_ranks == 1 else _build(recipe, options)
        if experiment is None:
            opened = RunData(options, world)
        else:
            opened = experiment.open_data(options, world)
            place_backbone(experiment, options, world)
    except ValueError as error:
        if num_ranks == 1:
            raise
        images = number_of(options.batch_of(), "image")  # the whole batch may be valid
        raise ValueError(
            f"one of {num_ranks} ranks, measured by itself with its {images} of a step: {error}"
        ) from error
    return DoctorSetup(recipe, options, num_ranks, world, experiment, opened, stage_indices)


def _build(recipe: LoadedRecipe | None, options: TrainingOptions) -> Experiment | None:
    """Build the recipe's experiment under the options' seed."""
    torch.manual_seed(torch_seed(options.seed))
    return None if recipe is None else recipe.build(options)


def _stage_indices(experiment: Experiment | None, stages: Sequence[str]) -> tuple[int, ...]:
    """Return the indices of the named stages, or of all without names."""
    names = [] if experiment is None else [stage.name for stage in experiment.stages]
    for name in stages:
        if name not in names:
            raise ValueError(
                f"--stages {name}: the plan has {', '.join(names) or 'none, as there is no recipe'}"
            )
    return tuple(i for i, name in enumerate(names) if not stages or name in stages)


def _num_ranks(given: int | None, options: TrainingOptions, world: World) -> int:
    """Return `given`, or else as many ranks as there are GPUs and equal shares of the batch."""
    if given is not None:
        if given < 1:
            raise ValueError(f"--gpus {given}: it must be 1 or more")
        for size in per_stage(options.batch_size):
            options.rank_batch(given, size)
        return given
    num_gpus = torch.cuda.device_count() if world.device.type == "cuda" else 1
    parts = {number: number * options.accumulate for number in range(num_gpus, 1, -1)}
    sizes = per_stage(options.batch_size)
    return next((number for number, part in parts.items() if all(size % part == 0 for size in sizes)), 1)
