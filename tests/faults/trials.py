"""One run or command in odd surroundings, and its outcome."""

import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.faults.forks import RunningProcess, fresh, start
from tests.faults.small_runs import JIGSAW, verdict

Outcome = tuple[str, str]  # the outcome in the words of `report`, and a detail
Trial = Callable[[Path], Outcome]  # called with an empty folder of its own
NOT_HERE = "not here"
SHORT = ("--max-steps-per-stage", 2)
LIMIT_S = 300.0


def recipe(
    folder: Path,
    *more: object,
    out: Path | None = None,
    words: Sequence[str] = (),
    environment: Mapping[str, str | None] | None = None,
    prepare: Callable[[], object] | None = None,
) -> Outcome:
    """Start a short run, by default in `folder`/run: it must finish, or end in a line with `words`."""
    command = JIGSAW.command(out or folder / "run", *SHORT, *more)
    return verdict(start(command, folder / "log", environment, prepare).wait(LIMIT_S), JIGSAW.recipe, words)


def fastpsl(
    folder: Path,
    *arguments: object,
    words: Sequence[str] = (),
    environment: Mapping[str, str | None] | None = None,
    prepare: Callable[[], object] | None = None,
) -> Outcome:
    """Run a command of `fastpsl`: it must finish, or end in a line with `words`."""
    process = start(("fastpsl", *arguments), folder / "log", environment, prepare)
    return verdict(process.wait(LIMIT_S), "fastpsl", words)


def fresh_recipe(
    folder: Path,
    *more: object,
    words: Sequence[str] = (),
    environment: Mapping[str, str | None] | None = None,
    before: Sequence[str] = (),
    speaker: str = JIGSAW.recipe,
    refusals: Sequence[int] = (2,),
    **settings: object,
) -> Outcome:
    """Start a short run as `recipe` does, in an interpreter of its own; `verdict` explains `refusals`."""
    command = JIGSAW.command(folder / "run", *SHORT, *more)
    process = fresh(command, folder / "log", environment, before, **settings)
    return verdict(process.wait(LIMIT_S), speaker, words, refusals=refusals)


def long_run(out: Path, log: Path, *more: object) -> RunningProcess:
    """Start an endless run with a checkpoint every 20 steps, and return after its first steps."""
    options = (
        "--plan",
        "end_to_end",
        "--epochs",
        1000,
        "--max-steps-per-stage",
        10_000,
        "--checkpoint-steps",
        20,
    )
    process = start(JIGSAW.command(out, *options, *more), log)
    assert process.wait_until(lambda: num_steps(out) >= 4, LIMIT_S), log.read_text()[-1000:]
    return process


def stop_after(process: RunningProcess, out: Path, more_steps: int, words: Sequence[str] = ()) -> Outcome:
    """Stop a long run after so many more steps, and return its outcome, or that of an earlier end."""
    step = num_steps(out) + more_steps
    process.wait_until(lambda: num_steps(out) >= step, LIMIT_S)
    process.send(signal.SIGTERM)
    return verdict(process.wait(LIMIT_S), JIGSAW.recipe, words, codes=(75,))


def num_steps(out: Path) -> int:
    """Return the number of steps in a run's records."""
    try:
        return (out / "metrics.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def litter(folder: Path) -> list[str]:
    """Return the temporary files that outlived their writer."""
    return sorted(
        str(path.relative_to(folder)) for path in folder.rglob(".*") if path.suffix in (".tmp", ".partial")
    )


def without_litter(outcome: Outcome, folder: Path) -> Outcome:
    """Return `outcome`, unless temporary files remain."""
    files = litter(folder)
    return ("differs", f"left behind: {', '.join(files)}") if files else outcome
