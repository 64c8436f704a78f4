"""Run a recipe in the test's own process, because starting one takes seconds."""

import signal
import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest

from fastpsl.scripts.launch import launch
from fastpsl.scripts.recipe_files import find_recipe
from tests.engine.tiny import runs_closed
from tests.programs import ROOT


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


Start = Callable[..., Outcome]


def starter(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Start:
    """Return a function that runs a recipe: `starter("linear_probe", …)("--flag", …)`."""
    recipe = find_recipe(name)

    def start(*arguments: object) -> Outcome:
        texts = [*map(str, arguments)]
        monkeypatch.setattr(sys, "argv", [str(ROOT / "recipes" / f"{name}.py"), *texts])
        capsys.readouterr()
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            with runs_closed(monkeypatch), pytest.raises(SystemExit) as caught:
                launch(recipe, texts)
        finally:
            for number, handler in before.items():  # a recipe's process ignores them at its end
                signal.signal(number, handler)
        captured = capsys.readouterr()
        return Outcome(int(caught.value.code or 0), captured.out, captured.err)

    return start


def refused(outcome: Outcome, recipe: str, *words: str) -> None:
    """Check for exit code 2 and one last line with `words`, without a traceback."""
    last = outcome.err.strip().splitlines()[-1]
    assert outcome.code == 2, outcome
    assert "Traceback" not in outcome.err and last.startswith(f"{recipe}: "), outcome.err
    for word in words:
        assert word in last, last
