"""Fixtures that run recipes in the test's own process. pytest-xdist's controller imports this file, too."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Return `start("linear_probe", "--flag value", path)`; the recipe's path will do, too."""
    from tests.recipes.in_process import starter

    return lambda recipe, *arguments: starter(Path(recipe).stem, monkeypatch, capsys)(*arguments)


@pytest.fixture
def recipe(request: pytest.FixtureRequest, start: Callable[..., Any]) -> Callable[..., Any]:
    """Return `recipe("--flag value", path)`, which runs the recipe that the test's module names RECIPE."""
    return lambda *arguments: start(request.module.RECIPE.stem, *arguments)
