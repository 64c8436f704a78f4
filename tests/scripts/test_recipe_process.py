"""What a recipe's process tells of failures."""

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from fastpsl.engine.distributed import World, leave_world
from fastpsl.engine.options import PretrainOptions
from fastpsl.pipelines.embedded.draw_sample import sample_paths
from fastpsl.pipelines.loader.batch import BadSampleError
from fastpsl.scripts import after_training, recipe_process
from fastpsl.scripts.launch import launch
from fastpsl.scripts.recipe_process import error_line
from fastpsl.tasks.jigsaw import Jigsaw
from tests.engine.test_trainer import tiny_experiment
from tests.engine.tiny import runs_closed, tiny_recipe
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
            recipe_process._exit(3, at_once=True)
        assert path.read_text() == "the last line\n"


def leave_a_stopped_run(rank: int, folder: Path) -> None:
    """Stop a run whose rank 0 takes long to write, and note whether that was done when this rank leaves."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)

    def write(*_: object) -> None:
        time.sleep(1.0)
        (folder / "written").touch()

    steps: Any = recipe_process
    steps.join_world = lambda *_, **__: World(rank, 2, rank, 2, torch.device("cpu"))
    steps.Run = lambda *_, **__: SimpleNamespace(resumed=True, science={})
    steps.pretrain = lambda *_: False
    steps._print_results = write
    experiment = SimpleNamespace(open_data=lambda *_: None, science={}, backbone=None)
    recipe: Any = SimpleNamespace(name="", build=lambda _: experiment, usual=lambda _: {}, source="")
    steps.differences = lambda *_: {}
    steps.stage_steps = lambda *_: []
    options: Any = SimpleNamespace(device="cpu", timeout_s=60, seed=0, dry_run=False, goes_on=lambda: True)
    assert not recipe_process.train(recipe, options, [])
    (folder / f"{rank}").write_text(str((folder / "written").exists()))
    leave_world()


def test_no_rank_leaves_a_stopped_run_before_rank_0_has_written(tmp_path: Path) -> None:
    """When the first process has gone, srun ends the others after a while."""
    on_ranks(leave_a_stopped_run, (tmp_path,), 2)
    assert [(tmp_path / f"{rank}").read_text() for rank in (0, 1)] == ["True", "True"]


def test_a_run_whose_last_loss_is_not_finite_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It ends with the stage, code 1 and the first such step, and the same command tells it at once."""
    losses, loss_of = list[str](), Jigsaw.loss

    def loss(self: Jigsaw, blocks: Any, head: Any, *more: Any) -> Any:
        loss, metrics = loss_of(self, blocks, head, *more)
        if not head.training:
            return loss, metrics
        losses.append("")
        factor = torch.nan if len(losses) in (2, 7, 8) else 1.0  # of step 2 of S1, and from step 3 of S2
        return loss * factor, metrics | {"loss": (metrics["loss"][0] * factor, metrics["loss"][1])}

    def parse() -> PretrainOptions:
        return PretrainOptions(
            data=str(sample_paths().train_32), out=tmp_path, batch_size=32, epochs=(1, 1, 1), workers=1,
            max_steps_per_stage=4, device="cpu", tensorboard=False,
        )  # fmt: skip

    monkeypatch.setattr(Jigsaw, "loss", loss)
    for _ in range(2):
        with runs_closed(monkeypatch), pytest.raises(SystemExit, match="1"):
            launch(tiny_recipe(parse, lambda options: tiny_experiment()))
        *_, line = capsys.readouterr().err.splitlines()
        what = "the loss of S2's last step is not finite; the first such loss of S2 is that of step 3"
        assert line.startswith(f"tiny: the training has diverged: {what}; start anew with a lower --lr")
        status = json.loads((tmp_path / "status.json").read_text())
        assert (status["state"], status["stage"], status["step"]) == ("failed", 2, 4)
        assert f"tiny: {status['reason']}" == line and len(losses) == 8
        (summary,) = json.loads((tmp_path / "results.json").read_text())
        assert summary["stage"] == "S1" and summary["loss_end"] == summary["loss_end"]


def test_a_bad_image_comes_with_the_way_to_go_on() -> None:
    error = BadSampleError("a.jpg: no image that can be read")
    line = error_line(error, [])
    assert line.startswith("a.jpg: no image that can be read; repair ") and "--on-bad-sample skip" in line
    run: Any = SimpleNamespace(folder=Path("out"), options=SimpleNamespace(without={"on_bad_sample": "no"}))
    assert error_line(error, [run]) == str(error)  # of a script that has no such option
    assert error_line(ValueError("b\nc"), []) == "b c"


def test_the_next_commands_fit_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(after_training, "why_no_knn", lambda data: "" if data.val else "no images")

    def following(backbone: str, val: object = None, *, by_command: bool = True) -> list[str]:
        data = SimpleNamespace(val=val)
        run: Any = SimpleNamespace(data=data, folder=Path("runs/my run"), owns_process=by_command)
        options: Any = SimpleNamespace(data="my photos", backbone=backbone)
        return [
            line.removeprefix("next:").strip() for line in after_training.next_lines(run, options, run.folder)
        ]

    folder, tsne = "'runs/my run'", "fastpsl tsne 'runs/my run'"
    assert following("timm/-a b", "val") == [
        f"fastpsl eval knn {folder}", tsne, f"fastpsl export {folder} --to timm './-a b'.pth",
    ]  # fmt: skip
    own = "--backbone net.py:Net"
    assert following("net.py:Net") == [
        f"fastpsl retrieve {folder} {own} --queries 'my photos'", f"{tsne} {own} --data 'my photos'",
    ]  # fmt: skip
    assert following("module:net.Net", "val", by_command=False) == [
        f"fastpsl.evaluate.knn({folder}, backbone=module)",
        f"features, labels = fastpsl.embed(fastpsl.load({folder}, backbone=module), 'my photos')",
        f"model = fastpsl.load({folder}, backbone=module)",
    ]
