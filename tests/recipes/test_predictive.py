"""The recipes of jigsaw and rotation as a user runs them: small runs, damaged data, and full disks."""

import json
import os
import resource
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastpsl.cli import main
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.embedded.draw_sample import NUM_TRAIN, sample_paths
from fastpsl.pipelines.loader.order import epoch_order
from fastpsl.scripts.recipe_files import find_recipe
from tests.pipelines.photos import RAW, jpeg, photo, write
from tests.pipelines.written import tree
from tests.programs import ENVIRONMENT, ROOT, newest_checkpoint, run_fresh
from tests.recipes.in_process import Outcome, differences, ran, refused, start, words
from tests.slow import slow
from tests.warm import spawn

JIGSAW = "jigsaw_r50"
SMALL_JIGSAW = words(
    "--max-steps-per-stage 1 --batch-size 8 --workers 1 --no-tensorboard --size-px 54 --counts 4 8 16"
)
RESNET18 = ("--backbone", "resnet18")


@pytest.mark.parametrize(("backbone", "told"), [(RESNET18, ["resnet18", "resnet50"]), slow((), None)])
def test_smallest_run_ends_with_lines_and_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backbone: tuple[str, ...], told: list[str] | None
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = start(JIGSAW, *SMALL_JIGSAW, *backbone).ok()
    lines, run = outcome.results, "runs/jigsaw-001"
    assert outcome.out.splitlines()[len(lines) + 1 :] == [
        f"next: fastpsl eval knn {run}",
        f"      fastpsl tsne {run}",
        f"      fastpsl export {run} --to timm {backbone[-1] if backbone else 'resnet50'}.pth",
    ]
    changed = differences(Path("runs/jigsaw-001"))
    assert changed["batch_size"] == [8, 256] and changed.get("backbone") == told
    assert [line[:2] for line in lines[:3]] == ["S1", "S2", "S3"]
    assert all("validation" in line and " accuracy " in line and "chance" in line for line in lines[:3])
    paths = [Path(line.rsplit(" ", 1)[1]) for line in lines[3:]]
    assert [p.name for p in paths] == [
        "step-00000003.pt",
        "curve.png",
        *(f"contact-sheet-G{level}.png" for level in (1, 2, 3)),
    ]
    assert all(p.stat().st_size > 0 and p.parts[:2] == ("runs", "jigsaw-001") for p in paths)
    environment = json.loads(Path("runs/jigsaw-001/environment.json").read_text())
    assert [choices["stage"] for choices in environment["choices"]] == ["S1", "S2", "S3"]
    choices = environment["choices"][0]
    assert choices["augment_backend"] == "fused: numba, an image at a time"
    assert choices["graph"] == "off: CUDA graphs need CUDA"
    is_usual = choices["decoder"] == "turbo: it decodes what the crops need"
    starts = ("augment", "compile", "graph", "decoder")
    told = [line for line in outcome.err.splitlines() if line.startswith(starts)]
    assert [line.split()[0] for line in told] == ([] if is_usual else ["decoder"])
    status = json.loads(Path("runs/jigsaw-001/status.json").read_text())
    assert status == {"state": "finished", "stage": 3, "step": 1, "reason": ""}
    assert newest_checkpoint(Path("runs/jigsaw-001"))["input"]["channels"] == "RGB"


def damaged(tmp_path: Path, change: Any) -> Path:
    """Return a copy of the sample's training beton with changed bytes."""
    path = tmp_path / "damaged.beton"
    data = bytearray(sample_paths().train.read_bytes())
    path.write_bytes(change(data) or data)
    return path


def test_data_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused(start(JIGSAW, "--data", tmp_path / "absent.beton", "--out", out), "absent.beton")
    refused(start(JIGSAW, "--data", tmp_path / "none-*.beton", "--out", out), "none-*.beton")
    empty = tmp_path / "empty.beton"
    empty.touch()
    refused(start(JIGSAW, "--data", empty, "--out", out), "empty.beton")
    half = damaged(tmp_path, lambda d: d[: len(d) // 2])
    refused(start(JIGSAW, "--data", half, "--out", out), "damaged.beton")
    other = damaged(tmp_path, lambda d: b"PK" + d[2:])
    refused(start(JIGSAW, "--data", other, "--out", out), "damaged.beton")
    val = ("--val", tmp_path / "v.beton", "--out", out)
    refused(start(JIGSAW, "--data", sample_paths().train, *val), "v.beton")
    assert not out.exists()


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


def test_a_poisoned_sample_is_named_and_may_be_skipped(tmp_path: Path) -> None:
    """Damage the first image that training reads."""
    index = int(epoch_order(0, 0, NUM_TRAIN)[0])
    out, named = tmp_path / "out", f"sample {index}"
    arguments = (
        "--data", poisoned(tmp_path, index), *SMALL_JIGSAW, *RESNET18, "--plan", "end_to_end",
        "--val", "none", "--out",
    )  # fmt: skip
    refused(start(JIGSAW, *arguments, tmp_path / "raise"), named, "or give --on-bad-sample skip")
    status = json.loads((tmp_path / "raise" / "status.json").read_text())
    assert status["state"] == "failed" and named in status["reason"]
    outcome = start(JIGSAW, *arguments, out, "--on-bad-sample skip").ok()
    assert outcome.err.count("skipped ") == 1 and named in outcome.err
    assert (out / "bad-samples.csv").read_text().startswith(f"{index},")


@pytest.mark.slow
def test_a_corrupt_newest_checkpoint_gives_way_and_another_experiment_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    start(JIGSAW, *SMALL_JIGSAW, *RESNET18, "--out", out).ok()
    newest = max((out / "checkpoints").iterdir())
    newest.write_bytes(newest.read_bytes()[:-100])
    outcome = start(JIGSAW, *SMALL_JIGSAW, *RESNET18, "--out", out).ok()
    assert f"passed over: {newest}" in outcome.err and "step-00000002.pt" in outcome.err
    refused(start(JIGSAW, *SMALL_JIGSAW, *RESNET18, "--out", out, "--seed 5"), "seed (0 there, 5 now)")


def limit_files() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))


@pytest.mark.slow
def test_a_full_disk_at_checkpoint_time_is_one_line(tmp_path: Path) -> None:
    command = words(ROOT / "recipes" / f"{JIGSAW}.py", *SMALL_JIGSAW, "--out", tmp_path / "out")
    texts = tmp_path / "printed", tmp_path / "errors"
    process = spawn(command, ENVIRONMENT, ROOT, *texts, limit_files)
    process.join(240)
    printed, errors = (path.read_text() for path in texts)
    refused(Outcome(JIGSAW, process.exitcode, printed, errors), "File too large")  # type: ignore[arg-type]
    assert os.listdir(tmp_path / "out" / "checkpoints") == []
    assert json.loads((tmp_path / "out" / "status.json").read_text())["state"] == "failed"


@pytest.mark.slow
def test_user_errors_under_torchrun_are_said_once(tmp_path: Path) -> None:
    done = run_fresh(ROOT / "recipes" / f"{JIGSAW}.py", "--data", tmp_path / "absent.beton", ranks=2)
    assert done.returncode != 0
    assert done.stderr.count("absent.beton: ") + done.stderr.count("absent.beton does") <= 2
    assert done.stderr.count("jigsaw_r50: ") == 1, done.stderr


ROTATION = "rotation_rv50"
SMALL_ROTATION = words(
    "--max-steps-per-stage 1 --batch-size 8 --workers 1 --no-tensorboard --short-side 36",
    "--size-px 32 --decoder pillow",
)
ALL = ("--rotations-per-image", "all")


def beton(path: Path, num: int, shorter_px: int = 60) -> Path:
    images = [photo(i, shorter_px + i, 100 - i) for i in range(num)]
    return write(path, [(p.tobytes(), *p.shape[:2], RAW) for p in map(np.ascontiguousarray, images)])


@pytest.fixture
def data(tmp_path: Path) -> tuple[object, ...]:
    """Write 24 training and 10 validation images."""
    train, val = beton(tmp_path / "train.beton", 24), beton(tmp_path / "val.beton", 10)
    return ("--data", train, "--val", val, "--out", tmp_path / "out")


def printed(outcome: Outcome) -> list[str]:
    assert outcome.code == 0, outcome
    return (outcome.err + outcome.out).splitlines()


def test_all_rotations_through_all_stages(data: Any, tmp_path: Path) -> None:
    """Check that the batch of 8 counts images: an epoch has 3 steps of more inputs from level to level."""
    lines = printed(start(ROTATION, *SMALL_ROTATION, *data, *ALL, "--backbone resnet18"))
    assert any("network inputs per step: S1 16, S2 32, S3 64;" in line for line in lines), lines
    for stage, chance in (("S1", "50.0"), ("S2", "25.0"), ("S3", "12.5")):
        assert any(line.startswith(f"{stage}: ") and " of 3 steps" in line for line in lines), lines
        assert any(line.startswith(f"{stage} ") and f"(chance {chance} %)" in line for line in lines), lines
    for level in (1, 2, 3):
        assert (tmp_path / "out" / f"contact-sheet-G{level}.png").stat().st_size > 0
    checkpoint = newest_checkpoint(tmp_path / "out")
    assert checkpoint["input"]["size_px"] == 32
    summaries = checkpoint["position"]["summaries"]
    assert [s["stage"] for s in summaries] == ["S1", "S2", "S3"]
    # There are 2, 4 and 8 views of each of 8 images, as many as the stage has seen of 10.
    for summary, views in zip(summaries, (16, 32, 64), strict=True):
        assert summary["num_val_images"] == 8
        right = summary["val"]["accuracy"] * views
        assert abs(right - round(right)) < 1e-4, summary


@pytest.mark.slow
def test_one_rotation_of_each_image(data: Any) -> None:
    """Check that an epoch is 3 steps at every level, in any order of levels."""
    plan = "--backbone resnet18 --plan psl_f --levels 3 1 2"
    lines = printed(start(ROTATION, *SMALL_ROTATION, *data, plan))
    for stage, level in (("S1", 3), ("S2", 1), ("S3", 2)):
        of_stage = [line for line in lines if line.startswith(f"{stage}: level G{level}")]
        assert any(" of 3 steps" in line for line in of_stage), lines


@pytest.mark.slow
def test_the_papers_backbone_end_to_end(data: Any, tmp_path: Path) -> None:
    lines = printed(start(ROTATION, *SMALL_ROTATION, *data, "--plan end_to_end"))
    assert any("E: level G3, learns B1-B5" in line for line in lines), lines
    assert "backbone" not in differences(tmp_path / "out")
    assert newest_checkpoint(tmp_path / "out")["science"]["backbone"] == "revnet50"


def test_images_too_small_for_45_degrees_are_refused_before_the_first_stage(tmp_path: Path) -> None:
    """Check that only stages with such views are refused, in a line that names the remedy."""
    small = (
        "--data", beton(tmp_path / "small.beton", 8, shorter_px=40), "--backbone", "resnet18", "--val",
        "none",
    )  # fmt: skip
    outcome = start(ROTATION, *SMALL_ROTATION, *small, "--out", tmp_path / "a")
    refused(outcome, "40 x ", "fastpsl data write --min-px 53")
    start(ROTATION, *SMALL_ROTATION, *small, "--out", tmp_path / "b", "--levels 1 2 2").ok()


def test_the_papers_values_are_the_defaults() -> None:
    """Compare with section 4.1; with --data all defaults are the paper's."""
    script: Any = find_recipe(ROTATION)
    options = script.with_paper()
    assert {name: getattr(options, name) for name in script.paper} == script.paper
    assert (options.backbone, options.epochs, options.batch_size, options.lr) == (
        "revnet50", (60, 60, 60), 256, 0.01,
    )  # fmt: skip
    assert (options.intervals, options.short_side, options.size_px) == ((20, 20, 10, 10), 256, 224)
    assert options.rotations_per_image == "one" and script.variant(options) == {}
    for levels, batch_size in (((), 32), ((1, 2, 2), 64), ((1,), 128), ((3, 1), 32)):
        every = script.with_paper(rotations_per_image="all", levels=levels)
        assert script.variant(every) == {"batch_size": batch_size}


TINY = words(
    "--backbone nin3 --batch-size 16 --size-px 16 --short-side 20 --workers 1",
    "--no-tensorboard --max-steps-per-stage 1",
)


@pytest.mark.slow
def test_a_training_tells_what_is_left_out_once(tmp_path: Path) -> None:
    files = {f"{kind}/{i}.jpg": jpeg(photo(i, 60, 60)) for kind in ("cat", "dog") for i in range(9)}
    others = {"__MACOSX/cat/._0.jpg": b"x", "cat/._0.jpg": b"x", "cat/a.txt": b"x", "dog/9.jpg": b"no JPEG"}
    tree(tmp_path / "train", files | others)
    tree(tmp_path / "val", files | {"lost+found/x.jpg": b"x"})
    main(["data", "write", str(tmp_path / "train"), str(tmp_path / "train.beton"), "--max-bad", "1"])
    arguments = ("--data", tmp_path / "train.beton", "--val", tmp_path / "val", "--out", tmp_path / "out")
    done = ran(ROTATION, *TINY, *arguments, ranks=2)
    lines = [line for line in (done.stdout + done.stderr).splitlines() if "left out" in line]
    of_train = "1 bad image, 1 file of another kind, 2 leftovers of other programs"
    assert lines == [
        f"rotation_rv50: warning: {tmp_path}/train.beton: left out when it was written: {of_train}",
        f"rotation_rv50: warning: {tmp_path}/val: left out: 1 leftover of another program (lost+found)",
    ]
    assert "18 training images in 2 classes, 18 validation images in 2 classes" in done.stderr
