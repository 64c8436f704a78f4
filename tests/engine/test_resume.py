"""Readable but incomplete checkpoints lead to a line with the file and key, and the one before is used."""

import dataclasses
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fastpsl.engine.experiment import make_train_step
from fastpsl.engine.options import FoldName, PretrainOptions, TrainingOptions
from fastpsl.engine.resume import (
    _POSITION,
    apply_kept_choices,
    choices_of,
    loading,
    reasons_of,
    refuse_incomplete,
    refuse_other_science,
)
from fastpsl.engine.run import Position
from fastpsl.engine.step_modes import GraphChoice
from fastpsl.pipelines.loader.augment import Augment
from tests.engine.exact_signals import train_until
from tests.engine.test_trainer import tiny_experiment
from tests.engine.tiny import one_process, tiny_run

WRONG: dict[str, tuple[Any, str]] = {
    "no science": ({"science": None}, "'science' is missing"),
    "no train_step": ({"train_step": None}, "'train_step' is missing"),
    "a list as backbone": ({"backbone": [1, 2]}, "'backbone' is of type list"),
    "a tensor as position": ({"position": torch.zeros(3)}, "'position' is of type Tensor"),
    "choices": ({"choices": "eager"}, "'choices' is of type str"),
    "no run_step": ({"position": {"run_step": None}}, "position: 'run_step' is missing"),
    "a step in words": ({"position": {"step": "two"}}, "position: 'step' is of type str"),
    "a step below 0": ({"position": {"step": -1}}, "position: 'step' is -1"),
    "a stage to come": ({"position": {"stage": 10**15}}, f"position: 'stage' is {10**15} after 3 finished"),
    "true stages": ({"position": {"stage": True}}, "position: 'stage' is of type bool"),
    "no time": ({"position": {"seconds": float("nan")}}, "position: 'seconds' is nan"),
    "a stage in words": ({"position": {"summaries": ["S1"]}}, "a finished stage is no record"),
    "a stage without": ({"position": {"summaries": [{"stage": "S1"}]}}, "a finished stage has no num_steps"),
    "what nobody knows": ({"position": {"extra": 1}}, "position: 'extra' is unknown"),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return two checkpoints of a run, of steps 1 and 2."""
    run = tiny_run(tmp_path_factory.mktemp("run"), max_steps_per_stage=1, checkpoint_steps=1)
    train_until(None, tiny_experiment(), run)
    return run.checkpoints.paths()[-2:]


def changed(state: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """Return a state with other values; None removes a key."""
    state = dict(state)
    for name, value in change.items():
        if isinstance(value, dict):
            state[name] = changed(state[name], value)
        elif value is None:
            del state[name]
        else:
            state[name] = value
    return state


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_missing_or_of_another_type_is_named_and_the_one_before_serves(
    kind: str, trained: list[Path], tmp_path: Path
) -> None:
    change, words = WRONG[kind]
    (tmp_path / "checkpoints").mkdir()
    older, newest = (tmp_path / "checkpoints" / path.name for path in trained)
    older.write_bytes(trained[0].read_bytes())
    state = torch.load(trained[1], weights_only=True)
    refuse_incomplete(newest, state)
    torch.save(changed(state, change), newest)
    run = tiny_run(tmp_path, max_steps_per_stage=1)
    assert run.resumed_from == str(older)
    run.close()
    older.unlink()
    torch.save(changed(state, change), newest)  # the run has renamed it
    with pytest.raises(ValueError) as excinfo:
        tiny_run(tmp_path, max_steps_per_stage=1)
    line = str(excinfo.value)
    assert f"{newest} is no whole checkpoint ({words}" in line and "): resume from an older one" in line
    assert len(line.splitlines()) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"backbone": {"parts.0.0.weight": None}},
        {"train_step": {"head": None}},
        {"train_step": {"optimiser": 7}},
        {"task": {"queue": 7}},
    ],
    ids=str,
)
def test_what_does_not_fit_inside_is_named(
    change: dict[str, Any], trained: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "checkpoints").mkdir()
    newest = tmp_path / "checkpoints" / trained[0].name
    state = torch.load(trained[0], weights_only=True)
    position = state["position"]
    position |= {"step": 0, "summaries": position["summaries"][: position["stage"]]}  # in mid-stage
    torch.save(changed(state, change), newest)
    experiment = tiny_experiment()
    if "task" in change:
        monkeypatch.setattr(experiment.task, "load_state_dict", lambda state: state["labels"], raising=False)
    with pytest.raises(ValueError, match=f"^{newest} does not hold what this experiment needs") as excinfo:
        train_until(None, experiment, tiny_run(tmp_path, max_steps_per_stage=1))
    assert len(str(excinfo.value).splitlines()) == 1


@pytest.mark.parametrize("name", [".lock", "metrics.jsonl", "bad-samples.csv", "error.txt"])
@pytest.mark.parametrize(
    "make", [lambda path, other: path.symlink_to(other), lambda path, _: os.mkfifo(path)]
)
def test_a_run_writes_into_no_file_outside_of_its_folder(
    name: str, make: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "run"
    outside.write_text("mine")
    folder.mkdir()
    make(folder / name, outside)
    with pytest.raises(ValueError, match=f"^{folder / name}: is no file of the run's own"):
        tiny_run(folder)
    assert outside.read_text() == "mine"


def test_the_position_is_the_runs_own() -> None:
    assert list(_POSITION) == [field.name for field in dataclasses.fields(Position)]


def test_a_value_that_one_of_two_experiments_lacks_is_named() -> None:
    """It is a value that an older version did not have, or no longer has."""
    same = {"recipe": "jigsaw", "seed": 3}
    refuse_other_science(dict(same), dict(same), "a.pt")
    saved, asked = ({**same, "pseudo_labels": {"data_digest": digest}} for digest in ("ab", "ab.v2.c"))
    refuse_other_science(saved, asked, "a.pt")
    for there, now, words in (
        ({"grid": 3}, {}, r"grid \(3 there, None now\)"),
        ({}, {"data_digest": "ab"}, r"the data: its digest \(None there, ab now\)"),
    ):
        with pytest.raises(ValueError, match=words):
            refuse_other_science({**same, **there}, {**same, **now}, "a.pt")


def test_errors_of_the_device_are_left_to_others() -> None:
    for error in (torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUDA error: unknown error")):
        with pytest.raises(type(error)), loading("step-00000001.pt"):
            raise error


def test_a_checkpoint_follows_its_metrics_and_restarts_the_clock(tmp_path: Path) -> None:
    """A resume can cut off lines after the checkpoint, but not restore missing ones."""
    run, calls = tiny_run(tmp_path, max_steps_per_stage=1, val=None), list[str]()

    def note(owner: Any, name: str) -> None:
        call = getattr(owner, name)

        def noted(*arguments: Any) -> None:
            calls.append(name)
            call(*arguments)

        setattr(owner, name, noted)

    note(run.reporter.file, "sync")
    note(run.checkpoints, "save")
    note(run.stop_signal, "checkpointed")
    assert train_until(None, tiny_experiment(), run)
    assert calls.count("checkpointed") == 6
    calls = [name for name in calls if name != "checkpointed"]  # which need not wait for the disk
    assert calls == ["sync", "save"] * 6  # each stage after its step and after its summary


OPTIONS = PretrainOptions(batch_size=32, epochs=(2, 2, 2), augment_backend="kornia", compile="off")


@pytest.mark.parametrize("fold_frozen", ["off", "on"])
def test_a_checkpoint_has_them_under_the_names_of_options(fold_frozen: FoldName) -> None:
    options = replace(OPTIONS, fold_frozen=fold_frozen)
    train_step = make_train_step(tiny_experiment(), 1, options, one_process())
    assert choices_of(train_step) == {
        "compile": "off", "augment_backend": "kornia", "fold_frozen": fold_frozen,
    }  # fmt: skip


def test_each_has_a_reason_and_is_told_if_it_was_asked_for() -> None:
    experiment, folded = tiny_experiment(), ("off: no block is frozen", "on: asked for", "on: asked for")
    options = replace(OPTIONS, fold_frozen="on")
    for number, words in enumerate(folded):
        train_step = make_train_step(experiment, number, options, one_process())
        stage = experiment.stages[number]
        assert list(reasons_of(train_step, stage, train_step.views, options, {"compile"})) == [
            ("augment backend", f"kornia: {train_step.augment.reason}", True),
            ("compile", "off: as the stage began", True),
            ("graph", "off: CUDA graphs need CUDA", False),
            ("fold frozen", words, True),
        ]
    of_no_views = list(reasons_of(train_step, stage, (), options, ()))
    expected = ["off: asked for", "off: CUDA graphs need CUDA", "on: asked for"]
    assert [value for _, value, _ in of_no_views] == expected


def test_what_is_slower_than_the_machine_could_be_is_told() -> None:
    """On a CPU that is an operation without a fused kernel, on a GPU also a step that is not captured."""
    options = replace(OPTIONS, augment_backend="auto", compile="auto")
    train_step = make_train_step(tiny_experiment(), 0, options, one_process())
    stage = tiny_experiment().stages[0]

    def told() -> list[str]:
        reasons = reasons_of(train_step, stage, train_step.views, options, ())
        return [name for name, _, is_told in reasons if is_told]

    assert told() == []
    train_step.augment = Augment("torch", "no fused kernel for Solarise on cpu")
    assert told() == ["augment backend"]
    train_step.world = one_process("cuda")
    assert told() == ["augment backend", "compile", "graph"]
    train_step.graph_choice = GraphChoice(True, "the host launches a step at once")
    assert told() == ["augment backend", "compile"]


def test_a_stage_goes_on_as_it_began_unless_a_flag_or_the_machine_forbids() -> None:
    def refuse_fused(options: TrainingOptions) -> None:
        if options.augment_backend == "fused":
            raise ValueError("no GPU")

    kept, told = {"compile": "on", "augment_backend": "fused", "fold_frozen": True}, list[str]()
    begun = apply_kept_choices(TrainingOptions(), kept, refuse_fused, told.append)
    assert (begun.compile, begun.augment_backend, begun.fold_frozen) == ("on", "auto", "on")
    line = "the stage began with augment_backend fused, which cannot be here, and goes on by auto: no GPU"
    assert told == [line]
    told.clear()
    given = TrainingOptions(compile="off", augment_backend="fused", fold_frozen="on")
    assert apply_kept_choices(given, kept, refuse_fused, told.append) == given
    assert told == ["the stage began with compile on and goes on with off, as this command has it"]
