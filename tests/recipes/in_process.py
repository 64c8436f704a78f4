"""A recipe's main in the test's own process, as starting one takes seconds; what it prints, and what a refusal must be like."""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from fastpsl.engine.launch import launch
from fastpsl.engine.recipe_files import find_recipe
from tests.engine.tiny import runs_closed
from tests.programs import ROOT


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


Start = Callable[..., Outcome]


def recipe_of(name: str) -> Any:
    """The RECIPE of recipes/NAME.py."""
    return find_recipe(name)


def starter(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Start:
    """`starter("linear_probe", …)("--flag", …)` runs recipes/linear_probe.py."""
    recipe = recipe_of(name)

    def start(*arguments: object) -> Outcome:
        texts = [*map(str, arguments)]
        monkeypatch.setattr(sys, "argv", [str(ROOT / "recipes" / f"{name}.py"), *texts])
        capsys.readouterr()
        with runs_closed(monkeypatch), pytest.raises(SystemExit) as caught:
            launch(recipe, texts)
        captured = capsys.readouterr()
        return Outcome(int(caught.value.code or 0), captured.out, captured.err)

    return start


def refused(outcome: Outcome, recipe: str, *words: str) -> None:
    """Exit 2 and one last line that holds `words`; no traceback."""
    last = outcome.err.strip().splitlines()[-1]
    assert outcome.code == 2, outcome
    assert "Traceback" not in outcome.err and last.startswith(f"{recipe}: "), outcome.err
    for word in words:
        assert word in last, last
