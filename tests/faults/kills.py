"""SIGKILL at random moments: each run is resumed until its end, and must equal an undisturbed one."""

import random
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.faults.forks import RunningProcess
from tests.faults.report import Finding
from tests.faults.small_runs import (
    IIC,
    JIGSAW,
    MOCO,
    RANKS,
    UIC,
    Kind,
    checkpoints,
    left_behind,
    sslpp,
    start_ranks,
    verdict,
)

CATEGORY = "kills"
MAX_KILLS_OF_ONE_RUN = 8
_LIMIT_S = 300
_NEAR_S = 0.3  # the longest delay of a "near" kill after a checkpoint or its temporary file appeared


def run(folder: Path, seed: int, count: int) -> Iterator[Finding]:
    """Yield a finding for each of `count` kills, half of them near a checkpoint, of all kinds of runs."""
    chance = random.Random(seed)
    kinds = [JIGSAW, MOCO, UIC, IIC, sslpp(folder / IIC.name / "labels.npz"), RANKS]
    undisturbed: dict[str, tuple[dict[str, object], float]] = {}
    number = 0
    while number < count and kinds:
        kind = kinds.pop(0)
        if kind.name not in undisturbed:
            started = time.monotonic()
            ranks = start_ranks(kind.command(folder / kind.name), folder / f"{kind.name}.log", kind.num_ranks)
            if any(rank.wait(_LIMIT_S).code != 0 for rank in ranks):
                yield Finding(
                    CATEGORY, kind.name, "unclear", f"the undisturbed run: {ranks[0].wait().output[-300:]}"
                )
                continue
            undisturbed[kind.name] = left_behind(folder / kind.name), time.monotonic() - started
        kinds.append(kind)
        expected, seconds = undisturbed[kind.name]
        max_kills = min(MAX_KILLS_OF_ONE_RUN, count - number)
        findings = list(
            _kill_until_the_end(kind, folder / f"{kind.name}-{number}", max_kills, chance, seconds, expected)
        )
        number += len(findings)
        yield from findings


def _kill_until_the_end(
    kind: Kind, out: Path, max_kills: int, chance: random.Random, seconds: float, expected: dict[str, object]
) -> Iterator[Finding]:
    """Kill one run repeatedly, until it ends before its kill, or `most` kills are done."""
    moments: list[str] = []
    log = out.with_suffix(".log")
    while True:
        ranks = start_ranks(kind.command(out), log, kind.num_ranks)
        is_killed = len(moments) < max_kills and _strike(ranks, out, chance, seconds, moments)
        ends = [rank.wait(_LIMIT_S) for rank in ranks]
        if is_killed and ends[0].code == 0:  # the run ended before the kill
            moments.pop()
            is_killed = False
        if not is_killed:
            break
    how, last = verdict(ends[0], kind.recipe)
    if how == "goes on":
        contents = left_behind(out)
        different = sorted(
            name for name in expected.keys() | contents.keys() if expected.get(name) != contents.get(name)
        )
        if different:
            how, last = "differs", f"{len(different)} of {len(expected)} things, {', '.join(different[:5])}"
    # A kill spares data that were handed to the system, so a file with a checkpoint's name must be whole.
    if "passed over" in ends[0].output:
        how, last = "differs", next(line for line in ends[0].output.splitlines() if "passed over" in line)
    for moment in moments:
        yield Finding(CATEGORY, kind.name, how, f"{moment}; {last}" if last else moment)


def _strike(
    ranks: Sequence[RunningProcess], out: Path, chance: random.Random, seconds: float, moments: list[str]
) -> bool:
    """Kill all ranks at a random moment, and add it to `moments`; return False where the run ended before."""
    near = chance.random() < 0.5
    delay_s = chance.uniform(0, _NEAR_S) if chance.random() < 0.5 else chance.uniform(0, 0.02)
    random_s = chance.uniform(0, seconds)
    if near:
        for _ in range(chance.choice((1, 1, 2, 3))):
            old_names = checkpoints(out)
            if not ranks[0].wait_until(lambda: set(checkpoints(out)) - set(old_names), _LIMIT_S):  # noqa: B023
                return False
        time.sleep(delay_s)
    else:
        time.sleep(random_s)
    names = checkpoints(out)
    if ranks[0].poll() is not None:
        return False
    for rank in ranks:
        rank.send(signal.SIGKILL)
    when = (
        f"{1000 * delay_s:.0f} ms after a checkpoint appeared"
        if near
        else f"{random_s:.2f} s after the start"
    )
    moments.append(f"{when}, newest {names[-1] if names else 'none'}")
    return True
