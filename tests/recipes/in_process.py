"""Run a recipe in the test's own process, because starting one takes seconds."""

import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from fastpsl.evaluation.result import read_result
from fastpsl.scripts.launch import launch
from fastpsl.scripts.recipe_files import find_recipe
from tests.engine.tiny import runs_closed
from tests.programs import ROOT, digests, newest_checkpoint, run, run_until


def built(name: str, device: str = "meta", **values: Any) -> tuple[Any, Any]:
    """Return a recipe's options with the paper's and other values, and its experiment, without memory."""
    recipe: Any = find_recipe(name)
    options = recipe.with_paper(**values)
    with torch.device(device):
        return options, recipe.build(options)


class Outcome(NamedTuple):
    recipe: str
    code: int
    out: str
    err: str

    def ok(self) -> "Outcome":
        """Check that the recipe ended well."""
        assert self.code == 0, self
        return self


Start = Callable[..., Outcome]


def words(*parts: object) -> tuple[str, ...]:
    """Return the words of a command: strings are cut at spaces; paths and numbers stay whole."""
    return tuple(word for part in parts for word in (part.split() if isinstance(part, str) else [str(part)]))


def starter(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Start:
    """Return a function that runs a recipe: `starter("linear_probe", …)("--flag", …)`."""
    recipe = find_recipe(name)

    def start(*arguments: object) -> Outcome:
        texts = [*words(*arguments)]
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
        return Outcome(name, int(caught.value.code or 0), captured.out, captured.err)

    return start


def refused(outcome: Outcome, *texts: str) -> None:
    """Check for exit code 2 and one last line with `texts`, without a traceback."""
    last = outcome.err.strip().splitlines()[-1]
    assert outcome.code == 2, outcome
    assert "Traceback" not in outcome.err and last.startswith(f"{outcome.recipe}: "), outcome.err
    for text in texts:
        assert text in last, last


def ran(*arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    """Return `tests.programs.run`'s outcome, and check that the script ended well."""
    done = run(*arguments, **options)
    assert done.returncode == 0, done.stderr
    return done


def resumed_after_kills(
    recipe: str, *arguments: object, out: Path, steps: Sequence[int], delay_s: float = 0.0
) -> None:
    """Kill a recipe's process after the checkpoint of each step, and run it to its end."""
    path = ROOT / "recipes" / f"{recipe}.py"
    given = (*words(*arguments), "--out", out)
    for step in steps:
        code, output = run_until(path, *given, folder=out, step=step, number=signal.SIGKILL, delay_s=delay_s)
        assert code == -signal.SIGKILL, output
    ran(path, *given)


def same_run(whole: Path, other: Path, *files: str | Path) -> None:
    """Check that two runs' last checkpoints, numbers and files are equal."""
    assert digests(newest_checkpoint(other)) == digests(newest_checkpoint(whole))
    for file in files:
        assert (other / file).read_bytes() == (whole / file).read_bytes(), file
    results = [folder / "result.json" for folder in (whole, other)]
    if results[0].exists():
        assert read_result(results[0])["numbers"] == read_result(results[1])["numbers"]
