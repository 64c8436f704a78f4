"""Test the jigsaw recipe as a user runs it: errors are one line with exit code 2, and a small run has all
stages.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.loader.order import epoch_order
from fastpsl.pipelines.sample.betons import NUM_TRAIN, sample_paths
from tests.programs import ENVIRONMENT, ROOT, newest_checkpoint, run_fresh
from tests.recipes.in_process import Outcome, Start, refused, starter
from tests.slow import slow

RECIPE = ROOT / "recipes" / "jigsaw_r50.py"
SMALL = (
    *("--max-steps-per-stage", "1", "--batch-size", "8", "--workers", "1", "--no-tensorboard"),
    *("--short-side", "60", "--cell-px", "18", "--tile-px", "16", "--counts", "4", "8", "16"),
)


RESNET18 = ("--backbone", "resnet18")


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Start:
    return starter("jigsaw_r50", monkeypatch, capsys)


@pytest.mark.parametrize(
    ("backbone", "told"), [(RESNET18, "backbone resnet18 (paper resnet50), epochs"), slow((), "epochs")]
)
def test_smallest_run_ends_with_lines_and_figures(
    recipe: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backbone: tuple[str, ...], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = recipe(*SMALL, *backbone)
    assert outcome.code == 0, outcome
    told_decoders = "decoder turbo: it decodes what the crops need", "decoder pillow: "
    assert any(words in outcome.err for words in told_decoders)
    lines = outcome.out.splitlines()
    assert lines[0].startswith(f"the embedded sample: {told}") and "(paper 256)" in lines[0]
    assert [line[:2] for line in lines[1:4]] == ["S1", "S2", "S3"]
    assert all("validation accuracy" in line and "chance" in line for line in lines[1:4])
    paths = [Path(line.rsplit(" ", 1)[1]) for line in lines[4:]]
    assert [p.name for p in paths] == [
        "step-00000003.pt",
        "curve.png",
        *(f"contact-sheet-G{level}.png" for level in (1, 2, 3)),
    ]
    assert all(p.stat().st_size > 0 and p.parts[:2] == ("runs", "jigsaw_r50-001") for p in paths)
    status = json.loads(Path("runs/jigsaw_r50-001/status.json").read_text())
    assert status == {"state": "finished", "stage": 3, "step": 1, "reason": ""}
    assert newest_checkpoint(Path("runs/jigsaw_r50-001"))["input"]["channels"] == "RGB"


def damaged(tmp_path: Path, change: Any) -> Path:
    """Return a copy of the sample's training beton with changed bytes."""
    path = tmp_path / "damaged.beton"
    data = bytearray(sample_paths().train.read_bytes())
    path.write_bytes(change(data) or data)
    return path


def test_data_that_cannot_be_read_is_refused(recipe: Start, tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused(recipe("--data", tmp_path / "absent.beton", "--out", out), "jigsaw_r50", "absent.beton")
    refused(recipe("--data", tmp_path / "none-*.beton", "--out", out), "jigsaw_r50", "none-*.beton")
    empty = tmp_path / "empty.beton"
    empty.touch()
    refused(recipe("--data", empty, "--out", out), "jigsaw_r50", "empty.beton")
    refused(
        recipe("--data", damaged(tmp_path, lambda d: d[: len(d) // 2]), "--out", out),
        "jigsaw_r50",
        "damaged.beton",
    )
    refused(
        recipe("--data", damaged(tmp_path, lambda d: b"PK" + d[2:]), "--out", out),
        "jigsaw_r50",
        "damaged.beton",
    )
    refused(
        recipe("--data", sample_paths().train, "--val", tmp_path / "v.beton", "--out", out),
        "jigsaw_r50",
        "v.beton",
    )
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--decoder", "jpegturbo"), ("jpegturbo", "ffcv", "pillow")),
        (("--device", "cuda"), ("--device cuda", "--device cpu")),
        (("--batch-size", "32", "--accumulate", "5"), ("does not divide", "multiple of 5")),
        (("--batch-size", "1000"), ("480", "1000")),
        (("--short-side", "90"), ("90", "96")),
        (("--counts", "9", "8", "7"), ("give --counts that rise",)),
        (("--counts", "8", "9", "--levels", "1", "2", "3"), ("--levels 1 2 3", "1 to 2")),
        (("--epochs", *"111111"), ("(1, 1, 1, 1, 1, 1)", "at most 5")),
        (("--partition", "1-2", "2-3", "5"), ("hole", "B4")),
        (("--permutations", "absent.npy"), ("absent.npy",)),
        (("--resume", "absent.pt"), ("absent.pt",)),
        (("--sync-batchnorm",), ("CUDA",)),
        (("--lr", "-1"), ("above 0",)),
    ],
)
def test_impossible_requests_are_refused(
    recipe: Start,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    words: tuple[str, ...],
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    out = () if "--resume" in arguments else ("--out", tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    refused(recipe(*arguments, *out), "jigsaw_r50", *words)


def poisoned(tmp_path: Path, index: int) -> Path:
    """Return the sample with the middle of one JPEG overwritten."""
    path = tmp_path / "poisoned.beton"
    shutil.copy(sample_paths().train, path)
    with Beton(path) as beton:
        rows = beton.rows(np.array([index]))
        offset, size = int(rows.offset[0]), int(rows.num_bytes[0])
    with open(path, "r+b") as file:
        file.seek(offset + size // 2)
        file.write(b"\xff\xd8\xff\xd9" * (size // 16))
    return path


def test_a_poisoned_sample_is_named_and_may_be_skipped(recipe: Start, tmp_path: Path) -> None:
    """Damage the first image that training reads."""
    index = int(epoch_order(0, 0, NUM_TRAIN)[0])
    out, named = tmp_path / "out", f"sample {index}"
    arguments = ("--data", poisoned(tmp_path, index), *SMALL, *RESNET18, "--plan", "end_to_end", "--out")
    refused(recipe(*arguments, tmp_path / "raise"), "jigsaw_r50", named)
    status = json.loads((tmp_path / "raise" / "status.json").read_text())
    assert status["state"] == "failed" and named in status["reason"]
    outcome = recipe(*arguments, out, "--on-bad-sample", "skip")
    assert outcome.code == 0
    assert outcome.err.count("skipped ") == 1 and named in outcome.err
    assert (out / "bad-samples.csv").read_text().startswith(f"{index},")


@pytest.mark.slow
def test_a_corrupt_newest_checkpoint_gives_way_and_another_experiment_is_refused(
    recipe: Start, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert recipe(*SMALL, *RESNET18, "--out", out).code == 0
    newest = max((out / "checkpoints").iterdir())
    newest.write_bytes(newest.read_bytes()[:-100])
    outcome = recipe(*SMALL, *RESNET18, "--out", out)
    assert outcome.code == 0
    assert f"passed over: {newest}" in outcome.err and "step-00000002.pt" in outcome.err
    refused(recipe(*SMALL, *RESNET18, "--out", out, "--seed", "5"), "jigsaw_r50", "seed (0 there, 5 now)")


LIMITED = "import resource, runpy, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); \
resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000)); sys.argv = sys.argv[1:]; \
runpy.run_path(sys.argv[0], run_name='__main__')"


@pytest.mark.slow
def test_a_full_disk_at_checkpoint_time_is_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(RECIPE), *SMALL, "--out", str(tmp_path / "out")],
        check=False,
        env=ENVIRONMENT,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    refused(Outcome(done.returncode, done.stdout, done.stderr), "jigsaw_r50", "File too large")
    assert os.listdir(tmp_path / "out" / "checkpoints") == []
    assert json.loads((tmp_path / "out" / "status.json").read_text())["state"] == "failed"


@pytest.mark.slow
def test_user_errors_under_torchrun_are_said_once(tmp_path: Path) -> None:
    done = run_fresh(RECIPE, "--data", tmp_path / "absent.beton", ranks=2)
    assert done.returncode != 0
    assert done.stderr.count("absent.beton: ") + done.stderr.count("absent.beton does") <= 2
    assert done.stderr.count("jigsaw_r50: ") == 1, done.stderr
