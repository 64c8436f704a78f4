"""The choices of how a stage is computed, as checkpoints keep them and as people read them."""

from dataclasses import replace

import pytest

from fastpsl.engine.experiment import make_train_step
from fastpsl.engine.options import PretrainOptions, TrainingOptions
from fastpsl.engine.resume import apply_kept_choices, choices_of, report_choices
from tests.engine.test_trainer import tiny_experiment
from tests.engine.tiny import one_process

OPTIONS = PretrainOptions(batch_size=32, epochs=(2, 2, 2), augment_backend="kornia", compile="off")


@pytest.mark.parametrize("fold_frozen", [False, True])
def test_a_checkpoint_has_them_under_the_names_of_options(fold_frozen: bool) -> None:
    options = replace(OPTIONS, fold_frozen=fold_frozen)
    train_step = make_train_step(tiny_experiment(), 1, options, one_process())
    assert choices_of(train_step) == {
        "compile": "off", "augment_backend": "kornia", "fold_frozen": fold_frozen,
    }  # fmt: skip


def test_each_is_told_with_its_reason() -> None:
    experiment, folded = tiny_experiment(), ("no block is frozen", "B1", "B1 to B2")
    for number, words in enumerate(folded):
        options, told = replace(OPTIONS, fold_frozen=True), list[tuple[str, str]]()
        train_step = make_train_step(experiment, number, options, one_process())
        stage = experiment.stages[number]
        report_choices(
            train_step, stage, train_step.views, {"compile"}, lambda *words, told=told: told.append(words)
        )
        assert told == [
            ("augment backend", f"kornia: {train_step.augment.reason}"),
            ("compile", "off: as the stage began"),
            ("graph", "off: CUDA graphs need CUDA"),
            ("folded:", words),
        ]
    told = []
    report_choices(train_step, stage, (), (), lambda *words: told.append(words))
    assert [value for _, value in told] == ["off: asked for", "off: CUDA graphs need CUDA", "B1 to B2"]


def test_a_stage_goes_on_as_it_began_unless_a_flag_or_the_machine_forbids() -> None:
    def refuse_fused(options: TrainingOptions) -> None:
        if options.augment_backend == "fused":
            raise ValueError("no GPU")

    kept, told = {"compile": "on", "augment_backend": "fused", "fold_frozen": True}, list[str]()
    begun = apply_kept_choices(TrainingOptions(), kept, refuse_fused, told.append)
    assert (begun.compile, begun.augment_backend, begun.fold_frozen) == ("on", "auto", False)
    assert told == [
        "the stage began with augment_backend fused, which cannot be here, and goes on by auto: no GPU",
        "the stage began with fold_frozen True and goes on with False, as this command has it",
    ]
    told.clear()
    given = TrainingOptions(compile="off", augment_backend="fused", fold_frozen=True)
    assert apply_kept_choices(given, kept, refuse_fused, told.append) == given
    assert told == ["the stage began with compile on and goes on with off, as this command has it"]
