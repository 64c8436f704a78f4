"""Loading of a recipe by its path, with its options parsed as if it had been started."""

import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from fastpsl.engine.experiment import Experiment
from fastpsl.engine.options import TrainingOptions
from fastpsl.scripts.recipe import Evaluation, Recipe
from fastpsl.scripts.recipe_files import load_script, recipe_path

DEFAULT = "jigsaw_r50.py"
DEFAULT_OPTIONS = ("--backbone", "resnet18")  # two cores measure it in less than a minute
_REMEDY = "give a recipe that trains; `fastpsl recipes copy jigsaw my_jigsaw.py` writes one"


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe with its options.

    Attributes:
        path: The path as given.
        arguments: The recipe's arguments.
        options: The parsed arguments.
        recipe: The recipe.
    """

    path: Path
    arguments: tuple[str, ...]
    options: TrainingOptions
    recipe: Recipe[Any]

    def build(self, options: TrainingOptions) -> Experiment:
        """Build the experiment without the recipe's prints; raise a one-line ValueError if that fails."""
        with _unheard(), _its_faults(self.path, "build()"):
            experiment: Any = self.recipe.build(options)
        if not isinstance(experiment, Experiment):
            raise ValueError(  # noqa: TRY004 - a user error
                f"{self.path}: its build() gives {type(experiment).__name__}; let it return an Experiment"
            )
        return experiment


def default_recipe() -> Path | None:
    """Return the path of the installed jigsaw recipe, or of this checkout's; None if there is neither."""
    return recipe_path(Path(DEFAULT).stem)


def load_recipe(path: Path, arguments: Sequence[str]) -> LoadedRecipe:
    """Load the script at `path` and parse its arguments."""
    if reason := _no_file(path):
        raise ValueError(f"{reason}; {_REMEDY}")
    if path.suffix != ".py":
        raise ValueError(f"{path}: is no recipe; {_REMEDY}")
    recipe = getattr(_load(path), "RECIPE", None)
    if isinstance(recipe, Evaluation):
        reason = "it is an evaluation, of which nothing is trained in stages"
        raise ValueError(f"{path}: {reason}; {_REMEDY}")  # noqa: TRY004 - a user error
    if not isinstance(recipe, Recipe):
        raise ValueError(f"{path}: has no RECIPE, so it is no recipe; {_REMEDY}")  # noqa: TRY004
    with _its_faults(path, "parsing its options"):
        options = recipe.parse(arguments, prog=str(path), log=lambda line: None)
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


def _load(path: Path) -> ModuleType:
    """Import the script; raise ValueError for any failure."""
    with _unheard(), _its_faults(path, "loading it"):
        try:
            return load_script(path)
        except SystemExit:
            raise ValueError(
                'it runs and ends when it is imported; put its last line under if __name__ == "__main__"'
            ) from None


def _unheard() -> contextlib.AbstractContextManager[object]:
    """Discard prints, which are meant for people who train."""
    return contextlib.redirect_stdout(io.StringIO())


@contextlib.contextmanager
def _its_faults(path: Path, what: str) -> Iterator[None]:
    """Raise an error of the recipe's own code as a ValueError; starting the recipe shows its traceback."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: {error}") from error
    except Exception as error:
        raise ValueError(
            f"{path}: {what} fails ({type(error).__name__}: {error}); start the recipe itself for more"
        ) from error
