"""Test the rotation recipe as a user runs it: to its end in both modes, and errors."""

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.pipelines.photos import RAW, photo, write
from tests.programs import ROOT, newest_checkpoint
from tests.recipes.in_process import Outcome, Start, refused, starter

RECIPE = ROOT / "recipes" / "rotation_rv50.py"
SMALL = (
    *("--max-steps-per-stage", "1", "--batch-size", "8", "--workers", "1", "--no-tensorboard"),
    *("--short-side", "36", "--size-px", "32", "--decoder", "pillow"),
)
ALL = ("--rotations-per-image", "all")


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Start:
    return starter("rotation_rv50", monkeypatch, capsys)


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


def test_all_rotations_through_all_stages(recipe: Start, data: Any, tmp_path: Path) -> None:
    """Check that the batch of 8 counts images: an epoch has 3 steps of more inputs from level to level.

    A checkpoint from when it counted inputs says nothing of them, and is refused.
    """
    lines = printed(recipe(*SMALL, *data, *ALL, "--backbone", "resnet18"))
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
    # There are 2, 4 and 8 views of each of the 10 images, and padding is not counted.
    for summary, views in zip(summaries, (20, 40, 80), strict=True):
        right = summary["val"]["accuracy"] * views
        assert abs(right - round(right)) < 1e-4, summary


@pytest.mark.slow
def test_one_rotation_of_each_image(recipe: Start, data: Any) -> None:
    """Check that an epoch is 3 steps at every level, in any order of levels."""
    lines = printed(
        recipe(*SMALL, *data, "--backbone", "resnet18", "--plan", "psl_f", "--levels", "3", "1", "2")
    )
    for stage, level in (("S1", 3), ("S2", 1), ("S3", 2)):
        assert any(line.startswith(f"{stage}: level G{level}") and " of 3 steps" in line for line in lines), (
            lines
        )


@pytest.mark.slow
def test_the_papers_backbone_end_to_end(recipe: Start, data: Any, tmp_path: Path) -> None:
    lines = printed(recipe(*SMALL, *data, "--plan", "end_to_end"))
    assert "backbone" not in lines[0] and any("E: level G3, learns B1-B5" in line for line in lines), lines
    assert newest_checkpoint(tmp_path / "out")["science"]["backbone"] == "revnet50"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--levels", "1", "2", "4"), ("level 4", "1 to 3")),
        (("--levels", "1", "2"), ("a level for each",)),
        (("--rotations-per-image", "two"), ("two",)),
        (("--size-px", "40"), ("window of 40 px", "36 px")),
        (("--backbone", "revnet18"), ("--backbone revnet18", "revnet50")),
        (("--lr", "0"), ("above 0",)),
    ],
)
def test_impossible_requests_are_refused(
    recipe: Start, data: Any, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    refused(recipe(*SMALL, *data, "--backbone", "resnet18", *arguments), "rotation_rv50", *words)


def test_images_too_small_for_45_degrees_are_refused_before_the_first_stage(
    recipe: Start, tmp_path: Path
) -> None:
    """Check that only stages with such views are refused, in a line that names the remedy."""
    small = ("--data", beton(tmp_path / "small.beton", 8, shorter_px=40), "--backbone", "resnet18")
    refused(
        recipe(*SMALL, *small, "--out", tmp_path / "a"),
        "rotation_rv50",
        "40 x ",
        "fastpsl data write --min-px 53",
    )
    assert recipe(*SMALL, *small, "--out", tmp_path / "b", "--levels", "1", "2", "2").code == 0


def test_the_papers_values_are_the_defaults(recipe: Start) -> None:
    """Compare with section 4.1; with --data all defaults are the paper's."""
    parts = runpy.run_path(str(RECIPE))
    options, paper = parts["RECIPE"].with_paper(), parts["PAPER"]
    assert {name: getattr(options, name) for name in paper} == paper
    assert (options.backbone, options.epochs, options.batch_size, options.lr) == (
        "revnet50",
        (60, 60, 60),
        256,
        0.01,
    )
    assert (options.intervals, options.short_side, options.size_px) == ((20, 20, 10, 10), 256, 224)
    assert options.rotations_per_image == "one" and parts["RECIPE"].variant(options) == {}
    for levels, batch_size in (((), 32), ((1, 2, 2), 64), ((1,), 128), ((3, 1), 32)):
        every = parts["RECIPE"].with_paper(rotations_per_image="all", levels=levels)
        assert parts["RECIPE"].variant(every) == {"batch_size": batch_size}
