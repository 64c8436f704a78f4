"""Estimates of how long a training takes from here: its steps, the images that pass forward, its starts.

A stage's steps are measured in the stage itself. What is not measured yet is guessed: the steps of later
stages by what a pass of each block costs, and an image that only passes forward by the steps. A measurement
replaces the guess.
"""

import copy
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from torch import Tensor, nn

from fastpsl.engine.plan import Stage

# The pace is a mean over at most this many log intervals. Fewer would let the estimate jump, and more would
# hide a change of pace for longer (not measured).
PACE_INTERVALS = 20
_KNOWN_BY = 2  # log intervals, because the first one may have what happens once, such as loading of kernels


class WorkAhead(NamedTuple):
    """A stage's place in the run, and what comes after its steps."""

    number: int = 1  # of the stage
    num_stages: int = 1  # of the run
    later_steps: float = 0.0  # the steps of later stages, in steps of this one
    images: int = 0  # that pass forward at the end of this stage, without a step
    later_images: float = 0.0  # forward passes at the ends of later stages, in forward passes of this stage
    image_steps: float = 0.0  # a guess of the time of such a forward pass, in steps of this stage


ONLY_STAGE = WorkAhead()


class Pace:
    """The pace of a stage: seconds per step, as a running mean, and what else takes time.

    `time_left` is None before the first measurement.
    """

    def __init__(self, before: "Pace | None" = None) -> None:
        """Begin a stage; the stage before gives its measured times of a start and of a forward pass."""
        self._intervals: deque[tuple[int, float]] = deque(maxlen=PACE_INTERVALS)
        self._start_s: float = before._start_s if before else 0.0
        self._image_factor: float = before._image_factor if before else 1.0
        self._images_left: int | None = None
        self._image_s: float | None = None
        self._between_s, self._num_epochs = 0.0, 0

    def add(self, num_steps: int, seconds: float) -> None:
        """Add a measurement of steps."""
        self._intervals.append((num_steps, seconds))

    def add_start(self, seconds: float) -> None:
        """Set the seconds from the stage's start to its first step's end; later stages may need as many."""
        self._start_s = seconds

    def add_between(self, seconds: float) -> None:
        """Add work between two steps, such as a pass before an epoch."""
        self._between_s += seconds

    def add_epoch(self) -> None:
        """Count an epoch that has begun, by which the time between steps is divided."""
        self._num_epochs += 1

    def add_images(self, num: int, seconds: float, num_left: int, image_steps: float) -> None:
        """Set the seconds of the forward passes of `num` images at the stage's end; `num_left` more follow.

        With `num` 0, the guess stays. For nine stages on a CPU it was 0.6 to 1.4 times the measurement.
        """
        self._images_left = num_left
        if num == 0:
            return
        self._image_s = seconds / num
        if self._intervals and image_steps:
            self._image_factor = self._image_s / (self._step_s * image_steps)

    @property
    def is_known(self) -> bool:
        """Whether the pace is a mean over two log intervals or more."""
        return len(self._intervals) >= _KNOWN_BY

    @property
    def _step_s(self) -> float:
        return sum(seconds for _, seconds in self._intervals) / sum(num for num, _ in self._intervals)

    def time_left(
        self, num_steps: int, ahead: WorkAhead, num_epochs: int = 0
    ) -> tuple[float | None, float | None]:
        """Return the seconds left in the stage and in the run; None for the run in its last stage.

        Args:
            num_steps: The steps that are left in the stage.
            ahead: What follows them.
            num_epochs: The epochs that begin before the stage ends.
        """
        if not self._intervals:
            return None, None
        step_s = self._step_s
        image_s = self._image_s or step_s * ahead.image_steps * self._image_factor
        images = ahead.images if self._images_left is None else self._images_left
        in_stage = num_steps * step_s + images * image_s
        if self._num_epochs:
            in_stage += num_epochs * self._between_s / self._num_epochs
        if ahead.number == ahead.num_stages:
            return in_stage, None
        starts = (ahead.num_stages - ahead.number) * max(self._start_s - step_s, 0.0)
        return in_stage, in_stage + ahead.later_steps * step_s + ahead.later_images * image_s + starts


def work_ahead(
    stages: Sequence[Stage],
    position: int,
    costs: "Costs",
    inputs_per_image: Callable[[int], int],
    num_images: int,
    max_steps_per_stage: int | None,
    end_images: Callable[[Stage], int] = lambda stage: 0,
    batch_of: Callable[[Stage], int] = lambda stage: 1,
) -> WorkAhead:
    """Estimate the work after the steps of the stage at `position`.

    The rule: a step's time grows with what its blocks cost (`step_cost`), and with the inputs that the task
    makes of an image. It grows with its images and their pixels, too. An image that only passes forward takes
    its share of that.

    Args:
        stages: The stages of the plan.
        position: The place of the present one.
        costs: What the backbone's blocks cost.
        inputs_per_image: Returns the network inputs of an image at a level.
        num_images: The training images.
        max_steps_per_stage: The limit of a stage's steps, if there is one.
        end_images: Returns the number of images that pass forward at the end of a stage.
        batch_of: Returns the images of a stage's step, over all ranks.
    """
    here, later_steps, later_images = stages[position], 0.0, 0.0
    for stage in stages[position + 1 :]:
        share = inputs_per_image(stage.level) / inputs_per_image(here.level) * pixels(stage) / pixels(here)
        num_steps = stage.num_steps or stage.epochs * (num_images // batch_of(stage))
        num_steps = min(num_steps, max_steps_per_stage or num_steps)
        larger = share * batch_of(stage) / batch_of(here)
        later_steps += num_steps * larger * step_cost(costs, stage) / step_cost(costs, here)
        longer = share * forward_cost(costs, stage) / forward_cost(costs, here)
        later_images += end_images(stage) * longer
    image_steps = forward_cost(costs, here) / step_cost(costs, here) / batch_of(here)
    return WorkAhead(position + 1, len(stages), later_steps, end_images(here), later_images, image_steps)


def pixels(stage: Stage) -> int:
    """Return the pixels of a stage's view, or 1 where all stages have the same."""
    return (stage.size_px or 1) ** 2


class Costs(NamedTuple):
    """The cost of a pass of an image, in any unit: of each block, forward and backward, and of the head."""

    forward: Sequence[float]
    backward: Sequence[float]
    head: tuple[float, float] = (0.0, 0.0)


def layer_costs(blocks: Sequence[nn.Module]) -> Costs:
    """Return the number of layers that a pass meets: once forward, and twice as many backward.

    Layers are those with weights of two dimensions or more: convolutions and linear ones. The head counts as
    one.
    """
    nums = [sum(weights.dim() > 1 for weights in block.parameters()) for block in blocks]
    return Costs(nums, [2 * num for num in nums], (1, 2))


def timed_costs(
    blocks: Sequence[nn.Module], images: Tensor, autocast: Callable[[], AbstractContextManager[Any]]
) -> Costs:
    """Return the seconds of a CPU's passes of some images, by copies of the blocks in evaluation mode.

    On a CPU the number of layers tells little: a block of few positions and many channels takes several times
    as long backward as others.

    Args:
        blocks: The blocks, each of which takes what the one before returns.
        images: The images, [N, C, H, W].
        autocast: Makes the context of a pass.
    """
    found = Costs(forward := [], backward := [])
    maps = images
    for block in blocks:
        copied, passes = copy.deepcopy(block).eval().requires_grad_(), list[tuple[float, float]]()
        for _ in range(2):  # the first is warming up
            given = maps.detach().clone().requires_grad_()
            started = time.perf_counter()
            with autocast():
                output = copied(given.view_as(given))  # which a block may compute in place, as no leaf
            passed = time.perf_counter()
            output.float().sum().backward()
            passes.append((passed - started, time.perf_counter() - passed))
        forward.append(passes[-1][0])
        backward.append(passes[-1][1])
        maps = output
    return found


def step_cost(costs: Costs, stage: Stage) -> float:
    """Return a step's cost per image: all blocks and the head forward, learning blocks and head backward."""
    learning = costs.backward[stage.first_learning - 1 : stage.last_block]
    return forward_cost(costs, stage) + sum(learning) + costs.head[1]


def forward_cost(costs: Costs, stage: Stage) -> float:
    """Return the cost of an image's forward pass through the stage's blocks and the head."""
    return sum(costs.forward[: stage.last_block]) + costs.head[0]
