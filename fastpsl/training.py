"""`fastpsl.pretrain`: a recipe as a function, for notebooks and programs."""

import base64
import html
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import nn
from typing_extensions import override

from fastpsl.commands.train import Train
from fastpsl.console.offered import offer_only_all
from fastpsl.console.terminal import escaped
from fastpsl.console.words import unknown
from fastpsl.engine.reporter import BEFORE, summary_line
from fastpsl.engine.run import Run
from fastpsl.files.run_folder import read_lines
from fastpsl.model import Model, load
from fastpsl.plots.charts import curve
from fastpsl.plots.inline import InlineFigure
from fastpsl.plots.png import png_bytes
from fastpsl.scripts.call import call, require_data
from fastpsl.scripts.launch import for_machine
from fastpsl.scripts.recipe import Recipe, print_now
from fastpsl.scripts.recipe_files import find_recipe
from fastpsl.scripts.recipe_process import train

__all__ = ["RECIPES", "Trained", "option_names", "pretrain"]
offer_only_all(__name__)
RECIPES = Train.names


@dataclass(frozen=True, repr=False)
class Trained(os.PathLike[str]):
    """A finished pre-training. It stands for its folder wherever a path is expected.

    Attributes:
        folder: The run's folder, an absolute path.
        checkpoint: The newest checkpoint in it, an absolute path.
        summaries: One dict per stage. Its keys include "stage", "level", "num_steps", "seconds",
            "loss_start", "loss_end", "chance" (a fraction, or None), and "val", the scores on the
            validation images. Where these have classes, "knn_accuracy" is that of the features.
            "knn_untrained" is that of the same block before the training, called "knn_at_start" if it began
            with weights (`init`) or a module.
        backbone: The backbone's name, as in `fastpsl.backbones.make_backbone`. That of a module which was
            given begins with "module:" if nothing else makes the same network.
    """

    folder: Path
    checkpoint: Path
    summaries: list[dict[str, Any]]
    backbone: str

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of the run's metrics.jsonl, one dict per recorded step.

        Its keys include "run_step", "stage", "level", "step", "lr" and the task's own numbers, such as
        "loss".
        """
        return [line.row for line in read_lines(self.folder / "metrics.jsonl")]

    def curve(self) -> InlineFigure:
        """Draw each number of `metrics` over the steps.

        Returns:
            A matplotlib figure, which a notebook shows.
        """
        return curve(self.folder)

    def load(self) -> Model:
        """Load the trained model, as `fastpsl.load` does.

        Returns:
            The model, in eval mode on the CPU.
        """
        return load(self.checkpoint, self.backbone)

    @override
    def __fspath__(self) -> str:
        """Return the folder."""
        return str(self.folder)

    @override
    def __repr__(self) -> str:
        """Return the folder and a line per stage."""
        return "\n".join([f"trained in {self.folder}", *map(summary_line, self.summaries)])

    def _repr_html_(self) -> str:
        """Return a table of the stages above the curve, for notebooks."""
        val_names = dict.fromkeys(f"val_{name}" for summary in self.summaries for name in summary["val"])
        names = ["stage", "num_steps", "seconds", "loss_start", "loss_end", *val_names]
        names += [name for name in ("knn_accuracy", *BEFORE) if name in self.summaries[-1]]
        rows = ["".join(f"<th>{html.escape(name.replace('_', ' '))}</th>" for name in names)]
        for summary in self.summaries:
            values = {**summary, **{f"val_{name}": v for name, v in summary["val"].items()}}
            rows.append("".join(f"<td>{html.escape(_words(values.get(name)))}</td>" for name in names))
        table = "".join(f"<tr>{row}</tr>" for row in rows)
        picture = base64.b64encode(png_bytes(self.curve())).decode()
        return escaped(
            f"<p>{html.escape(str(self.folder))}</p><table>{table}</table>"
            f'<img alt="training curve" src="data:image/png;base64,{picture}">'
        )


def pretrain(
    recipe: str,
    data: str | os.PathLike[str] | None = None,
    *,
    val: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    backbone: str | nn.Module | None = None,
    epochs: int | Sequence[int] | None = None,
    **options: Any,
) -> Trained:
    """Train a backbone by a recipe.

    The call prints and writes what the recipe's command does, and resumes like it. The same call with the
    `out` of a stopped run continues from its newest checkpoint. If you interrupt it (Ctrl-C, or Interrupt in
    a notebook), it finishes the present step and writes a checkpoint. In a thread other than the main one,
    the call works but cannot be interrupted. Afterwards, signal handlers, random states and torch's settings
    are as before. All threads share them, so a process makes one call of this or of `fastpsl.evaluate` at a
    time. Other threads must not draw torch's random numbers meanwhile, as `fastpsl.load` does; the run would
    not be reproducible.

    Args:
        recipe: One of `fastpsl.training.RECIPES`, such as "jigsaw", or a recipe file's name, such as
            "jigsaw_r50".
        data: Training images: the path of a folder, a dataset file (.beton), a glob of such files, or a
            list of images. The other defaults then follow from the number of images: see the option preset.
            None means the generated sample, with small values.
        val: Validation images, in the same forms, for the score at each stage's end. Or a share of `data`,
            such as "10%", which is held back by the images' names; "none" for no validation. The generated
            sample has its own, and with fewer than 100,000 images in classes the default is "10%".
        out: The run's folder. By default, a new numbered folder under runs/.
        backbone: The backbone's name or a module, as in `fastpsl.backbones.make_backbone`. By default, the
            recipe's, with random weights. The training begins with a copy of the module and its weights, and
            the module itself stays as it is. If the run resumes, the checkpoint has the weights.
        epochs: Epochs of each stage, one number or one per stage. By default, the recipe's.
        **options: The recipe's other options, with `_` for `-`, such as lr, seed, max_steps_per_stage or
            batch_size (images per step over all ranks). size_px and batch_size take a tuple with a value for
            each stage, too. With init, the backbone begins with the weights of a run or a file.
            `fastpsl.training.option_names` lists them.

    Returns:
        The run's folder, its newest checkpoint and a summary of each stage.

    Raises:
        ValueError: A name, an option or a value is wrong, or the training cannot continue. The message is one
            line that says what to do.
        KeyboardInterrupt: The training was interrupted. The message names the run's folder.
    """
    script = find(recipe)
    require_data("data", data)
    require_data("val", val)
    values = {"data": data, "val": val, "out": out, "backbone": backbone, "epochs": epochs, **options}

    by_machine = "WORLD_SIZE" not in os.environ  # ranks must agree

    def options_of(preset: str | None, log: Callable[[str], object]) -> Any:
        given = values if preset is None else {**values, "preset": preset}
        return script.from_values(given, log, by_machine=by_machine)

    def work(opened: list[Run]) -> Trained:
        options, lines = for_machine(script, options_of, by_machine=by_machine)
        for line in lines:
            print_now(line)
        train_or_stop(script, options, opened)
        (run,) = opened
        checkpoint = run.last_checkpoint().absolute()
        return Trained(run.folder.absolute(), checkpoint, run.position.summaries, options.backbone)

    return call(script.name, work)


def option_names(recipe: str) -> list[str]:
    """Return the names of a recipe's options, as `pretrain` takes them."""
    return [field.name for field in fields(find(recipe).options)]


def find(recipe: str) -> Recipe[Any]:
    """Return the recipe of a short name or a file's name; ValueError with the nearest name for another."""
    name = recipe.lower().replace("colour", "color").replace("isation", "ization")
    files = {**{file: file for file in RECIPES.values()}, **RECIPES}
    files |= {short.replace("-", "_"): file for short, file in RECIPES.items()}
    if name not in files:
        raise unknown("recipe", recipe, {**RECIPES, **{file: file for file in RECIPES.values()}})
    script = find_recipe(files[name])
    assert isinstance(script, Recipe), name
    return script


def train_or_stop(script: Recipe[Any], options: Any, opened: list[Run]) -> None:
    """Train within the user's program; raise KeyboardInterrupt if a signal stopped it."""
    if not train(script, options, opened, owns_process=False):
        folder = opened[-1].folder
        raise KeyboardInterrupt(f"{script.name} was stopped; the same call with out={str(folder)!r} goes on")


def _words(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
