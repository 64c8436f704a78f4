"""The time left in a stage and in the run: the measured pace of the stage, times the work to come."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import nn

from fastpsl.engine.plan import Stage

# The pace is a mean over at most this many log intervals.
PACE_INTERVALS = 20


class WorkAhead(NamedTuple):
    """A stage's place in the run, and what comes after it.

    Attributes:
        number: The number of the stage, from 1.
        num_stages: The number of stages of the run.
        later_steps: The work of later stages, in steps of this one.
    """

    number: int = 1
    num_stages: int = 1
    later_steps: float = 0.0


ONLY_STAGE = WorkAhead()


class Pace:
    """The measured seconds per step of a stage, and the time left by it. Nothing is left of it unmeasured."""

    def __init__(self) -> None:
        self._intervals: deque[tuple[int, float]] = deque(maxlen=PACE_INTERVALS)

    def add(self, num_steps: int, seconds: float) -> None:
        """Add a measurement."""
        self._intervals.append((num_steps, seconds))

    def time_left(self, num_steps: int, ahead: WorkAhead) -> tuple[float | None, float | None]:
        """Return the seconds left in the stage and in the run.

        Args:
            num_steps: The number of steps left in the stage.
            ahead: The work after it. In the last stage, the run has no time of its own: None.
        """
        if not self._intervals:
            return None, None
        step_s = sum(seconds for _, seconds in self._intervals) / sum(num for num, _ in self._intervals)
        in_run = (num_steps + ahead.later_steps) * step_s
        return num_steps * step_s, in_run if ahead.number < ahead.num_stages else None


def work_ahead(
    stages: Sequence[Stage],
    position: int,
    blocks: Sequence[nn.Module],
    inputs_per_image: Callable[[int], int],
    steps_per_epoch: int,
    max_steps_per_stage: int | None,
) -> WorkAhead:
    """Estimate the work of the stages after the one at `position`.

    The rule: a step's time grows with the layers that it passes (`step_cost`), and with the inputs that the
    task makes of an image. Passes between steps, such as the validation pass, are not counted.

    Args:
        stages: The stages of the run.
        position: The index of the present stage, from 0.
        blocks: The blocks of the backbone.
        inputs_per_image: The task's number of inputs per image, given a level.
        steps_per_epoch: The present stage's number of steps per epoch.
        max_steps_per_stage: The limit for all stages, or None.
    """
    here, later_steps = stages[position], 0.0
    for stage in stages[position + 1 :]:
        share = inputs_per_image(stage.level) / inputs_per_image(here.level)
        num_steps = stage.num_steps or stage.epochs * steps_per_epoch
        num_steps = min(num_steps, max_steps_per_stage or num_steps)
        later_steps += num_steps * share * step_cost(blocks, stage) / step_cost(blocks, here)
    return WorkAhead(position + 1, len(stages), later_steps)


def step_cost(blocks: Sequence[nn.Module], stage: Stage) -> int:
    """Count how often a step passes a layer: once forward, and twice more, backward, where it learns.

    Layers are those with weights of two dimensions or more: convolutions and linear ones. The head counts as
    one that learns.
    """
    sizes = [sum(weights.dim() > 1 for weights in block.parameters()) for block in blocks[: stage.last_block]]
    return sum(sizes) + 2 * sum(sizes[stage.first_learning - 1 :]) + 3
