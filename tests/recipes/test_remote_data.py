"""A recipe on data of an S3 server, killed and resumed: its weights are those of local data, bit for bit."""

import os
import signal
from pathlib import Path

import pytest

pytest.importorskip("s3fs")
pytest.importorskip("moto.server", reason="the extra dev has moto")

from fastpsl.pipelines.sample.betons import sample_paths
from tests import programs
from tests.pipelines.s3_server import BUCKET, s3_server
from tests.programs import ROOT, digests, newest_checkpoint, run, run_until
from tests.recipes.test_kill import SMALL

RECIPE = ROOT / "recipes" / "jigsaw_r50.py"


@pytest.mark.slow
def test_a_run_is_that_on_local_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, val = sample_paths()[:2]
    arguments = (
        *("--preset", "sample", *SMALL, "--backbone", "resnet18", "--max-steps-per-stage", 3),
        *("--order", "quasi_random", "--lanes", 1),
    )
    done = run(RECIPE, *arguments, "--data", train, "--val", val, "--out", tmp_path / "local")
    assert done.returncode == 0, done.stderr
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
        done = run(RECIPE, *arguments, *remote)
        assert done.returncode == 0, done.stderr
    assert digests(newest_checkpoint(tmp_path / "remote")) == digests(newest_checkpoint(tmp_path / "local"))
    kept = [path.read_text() for path in (tmp_path / "remote").glob("*.json*")]
    assert f"s3://{BUCKET}/{train.name}" in str(kept) and "secret" not in str(kept)
