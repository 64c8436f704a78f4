"""A recipe, loaded by its path and given its options as if it had been started."""

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
from fastpsl.engine.experiment import Job
from fastpsl.engine.options import RunOptions

DEFAULT = "jigsaw_r50.py"
# Two cores do all of it in less than a minute.
DEFAULT_OPTIONS = ("--backbone", "resnet18")
_MODULE = "fastpsl_doctor_recipe"


@dataclass(frozen=True)
class Recipe:
    """path: as given; arguments: its own; build: options → job, with the recipe's words to people left out."""

    path: Path
    arguments: tuple[str, ...]
    options: RunOptions
    build: Callable[[RunOptions], Job]


def default_recipe() -> Path | None:
    """The checkout's jigsaw, relative to this folder where it lies below; None for an installed copy, which has no recipes."""
    path = Path(str(fastpsl.__file__)).resolve().parents[1] / "recipes" / DEFAULT
    if not path.is_file():
        return None
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def load_recipe(path: Path, arguments: Sequence[str]) -> Recipe:
    """ValueError, in one line, where it cannot be loaded, is no recipe, or refuses its options.

    Its --help is printed and leaves by SystemExit(0).
    """
    if wrong := _no_file(path):
        raise ValueError(f"{wrong}; give a script with parse() and build(), such as recipes/{DEFAULT}")
    if path.suffix != ".py":
        raise ValueError(
            f"{path}: is no recipe; give a script with parse() and build(), such as recipes/{DEFAULT}"
        )
    module = _load(path)
    for name in ("parse", "build"):
        if not callable(getattr(module, name, None)):
            trained = (
                "nothing of it is trained in stages"
                if name == "build" and hasattr(module, "parse")
                else "it is no recipe"
            )
            raise ValueError(  # noqa: TRY004 - the user's, in one line
                f"{path}: has no {name}(), so {trained}; give a script with parse() and build(), such as recipes/{DEFAULT}"
            )
    with _as_if_started(path, arguments), _its_faults(path, "parse()"):
        options = module.parse()
    if not isinstance(options, RunOptions):
        kind = type(options).__name__
        raise ValueError(f"{path}: its parse() gives {kind}, which is no RunOptions")  # noqa: TRY004

    def build(options: RunOptions) -> Job:
        with _as_if_started(path, arguments), _its_faults(path, "build()"):
            job: Any = module.build(options)
        if not isinstance(job, Job):
            raise ValueError(f"{path}: its build() gives {type(job).__name__}, no Job")  # noqa: TRY004
        return job

    return Recipe(path, tuple(arguments), options, build)


def _no_file(path: Path) -> str:
    """Why it is none; empty where it is one."""
    if path == Path():
        return "the recipe's path is empty, or this folder"
    if path.is_dir():
        return f"{path}: is a folder, not a script"
    if not path.exists():
        return f"{path}: no such file"
    return "" if path.is_file() else f"{path}: is a device or a pipe, not a script"


def _load(path: Path) -> ModuleType:
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
    """With its command line. What it prints is for people who train; shown only where it ends the process (--help)."""
    before, said = sys.argv, io.StringIO()
    sys.argv = [str(path), *arguments]
    try:
        with contextlib.redirect_stdout(said):
            yield
    except SystemExit:
        sys.stdout.write(said.getvalue())
        raise
    finally:
        sys.argv = before


@contextlib.contextmanager
def _its_faults(path: Path, what: str) -> Iterator[None]:
    """Whatever goes wrong in a recipe's own code is one line; its traceback is had by starting it."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: {error}") from error
    except Exception as error:
        raise ValueError(
            f"{path}: {what} fails ({type(error).__name__}: {error}); start the recipe itself for more"
        ) from error
