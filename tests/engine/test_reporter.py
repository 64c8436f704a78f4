import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from fastpsl.engine import reporter as reporter_module
from fastpsl.engine.metrics_file import MetricsFile
from fastpsl.engine.plan import make_plan
from fastpsl.engine.reporter import Reporter
from fastpsl.engine.stage_summary import summary_line
from fastpsl.engine.time_left import WorkAhead
from fastpsl.plots.training_curve import draw_curve
from tests.engine.tiny import one_process

STAGE = make_plan("psl", (1, 1, 1))[0]


def reporter(folder: Path, log_steps: int = 3, resumed: int = 0) -> Reporter:
    return Reporter(
        folder,
        one_process(),
        batch_size=4,
        log_steps=log_steps,
        resumed_run_step=resumed,
        tensorboard=True,
        wandb=False,
        config={},
    )


def step(into: Reporter, number: int, loss: float, count: float = 2.0) -> None:
    metrics = {"loss": (torch.tensor(loss * count), torch.tensor(count))}
    into.step(number, number, 0.1, metrics, torch.zeros(()))


def test_each_step_is_written_once_whatever_the_log_interval(tmp_path: Path) -> None:
    report = reporter(tmp_path)
    report.stage_begins(STAGE, 0, 7, 2)
    for number in range(1, 8):
        step(report, number, float(number))
        num_lines = (tmp_path / "metrics.jsonl").read_text().count("\n")
        # The first step is written at once.
        assert num_lines == (7 if number == 7 else max(number - number % 3, 1))
    report.flush()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 8))
    assert [row["loss"] for row in rows] == [float(n) for n in range(1, 8)]
    summary = report.stage_summary(STAGE, (7, 7), 61.0, {"accuracy": 0.25}, 0.125)
    report.close()
    # The means of the first and last three of 7 steps.
    assert (summary["loss_start"], summary["loss_end"]) == (2.0, 6.0)
    assert summary_line(summary) == (
        "S1 (level G1): 7 steps in 0:01:01, loss 2.000 → 6.000, held-out accuracy 25.0 % (chance 12.5 %)"
    )
    assert summary_line(summary | {"held_out": {"loss": -1.25}, "chance": None}).endswith(
        ", held-out loss -1.250"
    )
    assert list((tmp_path / "tensorboard").iterdir())


def test_on_a_gpu_numbers_are_written_after_the_next_step_was_launched(tmp_path: Path) -> None:
    report = reporter(tmp_path)
    report.world = replace(report.world, device=torch.device("cuda", 0))
    report.stage_begins(STAGE, 0, 8, 2)
    nums_of_lines = []
    for number in range(1, 9):
        step(report, number, float(number))
        if number == 7:
            report.flush()  # as before a checkpoint
        nums_of_lines.append((tmp_path / "metrics.jsonl").read_text().count("\n"))
    report.close()
    assert nums_of_lines == [0, 1, 1, 3, 3, 3, 7, 8]
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in rows] == [float(n) for n in range(1, 9)]


def test_a_step_without_valid_samples_has_no_loss(tmp_path: Path) -> None:
    report = reporter(tmp_path, log_steps=1)
    report.stage_begins(STAGE, 0, 2, 2)
    step(report, 1, 0.0, count=0.0)
    step(report, 2, 1.5)
    report.close()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in rows] == [None, 1.5]
    assert draw_curve(tmp_path).read_bytes()[:4] == b"\x89PNG"


def test_lines_past_the_resumed_step_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"run_step": {n}, "stage": "S1"}}\n' for n in range(1, 6)) + '{"run_st')
    MetricsFile(path, 3)
    assert [json.loads(line)["run_step"] for line in path.read_text().splitlines()] == [1, 2, 3]
    MetricsFile(path, 0)
    assert path.read_text() == ""


def test_losses_are_those_of_a_stages_steps_that_have_one(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl", 0)
    rows = [("S1", 2.0), ("S1", None), ("S2", 3.0), ("S1", 1.0)]
    file.append([{"run_step": step, "stage": stage, "loss": loss} for step, (stage, loss) in enumerate(rows)])
    assert file.losses("S1") == [2.0, 1.0] and file.losses("S2") == [3.0] and file.losses("S3") == []


def test_the_screen_shows_what_a_person_looks_for(tmp_path: Path) -> None:
    for terminal in (False, True):
        folder = tmp_path / str(terminal)
        folder.mkdir()
        report = reporter(folder, log_steps=2)
        assert report.screen
        text = io.StringIO()
        report.screen.console = Console(
            file=text, force_terminal=terminal, width=140, highlight=False, _environ={}
        )
        report.stage_begins(STAGE, 0, 4, 2, WorkAhead(2, 3, 8.0))
        for number in range(1, 5):
            step(report, number, 0.5)
        report.close()
        output = re.sub(r"\x1b\[[\d;]*m", "", text.getvalue())
        if terminal:
            assert "step 0 of 4" in output and "step 4 of 4" in output and "epoch 2 of 2" in output
            words: tuple[str, ...] = (
                "stage 2 of 3 (S1, level G1)",
                "loss 0.5000",
                "learning rate 0.1",
                "stage ETA",
                "images/s",
            )
            first = output[output.index("step 1 of 4") :].partition("step 2 of 4")[0]
        else:
            words = "S1 level G1", "step 4/4", "loss 0.5", "lr 0.1", "ETA 0:00:00", "img/s", "epoch 2/2"
            _, first, *_, last = output.splitlines()
            assert last.startswith("stage S1 level G1  step 4/4")
        for word in (*words, "run ETA 0:00:", "data wait"):
            assert word in output, (terminal, word)
        # The first step builds what the others use: it has no speed, and no time left is made up from it.
        assert "loss" in first and not re.search("ETA|/s|wait", first), first


def test_a_choice_is_printed_where_it_changes(tmp_path: Path) -> None:
    report = reporter(tmp_path)
    assert report.screen
    text = io.StringIO()
    report.screen.console = Console(file=text, width=100)
    for mode in ("eager", "eager", "fused", "eager"):
        report.log_choice("step", f"{mode}: asked for")
        report.log_choice("decoder", "ffcv")
    report.close()
    assert text.getvalue().splitlines() == [
        "step eager: asked for", "decoder ffcv", "step fused: asked for", "step eager: asked for",
    ]  # fmt: skip


def test_the_runs_length_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = reporter(tmp_path, log_steps=2)
    assert report.screen
    text = io.StringIO()
    report.screen.console = Console(file=text, width=100)
    for ahead in (WorkAhead(1, 2, 300.0), WorkAhead(2, 2, 0.0)):
        report.stage_begins(STAGE, 0, 62, 100, ahead)
        for i in range(1, 7):
            monkeypatch.setattr(reporter_module.time, "perf_counter", lambda at=10.0 * i: at)
            step(report, i, 0.5)
    report.close()
    # The first step is not counted; 10 s for the second, of 60 to come, and of 300 in the next stage.
    lines = [line for line in text.getvalue().splitlines() if line.startswith("the run takes")]
    assert lines == ["the run takes 1:00:00 from here, at the pace of its first steps"]
