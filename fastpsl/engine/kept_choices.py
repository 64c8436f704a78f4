"""The choices of how a stage is computed, made at its start and stored in its checkpoints.

Compiled, fused and folded computations round differently. A stage that resumes with `auto` therefore keeps
the choice of its start, even if a later version or another GPU would choose differently. An explicit flag
overrides it.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fastpsl.engine.options import TrainingOptions
from fastpsl.engine.plan import Stage
from fastpsl.engine.train_step import TrainStep
from fastpsl.pipelines.views import ViewSpec

# The options for which "auto" makes a choice.
AUTOMATIC = ("compile", "augment_backend", "decoder")


def choices_of(train_step: TrainStep) -> dict[str, Any]:
    """Return the stage's choices under their options' names, for checkpoints."""
    return {
        "compile": train_step.step_choice.mode,
        "augment_backend": train_step.augment.path,
        "fold_frozen": train_step.fold_frozen,
    }


def report_choices(
    train_step: TrainStep,
    stage: Stage,
    views: Sequence[ViewSpec],
    kept: Collection[str],
    log: Callable[[str, str], None],
) -> None:
    """Report how a stage is computed, and why.

    Args:
        train_step: The stage's step.
        stage: The stage.
        views: Its views; without any, nothing is augmented.
        kept: The options that a checkpoint decides.
        log: Called with the name of each choice, and with the choice in words.
    """
    augment, step, frozen = train_step.augment, train_step.step_choice, stage.first_learning - 1
    graph = train_step.graph_choice
    choices = [("compile", step.mode, step.reason), ("graph", graph.value, graph.reason)]
    if views:
        choices.insert(0, ("augment_backend", augment.path, augment.reason))
    for name, value, reason in choices:
        log(name.replace("_", " "), f"{value}: {'as the stage began' if name in kept else reason}")
    if train_step.fold_frozen:
        log("folded:", f"{'B1 to ' if frozen > 1 else ''}{f'B{frozen}' if frozen else 'no block is frozen'}")


def apply_kept_choices(
    options: TrainingOptions,
    kept: Mapping[str, Any],
    check: Callable[[TrainingOptions], None],
    log: Callable[[str], None],
) -> TrainingOptions:
    """Return the options for a stage that resumes from a checkpoint: "auto" becomes the stored choice.

    Args:
        options: The options of this command.
        kept: The stored choices.
        check: Raises ValueError for options that this machine cannot run. Such a choice stays "auto".
        log: Reports differences from the start of the stage.
    """
    for name, value in kept.items():
        option = getattr(options, name)
        if name in AUTOMATIC and option == "auto":
            as_begun = replace(options, **{name: value})
            try:
                check(as_begun)
                options = as_begun
            except ValueError as error:
                log(
                    f"the stage began with {name} {value}, which cannot be here, and goes on by auto: {error}"
                )
        elif option != value:
            log(f"the stage began with {name} {value} and goes on with {option}, as this command has it")
    return options
