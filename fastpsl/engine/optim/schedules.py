"""Learning-rate schedules: pure functions from a moment of the plan to a learning rate."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple


class Moment(NamedTuple):
    """A step's place: `step` of the stage's `num_steps`; the stage is epochs `first_epoch` to `first_epoch + epochs` of `all_epochs`."""

    step: int
    num_steps: int
    first_epoch: int
    epochs: int
    all_epochs: int

    @property
    def epoch(self) -> float:
        """Epochs since the run began, in all stages."""
        return self.first_epoch + self.epochs * self.step / self.num_steps


Schedule = Callable[[Moment], float]


def step_drops(lr: float, intervals: Sequence[int], factor: float = 0.1) -> Schedule:
    """Constant rates that drop by `factor` between `intervals`, which are shares of the stage's length.

    PSL, section 4.1: 60 epochs with "20/20/10/10", so drops after 20, 40 and 50 of 60; the rate restarts at each stage
    (the paper does not say so outright; "for each training stage … we train for 60 epochs" is read so).
    Whole numbers are compared, so a drop falls on the first step of its epoch exactly.
    """
    if not intervals or min(intervals) < 1 or lr <= 0:
        raise ValueError(
            f"lr {lr} with intervals {tuple(intervals)}: the rate and each interval must be above 0"
        )
    total = sum(intervals)
    ends = [sum(intervals[: i + 1]) for i in range(len(intervals) - 1)]

    def rate(moment: Moment) -> float:
        return lr * factor ** sum(moment.step * total >= end * moment.num_steps for end in ends)

    return rate


def warmed_up(schedule: Schedule, num_steps: int, factor: float = 1 / 1000) -> Schedule:
    """`schedule`, multiplied in each stage's first `num_steps` steps by what rises in a straight line from `factor` to 1.

    Detectron2's linear warm-up, with its factor.
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
    """Half a cosine from `lr` to 0 over all stages without restart (PSL, section 4.1, "Contrastive learning").

    `warmup_epochs` of linear rise from 0 come first, as in SimCLR's code; PSL says nothing of them.
    """
    if lr <= 0 or warmup_epochs < 0:
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
    """From `lr` to 0 in a straight line over all stages without restart (UIC, section 4.2: "0.1 learning rate decaying linearly")."""
    if lr <= 0:
        raise ValueError(f"lr {lr}: it must be above 0")
    return lambda moment: lr * (1 - moment.epoch / moment.all_epochs)


def inverse_root(lr: float, decay: float) -> Schedule:
    """lr / sqrt(1 + lr * decay * step), steps counted from the stage's first.

    DeepCluster's linear classifiers (eval_linear.py), whose `decay` is their weight decay.
    """
    if lr <= 0 or decay < 0:
        raise ValueError(f"lr {lr} with a decay of {decay}: the rate must be above 0, the decay 0 or more")
    return lambda moment: lr / math.sqrt(1 + lr * decay * moment.step)


def polynomial(lr: float, power: float, end_lr: float = 0.0) -> Schedule:
    """From `lr` to `end_lr` by (1 - step / num_steps) ** power of the stage's steps: mmsegmentation's poly, without restart in a stage."""
    if lr <= end_lr or end_lr < 0 or power <= 0:
        raise ValueError(
            f"lr {lr} to {end_lr} by a power of {power}: the rate must end below its first, at 0 or more, "
            "and the power be above 0"
        )
    return lambda moment: end_lr + (lr - end_lr) * (1 - moment.step / moment.num_steps) ** power
