"""One start of a small run, or of the command line, in odd surroundings, and what it came to."""

import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.faults.forks import Started, fresh, start
from tests.faults.small_runs import JIGSAW, verdict

Outcome = tuple[str, str]  # in the words of `report`, and a detail
Trial = Callable[[Path], Outcome]  # of a folder of its own, which is empty
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
    """A short run in `out`, by default a folder in `folder`: it finishes, or ends in a line with `words`."""
    command = JIGSAW.command(out or folder / "run", *SHORT, *more)
    return verdict(start(command, folder / "log", environment, prepare).wait(LIMIT_S), JIGSAW.recipe, words)


def fastpsl(
    folder: Path,
    *arguments: object,
    words: Sequence[str] = (),
    environment: Mapping[str, str | None] | None = None,
    prepare: Callable[[], object] | None = None,
) -> Outcome:
    """A command of `fastpsl`, likewise."""
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
    """As `recipe`, in an interpreter of its own; speaker, refusals: see `verdict`."""
    command = JIGSAW.command(folder / "run", *SHORT, *more)
    process = fresh(command, folder / "log", environment, before, **settings)
    return verdict(process.wait(LIMIT_S), speaker, words, refusals=refusals)


def long_run(out: Path, log: Path, *more: object) -> Started:
    """A run without end that has made a few steps when this returns; a checkpoint every 20."""
    options = (
        "--plan",
        "end_to_end",
        "--stage-epochs",
        1000,
        "--max-steps-per-stage",
        10_000,
        "--checkpoint-steps",
        20,
    )
    process = start(JIGSAW.command(out, *options, *more), log)
    assert process.wait_until(lambda: num_steps(out) >= 4, LIMIT_S), log.read_text()[-1000:]
    return process


def stopped(process: Started, out: Path, more_steps: int, words: Sequence[str] = ()) -> Outcome:
    """What a long run comes to within so many more steps, or when it is stopped after them."""
    step = num_steps(out) + more_steps
    process.wait_until(lambda: num_steps(out) >= step, LIMIT_S)
    process.send(signal.SIGTERM)
    return verdict(process.wait(LIMIT_S), JIGSAW.recipe, words, codes=(75,))


def num_steps(out: Path) -> int:
    """Steps in a run's records."""
    try:
        return (out / "metrics.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def litter(folder: Path) -> list[str]:
    """Files that nobody should find: temporary ones that outlived their writer."""
    return sorted(
        str(path.relative_to(folder)) for path in folder.rglob(".*") if path.suffix in (".tmp", ".partial")
    )


def without_litter(outcome: Outcome, folder: Path) -> Outcome:
    """`outcome`, unless temporary files are left behind."""
    left = litter(folder)
    return ("differs", f"left behind: {', '.join(left)}") if left else outcome
