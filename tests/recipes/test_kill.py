"""recipes/jigsaw_r50.py with its real decoder, killed and resumed, on local data and on those of a server."""

import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest

from fastpsl.pipelines.embedded.draw_sample import sample_paths
from tests import programs
from tests.programs import ROOT, digests, newest_checkpoint, newest_step, run_until
from tests.recipes.in_process import ran, words

NAME = "jigsaw_r50"
RECIPE = ROOT / "recipes" / f"{NAME}.py"
SMALL = words(
    "--backbone resnet18 --checkpoint-steps 2 --batch-size 8 --workers 2 --no-tensorboard --size-px 54",
    "--counts 4 8 16",
)


@pytest.mark.slow
def test_three_kills_leave_no_trace(tmp_path: Path) -> None:
    """Kill at any time after a checkpoint, mostly in each stage; `make faults` does so hundreds of times."""
    num_kills, steps_per_stage = 3, 12
    arguments = (*SMALL, "--max-steps-per-stage", steps_per_stage)
    whole, out = tmp_path / "whole", tmp_path / "killed"
    ran(NAME, *arguments, "--out", whole)
    chance, codes = random.Random(num_kills), []
    num_steps = 3 * steps_per_stage
    for kill in range(num_kills):
        target = max(newest_step(out) + 1, (2 * kill + 1) * num_steps // (2 * num_kills))
        there: dict[str, Any] = {"folder": out, "step": target, "delay_s": chance.uniform(0, 0.1)}
        code, output = run_until(RECIPE, *arguments, "--out", out, number=signal.SIGKILL, **there)
        codes.append(code)
        assert code in (-signal.SIGKILL, 0), output  # it may have ended before
    assert codes[0] == -signal.SIGKILL
    ran(NAME, *arguments, "--out", out)
    assert digests(newest_checkpoint(out)) == digests(newest_checkpoint(whole))
    metrics = [(path / "metrics.jsonl").read_text() for path in (whole, out)]
    assert metrics[0] == metrics[1] and metrics[0].count("\n") == num_steps


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = (*SMALL, "--out", out)
    code, output = run_until(RECIPE, *arguments, folder=out, step=2, number=signal.SIGINT)
    assert code == 75, output
    assert "Traceback" not in output and f"--out {out} goes on from there" in output
    assert '"preempted"' in (out / "status.json").read_text()


@pytest.mark.slow
def test_a_run_on_a_servers_data_is_that_on_local_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("s3fs")
    pytest.importorskip("moto.server", reason="the extra dev has moto")
    from tests.pipelines.s3_server import BUCKET, s3_server

    train, val = sample_paths()[:2]
    arguments = words("--preset sample", *SMALL, "--max-steps-per-stage 3 --order quasi_random --lanes 1")
    ran(NAME, *arguments, "--data", train, "--val", val, "--out", tmp_path / "local")
    with s3_server(monkeypatch) as server:
        for name in (name for name in os.environ if name.startswith("AWS_")):
            monkeypatch.setitem(programs.ENVIRONMENT, name, os.environ[name])
        server.latency_s = 0.02
        for path in (train, val):
            server.put(path.name, path.read_bytes())
            server.put(f"{path.name}.json", Path(f"{path}.json").read_bytes())
        remote = (
            *("--data", f"s3://{BUCKET}/{train.name}", "--val", f"s3://{BUCKET}/{val.name}"),
            *("--cache-dir", tmp_path / "cache", "--cache-gb", 0.2, "--out", tmp_path / "remote"),
        )
        code, output = run_until(
            RECIPE, *arguments, *remote, folder=tmp_path / "remote", step=4, number=signal.SIGKILL
        )
        assert code == -signal.SIGKILL, output
        ran(NAME, *arguments, *remote)
    assert digests(newest_checkpoint(tmp_path / "remote")) == digests(newest_checkpoint(tmp_path / "local"))
    kept = [path.read_text() for path in (tmp_path / "remote").glob("*.json*")]
    assert f"s3://{BUCKET}/{train.name}" in str(kept) and "secret" not in str(kept)
