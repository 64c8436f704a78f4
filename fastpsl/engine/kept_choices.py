"""How a stage is computed is chosen at its start and kept in its checkpoints.

Compiled and eager, fused and one after the other, folded and not round differently: a stage that was begun in one way and resumed
by `auto` goes on in it, also where a later version, or another GPU, would choose another. A flag that asks for another wins.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from fastpsl.engine.options import RunOptions
from fastpsl.engine.train_step import TrainStep

# What "auto" may choose.
AUTOMATIC = ("step", "augment")


def choices_of(train_step: TrainStep) -> dict[str, Any]:
    """By the option's name; for checkpoints."""
    return {
        "step": train_step.step_choice.mode,
        "augment": train_step.augment.path,
        "fold_frozen": train_step.fold_frozen,
    }


def with_kept_choices(
    options: RunOptions,
    kept: Mapping[str, Any],
    check: Callable[[RunOptions], None],
    say: Callable[[str], None],
) -> RunOptions:
    """`options` for a stage that goes on from a checkpoint with the choices `kept`: what is "auto" is as it was.

    check: ValueError where options cannot be had on this machine; such a choice is made anew. say: told what differs.
    """
    for name, value in kept.items():
        asked = getattr(options, name)
        if name in AUTOMATIC and asked == "auto":
            as_begun = replace(options, **{name: value})
            try:
                check(as_begun)
                options = as_begun
            except ValueError as error:
                say(
                    f"the stage began with {name} {value}, which cannot be here, and goes on by auto: {error}"
                )
        elif asked != value:
            say(f"the stage began with {name} {value} and goes on with {asked}, as this command has it")
    return options
