"""bench/large_set.py: a run at its smallest."""

import json
from pathlib import Path

import pytest

from bench.large_set import SECONDS
from bench.schema import validate
from tests.pipelines.memory import printed_by
from tests.programs import ROOT, run


@pytest.mark.slow
def test_the_peak_is_what_was_held_for_a_while() -> None:
    """In a new process, because this one may give back the memory of earlier tests meanwhile."""
    script = """
import time
import numpy as np
from bench.large_set import peak_memory
with peak_memory() as growth:
    held = np.ones(64 << 20, np.uint8)
    end = time.monotonic() + 60
    while growth[0] < 60 and time.monotonic() < end:  # until it was looked at
        time.sleep(0.01)
    del held
print(growth[0])
"""
    (growth_mib,) = printed_by(script)
    assert 60 < growth_mib < 80


@pytest.mark.slow
def test_a_run_writes_all_rows(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    arguments = ["--num-samples", "40000", "--shards", "2", "--repeats", "1", "--folder", str(tmp_path)]
    process = run(ROOT / "bench" / "large_set.py", *arguments, "--out", str(out))
    assert process.returncode == 0, process.stderr
    result = json.loads(out.read_text())
    validate(result)
    assert {(row["measured"], row["order"]) for row in result["rows"]} == {
        ("open from disk", "random"),
        *((name, order) for name in (*SECONDS, "memory") for order in ("random", "quasi_random")),
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["result.json"]  # the shards are gone
