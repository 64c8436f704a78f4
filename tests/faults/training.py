"""Training for a long time: threads, descriptors and memory must not grow. The count is in minutes."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

from tests.faults.forks import start
from tests.faults.report import Finding
from tests.faults.small_runs import JIGSAW, verdict
from tests.faults.trend import held_by, judge_growth
from tests.faults.trials import num_steps

# Per minute. 200 kB are 12 MB an hour, 2 GB a week.
BOUNDS = {"threads": 0.01, "descriptors": 0.01, "resident_bytes": 200_000.0}
_WARM_UP = 0.2
_NUM_LOOKS = 300
_OPTIONS = (
    *("--plan", "end_to_end", "--epochs", 1_000_000, "--max-steps-per-stage", 100_000_000),
    *("--checkpoint-steps", 200, "--keep-checkpoints", 2, "--tensorboard"),
)


def run(folder: Path, seed: int, count: int) -> Iterator[Finding]:
    """Yield one finding, after `count` minutes."""
    out, seconds = folder / "run", 60.0 * count
    process = start(JIGSAW.command(out, *_OPTIONS, "--seed", seed), folder / "log")
    process.wait_until(lambda: num_steps(out) >= 20)
    minutes, held = [], []
    started = time.monotonic()
    while time.monotonic() - started < seconds and process.poll() is None:
        time.sleep(seconds / _NUM_LOOKS)
        if process.poll() is None and time.monotonic() - started > _WARM_UP * seconds:
            minutes.append((time.monotonic() - started) / 60)
            held.append(held_by(process.pid))
    steps = num_steps(out)
    process.send(signal.SIGTERM)
    outcome, detail = verdict(process.wait(), JIGSAW.recipe, codes=(75,))
    if outcome == "goes on":
        grows, detail = judge_growth(minutes, held, BOUNDS, "minute")
        outcome, detail = ("memory" if grows else "as before"), f"{count} minutes, {steps:,} steps: {detail}"
    yield Finding("training", "jigsaw", outcome, detail)
