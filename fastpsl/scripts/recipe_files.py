"""Find a recipe's script by its name, and load its RECIPE."""

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import fastpsl
from fastpsl.console.installed import reinstall
from fastpsl.console.interrupts import imports_undisturbed
from fastpsl.console.words import nearest
from fastpsl.scripts.command_line import HELP
from fastpsl.scripts.recipe import Evaluation, Recipe

# The recipes of `fastpsl train` and of `fastpsl eval`: their names, and their scripts' names without .py.
TRAIN: dict[str, str] = {
    "jigsaw": "jigsaw_r50", "rotation": "rotation_rv50", "simclr": "simclr_r50", "mocov2": "mocov2_r50",
    "uic": "uic_r50", "uic-alexnet": "uic_alexnet", "uic-cifar10": "uic_cifar10",
    "deepcluster": "deepcluster_alexnet", "iic": "sslpp_iic", "sslpp-colorization": "sslpp_colorization",
    "sslpp-context": "sslpp_context", "sslpp-rotation": "sslpp_rotation", "sslpp-aet": "sslpp_aet",
    "distill": "distill", "supervised": "supervised",
}  # fmt: skip
EVAL: dict[str, str] = {
    "linear": "linear_probe", "blocks": "block_probe", "few-labels": "few_labels",
    "semi-supervised": "semi_supervised", "knn": "knn", "svm": "voc_svm", "few-shot": "few_shot",
    "detect": "voc_detection", "segment": "voc_segmentation", "multilabel": "voc_classification",
}  # fmt: skip
_SHORT = {stem: name for name, stem in {**TRAIN, **EVAL}.items()}
_PACKAGE = Path(str(fastpsl.__file__)).resolve().parent


def short_name(name: str) -> str:
    """Return `fastpsl`'s name for a recipe, which its runs have, too. A script of yours keeps its name."""
    return _SHORT.get(name, name)


def recipe_path(name: str) -> Path | None:
    """Return the path of recipes/NAME.py in the package or else in this checkout; None if neither has it.

    The path is relative if it is below the current folder.
    """
    for folder in (_PACKAGE / "recipes", _PACKAGE.parent / "recipes"):
        path, current = folder / f"{name}.py", Path.cwd()
        if path.is_file():
            return path.relative_to(current) if path.is_relative_to(current) else path
    return None


def _installed(name: str) -> Path:
    path = recipe_path(name)
    if path is None:
        raise ValueError(
            f"there is no recipes/{name}.py in or beside {_PACKAGE}: install it again, by {reinstall()}"
        )
    return path


@cache
def find_recipe(name: str) -> Recipe[Any] | Evaluation[Any]:
    """Return the RECIPE of recipes/NAME.py, one of ours."""
    assert name in {*TRAIN.values(), *EVAL.values()}, name
    return load_recipe(_installed(name))


def recorded_recipe(source: object, name: str) -> Recipe[Any] | Evaluation[Any]:
    """Return the recipe that a record names: one of ours; another file runs only if a person names it.

    Raises:
        ValueError: It names another.
    """
    if name not in TRAIN.values():
        raise ValueError(
            f"{source} names the recipe {name}, which is none of ours and would run; give its script as "
            "--recipe FILE.py if you trust it"
        )
    return find_recipe(name)


def load_script(path: Path) -> ModuleType:
    """Import a script by its path, with its folder in front of the others, as python does."""
    name = f"fastpsl_recipe_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look themselves up there
    sys.path.insert(0, str(path.resolve().parent))
    try:
        with imports_undisturbed():
            spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module


def named_path(name: str, names: Mapping[str, str], options: Sequence[str] | None = None) -> Path:
    """Return the path of the recipe that a person has named: ours, or a script. Records have no way here.

    To start it with `options`, few-labels without --labels-per-class is semi-supervised.
    """
    if name == "few-labels" and options is not None:
        words = {option.partition("=")[0].replace("_", "-") for option in options}
        name = "semi-supervised" if words.isdisjoint({"--labels-per-class", *HELP}) else name
    if name.endswith(".py"):
        if not Path(name).is_file():
            raise ValueError(f"{name}: there is no such file; `fastpsl recipes` lists the names of recipes")
        return Path(name)
    stem = names.get(name, name)
    if stem not in names.values():
        near = nearest(name, [*names, *names.values()])
        similar = f"did you mean {short_name(near)}? " if near else ""
        raise ValueError(f"there is no recipe {name}; {similar}allowed are {', '.join(names)}")
    return _installed(stem)


def load_recipe(path: Path) -> Recipe[Any] | Evaluation[Any]:
    """Return the RECIPE of a script."""
    recipe = getattr(load_script(path), "RECIPE", None)
    if not isinstance(recipe, (Recipe, Evaluation)):
        raise ValueError(  # noqa: TRY004 - a user error
            f"{path}: it defines no RECIPE; `fastpsl recipes copy NAME FILE` writes a script that does"
        )
    return recipe
