"""Loaders opened and left early thousands of times in one process: its resources must not grow."""

import json
from collections.abc import Iterator
from pathlib import Path

from tests.faults.changed_data import beton
from tests.faults.forks import ROOT, output_of, start
from tests.faults.report import Finding
from tests.faults.small_runs import verdict
from tests.faults.trend import Held, judge_growth
from tests.pipelines.photos import DECODERS

# Per opening. 1 kB each would be 10 MB after 10,000.
BOUNDS = {"threads": 0.001, "descriptors": 0.001, "resident_bytes": 1000.0}
# This share of the openings does not count: caches fill, code is compiled, malloc reaches its size.
_WARM_UP = 0.2
_S_PER_OPENING = 5.0


def run(folder: Path, seed: int, count: int) -> Iterator[Finding]:
    """Yield a finding for each installed decoder, after `count` openings (10 at least)."""
    count = max(count, 10)
    data = beton(folder / "x.beton")
    for decoder in DECODERS:
        log = folder / f"{decoder}.log"
        script = ROOT / "tests" / "faults" / "open_and_leave.py"
        outcome, detail = verdict(
            start([script, decoder, data, count, seed], log).wait(600 + _S_PER_OPENING * count), decoder
        )
        if outcome == "goes on":
            lines = [
                json.loads(line) for line in output_of(log).read_text().splitlines() if line.startswith("[")
            ]
            lines = [line for line in lines if line[0] > _WARM_UP * count]
            grows, detail = judge_growth(
                [line[0] for line in lines], [Held(*line[1:]) for line in lines], BOUNDS, "opening"
            )
            outcome, detail = ("memory" if grows else "as before"), f"{count:,} openings: {detail}"
        yield Finding("openings", decoder, outcome, detail)
