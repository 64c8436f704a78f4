"""Learning-rate schedules: pure functions from a moment of the plan to a learning rate."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple


class Moment(NamedTuple):
    """The position of a step in the plan.

    Attributes:
        step: The step, from 0 in each stage.
        num_steps: The number of the stage's steps.
        first_epoch: The stage's first epoch, counted over all stages.
        epochs: The number of the stage's epochs; of a stage whose length is in steps, its steps
            (`Stage.max_epochs`).
        all_epochs: The sum of `epochs` over all stages.
        stage: The stage, from 0.
    """

    step: int
    num_steps: int
    first_epoch: int
    epochs: int
    all_epochs: int
    stage: int = 0

    @property
    def epoch(self) -> float:
        """The epochs since the start of the run, over all stages."""
        return self.first_epoch + self.epochs * self.step / self.num_steps


Schedule = Callable[[Moment], float]


def step_drops(lr: float, intervals: Sequence[int], factor: float = 0.1) -> Schedule:
    """Return a schedule that multiplies the rate by `factor` after each of `intervals` but the last.

    PSL, section 4.1, trains 60 epochs with "20/20/10/10", so the rate drops after 20, 40 and 50. It restarts
    at each stage, which the paper implies by "for each training stage … we train for 60 epochs". Whole
    numbers are compared, so that a drop occurs exactly at the first step of its epoch.

    Args:
        lr: The first rate.
        intervals: The lengths of the intervals, as shares of the stage's length.
        factor: The factor of each drop.

    Returns:
        The schedule.

    Raises:
        ValueError: `lr` or an interval is not positive.
    """
    if not intervals or min(intervals) < 1 or not lr > 0:
        raise ValueError(
            f"lr {lr} with intervals {tuple(intervals)}: the rate and each interval must be above 0"
        )
    total = sum(intervals)
    ends = [sum(intervals[: i + 1]) for i in range(len(intervals) - 1)]

    def rate(moment: Moment) -> float:
        return lr * factor ** sum(moment.step * total >= end * moment.num_steps for end in ends)

    return rate


def by_stage(schedules: Sequence[Schedule]) -> Schedule:
    """Return a schedule that follows another one of several schedules in each stage.

    Args:
        schedules: A schedule for each stage, or one for all.

    Returns:
        The schedule.
    """
    return schedules[0] if len(schedules) == 1 else lambda moment: schedules[moment.stage](moment)


def warmed_up(schedule: Schedule, num_steps: int, factor: float = 1 / 1000) -> Schedule:
    """Scale a schedule by a linear rise from `factor` to 1 in the first `num_steps` steps of each stage.

    This is Detectron2's linear warm-up, with its factor.

    Args:
        schedule: The schedule.
        num_steps: The number of steps of the rise.
        factor: The first factor, in [0, 1].

    Raises:
        ValueError: `num_steps` or `factor` is out of range.
    """
    if num_steps < 0 or not 0 <= factor <= 1:
        raise ValueError(
            f"a warm-up of {num_steps} steps from {factor}: the steps must be 0 or more, the factor within "
            "0 and 1"
        )

    def rate(moment: Moment) -> float:
        share = min(moment.step / num_steps, 1.0) if num_steps else 1.0
        return schedule(moment) * (factor + (1 - factor) * share)

    return rate


def cosine(lr: float, warmup_epochs: float = 0.0) -> Schedule:
    """Return half a cosine from `lr` to 0 over all stages without restart.

    PSL, section 4.1, uses it for "Contrastive learning". SimCLR's code has a linear warm-up before it, which
    PSL does not mention.

    Args:
        lr: The highest rate.
        warmup_epochs: Epochs in which the rate rises from 0, counted over all stages.

    Returns:
        The schedule.

    Raises:
        ValueError: `lr` is not positive, or `warmup_epochs` is negative.
    """
    if not lr > 0 or warmup_epochs < 0:
        raise ValueError(
            f"lr {lr} with {warmup_epochs} epochs of warm-up: the rate must be above 0, the warm-up 0 or more"
        )

    def rate(moment: Moment) -> float:
        if moment.epoch < warmup_epochs:
            return lr * moment.epoch / warmup_epochs
        left = max(moment.all_epochs - warmup_epochs, 1e-9)
        return lr * 0.5 * (1 + math.cos(math.pi * (moment.epoch - warmup_epochs) / left))

    return rate


def linear_decay(lr: float) -> Schedule:
    """Return a linear schedule from `lr` to 0 over all stages without restart.

    Source: UIC, section 4.2, "0.1 learning rate decaying linearly".

    Args:
        lr: The first rate.

    Returns:
        The schedule.

    Raises:
        ValueError: `lr` is not positive.
    """
    if not lr > 0:
        raise ValueError(f"lr {lr}: it must be above 0")
    return lambda moment: lr * (1 - moment.epoch / moment.all_epochs)


def inverse_root(lr: float, decay: float) -> Schedule:
    """Return the schedule lr / sqrt(1 + lr * decay * step), with steps counted in each stage.

    DeepCluster uses it for linear classifiers (eval_linear.py), with their weight decay as `decay`.

    Raises:
        ValueError: `lr` is not positive, or `decay` is negative.
    """
    if not lr > 0 or decay < 0:
        raise ValueError(f"lr {lr} with a decay of {decay}: the rate must be above 0, the decay 0 or more")
    return lambda moment: lr / math.sqrt(1 + lr * decay * moment.step)


def polynomial(lr: float, power: float, end_lr: float = 0.0) -> Schedule:
    """Return a schedule from `lr` to `end_lr` by (1 - step / num_steps) ** power in each stage.

    This is mmsegmentation's "poly".

    Raises:
        ValueError: A value is out of range.
    """
    if lr <= end_lr or end_lr < 0 or power <= 0:
        raise ValueError(
            f"lr {lr} to {end_lr} by a power of {power}: the rate must end below its first, at 0 or more, "
            "and the power be above 0"
        )
    return lambda moment: end_lr + (lr - end_lr) * (1 - moment.step / moment.num_steps) ** power
