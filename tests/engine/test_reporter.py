"""The reporter's files, screen and lines, and the end of a run whose steps change nothing."""

import csv
import io
import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from fastpsl.console.screen import Numbers
from fastpsl.engine import reporter as reporter_module
from fastpsl.engine.plan import make_plan
from fastpsl.engine.reporter import (
    FIRST_STEPS,
    WINDOW,
    EpochLog,
    MetricsFile,
    Reporter,
    SkippedSteps,
    summary_line,
)
from fastpsl.engine.stage_blocks import StepMetrics
from fastpsl.engine.time_left import WorkAhead
from fastpsl.models.checkpoint import CheckpointManager, read_checkpoint
from fastpsl.pipelines.loader.batch import BadSample
from fastpsl.plots.charts import draw_curve
from tests.engine.exact_signals import train_until
from tests.engine.test_trainer import lines, tiny_experiment
from tests.engine.tiny import one_process, tiny_run
from tests.programs import records
from tests.warm import results_of_ranks

STAGE = make_plan("psl", (1, 1, 1))[0]


def reporter(
    folder: Path, log_steps: int = 3, resumed: int = 0, *, wandb: bool = False, **of_world: Any
) -> Reporter:
    return Reporter(
        folder, replace(one_process(), **of_world), batch_size=4, log_steps=log_steps,
        resumed_run_step=resumed, tensorboard=True, wandb=wandb, config={"lr": 0.1},
    )  # fmt: skip


def metrics_of(num_skipped: float = 0.0, **pairs: tuple[float, float]) -> StepMetrics:
    return StepMetrics(tuple(pairs), torch.tensor([*pairs.values(), (num_skipped, 1.0)]))


def step(into: Reporter, number: int, loss: float, count: float = 2.0) -> None:
    into.step(number, number, 0.1, metrics_of(loss=(loss * count, count)))


def test_each_step_is_written_once_whatever_the_log_interval(tmp_path: Path) -> None:
    report = reporter(tmp_path)
    report.stage_begins(STAGE, 0, 7, 2)
    for number in range(1, 8):
        step(report, number, float(number))
        num_lines = (tmp_path / "metrics.jsonl").read_text().count("\n")
        # The first step is written at once.
        assert num_lines == (7 if number == 7 else max(number - number % 3, 1))
    report.flush()
    rows = lines(tmp_path)
    assert [row["step"] for row in rows] == list(range(1, 8))
    assert [row["loss"] for row in rows] == [float(n) for n in range(1, 8)]
    summary = report.stage_summary(STAGE, (7, 7), 61.0, {"accuracy": 0.25}, 0.125)
    report.close()
    # The means of the first and last three of 7 steps.
    assert (summary["loss_start"], summary["loss_end"]) == (2.0, 6.0)
    assert summary_line(summary) == (
        "S1 (level G1): 7 steps in 0:01:01, loss 2.000 → 6.000, validation accuracy 25.0 % (chance 12.5 %)"
    )
    assert summary_line(summary | {"val": {"loss": -1.25}, "chance": None}).endswith(
        ", validation loss -1.250"
    )
    assert list((tmp_path / "tensorboard").iterdir())


def test_on_a_gpu_numbers_are_written_after_the_next_step_was_launched(tmp_path: Path) -> None:
    report = reporter(tmp_path)
    report.world = replace(report.world, device=torch.device("cuda", 0))
    report.stage_begins(STAGE, 0, 8, 2)
    nums_of_lines = []
    for number in range(1, 9):
        step(report, number, float(number))
        if number in (6, 7):
            report.flush()  # as before a checkpoint; after step 6, numbers are under way
        nums_of_lines.append((tmp_path / "metrics.jsonl").read_text().count("\n"))
    report.close()
    assert nums_of_lines == [0, 1, 1, 3, 3, 6, 7, 8]
    assert [row["loss"] for row in lines(tmp_path)] == [float(n) for n in range(1, 9)]


def test_a_step_without_valid_samples_has_no_loss(tmp_path: Path) -> None:
    report = reporter(tmp_path, log_steps=1)
    report.stage_begins(STAGE, 0, 2, 2)
    step(report, 1, 0.0, count=0.0)
    step(report, 2, 1.5)
    report.close()
    assert [row["loss"] for row in lines(tmp_path)] == [None, 1.5]
    assert draw_curve(tmp_path).read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("name", ["loss", "S1_loss"])
def test_all_ranks_end_a_training_whose_last_loss_is_not_finite(name: str, tmp_path: Path) -> None:
    """Blockwise training has a loss for each part. A step without valid samples has none."""

    def values(losses: Sequence[float]) -> None:
        report.stage_begins(STAGE, 0, len(losses), 2)
        for number, loss in enumerate(losses, start=1):
            pair = (0.0, 0.0) if loss == 0.0 else (loss, 1.0)
            pairs: dict[str, Any] = {"loss": (1.0, 1.0), name: pair, "other": (math.nan, 1.0)}
            report.step(number, number, 0.1, metrics_of(**pairs))
        report.require_finite_loss()

    with closing(reporter(tmp_path)) as report:
        values([1.0, math.nan, 1.0])
    (tmp_path / "metrics.jsonl").unlink()
    words = "such loss of S1 is that of step 2"
    with closing(reporter(tmp_path)) as report, pytest.raises(ValueError, match=words):
        values([1.0, math.nan, 1.0, math.inf, 0.0])


def require_finite_loss(rank: int, num_ranks: int) -> str:
    with tempfile.TemporaryDirectory() as folder, closing(reporter(Path(folder), rank=rank)) as report:
        report.world = replace(report.world, size=num_ranks)
        report.stage_begins(STAGE, 0, 1, 1)
        step(report, 1, math.nan)
        try:
            report.require_finite_loss()
        except ValueError as error:
            return str(error)
    return ""


def test_each_rank_raises(tmp_path: Path) -> None:
    lines = results_of_ranks(require_finite_loss, 2, tmp_path)
    assert all("the loss of S1's last step is not finite" in line for line in lines)


def test_lines_past_the_resumed_step_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"run_step": {n}, "stage": "S1"}}\n' for n in range(1, 6)) + '{"run_st')
    MetricsFile(path, 3)
    assert [row["run_step"] for row in records(path)] == [1, 2, 3]
    MetricsFile(path, 0)
    assert path.read_text() == ""


def test_losses_are_those_of_a_stages_steps_that_have_one(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl", 0)
    rows = [("S1", 2.0), ("S1", None), ("S2", 3.0), ("S1", 1.0)]
    file.append([{"run_step": step, "stage": stage, "loss": loss} for step, (stage, loss) in enumerate(rows)])
    assert file.losses("S1") == [2.0, 1.0] and file.losses("S2") == [3.0] and file.losses("S3") == []


def text_shown(report: Reporter) -> io.StringIO:
    """Return a stream that gets what the reporter prints."""
    assert report.screen
    text = io.StringIO()
    report.screen.console = Console(file=text, width=100)
    return text


def test_a_choice_is_printed_where_it_changes(tmp_path: Path) -> None:
    report = reporter(tmp_path)
    text = text_shown(report)
    for mode in ("eager", "eager", "fused", "eager"):
        report.log_choice("step", f"{mode}: asked for")
        report.log_choice("decoder", "ffcv")
    report.close()
    assert text.getvalue().splitlines() == [
        "step eager: asked for", "decoder ffcv", "step fused: asked for", "step eager: asked for",
    ]  # fmt: skip


def test_the_runs_length_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = reporter(tmp_path, log_steps=2)
    text = text_shown(report)
    for ahead in (WorkAhead(1, 2, 300.0), WorkAhead(2, 2, 0.0)):
        report.stage_begins(STAGE, 0, 62, 100, ahead)
        for i in range(1, 7):
            monkeypatch.setattr(reporter_module.time, "perf_counter", lambda at=10.0 * i: at)
            step(report, i, 0.5)
    report.close()
    # Two measurements end at the fourth step: 10 s for each of 58 to come, and of 300 in the next stage.
    lines = [line for line in text.getvalue().splitlines() if line.startswith("the run takes")]
    assert lines == ["the run takes 0:59:40 from here, at the pace of its first steps"]


class Board:
    """A stand-in for TensorBoard's writer: the values by name and step."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, int], float] = {}

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.values[name, step] = value

    def close(self) -> None:
        pass


def numbers_shown(report: Reporter, monkeypatch: pytest.MonkeyPatch) -> list[Numbers]:
    """Return a list of what the reporter will show."""
    shown: list[Numbers] = []
    assert report.screen
    monkeypatch.setattr(report.screen, "begin", shown.append)
    monkeypatch.setattr(report.screen, "show", shown.append)
    return shown


def lines_logged(report: Reporter, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list of the lines that the reporter will print."""
    logged: list[str] = []
    assert report.screen
    monkeypatch.setattr(report.screen, "log", logged.append)
    return logged


def test_an_intervals_numbers_are_means_and_rates_over_its_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step of 4 images waits 1 s of its 5 s for them. A pass between two steps does not count."""
    now = [0.0]
    monkeypatch.setattr(reporter_module.time, "perf_counter", lambda: now[0])

    def batches() -> Iterator[Any]:
        while True:
            now[0] += 1.0
            yield SimpleNamespace(bad=[])

    report, board = reporter(tmp_path, log_steps=2), Board()
    report.board = board  # type: ignore[assignment]
    shown = numbers_shown(report, monkeypatch)
    report.stage_begins(STAGE, 0, 6, 3)
    watched = report.watched(batches())
    for number, loss in enumerate((9.0, 8.0, None, 2.0, 1.0, 4.0), start=1):
        if number == 5:
            with report.off_the_clock():
                next(watched)
                now[0] += 100.0
        next(watched)
        now[0] += 4.0
        pair = 2 * (loss or 0.0), 0.0 if loss is None else 2.0
        report.step(number, 100 + number, 0.1 * number, metrics_of(loss=pair))
    report.close()
    assert [n.step for n in shown] == [0, 1, 2, 4, 6]
    assert [n.metrics.get("loss") for n in shown] == [None, 9.0, 8.0, 2.0, 2.5]
    # The first step builds what the others use.
    assert [n.images_per_s for n in shown] == [None, None, *[pytest.approx(4 / 5)] * 3]
    assert [n.data_wait_percent for n in shown] == [None, None, *[pytest.approx(20.0)] * 3]
    assert [n.eta_s for n in shown[2:]] == pytest.approx([4 * 5.0, 2 * 5.0, 0.0])
    for run_step, loss, lr in ((101, 9.0, 0.1), (102, 8.0, 0.2), (104, 2.0, 0.4), (106, 2.5, 0.6)):
        assert board.values["loss", run_step] == loss and board.values["lr", run_step] == pytest.approx(lr)
    assert board.values["images_per_s", 104] == pytest.approx(0.8)
    assert {step for _, step in board.values} == {101, 102, 104, 106}


def test_each_stage_has_a_pace_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(reporter_module.time, "perf_counter", lambda: now[0])
    report = reporter(tmp_path, log_steps=1)
    shown = numbers_shown(report, monkeypatch)
    for number, seconds in ((1, 10.0), (2, 1.0)):
        report.stage_begins(STAGE, 0, 20, 20, WorkAhead(number, 3, 30.0))
        for number_of_step in range(1, 5):
            now[0] += seconds
            step(report, number_of_step, 0.5)
    report.close()
    assert [n.eta_s for n in shown] == [None, None, 180, 170, 160, None, None, 18, 17, 16]
    assert [n.run_eta_s for n in shown[-3:]] == [48, 47, 46]


def test_a_stage_that_has_passed_a_lower_limit_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = reporter(tmp_path)
    shown = numbers_shown(report, monkeypatch)
    report.stage_begins(STAGE, 12, 10, 5)
    report.close()
    assert (shown[0].step, shown[0].num_steps, shown[0].epoch, shown[0].num_epochs) == (12, 12, 3, 3)


def test_steps_that_changed_nothing_are_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device counts them over a stage, and each interval tells of its own."""
    report = reporter(tmp_path, log_steps=2)
    logged = lines_logged(report, monkeypatch)
    for skipped in ((0, 1, 2, 4, 4, 4), (3, 3)):
        report.stage_begins(STAGE, 0, len(skipped), 2)
        for number, num in enumerate(skipped, start=1):
            report.step(number, number, 0.1, metrics_of(num, loss=(1.0, 1.0)))
    report.close()
    told = [line.split(" had ")[0] for line in logged if "not finite" in line]
    assert told == ["1 of steps 2 to 2", "3 of steps 3 to 4", "3 of steps 1 to 1"]


def test_a_row_has_the_stages_level_and_both_counts_of_steps(tmp_path: Path) -> None:
    report = reporter(tmp_path)
    report.stage_begins(make_plan("psl", (1, 1, 1))[2], 0, 5, 2)
    report.step(1, 41, 0.25, metrics_of(loss=(2.0, 4.0), accuracy=(1.0, 4.0)))
    report.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {
        "run_step": 41, "stage": "S3", "level": 3, "step": 1, "lr": 0.25, "loss": 0.5, "accuracy": 0.25,
    }  # fmt: skip


def test_figures_of_an_epoch_go_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown ones are in the file alone."""
    report, board = reporter(tmp_path), Board()
    report.board = board  # type: ignore[assignment]
    logged = lines_logged(report, monkeypatch)
    report.stage_begins(STAGE, 0, 5, 2)
    report.epoch({"label_accuracy": 0.5, "entropy": 1.23456, "change": None}, 2.34567, 17)
    report.epoch(None, 3.0, 20)
    report.close()
    assert json.loads((tmp_path / "epochs.jsonl").read_text()) == {
        "run_step": 17, "epoch": 2.346, "stage": "S1", "label_accuracy": 0.5, "entropy": 1.23456,
        "change": None,
    }  # fmt: skip
    assert logged[1:] == ["after epoch 2.35: label_accuracy 50.0 %, entropy 1.235"]
    assert board.values == {("epoch/label_accuracy", 17): 0.5, ("epoch/entropy", 17): 1.23456}


def test_rank_0_sends_curves_to_wandb_and_a_resume_goes_on_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    begun, sent = list[dict[str, Any]](), list[tuple[int, dict[str, float]] | str]()
    note = lambda values, step: sent.append((step, values))
    run = SimpleNamespace(log=note, finish=lambda: sent.append("finished"))

    def init(**options: Any) -> Any:
        begun.append(options)
        return run

    monkeypatch.setattr(wandb, "init", init)
    for resumed, rank in ((0, 1), (0, 0), (2, 0)):
        report = reporter(tmp_path, 1, resumed, rank=rank, wandb=True)
        report.stage_begins(STAGE, resumed, 4, 2)
        step(report, resumed + 1, 0.5)
        report.close()
    first, second = begun
    assert first == second and first["id"] == (tmp_path / "wandb-id.txt").read_text()
    assert (first["dir"], first["name"], first["resume"]) == (tmp_path, tmp_path.name, "allow")
    assert first["config"] == {"lr": 0.1}
    assert [each if isinstance(each, str) else (each[0], each[1]["loss"]) for each in sent] == [
        (1, 0.5), "finished", (3, 0.5), "finished",
    ]  # fmt: skip

    def refused(**options: Any) -> None:
        raise wandb.Error("api_key not configured")

    monkeypatch.setattr(wandb, "init", refused)
    with pytest.raises(ValueError, match="^--wandb: api_key not configured; log in"):
        reporter(tmp_path, wandb=True)


def test_a_skipped_sample_is_reported_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whether it is met again in the run, on another rank or after a resume."""
    first, second, third = (
        BadSample(7, "a, b.jpg", "no JPEG"), BadSample(9, "c.jpg", "cut\nshort"),
        BadSample(2, "é \u2028.jpg", "ends early"),
    )  # fmt: skip
    here, there, resumed = reporter(tmp_path), reporter(tmp_path), reporter(tmp_path)
    for report, *bad in (
        (here, [first], [], [first, second], [second]),
        (there, [second, first], [third, third]),
        (here, [third]),
        (resumed, [third, second]),
    ):
        batches: Any = [SimpleNamespace(bad=each) for each in bad]
        assert len(list(report.watched(iter(batches)))) == len(bad)
    with open(tmp_path / "bad-samples.csv", newline="") as file:
        assert list(csv.reader(file)) == [
            [str(sample.index), sample.name, sample.reason] for sample in (first, second, third)
        ]
    for report in (here, there, resumed):
        report.close()
    told = capsys.readouterr().err.splitlines()
    assert told[:2] == ["skipped a, b.jpg: no JPEG", "skipped c.jpg: cut short"] and len(told) == 3


def test_curves_of_steps_that_a_resume_repeats_are_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorBoard drops what was logged at the purged step and later."""
    purged = list[int]()

    def open_board(folder: Path, purge_step: int) -> Board:
        purged.append(purge_step)
        return Board()

    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter", open_board)
    for resumed in (0, 12):
        reporter(tmp_path, resumed=resumed).close()
    assert purged == [1, 13]


def test_a_summary_tells_both_counts_of_gpu_memory(tmp_path: Path) -> None:
    report = reporter(tmp_path)
    report.stage_begins(STAGE, 0, 1, 2)
    step(report, 1, 3.0)
    memory = {"peak_allocated_bytes": 3 * 2**29, "device_used_bytes": 5 * 2**30}
    summary = report.stage_summary(STAGE, (1, 30), 61.26, {"loss": 0.5}, None, memory)
    report.close()
    assert summary == {
        "stage": "S1", "level": 1, "num_steps": 1, "num_steps_planned": 30, "seconds": 61.3,
        "loss_start": 3.0, "loss_end": 3.0, "val": {"loss": 0.5}, "chance": None, **memory,
    }  # fmt: skip
    assert summary_line(summary) == (
        "S1 (level G1): 1 of 30 steps in 0:01:01, loss 3.000 → 3.000, validation loss 0.500, GPU memory "
        "1.5 GiB at most (5.0 GiB with all else)"
    )


@pytest.mark.parametrize(
    ("rank", "local_rank", "told"),
    [(0, 0, "S1 waits\n"), (1, 1, ""), (2, 0, "rank 2: S1 waits\n"), (3, 1, "")],
)
def test_each_machines_first_rank_says_once_what_it_waits_for(
    rank: int, local_rank: int, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = reporter(tmp_path, rank=rank, local_rank=local_rank)
    for text in ("S1 waits", "S2 waits"):
        own.log_once("storage", text)
    own.close()
    assert capsys.readouterr().err == told


@pytest.fixture
def path(tmp_path: Path) -> Path:
    log = EpochLog(tmp_path / "epochs.jsonl", 0)
    for run_step, epoch in ((1, 0), (10, 1), (11, 1), (20, 2)):
        add(log, run_step, epoch, 0)
    return log.path


def add(log: EpochLog, run_step: int, epoch: float, figure: int) -> None:
    log.add({"run_step": run_step, "epoch": epoch, "stage": "E", "figure": figure})


def places(path: Path) -> list[tuple[int, float, int]]:
    return [(line["run_step"], line["epoch"], line["figure"]) for line in records(path)]


def test_a_line_replaces_those_of_its_place_and_later_ones(path: Path) -> None:
    log = EpochLog(path, 20)
    add(log, 20, 2, 1)
    assert places(path) == [(1, 0, 0), (10, 1, 0), (11, 1, 0), (20, 2, 1)]
    add(log, 11, 1, 2)
    assert places(path) == [(1, 0, 0), (10, 1, 0), (11, 1, 2)]


def test_what_comes_after_the_step_of_a_resume_is_removed(path: Path) -> None:
    EpochLog(path, 10)
    assert places(path) == [(1, 0, 0), (10, 1, 0)]


def told(*fetches: str) -> list[str]:
    """Return the line of each fetch, a text with an x for a skipped step and a dot for another one."""
    steps, texts, num, first = SkippedSteps(), list[str](), 0, 1
    for marks in fetches:
        nums = [num := num + (mark == "x") for mark in marks]
        texts.append(steps.line(nums, first).split(" gradients")[0])
        first += len(marks)
        steps.require_effect()
    return texts


def fetches(marks: str, length: int) -> list[str]:
    return [marks[start : start + length] for start in range(0, len(marks), length)]


def test_each_fetch_with_skipped_steps_has_a_line() -> None:
    assert told("x", "x..x.....x", "." * 10, "xxxxx") == [
        "1 of steps 1 to 1 had", "3 of steps 2 to 11 had", "", "5 of steps 22 to 26 had"
    ]  # fmt: skip


@pytest.mark.parametrize("length", [1, 7, 250])
def test_a_hundred_in_a_row_are_the_end(length: int) -> None:
    told(*fetches("x" * 99 + "." + "x" * 99, length))
    words = r"diverged: the last 10\d steps had" if length == 7 else "the last 100 "
    with pytest.raises(ValueError, match=words):
        told(*fetches("." + "x" * 100, length))


@pytest.mark.parametrize("length", [1, 7, 250])
def test_more_than_half_of_two_hundred_are_the_end(length: int) -> None:
    """The first steps of a stage do not count, because fp16 looks for its scale in them."""
    some, most = "x." * (WINDOW // 2), "xx." * (WINDOW // 2)
    for marks in ("xx." * (FIRST_STEPS // 3) + "." + some * 3, "xx." * 65 + "." * 200 + some):
        told(*fetches(marks, length))
    marks = "." * FIRST_STEPS + some + most
    with pytest.raises(ValueError, match=r"diverged: 1\d\d of the last 200 steps had"):
        told(*fetches(marks, length))


def test_a_diverged_run_ends_and_its_losses_are_on_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An infinite rate spoils the weights in the first step, and no later one has finite gradients."""
    monkeypatch.setattr("fastpsl.engine.reporter.WINDOW", 14)
    spoilt = replace(tiny_experiment(), schedule=lambda _: float("inf"))
    with pytest.raises(ValueError, match="the last 8 steps had gradients that are not finite"):
        train_until(None, spoilt, tiny_run(tmp_path, log_steps=3))
    rows = lines(tmp_path)
    assert [row["step"] for row in rows] == list(range(1, 10)) and rows[0]["loss"] == rows[0]["loss"]
    assert all(row["loss"] != row["loss"] for row in rows[1:])


def test_a_stage_does_not_begin_with_weights_that_are_not_finite(tmp_path: Path) -> None:
    """Those of an own module or of a checkpoint, whose backbone or head was spoilt elsewhere."""
    experiment = tiny_experiment()
    norm = experiment.backbone.get_submodule("parts.0.1")
    norm.running_var[0] = -1.0  # type: ignore[index,operator]
    with pytest.raises(ValueError, match="network begins the stage with"):
        train_until(None, experiment, tiny_run(tmp_path))
    options: dict[str, Any] = {"max_steps_per_stage": 2, "checkpoint_steps": 1, "keep_checkpoints": 9}
    train_until(None, tiny_experiment(), tiny_run(tmp_path, **options))
    path = tmp_path / "checkpoints" / "step-00000001.pt"
    state = read_checkpoint(path)
    next(iter(state["train_step"]["head"].values()))[...] = math.nan
    path.unlink()
    CheckpointManager(path.parent, 9).save(1, state)
    words = r"step-00000001.pt begins the stage with values .* in 1 tensor \("
    with pytest.raises(ValueError, match=words):
        train_until(None, tiny_experiment(), tiny_run(tmp_path, resume=str(path), **options))


def test_a_checkpoint_that_is_not_finite_is_not_written(tmp_path: Path) -> None:
    """A running variance overflows in step 5, while the gradients stay finite. A mask was never finite."""
    run = tiny_run(tmp_path, checkpoint_steps=2, max_steps_per_stage=8)
    experiment = tiny_experiment()
    experiment.backbone.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    norm, after_step = experiment.backbone.get_submodule("parts.0.1"), experiment.task.after_step
    steps = list[int]()

    def spoil(extras: Any) -> None:
        after_step(extras)
        steps.append(1)
        if len(steps) == 5:
            norm.running_var[0] = torch.inf  # type: ignore[index,operator]

    experiment.task.after_step = spoil  # type: ignore[method-assign]
    good = "step-00000004.pt"
    words = f"after step 6 of the run, 1 of its weights .* such as parts.0.1.running_var; .* good .*{good};"
    with pytest.raises(ValueError, match=words):
        train_until(None, experiment, run)
    assert max(path.name for path in (tmp_path / "checkpoints").iterdir()) == good
