"""bench/start.py at its smallest. No figure is judged."""

import json
import sys
from pathlib import Path

import pytest

import bench.start
from bench.schema import validate
from bench.start import commands, start


def test_each_start_is_a_row_and_a_ratio_to_torchs_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands only busy themselves here, so that nothing is compiled."""
    out = tmp_path / "start.json"
    busy = [sys.executable, "-c", "sum(range(10**6)); print('done', flush=True); input()"]
    names = list(commands(4, "jigsaw", tmp_path))
    monkeypatch.setattr(bench.start, "commands", lambda *_: dict.fromkeys(names, (busy, "done")))
    monkeypatch.setattr(sys, "argv", ["start", "--repeats", "2", "--out", str(out)])
    bench.start.main()
    result = json.loads(out.read_text())
    validate(result)
    rows = {(row["measured"], row["cache"]): row for row in result["rows"]}
    compared = {
        (what, cache) for what in ("first batch", "first step of jigsaw") for cache in ("warm", "cold")
    }
    imports = {(what, None) for what in ("interpreter", "import torch", "import fastpsl")}
    assert rows.keys() == imports | compared
    assert all(row["median"] > 0 and len(row["values"]) == 2 for row in rows.values())
    assert {
        (ratio["what"].removesuffix(" / import torch"), ratio["cache"]) for ratio in result["ratios"]
    } == compared


@pytest.mark.nightly
def test_the_commands_reach_their_lines_and_fill_the_cache(tmp_path: Path) -> None:
    for variant in (("first step of jigsaw", "cold"), ("first batch", "warm")):
        command, done = commands(4, "jigsaw", tmp_path / "run")[variant]
        assert start(command, done, tmp_path / "cache", tmp_path / "bytecode").cpu_s > 0
    assert list((tmp_path / "cache").rglob("*.nbc"))


def test_a_command_that_ends_without_its_line_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"ended without 'all done': no such thing"):
        start([sys.executable, "-c", "print('no such thing')"], "all done", tmp_path, tmp_path)
