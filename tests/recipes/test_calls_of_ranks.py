"""The same collective calls on all ranks: on four that run, and on three of 1,024, for every recipe."""

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastpsl.engine.distributed import StopSignal
from fastpsl.engine.run import Run
from fastpsl.files.atomic import partial_path
from fastpsl.pipelines.beton.encode import Target
from fastpsl.pipelines.beton.write import write_beton
from fastpsl.pipelines.interface.source import Sample
from fastpsl.pipelines.loader.batch import BadSampleError
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.scripts.recipe_files import find_recipe
from fastpsl.scripts.recipe_process import train
from tests.collectives import FakeRanks, record_calls
from tests.programs import ROOT, run
from tests.recipes.test_cuda import MORE, TRAINED, usual

# The others want weights or folders of VOC.
NAMES = [name for name in TRAINED if not {"--compile", "--graph"} & {*TRAINED[name]}]
MANY = [name for name in NAMES if not name.startswith(("voc", "linear", "block", "semi"))]
QUICK = ("rotation",)
SIZE, STEPS = 1024, 2
# Options for images of 64 px, two for each rank.
SMALL = {
    "rotation": ("--backbone", "resnet18", "--short-side", "48", "--size-px", "32"),
    "jigsaw": ("--size-px", "54", "--counts", "4", "8", "16"),
    "jigsaw by parts": ("--size-px", "54", "--counts", "4", "8", "16"),
    "deepcluster": ("--size-px", "64", "--num-clusters", "4"), "uic": ("--size-px", "64"),
    "moco": ("--size-px", "32", "--queue-size", "4096", "--key-group", "2"),
    "sslpp_iic": ("--size-px", "32", "--num-heads", "2", "--num-copies", "2"),
}  # fmt: skip
SMALL["moco bf16"] = SMALL["moco"]


def rows(names: list[str]) -> list[Any]:
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.nightly) for name in names]


@pytest.mark.nightly
@pytest.mark.parametrize("name", NAMES)
def test_four_ranks_make_the_same_calls(name: str, tmp_path: Path) -> None:
    small = (*usual(name), *MORE.get(name, ()), "--batch-size", 16)
    few = (*small, "--max-steps-per-stage", STEPS, "--no-tensorboard", "--device", "cpu", "--workers", 1)
    path = ROOT / "recipes" / f"{TRAINED[name][0]}.py"
    done = run(path, *few, "--out", tmp_path / "out", ranks=4, prepare=partial(record_calls, tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    calls = [(tmp_path / f"rank-{rank}.txt").read_text().splitlines() for rank in range(4)]
    assert len(calls[0]) > 10 and "DDP forward" in calls[0]
    assert calls[1:] == [calls[0]] * 3


@pytest.fixture(autouse=True)
def same_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exchange flags at each step, because ranks that run one after the other agree on no pace."""
    monkeypatch.setattr(StopSignal, "ask_every_s", 0.0)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a dataset file of as many small images as 1,024 ranks need for two steps of two images."""
    num = SIZE * 2 * STEPS
    pixels = np.random.default_rng(0).integers(0, 256, (16, 64, 64, 3), np.uint8)
    samples = (Sample(str(i), pixels[i % 16], i % 10) for i in range(num))
    path: Path = tmp_path_factory.mktemp("images") / "many.beton"
    write_beton(samples, path, num_samples=num, target=Target(mode="raw"))
    return path


def calls_of(ranks: FakeRanks, number: int, options: Any, recipe: Any) -> tuple[list[str], str]:
    """Return the calls of one rank's training, and the error that ended it."""
    opened, error = list[Run](), ""
    with ranks.rank(number) as (world, lines):
        try:
            train(recipe, options, opened, world=world)
        except ValueError as ended:
            error = str(ended)
        finally:
            for each in opened:
                each.close()
    return lines, error


def options_of(name: str, images: Path, out: Path) -> tuple[Any, Any]:
    """Return a recipe's options, and the recipe."""
    recipe: Any = find_recipe(TRAINED[name][0])
    flags = [*usual(name), *SMALL.get(name, ("--size-px", "32")), "--data", str(images), "--val", "none"]
    flags += ["--batch-size", str(2 * SIZE), "--max-steps-per-stage", str(STEPS), "--workers", "1"]
    flags += ["--no-tensorboard", "--probe-every", "0", "--lr", "1e-4", "--device", "cpu", "--out", str(out)]
    return recipe.parse(flags, log=lambda _: None), recipe


@pytest.mark.parametrize("name", rows(MANY))
def test_ranks_of_a_large_world_make_the_same_calls(name: str, images: Path, tmp_path: Path) -> None:
    ranks, calls = FakeRanks(SIZE), list[tuple[list[str], str]]()
    for number in (0, 1, SIZE - 1):
        calls.append(calls_of(ranks, number, *options_of(name, images, tmp_path)))
        # Rank 0 has given the teacher's features their name before another rank opens the file.
        for path in tmp_path.glob("teacher-features/*[0-9].npy"):
            shutil.copy(path, partial_path(path))
    assert [error for _, error in calls] == ["", "", ""]
    assert calls[0][0].count("DDP forward") >= STEPS
    assert calls[1:] == [calls[0]] * 2


@pytest.fixture
def second_batch_fails(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bool], None]]:
    """Yield a function that lets loaders fail at their second batch, or not."""
    epoch, fails = Loader.epoch, [False]

    def failing(loader: Loader, *values: Any, **named: Any) -> Any:
        for i, batch in enumerate(epoch(loader, *values, **named)):
            if i == 1 and fails[0]:
                raise BadSampleError("sample 7 cannot be read")
            yield batch

    monkeypatch.setattr(Loader, "epoch", failing)
    yield lambda value: fails.__setitem__(0, value)


def test_one_ranks_loader_fails_on_all(
    images: Path, tmp_path: Path, second_batch_fails: Callable[[bool], None]
) -> None:
    """Rank 1 tells it in the messages of a step, by which the others hear of it."""
    ranks = FakeRanks(SIZE)
    calls_of(ranks, 0, *options_of("rotation", images, tmp_path / "well"))
    second_batch_fails(True)
    failed, error = calls_of(ranks, 1, *options_of("rotation", images, tmp_path / "well"))
    assert "sample 7" in error and ranks.first_failure is not None
    second_batch_fails(False)
    ranks.fails_at, ranks.shared = ranks.first_failure, []
    for number in (0, SIZE - 1):
        calls, heard = calls_of(ranks, number, *options_of("rotation", images, tmp_path / "failing"))
        assert calls == failed and "sample 7" in heard
