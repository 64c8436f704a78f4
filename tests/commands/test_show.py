"""`fastpsl show` as a user types it; its views are the recipe's."""

import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastpsl.commands.show import RECIPES
from fastpsl.commands.show_tasks import task_of
from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.embedded.draw_sample import sample_paths
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.views import ViewSpec
from recipes import jigsaw_r50
from tests.cli import Cli, refused
from tests.pipelines.photos import DECODERS, photo_samples, write


def test_the_jigsaw_shown_is_the_recipes() -> None:
    task = jigsaw_r50.build(jigsaw_r50.Options(**jigsaw_r50.PAPER)).task  # type: ignore[arg-type]
    shown = task_of("jigsaw_r50", 1.0)
    assert [shown.views(level) for level in (1, 2, 3)] == [task.views(level) for level in (1, 2, 3)]
    assert torch.equal(shown.permutations, task.permutations)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("recipe", "shorter_px", "size_px"),
    [
        ("jigsaw_r50", 41, 3 * 12),  # 3 cells of 75 px at 256
        ("rotation_rv50", 16, 14),
        ("simclr_r50", 300, 262),
        ("mocov2_r50", 41, 36),
        ("uic_alexnet", 300, 262),
    ],
)
def test_lengths_are_scaled(recipe: str, shorter_px: int, size_px: int) -> None:
    task = task_of(recipe, shorter_px / 256)
    crops = [view.crop for level in range(task.num_levels) for view in task.views(level + 1)]
    assert {crop.size_px for crop in crops} == {size_px}
    assert {getattr(crop, "shorter_px", shorter_px) for crop in crops} == {shorter_px}


@pytest.mark.parametrize("name", list(RECIPES))
def test_every_task_has_a_sheet(name: str, tmp_path: Path, cli: Cli) -> None:
    out = tmp_path / "sheet.png"
    assert cli("show", "--task", name, "--short-side", 32, "--num", 3, "--out", out).code == 0
    with Image.open(out) as sheet:
        assert min(sheet.size) > 30


@pytest.mark.parametrize("decoder", [*DECODERS, "synthetic"])
def test_a_sheet_of_puzzles(decoder: str, cwd: Path, cli: Cli) -> None:
    """The sheet shows the loader's tiles for this seed, in order."""
    path = sample_paths().train
    options = ("--task", "jigsaw", "--level", 2, "--short-side", 64, "--num", 3, "--seed", 5)
    code, output, _ = cli("show", path, *options, "--decoder", decoder)
    assert output.startswith(f"jigsaw-G2.png: 3 samples of {path}, decoder {decoder} (")
    assert code == 0 and output.count("\n") == 1
    assert [left.name for left in cwd.iterdir()] == ["jigsaw-G2.png"]

    task = task_of("jigsaw_r50", 64 / 256)
    views = task.views(2)
    with Beton(path) as data, Loader(data, views, batch_size_per_rank=3, seed=5, decoder=decoder) as loader:
        batch = next(loader.epoch(0))
    sheet_images = task.contact_sheet(batch.inputs(views, torch.float32), batch)
    assert sheet_images is not None
    expected = (sheet_images * 255).round().byte()
    height, width = expected.shape[2:]
    scale = -(-150 // width)
    sheet = np.asarray(Image.open(cwd / "jigsaw-G2.png"))
    assert sheet.shape[1] == 2 * (scale * width + 8) + 8
    first = sheet[8 : 8 + scale * height : scale, 8 : 8 + scale * width : scale]
    assert (first == expected[0].permute(1, 2, 0).numpy()).all()


def test_crops_without_a_task_and_samples_that_are_bad(tmp_path: Path, cli: Cli) -> None:
    samples = photo_samples(4)
    samples[2] = (b"no JPEG", *samples[2][1:])
    path, out = write(tmp_path / "poisoned.beton", samples), tmp_path / "sheet.png"
    code, said, error = cli("show", path, "--short-side", 32, "--out", out)
    assert code == 0 and error.startswith(f"left out {path} sample 2: not a JPEG") and "3 samples of" in said
    view = ViewSpec(RandomResizedCrop(28))
    options = {"batch_size_per_rank": 4, "on_bad_sample": "skip"}
    with Beton(path) as data, Loader(data, [view, view], **options) as loader:  # type: ignore[arg-type]
        batch = next(loader.epoch(0))
    good = (batch.indices >= 0).nonzero()[:, 0].tolist()
    assert len(good) == 3
    sheet = np.asarray(Image.open(out))
    # Two crops of 28 px and a gap of 4 px, enlarged threefold, above one line of caption.
    for place, i in enumerate(good):
        top, left = place // 2 * (84 + 16 + 8) + 8, place % 2 * (180 + 8) + 8
        for view_number, start in ((0, left), (1, left + 3 * 32)):
            expected = batch.images[view_number][i].permute(1, 2, 0).numpy()
            assert (sheet[top : top + 84 : 3, start : start + 84 : 3] == expected).all()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--task puzzle", "--task puzzle: allowed are crops, jigsaw, rotation, simclr, moco"),
        ("--task jigsaw --level 4", "--level 4: jigsaw has levels 1 to 3"),
        ("--level 0", "--level 0: crops has level 1 alone"),
        ("--num 0", "--num 0: give a number from 1 to 400"),
        ("--short-side 15", "--short-side 15: give a number from 16 to 4096"),
        ("--decoder magic", "--decoder magic: allowed are auto, turbo"),
        ("absent.beton", "absent.beton: no such file or folder; give a folder of images, a .beton"),
        ("''", "the data's name is empty"),
        ("--out nowhere/sheet.png --num 1", "nowhere/sheet.png: cannot be written"),
    ],
)
def test_what_cannot_be_shown_is_one_line(arguments: str, says: str, cwd: Path, cli: Cli) -> None:
    refused(cli("show", *shlex.split(arguments)), says)
    assert not list(cwd.iterdir())
