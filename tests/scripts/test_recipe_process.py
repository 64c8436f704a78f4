"""What a recipe's process tells: failures, and values that do not suit the data."""

import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from fastpsl.engine.distributed import World, leave_world
from fastpsl.engine.plan import Stage
from fastpsl.scripts import recipe_process
from fastpsl.scripts.recipe_process import stage_steps, unsuitable
from tests.warm import on_ranks


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_rank_0_reports_at_once_and_the_others_name_themselves(
    rank: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(recipe_process.time, "sleep", slept.append)
    recipe_process._report_failure([], rank, "out of memory", "out of memory")
    expected = ([1.0], f"rank {rank}: out of memory\n") if rank else ([], "out of memory\n")
    assert (slept, capsys.readouterr().err) == expected


def test_one_of_several_ranks_exits_at_once_with_all_that_it_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave(code: int) -> None:
        raise SystemExit(f"at once with {code}")

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(recipe_process.os, "_exit", leave)
    path = tmp_path / "out"
    with path.open("w") as file:
        monkeypatch.setattr(sys, "stdout", file)
        print("the last line")
        with pytest.raises(SystemExit, match="at once with 3"):
            recipe_process._exit_now(3)
        assert path.read_text() == "the last line\n"


def leave_a_stopped_run(rank: int, folder: Path) -> None:
    """Stop a run whose rank 0 takes long to write, and note whether that was done when this rank leaves."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)

    def write(*_: object) -> None:
        time.sleep(1.0)
        (folder / "written").touch()

    steps: Any = recipe_process
    steps.join_world = lambda *_, **__: World(rank, 2, rank, 2, torch.device("cpu"))
    steps.Run = lambda *_, **__: SimpleNamespace(resumed=True)
    steps.pretrain = lambda *_: False
    steps._print_results = write
    experiment = SimpleNamespace(open_data=lambda *_: None, science={})
    recipe: Any = SimpleNamespace(name="", build=lambda _: experiment)
    options: Any = SimpleNamespace(device="cpu", timeout_s=60, seed=0)
    assert not recipe_process.train(recipe, options, [])
    (folder / f"{rank}").write_text(str((folder / "written").exists()))
    leave_world()


def test_no_rank_leaves_a_stopped_run_before_rank_0_has_written(tmp_path: Path) -> None:
    """When the first process has gone, srun ends the others after a while."""
    on_ranks(leave_a_stopped_run, (tmp_path,), 2)
    assert [(tmp_path / f"{rank}").read_text() for rank in (0, 1)] == ["True", "True"]


LONG = (Stage("A", 1, 1, 5, 0, num_steps=2000),)


def told(
    stages: tuple[Stage, ...] = LONG, batch_size: int = 10, crop: Any = None, **options: Any
) -> tuple[list[int], list[str]]:
    """Return the stages' steps and what is said of them, for 100 images, by a task with one view."""
    heights, widths = np.resize([10, 50, 60], 100), np.resize([90, 40, 70], 100)
    train = SimpleNamespace(
        num_samples=100, rows=lambda which: SimpleNamespace(height=heights[which], width=widths[which])
    )
    data: Any = SimpleNamespace(train=train, options=SimpleNamespace(batch_size=batch_size, **options))
    view = SimpleNamespace(crop=crop or SimpleNamespace(size_px=8))
    experiment: Any = SimpleNamespace(stages=stages, task=SimpleNamespace(views=lambda level: (view,)))
    return stage_steps(experiment, data), list(unsuitable(experiment, data))


def test_2_000_steps_are_enough() -> None:
    others = Stage("B", 1, 1, 5, 0, num_steps=1999), Stage("C", 1, 1, 5, 200), Stage("D", 1, 1, 5, 199)
    steps, lines = told((*LONG, *others))
    assert steps == [2000, 1999, 2000, 1990] and len(lines) == 1
    assert "fewer than 2,000 steps learn little: B has 1,999, D has 1,990;" in lines[0]


@pytest.mark.parametrize(("batch_size", "share"), [(10, None), (11, "11%"), (50, "50%")])
def test_a_tenth_of_the_images_is_a_large_batch(batch_size: int, share: str | None) -> None:
    _, lines = told(batch_size=batch_size)
    expected = f"a step has {share} of the 100 images: give --batch-size 10 or less, or --preset small"
    assert lines == ([] if share is None else [expected])


def test_a_warm_up_ends_before_the_run() -> None:
    stages = (Stage("A", 1, 1, 5, 200), Stage("B", 1, 1, 5, 300))
    assert told(stages)[1] == told(stages, warmup_epochs=499.0)[1] == told(warmup_epochs=500.0)[1] == []
    (line,) = told(stages, warmup_epochs=500.0)[1]
    assert line.startswith("the rate rises for 500 epochs, and the run has 500, so it never reaches --lr: ")


def test_half_of_the_images_are_as_large_as_what_is_cut_from_them() -> None:
    """The shorter sides are 10, 40 and 60 px. Some crops are of resized images."""
    for crop in ({"size_px": 40}, {"size_px": 8, "shorter_px": 40}):
        assert told(crop=SimpleNamespace(**crop))[1] == []
        larger = SimpleNamespace(**{name: px + (px == 40) for name, px in crop.items()})
        (line,) = told(crop=larger, short_side=48, size_px=41)[1]
        assert line.startswith("half of the images have a side of 40 px or less and are enlarged to 41 px: ")
        assert line.endswith("give smaller --short-side, --size-px")


def test_the_next_commands_fit_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe_process, "why_no_knn", lambda data: "" if data.val else "no images")

    def following(backbone: str, val: object = None, *, by_command: bool = True) -> list[str]:
        data = SimpleNamespace(val=val)
        run: Any = SimpleNamespace(data=data, folder=Path("runs/my run"), owns_process=by_command)
        options: Any = SimpleNamespace(data="my photos", backbone=backbone)
        return [line.removeprefix("next:").strip() for line in recipe_process.next_lines(run, options)]

    folder, tsne = "'runs/my run'", "fastpsl tsne 'runs/my run'"
    assert following("timm/convnext_tiny", "val") == [
        f"fastpsl eval knn {folder}", tsne, f"fastpsl export {folder} --to timm convnext_tiny.pth",
    ]  # fmt: skip
    own_data = f"{tsne} --data 'my photos'"
    alexnet = f"fastpsl export {folder} --to safetensors alexnet.safetensors"
    assert following("alexnet") == [own_data, alexnet] and following("net.py:Net") == [own_data]
    assert following("alexnet", "val", by_command=False) == [
        f"fastpsl.evaluate.knn({folder})",
        f"features, labels = fastpsl.embed({folder}, 'my photos')",
        f"model = fastpsl.load({folder})",
    ]
