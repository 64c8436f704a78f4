"""The images of a past step of a run, as the network saw them, and what each of them cost."""

import contextlib
import csv
import io
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastpsl.console.progress import operation
from fastpsl.console.screen import Progress
from fastpsl.console.words import number_of
from fastpsl.engine.distributed import World, gather_objects, share
from fastpsl.engine.experiment import Experiment
from fastpsl.engine.gpu import torch_seed
from fastpsl.engine.options import (
    INITIAL_WEIGHTS,
    NO_VAL,
    PretrainOptions,
    TrainingOptions,
    flag,
    names_val,
)
from fastpsl.engine.plan import Stage
from fastpsl.engine.replay import (
    Made,
    PastBatch,
    PastStep,
    batches_of,
    find_start,
    find_step,
    make_again,
    prepare_stage,
)
from fastpsl.engine.run import RunData
from fastpsl.evaluation.teacher_features import FOLDER
from fastpsl.evaluation.trained_run import TrainedRun
from fastpsl.files.atomic import write_atomically
from fastpsl.files.json_records import NoRecord
from fastpsl.files.run_folder import CONFIG, ENVIRONMENT
from fastpsl.files.system_errors import input_errors, output_errors
from fastpsl.models.names import is_own, not_given
from fastpsl.pipelines.interface.identity import in_digits, not_compared, same_data
from fastpsl.pipelines.views import ViewSpec
from fastpsl.plots.contact_sheet import save_contact_sheet
from fastpsl.plots.png import class_name
from fastpsl.scripts.beginning import seeing
from fastpsl.scripts.command_line import require_within
from fastpsl.scripts.recipe import Recipe, recorded_values
from fastpsl.scripts.recipe_files import TRAIN, load_recipe, named_path, recorded_recipe

MAX_IMAGES = 400  # of a sheet


@dataclass(frozen=True)
class PastRun:
    """A run as its folder tells it.

    Attributes:
        folder: Its folder.
        recipe: Its recipe.
        options: Its options, as its last start had them.
        science: What must not differ.
        num_images: The number of training images.
        num_ranks: The number of processes of its last start.
    """

    folder: Path
    recipe: Recipe[Any]
    options: TrainingOptions
    science: Mapping[str, Any]
    num_images: int
    num_ranks: int

    @classmethod
    def of(
        cls,
        folder: Path,
        *,
        data: str | None,
        backbone: str | None,
        recipe: str | None,
        teacher: str | None = None,
        teacher_backbone: str | None = None,
        **more: Any,
    ) -> "PastRun":
        """Read a run's folder.

        Args:
            folder: The folder.
            data: Where the training images are now; None for where they were.
            backbone: The run's backbone, if its name is of a Python file.
            recipe: The recipe's name or file; None for the name in the record.
            teacher: Where a distillation's teacher is now, or its name if it is of a Python file; None for
                where it was.
            teacher_backbone: The teacher's backbone, if its name is that of a Python file.
            **more: Other values of options.

        Raises:
            ValueError: It is no folder of a run, or what it names is not there.
        """
        path = folder / CONFIG.name
        needed = ("options", "science.recipe", "science.data_digest", "science.precision", "images.train")
        with input_errors(folder):
            try:
                config = CONFIG.of(folder, *needed)
                num_ranks = ENVIRONMENT.of(folder, "world_size")["world_size"]
            except (FileNotFoundError, NotADirectoryError, NoRecord) as error:
                reason = error if isinstance(error, NoRecord) else f"no {Path(error.filename).name}"
                raise ValueError(
                    f"{folder} is no folder of a training ({reason}): give a run's folder"
                ) from None
        science, num_images = config["science"], config["images"]["train"]
        name = science["recipe"]
        script = load_recipe(named_path(recipe, TRAIN)) if recipe else recorded_recipe(path, name)
        if not isinstance(script, Recipe) or script.name != name:
            raise ValueError(f"--recipe {recipe}: it is {script.name}, and the run is of {name}")
        # A GPU's "auto" is another one than the CPU's.
        config["options"]["precision"] = science["precision"]
        values = recorded_values(config, name, script.options, str(path))
        if is_own(values.get("backbone") or ""):
            if backbone is None:
                raise not_given(path, values["backbone"])
            values["backbone"] = backbone
        elif backbone not in (None, values.get("backbone")):
            raise ValueError(f"--backbone {backbone}: the run has {values.get('backbone')}; leave it out")
        for option, given in {"teacher": teacher, "teacher_backbone": teacher_backbone}.items():
            if given is not None and option not in values:
                raise ValueError(f"{flag(option)} {given}: {name} has no teacher; leave it out")
            if given is None and is_own(named := values.get(option) or ""):
                raise not_given(path, named, flag(option))
            values |= {} if given is None else {option: given}
        if "teacher_features" in values and (stored := folder / FOLDER).is_dir():
            values["teacher_features"] = stored
        run = TrainedRun.of(folder)
        assert run is not None
        values["data"] = data or run.train_images()
        with _told(path):
            options = script.with_paper(**values | more)
            _require_one_record(json.loads(json.dumps(options.science())), science)
        if names_val(options):  # they are not needed, and may have moved
            options = replace(options, val=NO_VAL)
        if isinstance(options, PretrainOptions):  # nothing looks at features
            options = replace(options, freeze_when="never", probe_every=0)
        return cls(folder, script, options, science, num_images, num_ranks)

    def build(self) -> Experiment:
        """Build the experiment with the weights that the run's seed gives."""
        torch.manual_seed(torch_seed(self.options.seed))
        with operation("building the network"), _told(self.folder / CONFIG.name):
            experiment: Experiment = self.recipe.build(self.options)
        return seeing(experiment, self.science.get(INITIAL_WEIGHTS))

    def check_data(self, data: RunData, allow_other: bool) -> str:
        """Return a line about images that are not the run's; empty if they are.

        Raises:
            ValueError: They are not, unless `allow_other` and there are as many.
        """
        digest, expected = data.train.digest(), str(self.science["data_digest"])
        if same_data(digest, expected):
            return "".join(not_compared(f"the record of {self.folder}", expected, digest))
        num, source = data.train.num_samples, self.options.data or "the embedded sample"
        differ = (
            f"{source} has {num:,} training images with the digest {in_digits(digest)}; those of "
            f"{self.folder} were {self.num_images:,} with {in_digits(expected)}"
        )
        if num != self.num_images:
            raise ValueError(f"{differ}: give the run's images as --data, a copy or where they are now")
        if not allow_other:
            raise ValueError(
                f"{differ}: give the run's images as --data, or --other-data to see these by their numbers"
            )
        return f"{differ}: these images have the numbers of the run's, and may be others"


def _require_one_record(options: Mapping[str, Any], science: Mapping[str, Any]) -> None:
    """Raise ValueError where a record's options are not those that its run learned with."""
    both = options.keys() & science.keys() - {"backbone"}  # whose file may have moved
    if differ := [
        f"{name} {options[name]} and {science[name]}" for name in both if options[name] != science[name]
    ]:
        raise ValueError(
            f"its options and its science tell of several runs ({', '.join(sorted(differ))}); put the run's "
            "own config.json back"
        )


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Tell of options that are refused, which nobody has typed, in which record they stand."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


@dataclass(frozen=True)
class ShownImage:
    """An image of a step.

    Attributes:
        rank: The rank that had it.
        sample: Its number in the data.
        label: Its label; -1 for none.
        file: Its name in the data.
        loss: Its loss, or None if it is not known.
        drawn: What was drawn for it, in words.
        draws: Every drawn number: for each view the crop's box, then those of each operation.
        caption: The task's words for it.
        pixels: What the network saw, as an image for people, [3, h, w]; None without a sheet.
    """

    rank: int
    sample: int
    label: int
    file: str
    loss: float | None
    drawn: str
    draws: Sequence[Mapping[str, Any]]
    caption: str
    pixels: Tensor | None = field(repr=False, compare=False)


@dataclass(frozen=True)
class Replayed:
    """A past step of a run.

    Attributes:
        past: The step.
        stage: Its stage.
        steps_per_epoch: The steps of an epoch.
        made: What the trainer has made again; None if it has not.
        notes: What is not as in the run, a line each.
        images: Its images: those of the largest loss first, or in the batch's order.
        class_names: The names of the classes, or None.
        first: The first image in words, with its place.
    """

    past: PastStep
    stage: Stage
    steps_per_epoch: int
    made: Made | None
    notes: Sequence[str]
    images: Sequence[ShownImage]
    class_names: Sequence[str] | None
    first: str

    def save(self, folder: str | os.PathLike[str]) -> tuple[Path, Path]:
        """Write a sheet of the first images as a PNG file, and a table of all as a CSV file.

        Args:
            folder: The folder to write to, which is made if it is not there.

        Returns:
            The paths of the sheet, which is not there if the task draws none, and of the table.
        """
        folder = Path(folder)
        stem = folder / f"step-{self.past.run_step:08d}"
        sheet, table = stem.with_suffix(".png"), stem.with_suffix(".csv")
        shown = [image for image in self.images if image.pixels is not None]
        with output_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if shown:
                texts = [self._caption(image) for image in shown]
                save_contact_sheet(torch.stack([i.pixels for i in shown]), sheet, texts, len(shown))  # type: ignore[misc]
            text = io.StringIO(newline="")
            writer = csv.writer(text)
            writer.writerow(("rank", "sample", "class", "file", "loss", "drawn", "draws"))
            for i in self.images:
                loss, name = "" if i.loss is None else repr(i.loss), class_name(self.class_names, i.label)
                writer.writerow((i.rank, i.sample, name, i.file, loss, i.drawn, json.dumps(i.draws)))
            write_atomically(table, text.getvalue().encode("utf-8", "surrogateescape"))
        return sheet, table

    def _caption(self, image: ShownImage) -> str:
        loss = "" if image.loss is None else f"  loss {image.loss:.3g}"
        lines = [f"#{image.sample} {class_name(self.class_names, image.label)}".rstrip() + loss]
        return "\n".join([*lines, image.file.rpartition("/")[2], *filter(None, [image.caption])])


def replay_step(
    run: PastRun,
    text: str,
    world: World,
    *,
    rank: int | None = None,
    num: int = 16,
    num_around: int = 0,
    most_steps: int = 1000,
    other_data: bool = False,
) -> Replayed:
    """Return a past step of a run: its images, and their losses where they can be had.

    Every rank calls it; the images are rank 0's.

    Args:
        run: The run.
        text: The step, as `find_step` takes it.
        world: The ranks. Losses need as many as the run had.
        rank: The run's rank whose images are wanted; None for all.
        num: The images that are drawn.
        num_around: The lines of metrics.jsonl before and after the step.
        most_steps: The most steps that are made again for the losses; 0 for no losses.
        other_data: Whether images of another digest are shown.

    Raises:
        ValueError: The run has no such step or rank, or other images; or a number is out of range.
    """
    require_within(
        ("--num", num, 1, MAX_IMAGES),
        ("--around", num_around, 0, 1000),
        ("--most-steps", most_steps, 0, 1_000_000_000),
    )
    if rank is not None and not 0 <= rank < run.num_ranks:
        raise ValueError(f"--rank {rank}: the run had ranks 0 to {run.num_ranks - 1}")
    experiment = run.build()
    past = find_step(run.folder, text, experiment.stages, num_around)
    stage = experiment.stages[past.stage]
    if not experiment.views(stage):
        raise ValueError(f"{run.folder}: {run.recipe.name} reads whole images; there are no views to replay")
    options = replace(run.options, out=None, resume="auto")
    with contextlib.closing(experiment.open_data(options, world)) as data:
        notes = list(filter(None, [run.check_data(data, other_data)]))
        made = None if notes or not most_steps else _made(run, experiment, past, world, most_steps, notes)
        if world.rank:
            return Replayed(past, stage, 0, made, notes, (), None, "")
        if made is None:
            prepare_stage(run.folder, experiment, past, data, options)
        shown, steps_per_epoch = list[ShownImage](), 0
        for each in range(run.num_ranks) if rank is None else [rank]:
            batches, steps_per_epoch = batches_of(experiment, data, past, each, run.num_ranks)
            losses: list[Tensor | None] = made.losses[each] if made else [None] * len(batches)
            for batch, of_batch in zip(batches, losses, strict=True):
                shown += _images(experiment, past, data, each, batch, of_batch)
            shown = _worst_first(shown, num)
        samples = {image.sample for image in shown}
        files = {i: name for i, name in enumerate(data.train.names()) if i in samples}
        shown = [replace(image, file=files[image.sample]) for image in shown]
        worst = data.train.name(shown[0].sample) if shown else ""
        return Replayed(past, stage, steps_per_epoch, made, notes, shown, data.train.class_names, worst)


def _made(
    run: PastRun, experiment: Experiment, past: PastStep, world: World, most_steps: int, notes: list[str]
) -> Made | None:
    """Make the step again, and return the losses of all ranks; None, and a note why, if that cannot be."""
    try:
        if world.size != run.num_ranks:
            raise ValueError(
                f"the run had {number_of(run.num_ranks, 'rank')}, and its losses need as many: "
                f"torchrun --no-python --nproc-per-node {run.num_ranks} -- fastpsl replay ..."
            )
        start = find_start(run.folder, past, run.science, most_steps)
        with contextlib.ExitStack() as stack:
            place = stack.enter_context(tempfile.TemporaryDirectory()) if world.rank == 0 else None
            on_step: Callable[[int], object] = lambda run_step: None
            if world.rank == 0:
                total = past.run_step - start.step
                progress = stack.enter_context(Progress("making them again", "steps", total))
                on_step = lambda run_step: progress.update(run_step - start.step)
            made = make_again(
                experiment, run.recipe.name, run.options, world, run.science, past, start,
                Path(share(world, place)), on_step,
            )  # fmt: skip
    except ValueError as error:
        notes.append(f"no losses: {error}")
        return None
    (losses,) = made.losses
    if any(of_batch is None for of_batch in losses):
        notes.append("no losses of images: this task's loss is of the whole batch")
    return replace(made, losses=gather_objects(world, losses))


def _images(
    experiment: Experiment, past: PastStep, data: RunData, rank: int, batch: PastBatch, losses: Tensor | None
) -> Iterator[ShownImage]:
    """Yield the images of a batch that could be decoded."""
    task, this = experiment.task, batch.batch
    views = experiment.views(experiment.stages[past.stage])
    inputs = this.inputs(views, torch.float32)
    pixels, captions = task.contact_sheet(inputs, this), task.captions(this)
    for i, sample in enumerate(this.indices.tolist()):
        if sample >= 0:
            draws = _draws(views, batch, i)
            yield ShownImage(
                rank, sample, int(this.labels[i]), "", None if losses is None else float(losses[i]),
                " | ".join(map(_words, draws)), draws, captions[i] if captions else "",
                None if pixels is None else pixels[i],
            )  # fmt: skip


def _draws(views: Sequence[ViewSpec], batch: PastBatch, i: int) -> list[dict[str, Any]]:
    """Return what was drawn for image `i` of a batch: for each view its box, and each operation's numbers."""
    return [
        {"crop": dict(zip(("top", "left", "height", "width"), boxes[i].tolist(), strict=True))}
        | {
            type(op).__name__: {name: values[i].tolist() for name, values in draw.items()}
            for op, draw in zip(view.ops, draws, strict=True)
        }
        for view, boxes, draws in zip(views, batch.boxes, batch.batch.draws, strict=True)
    ]


def _words(draws: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a view's draws in words. An operation that was not applied is left out, and so are lists."""
    words = []
    for name, values in draws.items():
        if not all(value for value in values.values() if isinstance(value, bool)):
            continue
        if name == "crop":
            text = "crop {width}x{height} at {left},{top}".format(**values)
        else:
            numbers = [f"{v:.3g}" for v in values.values() if isinstance(v, int | float) and v is not True]
            text = " ".join([re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower(), *numbers])
        words.append(text)
    return ", ".join(words)


def _worst_first(images: list[ShownImage], num: int) -> list[ShownImage]:
    """Sort images by their losses, those that are no number first, and drop the pixels of the last ones."""
    largest = lambda loss: np.inf if np.isnan(loss) else loss
    images = sorted(images, key=lambda i: 0.0 if i.loss is None else -largest(i.loss))
    return images[:num] + [replace(image, pixels=None) for image in images[num:]]
