"""Trainings tell in one line what their data leaves out, on one rank of several."""

from pathlib import Path

import pytest

from fastpsl.cli import main
from tests.pipelines.folders import tree
from tests.pipelines.photos import jpeg, photo
from tests.programs import ROOT, run

TINY = (
    *("--backbone", "nin3", "--batch-size", "16", "--size-px", "16", "--short-side", "20", "--workers", "1"),
    *("--no-tensorboard", "--max-steps-per-stage", "1"),
)


@pytest.mark.slow
def test_a_training_tells_what_is_left_out_once(tmp_path: Path) -> None:
    files = {f"{kind}/{i}.jpg": jpeg(photo(i, 60, 60)) for kind in ("cat", "dog") for i in range(9)}
    others = {"__MACOSX/cat/._0.jpg": b"x", "cat/._0.jpg": b"x", "cat/a.txt": b"x", "dog/9.jpg": b"no JPEG"}
    tree(tmp_path / "train", files | others)
    tree(tmp_path / "val", files | {"lost+found/x.jpg": b"x"})
    main(["data", "write", str(tmp_path / "train"), str(tmp_path / "train.beton"), "--max-bad", "1"])
    arguments = ("--data", tmp_path / "train.beton", "--val", tmp_path / "val", "--out", tmp_path / "out")
    done = run(ROOT / "recipes" / "rotation_rv50.py", *TINY, *arguments, ranks=2)
    assert done.returncode == 0, done.stderr
    lines = [line for line in (done.stdout + done.stderr).splitlines() if "left out" in line]
    of_train = "1 bad image, 1 file of another kind, 2 leftovers of other programs"
    assert lines == [
        f"rotation_rv50: warning: {tmp_path}/train.beton: left out when it was written: {of_train}",
        f"rotation_rv50: warning: {tmp_path}/val: left out: 1 leftover of another program (lost+found)",
    ]
    assert "18 training images in 2 classes, 18 validation images in 2 classes" in done.stderr
