"""Load a recipe by its path and give it its options as if it had been started."""

import contextlib
import importlib.util
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import fastpsl
from fastpsl.engine.experiment import Experiment
from fastpsl.engine.options import RunOptions

DEFAULT = "jigsaw_r50.py"
DEFAULT_OPTIONS = ("--backbone", "resnet18")  # two cores measure all of it in less than a minute
_MODULE = "fastpsl_doctor_recipe"
_REMEDY = f"give a script with parse() and build(), such as recipes/{DEFAULT}"


@dataclass(frozen=True)
class Recipe:
    """A loaded recipe: its path as given, arguments and options, and build: options → job, without its
    prints."""

    path: Path
    arguments: tuple[str, ...]
    options: RunOptions
    build: Callable[[RunOptions], Experiment]


def default_recipe() -> Path | None:
    """Return the path of this checkout's jigsaw, relative if it is below; None for an installed copy."""
    path = Path(str(fastpsl.__file__)).resolve().parents[1] / "recipes" / DEFAULT
    if not path.is_file():
        return None
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def load_recipe(path: Path, arguments: Sequence[str]) -> Recipe:
    """Load the script at `path` and parse its arguments.

    Raises:
        ValueError: With one line, if it cannot be loaded, is no recipe, or refuses its arguments.
        SystemExit: With code 0, after its --help is printed.
    """
    if reason := _no_file(path):
        raise ValueError(f"{reason}; {_REMEDY}")
    if path.suffix != ".py":
        raise ValueError(f"{path}: is no recipe; {_REMEDY}")
    module = _load(path)
    for name in ("parse", "build"):
        if not callable(getattr(module, name, None)):
            so = (
                "nothing of it is trained in stages"
                if name == "build" and hasattr(module, "parse")
                else "it is no recipe"
            )
            raise ValueError(f"{path}: has no {name}(), so {so}; {_REMEDY}")  # noqa: TRY004
    with _as_if_started(path, arguments), _its_faults(path, "parse()"):
        options = module.parse()
    if not isinstance(options, RunOptions):
        kind = type(options).__name__
        raise ValueError(f"{path}: its parse() gives {kind}, which is no RunOptions")  # noqa: TRY004

    def build(options: RunOptions) -> Experiment:
        with _as_if_started(path, arguments), _its_faults(path, "build()"):
            experiment: Any = module.build(options)
        if not isinstance(experiment, Experiment):
            raise ValueError(f"{path}: its build() gives {type(experiment).__name__}, no Job")  # noqa: TRY004
        return experiment

    return Recipe(path, tuple(arguments), options, build)


def _no_file(path: Path) -> str:
    """Return why `path` is no file; empty if it is one."""
    if path == Path():
        return "the recipe's path is empty, or this folder"
    if path.is_dir():
        return f"{path}: is a folder, not a script"
    if not path.exists():
        return f"{path}: no such file"
    return "" if path.is_file() else f"{path}: is a device or a pipe, not a script"


def _load(path: Path) -> ModuleType:
    """Import the script. Raise ValueError for whatever goes wrong."""
    spec = importlib.util.spec_from_file_location(_MODULE, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[_MODULE] = module  # dataclasses look themselves up there
    sys.path.insert(0, str(path.resolve().parent))  # as python does for a script
    with _as_if_started(path, ()), _its_faults(path, "loading it"):
        try:
            spec.loader.exec_module(module)
        except SystemExit:
            raise ValueError(
                'it runs and ends when it is imported; put its last line under if __name__ == "__main__"'
            ) from None
        finally:
            sys.path.pop(0)
    return module


@contextlib.contextmanager
def _as_if_started(path: Path, arguments: Sequence[str]) -> Iterator[None]:
    """Set sys.argv as for the script, and drop what it prints, unless it ends the process (--help)."""
    before, output = sys.argv, io.StringIO()
    sys.argv = [str(path), *arguments]
    try:
        with contextlib.redirect_stdout(output):
            yield
    except SystemExit:
        sys.stdout.write(output.getvalue())
        raise
    finally:
        sys.argv = before


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
