"""bench/gil.py: what it calls Python is no decoding, its table, and a run at its smallest."""

import json
import subprocess
import time
from pathlib import Path

import pytest

from bench.gil import Options, decoder_call_ms, open_loader, python_parts, without_decoding
from bench.gil_tables import SATURATED, gil_table, growth
from bench.schema import validate
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.decoders.decoder import Request, SyntheticDecoder
from fastpsl.pipelines.sample.betons import sample_paths
from tests.programs import ROOT, run


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run(ROOT / "bench" / "gil.py", *arguments, environment={"COLUMNS": "120"})


def test_a_batch_without_decoding_has_its_plan_allocation_and_assembly() -> None:
    options = Options(batch_size=40)
    with Beton(sample_paths().train) as data, open_loader(data, options, "64", 1, "synthetic") as loader:
        without_decoding(loader)
        batches = list(loader.epoch(0))
        assert len(batches) == 12 and batches[0].images[0].shape == (40, 3, 64, 64)
        parts = python_parts(loader, 1)
    assert set(parts) == {"plan", "allocation", "assembly"} and min(parts.values()) > 0


def test_a_decoders_python_is_what_does_not_grow_with_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder with 0.5 ms a call and 0.1 ms a sample, by a clock of its own."""
    clock = 0.0

    def decode_part(request: Request, part: slice) -> None:
        nonlocal clock
        clock += 0.5e-3 + 0.1e-3 * (part.stop - part.start)
        assert request.boxes.shape == (1, 16, 5) and request.outs[0].shape == (16, 1, 1, 3)

    monkeypatch.setattr(time, "thread_time", lambda: clock)
    decoder = SyntheticDecoder()
    monkeypatch.setattr(decoder, "decode_part", decode_part)
    with Beton(sample_paths().train) as data:
        assert decoder_call_ms(decoder, data, 16) == pytest.approx(0.5)


def test_the_table_tells_cores_and_what_threads_cost() -> None:
    medians = {("cpu", 2): 40.0, ("cpu", 32): 42.0, ("under the lock", 1): 2.0}
    medians |= {("page faults", 2): 900.0, ("page faults", 32): 1000.0}
    result = {
        "bench": "gil",
        "environment": {"cpu": "a CPU"},
        "settings": {"num_cores": 2, "batch_size": 256},
        "rows": [
            {"size": "64", "measured": measured, "num_threads": num, "median": median}
            for (measured, num), median in medians.items()
        ],
        "ratios": [
            {"size": "64", "what": SATURATED, "median": 20.0},
            {"size": "64", "what": growth(32), "median": 1.05},
        ],
    }
    assert "| 64 | 40.0 ms | 2.00 ms | 20 cores | x1.05 | 900 | 1,000 |" in gil_table({"a.json": result})
    assert gil_table({}).startswith("Not measured yet")


@pytest.mark.slow
def test_a_run_writes_all_rows(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    arguments = ["--sizes", "64", "--threads", "3", "--decoder", "pillow", "--batch-size", "20"]
    arguments += ["--num", "40", "--repeats", "2", "--drawn", str(tmp_path / "drawn"), "--out", str(out)]
    process = call(*arguments)
    assert process.returncode == 0, process.stderr
    result = json.loads(out.read_text())
    validate(result)
    values = {(row["measured"], row["num_threads"]): row["values"] for row in result["rows"]}
    cores = result["settings"]["num_cores"]
    parts = [values[name, 1] for name in ("plan", "allocation", "assembly", "decoder's Python", "hand-over")]
    # Hand-over is the rest, or nothing where the parts' medians are more than the whole.
    for each, whole in zip(zip(*parts, strict=True), values["under the lock", 1], strict=True):
        assert min(each) > 0 and sum(each) >= 0.99 * whole
    ratios = {ratio["what"]: ratio["values"] for ratio in result["ratios"]}
    assert ratios[growth(3)] == pytest.approx(
        [a / b for a, b in zip(values["cpu", 3], values["cpu", cores], strict=True)], rel=1e-3
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (Options(sizes=()), "--sizes"),
        (Options(threads=(0,)), "--threads"),
        (Options(num=3, batch_size=4), "--num 3"),
        (Options(batch_size=0), "--batch-size 0"),
    ],
)
def test_values_that_cannot_be_are_refused(options: Options, says: str) -> None:
    Options().check()
    with pytest.raises(ValueError, match=says):
        options.check()
