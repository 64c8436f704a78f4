"""Run a recipe in the test's own process, because starting one takes seconds."""

import contextlib
import io
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from matplotlib.figure import Figure

from fastpsl.evaluation.result_file import read_result
from fastpsl.plots import charts
from fastpsl.scripts.launch import launch
from fastpsl.scripts.recipe_files import find_recipe
from tests import cheaper
from tests.engine.tiny import runs_closed
from tests.programs import ROOT, digests, newest_checkpoint, run


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

    @property
    def results(self) -> list[str]:
        """The lines of standard output before the last ones, which name what to do next."""
        lines = self.out.splitlines()
        return lines[: next(i for i, line in enumerate(lines) if line.startswith("done: "))]

    def ok(self) -> "Outcome":
        """Check that the recipe ended well."""
        assert self.code == 0, self
        return self


def differences(folder: Path) -> dict[str, Any]:
    """Return the values of a run that are not the usual ones, each with the usual one."""
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())["differences"]
    return found


def words(*parts: object) -> tuple[str, ...]:
    """Return the words of a command: strings are cut at spaces; paths and numbers stay whole."""
    return tuple(word for part in parts for word in (part.split() if isinstance(part, str) else [str(part)]))


def start(name: Any, *arguments: object) -> Outcome:
    """Run a recipe, named by a string, to its end: `start("linear_probe", "--flag value", path)`."""
    texts = [*words(*arguments)]
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [str(ROOT / "recipes" / f"{name}.py"), *texts])
            patch.setattr(charts, "curve", lambda folder: Figure(figsize=(1, 1)))  # it takes a second
            patch.setattr(charts, "draw_probes", lambda lines, path: path)  # it takes another
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), runs_closed(patch):
                launch(find_recipe(name), texts)
        code: object = 0
    except SystemExit as end:
        code = end.code or 0
    finally:
        for number, handler in before.items():  # a recipe's process ignores them at its end
            signal.signal(number, handler)
    assert isinstance(code, int), code
    printed, told = (text.buffer.getvalue().decode() for text in (out, err))  # type: ignore[attr-defined]
    return Outcome(name, code, printed, told)


def refused(outcome: Outcome, *texts: str) -> None:
    """Check for exit code 2 and one last line with `texts`, without a traceback."""
    last = outcome.err.strip().splitlines()[-1]
    assert outcome.code == 2, outcome
    assert "Traceback" not in outcome.err and last.startswith(f"{outcome.recipe}: "), outcome.err
    for text in texts:
        assert text in last, last


def ran(recipe: str, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a recipe in processes of its own, whose networks are cheaper too, and check that it ended well."""
    script = ROOT / "recipes" / f"{recipe}.py"
    done = run(script, *words(*arguments), prepare=cheaper.for_good, **options)
    assert done.returncode == 0, done.stderr
    return done


def goes_on(
    recipe: Any, *arguments: object, whole: Path, steps: Sequence[int], files: Sequence[str] = ()
) -> None:
    """Resume copies of a run from its checkpoints of some steps, as if killed after them; check their ends.

    The run must have kept these checkpoints. `files` are compared byte for byte, also those of patterns.
    """
    for step in steps:
        out = whole.with_name(f"{whole.name}-{step}")
        newest = cut_back(whole, out, step)
        outcome = start(recipe, *arguments, "--out", out).ok()
        assert newest in outcome.err, outcome
        same_run(whole, out, *(path.relative_to(whole) for name in files for path in whole.glob(name)))


def cut_back(whole: Path, out: Path, step: int) -> str:
    """Copy a run's metrics and its checkpoints up to a step; return the last one's name."""
    (out / "checkpoints").mkdir(parents=True)
    kept = [path for path in sorted(whole.glob("checkpoints/step-*.pt")) if int(path.stem[5:]) <= step]
    assert int(kept[-1].stem[5:]) == step
    for path in (*kept, *whole.glob("*.jsonl")):
        shutil.copy(path, out / path.relative_to(whole))
    return kept[-1].name


def same_run(whole: Path, other: Path, *files: str | Path) -> None:
    """Check that two runs' last checkpoints, numbers and files are equal."""
    assert digests(newest_checkpoint(other)) == digests(newest_checkpoint(whole))
    for file in files:
        assert (other / file).read_bytes() == (whole / file).read_bytes(), file
    results = [folder / "result.json" for folder in (whole, other)]
    if results[0].exists():
        assert read_result(results[0])["numbers"] == read_result(results[1])["numbers"]
