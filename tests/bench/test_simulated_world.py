"""bench/simulated_world.py: the page's arithmetic is what is counted, in the committed result and anew."""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from bench import simulated_world
from bench.scale_arithmetic import gradients
from bench.scale_counts import counts_table, exchanged, large_set_table
from bench.schema import validate
from bench.simulated_world import WORLDS, counted_collectives, measure
from fastpsl.engine.distributed import gathered
from fastpsl.pipelines.loader import order
from fastpsl.pipelines.loader.order import balanced_order
from tests.programs import ROOT, run
from tests.threaded_world import results_of_threads

RESULT = ROOT / "bench" / "results" / "simulated_world.json"
SETTINGS = {"batch_size_per_rank": 4, "width": 8, "size_px": 16}


@pytest.mark.usefixtures("published_widths")
def test_the_arithmetic_is_what_was_counted() -> None:
    gradients.cache_clear()  # cached by tests with narrow networks
    result = json.loads(RESULT.read_text())
    num_checked = 0
    for row in result["rows"]:
        if row["measured"] in ("handed over", "received") and row["part"] != "resume":
            num_samples = result["data"]["num_samples"]
            expected = exchanged(row["part"], row["num_ranks"], result["settings"], num_samples)
            num = expected.handed_over if row["measured"] == "handed over" else expected.received
            assert {*row["values"]} == {float(f"{num:.6g}")}, row  # results keep six digits
            num_checked += 1
    assert num_checked == 2 * 7 * (len(WORLDS) - 1)


def test_only_what_all_ranks_compare_grows_with_them() -> None:
    """Memory and bytes of 256 ranks beside those of 8; MoCo's keys and NT-Xent's embeddings are of all."""
    rows = json.loads(RESULT.read_text())["rows"]
    values = {(row["part"], row["measured"], row["num_ranks"]): row["median"] for row in rows}
    for part, limit in (("start, random", 1.5), ("start, quasi_random", 1.5), ("labels", 1.5), ("moco", 1.5)):
        assert values[part, "memory", 256] < limit * values[part, "memory", 8], part
    assert values["resume", "handed over", 256] < 1000


def peak_bytes(work: Callable[[], object]) -> int:
    """Return the largest memory of Python and NumPy while `work` runs."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_orders_take_the_memory_that_the_page_computes() -> None:
    """Bytes per image: 20 while an order is sorted, 58 while a balanced one is made; 3 MB for draws.

    Of the 20, tracemalloc does not see the 4 of NumPy's sort.
    """
    num, page = 1_281_167, (ROOT / "docs" / "explanation" / "scale.md").read_text()
    labels = np.arange(num, dtype=np.int32) % 1000
    works: tuple[tuple[int, int, str, Callable[[], object]], ...] = (
        (16, 4, "26 MB", lambda: order.epoch_order(0, 0, num)),
        (58, 0, "74 MB", lambda: order.numbered(balanced_order(labels, 0, 0))),
    )
    for seen, unseen, cell, work in works:
        assert f"| {cell} |" in page and round((seen + unseen) * num / 1e6) == int(cell.split()[0])
        assert seen * num <= peak_bytes(work) < seen * num + 3e6


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "NUM_SAMPLES": 5000, "NUM_CLASSES": 10, "BATCH_SIZE": 4, "WIDTH": 8, "QUEUE_SIZE": 512, "SIDE_PX": 16,
    }  # fmt: skip
    for name, value in values.items():
        monkeypatch.setattr(simulated_world, name, value)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("part", ["nt_xent", "labels"])
@pytest.mark.parametrize("num_ranks", WORLDS)
def test_counts_of_today_are_the_arithmetics(part: str, num_ranks: int) -> None:
    figures = measure(part, num_ranks, "")
    assert not dist.is_initialized()
    expected = exchanged(part, num_ranks, SETTINGS, 5000)
    found = figures.get("handed over", 0), figures.get("received", 0)
    assert found == (expected if num_ranks > 1 else (0, 0))


@pytest.mark.parametrize("num_ranks", [1, 8, 64])
def test_moco_sends_an_image_to_one_rank(num_ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"BATCH_SIZE": 32, "WIDTH": 8, "QUEUE_SIZE": 4096, "SIDE_PX": 16}.items():
        monkeypatch.setattr(simulated_world, name, value)
    figures = measure("moco", num_ranks, "")
    expected = exchanged("moco", num_ranks, SETTINGS | {"batch_size_per_rank": 32}, 0)
    found = figures.get("handed over", 0), figures.get("received", 0)
    assert found == (expected if num_ranks > 1 else (0, 0))


def test_counts_of_ranks_that_exist_are_the_same() -> None:
    """Counts of a world of threads, whose ranks all exist, are those of the fake one."""
    counts: dict[str, Any] = {}

    def gather(rank: int, num_ranks: int) -> int:
        return len(gathered(torch.zeros(3, 2)))

    with counted_collectives(counts):
        assert results_of_threads(gather, 8) == [24] * 8
    assert counts == {"calls": 8, "handed over": 8 * 24, "received": 8 * 8 * 24}
    assert dist.all_reduce.__module__ == "torch.distributed.distributed_c10d"  # nothing stays wrapped


def test_without_results_the_tables_say_so() -> None:
    assert counts_table({}).startswith("Not measured yet")
    assert large_set_table({}).startswith("Not measured yet")


@pytest.mark.slow
def test_a_run_writes_all_rows(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    arguments = [
        "--parts",
        "start, quasi_random",
        "nt_xent",
        "resume",
        "--worlds",
        "1",
        "8",
        "--repeats",
        "1",
    ]
    process = run(
        ROOT / "bench" / "simulated_world.py", *arguments, "--folder", str(tmp_path), "--out", str(out)
    )
    assert process.returncode == 0, process.stderr
    result = json.loads(out.read_text())
    validate(result)
    rows = {(row["part"], row["measured"], row["num_ranks"]) for row in result["rows"]}
    assert {("start, quasi_random", "seconds", 8), ("resume", "write, rank 0 alone", 1)} <= rows
    assert ("nt_xent", "received", 8) in rows and ("nt_xent", "received", 1) not in rows
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
