"""The trainer over whole plans: which blocks change, stops and resumes, and written files."""

import itertools
import json
import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fastpsl.engine import last_step, trainer
from fastpsl.engine.dataset_pass import EpochContext
from fastpsl.engine.distributed import Decision, World
from fastpsl.engine.experiment import Experiment, make_train_step
from fastpsl.engine.gpu import torch_seed
from fastpsl.engine.optim.schedules import cosine, step_drops
from fastpsl.engine.options import PretrainOptions
from fastpsl.engine.plan import Stage, make_plan
from fastpsl.engine.reporter import Reporter, summary_line
from fastpsl.engine.resume import new_numbered_folder
from fastpsl.engine.run import Position, Run, RunData
from fastpsl.engine.task import Task
from fastpsl.engine.trainer import MAX_WARM_UP_EPOCHS, pretrain, warm_up_loader
from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.kernels.draws import Keys
from fastpsl.kernels.permutations import permutation_set
from fastpsl.models.checkpoint import CheckpointManager, read_checkpoint
from fastpsl.pipelines.embedded.draw_sample import sample_paths
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.loader.order import epoch_order
from fastpsl.pipelines.views import Input, ViewSpec, train_view
from fastpsl.tasks.jigsaw import Jigsaw
from fastpsl.tasks.pseudo_labels.uic import UIC
from tests.engine.exact_signals import train_until
from tests.engine.tiny import TinyNet, one_process, tiny_run
from tests.pipelines.paged import write_paged
from tests.programs import digests, newest_checkpoint, records
from tests.recipes.in_process import same_run
from tests.slow import slow

STEPS_PER_EPOCH = 15  # 480 images in batches of 32


def tiny_experiment(plan: str = "psl") -> Experiment:
    torch.manual_seed(torch_seed(0))
    task = Jigsaw(
        permutation_set(9, [4, 8, 16]).permutations, (4, 8, 16), shorter_px=32, cell_px=10, tile_px=8,
        permutations_per_image=4, embedding_width=8,
    )  # fmt: skip
    return Experiment(task, TinyNet(), make_plan(plan, (2, 2, 2)), step_drops(0.05, (20, 20, 10, 10)))


def fit(out: Path, plan: str = "psl", stop_at: int | None = None, **options: Any) -> tuple[bool, Run]:
    """Train in `out`, until a signal after step `stop_at`."""
    run = tiny_run(out, plan=plan, **options)
    return train_until(stop_at, tiny_experiment(plan), run), run


def begun_and_written(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Record which epochs the loader begins, and when epochs' figures and checkpoints are written."""
    events = list[Any]()
    begin, figures, write = Loader.begin, Reporter.epoch, CheckpointManager.write

    def beginning(loader: Loader, epoch: int, order: Any = None) -> None:
        events.append(epoch)
        begin(loader, epoch, order)
        assert loader._next is not None and loader._next.number == epoch

    def telling(reporter: Reporter, *arguments: Any) -> None:
        events.append("figures")
        figures(reporter, *arguments)

    def writing(*arguments: Any) -> None:
        events.append("checkpoint")
        write(*arguments)

    monkeypatch.setattr(Loader, "begin", beginning)
    monkeypatch.setattr(Reporter, "epoch", telling)
    monkeypatch.setattr(CheckpointManager, "write", writing)
    return events


def test_the_next_epochs_batches_begin_within_a_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = begun_and_written(monkeypatch)
    assert fit(tmp_path)[0]
    # Each of the three stages has two epochs.
    assert [event for event in events if isinstance(event, int)] == [1, 3, 5]


def test_labels_begin_the_next_epoch_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    events = begun_and_written(monkeypatch)
    monkeypatch.setattr(trainer, "_TOLD_GAP_S", 0.0)
    task = UIC(20, Input.usual("RGB", 32), 32, seed=0, augmentation="standard", label_view="train")
    experiment = Experiment(task, TinyNet(), make_plan("end_to_end", (3,), num_levels=1), cosine(0.05))
    with closing(tiny_run(tmp_path, epochs=(3,), keep_checkpoints=100)) as run:
        assert pretrain(experiment, run)
    epochs = "".join(str(event)[0] for event in events if event != "checkpoint")
    # What has begun is begun again, with the same order, before the epoch's own figures.
    assert epochs == "0f" + "1f1f" + "2f2f" + "f"
    written = [events[place - 1] for place, event in enumerate(events) if event == "checkpoint"]
    assert all(before in ("figures", "checkpoint") for before in written)
    told = [line for line in capsys.readouterr().err.splitlines() if "without a step before epoch 2" in line]
    assert len(told) == 1 and told[0].startswith("E: ")


def lines(out: Path) -> list[dict[str, Any]]:
    return records(out / "metrics.jsonl")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run through all stages without a stop."""
    out = tmp_path_factory.mktemp("whole")
    finished, run = fit(out)
    assert finished and len(run.position.summaries) == 3
    return out


def test_every_step_of_every_stage_is_on_record(whole: Path) -> None:
    rows = lines(whole)
    assert [row["run_step"] for row in rows] == list(range(1, 6 * STEPS_PER_EPOCH + 1))
    assert [row["stage"] for row in rows[:: 2 * STEPS_PER_EPOCH]] == ["S1", "S2", "S3"]
    assert rows[0]["lr"] == 0.05 and rows[9]["lr"] == 0.05 and rows[10]["lr"] == pytest.approx(0.005)
    summaries = newest_checkpoint(whole)["position"]["summaries"]
    assert [s["num_steps"] for s in summaries] == [30, 30, 30]
    assert summaries[0]["loss_start"] == pytest.approx(sum(row["loss"] for row in rows[:10]) / 10)
    assert summaries[0]["loss_end"] < summaries[0]["loss_start"]
    assert 0 < summaries[0]["val"]["accuracy"] <= 1 and summaries[0]["chance"] == 0.25
    for name in ("contact-sheet-G1.png", "contact-sheet-G3.png", "config.json", "environment.json"):
        assert (whole / name).stat().st_size > 0


@pytest.mark.parametrize("step", [15, 77, *map(slow, (1, 14, 16, 29, 30, 31, 59, 89))])
def test_resumed_from_any_step_equals_never_stopped(whole: Path, tmp_path: Path, step: int) -> None:
    """The run stops after `step`, which may be within an epoch or at the end of an epoch or stage."""
    stage, within = divmod(step - 1, 2 * STEPS_PER_EPOCH)
    finished, _ = fit(tmp_path, stop_at=step, keep_checkpoints=100)
    stopped = Position(**newest_checkpoint(tmp_path)["position"])
    assert not finished
    if within + 1 < 2 * STEPS_PER_EPOCH:
        assert (stopped.stage, stopped.step, stopped.run_step) == (stage, within + 1, step)
    assert fit(tmp_path)[0]
    same_run(whole, tmp_path, "metrics.jsonl")


def test_the_scaler_is_resumed_too(tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    options: dict[str, Any] = {"plan": "end_to_end", "precision": "fp16", "max_steps_per_stage": 12}
    for out, stops in ((whole, ()), (stopped, (3, 8))):
        for stop in (*stops, None):
            assert fit(out, stop_at=stop, **options)[0] == (stop is None)
    assert newest_checkpoint(whole)["train_step"]["scaler"]["scale"] > 1
    same_run(whole, stopped, "metrics.jsonl")


def test_a_cut_stage_keeps_its_schedule_and_may_be_cut_otherwise_on_resume(
    whole: Path, tmp_path: Path
) -> None:
    finished, run = fit(tmp_path, max_steps_per_stage=12)
    assert finished and run.position.run_step == 36
    assert "12 of 30 steps" in summary_line(run.position.summaries[0])
    assert [row["loss"] for row in lines(tmp_path)[:12]] == [row["loss"] for row in lines(whole)[:12]]
    rates = [row["lr"] for row in lines(tmp_path) if row["stage"] == "S2"]
    assert rates == pytest.approx([0.05] * 10 + [0.005] * 2)


def test_a_finished_run_is_not_run_again(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = newest_checkpoint(whole)
    finished, run = fit(whole)
    # The summaries of the stages before stand at the start of a resumed run.
    told = capsys.readouterr().err.splitlines()
    assert told[-3:] == [summary_line(summary) for summary in run.position.summaries]
    assert finished and run.position.run_step == 90
    assert digests(before) == digests(newest_checkpoint(whole))


def test_another_experiment_is_refused_by_its_fields(whole: Path) -> None:
    with pytest.raises(ValueError, match=r"batch_size \(32 there, 16 now\), seed \(0 there, 1 now\)"):
        tiny_run(whole, batch_size=16, seed=1)
    with pytest.raises(ValueError, match=r"precision \(fp32 there, bf16 now\)"):
        tiny_run(whole, precision="bf16")
    tiny_run(whole, precision="fp32").close()  # as auto on a CPU
    with pytest.raises(ValueError, match="holds checkpoints"):
        tiny_run(whole, resume="never")


def test_accumulation_sees_the_same_images(whole: Path, tmp_path: Path) -> None:
    """Losses with smaller batches are only close, because BatchNorm's statistics are the batch's."""
    assert fit(tmp_path, accumulate=4, max_steps_per_stage=3)[0]
    losses = [row["loss"] for row in lines(tmp_path)[:1]]
    assert losses == pytest.approx([row["loss"] for row in lines(whole)[:1]], rel=0.1)


def test_accumulated_batches_go_on_where_they_stopped(tmp_path: Path) -> None:
    """The second epoch is stopped after three of its steps, each of two batches."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    options: dict[str, Any] = {"plan": "end_to_end", "accumulate": 2, "max_steps_per_stage": 20, "val": None}
    fit(whole, **options)
    assert not fit(stopped, **options, stop_at=18)[0]
    assert fit(stopped, **options)[0]
    same_run(whole, stopped, "metrics.jsonl")


@pytest.mark.parametrize("plan", ["sl", "psl_f", "end_to_end"])
def test_other_plans_run(tmp_path: Path, plan: str) -> None:
    finished, run = fit(tmp_path, plan=plan, max_steps_per_stage=2)
    levels = {"sl": [3, 3, 3], "psl_f": [1, 2, 3], "end_to_end": [3]}[plan]
    assert finished and [s["level"] for s in run.position.summaries] == levels


def test_resume_from_a_path_starts_a_new_line_in_its_own_folder(whole: Path, tmp_path: Path) -> None:
    """Later checkpoints are renamed, because a resume would otherwise prefer them."""
    out = tmp_path / "a"
    fit(out, max_steps_per_stage=4, keep_checkpoints=20, checkpoint_steps=1)
    checkpoints = out / "checkpoints"
    run = tiny_run(None, resume=str(checkpoints / "step-00000002.pt"), keep_checkpoints=2)  # type: ignore[arg-type]
    assert run.folder == out and run.position.run_step == 2
    assert not list(checkpoints.glob("step-0000000[3-9].pt"))
    assert (checkpoints / "abandoned-step-00000004.pt").exists()
    pretrain(tiny_experiment(), run)
    run.close()
    same_run(whole, out, "metrics.jsonl")


def test_resume_from_a_path_in_another_folder_takes_the_metrics_along(whole: Path, tmp_path: Path) -> None:
    fit(tmp_path / "a", max_steps_per_stage=4, keep_checkpoints=10)
    line = {"run_step": 4, "epoch": 0.5, "stage": "S1", "figure": 1.0}
    for name in ("probe.jsonl", "epochs.jsonl"):
        (tmp_path / "a" / name).write_text(json.dumps(line) + "\n")
    chosen = tmp_path / "a" / "checkpoints" / "step-00000004.pt"
    tiny_run(tmp_path / "b", resume=str(chosen)).close()
    assert lines(tmp_path / "b") == lines(tmp_path / "a")[:4]
    for name in ("probe.jsonl", "epochs.jsonl"):
        assert json.loads((tmp_path / "b" / name).read_text()) == line
    stray = tmp_path / "stray.pt"
    stray.write_bytes(chosen.read_bytes())
    with pytest.raises(ValueError, match="give --out"):
        tiny_run(None, resume=str(stray))  # type: ignore[arg-type]


def test_a_signal_during_the_validation_pass_is_heard(whole: Path, tmp_path: Path) -> None:
    run = tiny_run(tmp_path)
    original = run.reporter.watched
    passes: list[int] = []

    def stop_in_the_pass(batches: Any) -> Any:
        if batches.gi_frame.f_locals["self"].train is False:
            run.stop_signal.stop_requested = True
            passes.append(run.position.run_step)
        return original(batches)

    run.reporter.watched = stop_in_the_pass  # type: ignore[method-assign]
    assert not pretrain(tiny_experiment(), run)
    run.close()
    assert passes == [30] and run.position.summaries == []
    assert fit(tmp_path)[0]
    same_run(whole, tmp_path)


def test_quasi_random_order_is_resumed_in_mid_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_paged(monkeypatch, tmp_path / "paged.beton", 400, sides_px=(32,))
    options: dict[str, Any] = {"data": str(data), "val": None, "order": "quasi_random", "lanes": 4}
    options |= {"batch_size": 16, "plan": "end_to_end"}
    options["max_steps_per_stage"] = 20
    assert fit(tmp_path / "whole", **options)[0]
    for stop in (2, 10, None):
        assert fit(tmp_path / "stopped", stop_at=stop, **options)[0] == (stop is None)
    same_run(tmp_path / "whole", tmp_path / "stopped", "metrics.jsonl")
    with pytest.raises(ValueError, match=r"lanes \(4 there, 8 now\)"):
        tiny_run(tmp_path / "whole", **(options | {"lanes": 8}))


def test_the_order_of_training_is_the_one_that_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_paged(monkeypatch, tmp_path / "paged.beton", 400, sides_px=(32,))
    view = ViewSpec(RandomResizedCrop(8))

    def indices(loader: Loader) -> list[list[int]]:
        with loader:
            return [batch.indices.tolist() for batch in loader.epoch(1)]

    of_orders = {}
    for order in ("random", "quasi_random"):
        options: dict[str, Any] = {"data": str(path), "val": None, "order": order, "lanes": 4}
        run = tiny_run(tmp_path / order, batch_size=16, seed=3, **options)
        of_orders[order] = indices(run.data.loader(run.data.train, [view], train=True))
        expected = Loader(run.data.train, [view], batch_size_per_rank=16, seed=3, order=order, lanes=4)
        assert of_orders[order] == indices(expected)
        run.close()
    assert of_orders["random"] != of_orders["quasi_random"]


def test_two_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    run = tiny_run(tmp_path)
    with pytest.raises(ValueError, match="another process trains"):
        tiny_run(tmp_path)
    run.close()
    tiny_run(tmp_path).close()


def test_numbered_folders_never_collide(tmp_path: Path) -> None:
    names = [new_numbered_folder(tmp_path, "jigsaw").name for _ in range(3)]
    assert names == ["jigsaw-001", "jigsaw-002", "jigsaw-003"]
    for name in ("jigsaw-1234", "jigsaw-9999-baseline", "jigsaw-2000.tar"):
        (tmp_path / name).mkdir()
    assert new_numbered_folder(tmp_path, "jigsaw").name == "jigsaw-1235"
    assert new_numbered_folder(tmp_path / "not" / "there", "jigsaw").is_dir()


def test_half_a_line_and_lines_past_the_checkpoint_are_cut(whole: Path, tmp_path: Path) -> None:
    fit(tmp_path, max_steps_per_stage=1)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"run_step": 4, "stage": "S3"}\n{"run_st')
    tiny_run(tmp_path).close()
    assert [row["run_step"] for row in lines(tmp_path)] == [1, 2, 3]


def test_a_schedule_over_all_stages_goes_on_in_the_next(tmp_path: Path) -> None:
    """A stage that is cut after two steps has two of the cosine's six epochs, as a whole one has."""
    with closing(tiny_run(tmp_path, max_steps_per_stage=2, val=None)) as run:
        assert pretrain(replace(tiny_experiment(), schedule=cosine(0.1)), run)
    epochs = [2 * stage + step / STEPS_PER_EPOCH for stage in range(3) for step in range(2)]
    expected = [0.1 * (1 + math.cos(math.pi * epoch / 6)) / 2 for epoch in epochs]
    assert [row["lr"] for row in lines(tmp_path)] == pytest.approx(expected)


def test_checkpoints_are_counted_in_steps_of_the_run(tmp_path: Path) -> None:
    """There is one after each fourth step and at each stage's end, and each knows the number of stages."""
    options: dict[str, Any] = {"checkpoint_steps": 4, "keep_checkpoints": 100, "batch_size": 96}
    finished, run = fit(tmp_path, max_steps_per_stage=6, val=None, **options)
    assert finished
    paths = run.checkpoints.paths()
    assert [int(path.stem.split("-")[1]) for path in paths] == [4, 6, 8, 12, 16, 18]
    assert run.last_checkpoint() == paths[-1]
    states = [read_checkpoint(path) for path in paths]
    assert [state["position"]["stage"] for state in states] == [0, 0, 1, 1, 2, 2]
    assert [state["num_stages"] for state in states] == [3] * 6


def test_a_stage_guesses_among_its_own_levels_permutations(whole: Path) -> None:
    summaries = newest_checkpoint(whole)["position"]["summaries"]
    assert [summary["chance"] for summary in summaries] == [1 / 4, 1 / 8, 1 / 16]


def test_a_checkpoint_records_the_input_of_its_stages_level(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Jigsaw, "input_record", lambda task, level: {"level": level})
    _, run = fit(tmp_path, max_steps_per_stage=1, checkpoint_steps=1, keep_checkpoints=9, val=None)
    assert [read_checkpoint(path)["input"]["level"] for path in run.checkpoints.paths()] == [1, 2, 3]


def test_a_stages_seconds_are_those_of_its_steps_also_over_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each reading of the clock is a second after the last, and a step reads it twice."""
    monkeypatch.setattr(trainer, "time", SimpleNamespace(perf_counter=itertools.count().__next__))
    options: dict[str, Any] = {"max_steps_per_stage": 5, "val": None}
    assert not fit(tmp_path, **options, stop_at=7)[0]
    assert newest_checkpoint(tmp_path)["position"]["seconds"] == 2
    _, run = fit(tmp_path, **options)
    assert [summary["seconds"] for summary in run.position.summaries] == [5, 5, 5]


@pytest.mark.parametrize(("seconds", "is_kept"), [(4.9, False), (5.1, True)])
def test_a_step_of_five_seconds_is_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, is_kept: bool
) -> None:
    """Then each step is kept in memory, because the next may not end before torchrun loses its patience."""
    kept: list[int] = []
    monkeypatch.setattr(last_step.Safepoint, "keep", lambda point: kept.append(point._run.position.step))
    run = tiny_run(tmp_path, plan="end_to_end", max_steps_per_stage=3, val=None)
    run.stop_signal.after_step = lambda: Decision(False, False, seconds)  # type: ignore[method-assign]
    assert pretrain(tiny_experiment("end_to_end"), run)
    run.close()
    assert kept == ([1, 2, 3] if is_kept else [1])  # the first is kept to take the memory


def test_a_resumed_run_says_where_it_is_and_what_is_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = {"max_steps_per_stage": 2, "checkpoint_steps": 1, "val": None}
    assert not fit(tmp_path, **options, stop_at=3)[0]
    capsys.readouterr()
    copied = tmp_path / "copy.beton"
    copied.write_bytes(sample_paths().train_32.read_bytes())
    changes = {"log_steps": 7, "timeout_s": 60.0, "max_steps_per_stage": 3, "data": str(copied)}
    tiny_run(tmp_path, **{**options, **changes}).close()
    chosen = tmp_path / "checkpoints" / "step-00000003.pt"
    assert capsys.readouterr().err.splitlines()[:3] == [
        f"resuming {chosen}: stage 2, step 1",
        "changed since then (allowed): log_steps 10 → 7, max_steps_per_stage 2 → 3, timeout_s 120.0 → 60.0",
        "S1 has ended after 2 of 30 steps and stays so; give another --out to train it longer",
    ]
    machine = read_checkpoint(chosen)["machine"]
    assert (machine["world_size"], machine["device"]) == (1, "cpu") and "data" not in machine


def test_a_line_in_another_folder_keeps_what_is_there(tmp_path: Path) -> None:
    """Figures of the checkpoint's folder are copied only where the new folder has none."""
    fit(tmp_path / "a", max_steps_per_stage=1, val=None)
    line = {"run_step": 1, "epoch": 0.5, "stage": "S1", "figure": 1.0}
    (tmp_path / "a" / "epochs.jsonl").write_text(json.dumps(line | {"figure": 2.0}) + "\n")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "epochs.jsonl").write_text(json.dumps(line) + "\n")
    tiny_run(tmp_path / "b", resume=str(max((tmp_path / "a" / "checkpoints").iterdir()))).close()
    assert json.loads((tmp_path / "b" / "epochs.jsonl").read_text()) == line
    assert lines(tmp_path / "b") == lines(tmp_path / "a")


def test_a_runs_parts_have_its_options(tmp_path: Path) -> None:
    """The reporter counts all images of a step."""
    run = tiny_run(tmp_path, batch_size=64, accumulate=4, log_steps=3, checkpoint_minutes=1.5)
    assert (run.data.batch_size, run.reporter.batch_size, run.reporter.log_steps) == (16, 64, 3)
    assert run.stop_signal._checkpoint_s == 90.0
    run.close()


def test_a_reporter_is_told_what_is_done_and_what_comes(tmp_path: Path) -> None:
    """Each block has one convolution, which costs a pass, and two more where it learns, as does the head."""
    told = list[tuple[Any, ...]]()
    assert not fit(tmp_path, stop_at=7, max_steps_per_stage=9, val=None)[0]
    run = tiny_run(tmp_path, max_steps_per_stage=9, val=None)

    def listen(stage: Stage, *numbers: Any) -> None:
        *place, ahead = numbers
        told.append((stage.name, *place, *ahead[:3]))
        Reporter.stage_begins(run.reporter, stage, *numbers)

    run.reporter.stage_begins = listen  # type: ignore[method-assign, assignment]
    assert pretrain(tiny_experiment(), run)
    run.close()
    costs = 3 + 2 * 3 + 3, 4 + 2 * 3 + 3, 5 + 2 * 3 + 3
    assert told == [
        ("S1", 7, 9, 15, 1, 3, pytest.approx(9 * (costs[1] + costs[2]) / costs[0])),
        ("S2", 0, 9, 15, 2, 3, pytest.approx(9 * costs[2] / costs[1])),
        ("S3", 0, 9, 15, 3, 3, 0),
    ]


def test_seeds_of_torch_are_one_of_each_place() -> None:
    """They are frozen, because a resumed run must draw what it would have drawn."""
    places = [(0,), (1,), (12,), (0, 0), (1, 2), (2, 1), (0, 3), (3, 0), (0, 1, 2), (0, 2, 1), (1, 1, 1)]
    seeds = [torch_seed(*place) for place in places]
    assert len(set(seeds)) == len(places) and 0 <= min(seeds) and 2**60 < max(seeds) < 2**63
    assert torch_seed(0, 1, 2, 3) == 5735612403627336365


@pytest.mark.parametrize("seed", [0, 1])
def test_orders_and_draws_of_images_follow_from_the_seed(seed: int) -> None:
    options = PretrainOptions(data=str(sample_paths().train_32), batch_size=32, workers=1, seed=seed)
    data, view = RunData(options, one_process()), train_view(Input(size_px=32), 32)
    with closing(data):
        num = data.train.num_samples
        with data.loader(data.train, [view], train=True) as loader:
            batch = next(loader.epoch(4))
            flips = view.draw(Keys(seed, 4, batch.indices.numpy()))[0]["flip"]
            assert batch.draws[0][0]["flip"].tolist() == flips.tolist()
        with data.annotated_loader(lambda index, epoch: (torch.zeros(3, 2, 2), {})) as whole_images:
            annotated = next(whole_images.epoch(4))
    expected = epoch_order(seed, 4, num)[:32].tolist()
    assert batch.indices.tolist() == annotated.indices.tolist() == expected
    assert expected != epoch_order(1 - seed, 4, num)[:32].tolist()


def test_first_weights_of_a_head_follow_from_seed_and_stage_alone() -> None:
    weights = []
    for seed, number in ((0, 1), (0, 2), (1, 1), (1, 2), (0, 1)):
        options = PretrainOptions(batch_size=32, epochs=(2, 2, 2), seed=seed)
        train_step = make_train_step(tiny_experiment(), number, options, one_process())
        weights.append(tuple(train_step.module.head.embed[0].weight.flatten().tolist()))  # type: ignore[index, union-attr]
    assert len(set(weights)) == 4 and weights[0] == weights[-1]


def test_each_step_of_each_rank_has_its_own_dropout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    loss = Jigsaw.loss

    def listen(*arguments: Any) -> Any:
        seen.append(torch.initial_seed())
        return loss(*arguments)

    monkeypatch.setattr(Jigsaw, "loss", listen)
    for number, (seed, rank) in enumerate(((0, 0), (0, 1), (1, 0), (0, 0))):
        run = tiny_run(tmp_path / str(number), max_steps_per_stage=2, seed=seed, val=None)
        run.world = replace(run.world, rank=rank)
        assert pretrain(tiny_experiment(), run)
        run.close()
    assert len(seen) == 4 * 6 and len(set(seen)) == 3 * 6 and seen[:6] == seen[-6:]


def test_passes_of_each_epoch_have_draws_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their numbers come after those of all training epochs, with room for each stage's warm-up."""
    seen: list[int] = []

    def listen(_: Jigsaw, context: EpochContext) -> None:
        seen.append(context.draws_epoch)

    monkeypatch.setattr(Jigsaw, "start_epoch", listen)
    assert fit(tmp_path, max_steps_per_stage=STEPS_PER_EPOCH + 1, val=None)[0]
    firsts = [6 + stage * MAX_WARM_UP_EPOCHS + MAX_WARM_UP_EPOCHS // 2 for stage in range(3)]
    assert seen == [first + epoch for first in firsts for epoch in range(2)]


@pytest.mark.parametrize(("rank", "local_rank", "reads"), [(1, 1, False), (2, 0, True)])
def test_one_process_of_each_machine_reads_a_batch(rank: int, local_rank: int, reads: bool) -> None:
    """The stage begins in epoch 4. Others than rank 0 draw nothing."""
    read = list[int]()

    def epoch(number: int) -> Iterator[Any]:
        read.append(number)
        yield SimpleNamespace()

    world = World(rank, 1, local_rank, 2, torch.device("cpu"))
    run: Any = SimpleNamespace(world=world, position=Position(first_epoch=4))
    loader: Any = SimpleNamespace(epoch=epoch)
    warm_up_loader(run, Task(), make_plan("psl", (1, 1, 1))[0], loader)
    assert read == ([4] if reads else [])
