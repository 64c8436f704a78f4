"""Find a recipe's script by its name, and load its RECIPE."""

import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import fastpsl
from fastpsl.engine.recipe import Evaluation, Recipe

_PACKAGE = Path(str(fastpsl.__file__)).resolve().parent


def recipe_path(name: str) -> Path | None:
    """Return the path of recipes/NAME.py in the package or else in this checkout; None if neither has it.

    The path is relative if it is below the current folder.
    """
    for folder in (_PACKAGE / "recipes", _PACKAGE.parent / "recipes"):
        path, current = folder / f"{name}.py", Path.cwd()
        if path.is_file():
            return path.relative_to(current) if path.is_relative_to(current) else path
    return None


@cache
def find_recipe(name: str) -> Recipe[Any] | Evaluation[Any]:
    """Return the RECIPE of recipes/NAME.py.

    Raises:
        ValueError: There is no such script.
    """
    path = recipe_path(name)
    if path is None:
        raise ValueError(f"there is no recipes/{name}.py in or beside {_PACKAGE}")
    recipe: Recipe[Any] | Evaluation[Any] = load_script(path).RECIPE
    return recipe


def load_script(path: Path) -> ModuleType:
    """Import a script by its path, with its folder in front of the others, as python does."""
    name = f"fastpsl_recipe_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look themselves up there
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module
