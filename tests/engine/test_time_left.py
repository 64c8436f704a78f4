"""How long a training takes from here: the rule for what is not measured, and a whole run on a fake clock."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fastpsl.console.screen import Numbers
from fastpsl.engine import reporter as reporter_module
from fastpsl.engine.plan import Stage, make_plan
from fastpsl.engine.reporter import Reporter
from fastpsl.engine.stage_blocks import StepMetrics
from fastpsl.engine.time_left import (
    ONLY_STAGE,
    PACE_INTERVALS,
    Costs,
    Pace,
    WorkAhead,
    layer_costs,
    step_cost,
    work_ahead,
)
from fastpsl.models.factory import make_backbone
from tests.engine.tiny import one_process

PLAN = make_plan("psl", (2, 2, 4))


def layers() -> Costs:
    return layer_costs(make_backbone("resnet50").blocks())


def test_a_step_costs_a_pass_forward_and_two_backward_where_it_learns() -> None:
    # ResNet-50's blocks have 1, 10, 13, 19 and 10 convolutions.
    assert [step_cost(layers(), stage) for stage in PLAN] == [
        (1 + 10 + 13) + 2 * (1 + 10 + 13) + 3,
        (1 + 10 + 13 + 19) + 2 * (10 + 13 + 19) + 3,
        (1 + 10 + 13 + 19 + 10) + 2 * (13 + 19 + 10) + 3,
    ]
    head_alone = Stage("linear", 1, 6, 5, 1)
    assert step_cost(layers(), head_alone) == 53 + 3


def test_later_stages_count_in_steps_of_this_one() -> None:
    costs = [step_cost(layers(), stage) for stage in PLAN]
    ahead = work_ahead(PLAN, 0, layers(), lambda level: 1, 10, None)
    assert ahead[:3] == (1, 3, pytest.approx((20 * costs[1] + 40 * costs[2]) / costs[0]))
    ahead = work_ahead(PLAN, 1, layers(), lambda level: 1, 10, 25)
    assert ahead[:3] == (2, 3, pytest.approx(25 * costs[2] / costs[1]))
    # A step of eight inputs of each image takes four times as long as one of two.
    ahead = work_ahead(PLAN, 1, layers(), {2: 2, 3: 8}.__getitem__, 10, None)
    assert ahead[:3] == (2, 3, pytest.approx(160 * costs[2] / costs[1]))
    assert work_ahead(PLAN, 2, layers(), lambda level: 1, 10, None)[:5] == (3, 3, 0, 0, 0)
    # 80 images are 10 steps of 8, and 5 of 16 that take twice as long; 4 times the pixels, 4 times as long.
    sized = (replace(PLAN[0], size_px=16, batch_size=8), replace(PLAN[1], size_px=32, batch_size=16))
    batch_of = lambda stage: stage.batch_size
    ahead = work_ahead(sized, 0, layers(), lambda level: 1, 80, None, lambda stage: 3, batch_of)
    assert ahead.later_steps == pytest.approx(2 * 5 * 2 * 4 * costs[1] / costs[0])
    assert ahead.later_images == pytest.approx(3 * 4 * 44 / 25)
    assert ahead.image_steps == pytest.approx(25 / 75 / 8)
    in_steps = (PLAN[0], Stage("S2", 2, 2, 4, 0, num_steps=7))
    ahead = work_ahead(in_steps, 0, layers(), lambda level: 1, 10, None)
    assert ahead.later_steps == pytest.approx(7 * costs[1] / costs[0])


def test_images_that_pass_forward_count_by_the_layers_that_they_pass() -> None:
    """A stage of level 2 validates 50 images of four inputs each, others 100 of one."""
    inputs, images = {1: 1, 2: 4, 3: 1}.__getitem__, {1: 100, 2: 50, 3: 100}
    ahead = work_ahead(
        PLAN, 0, layers(), inputs, 80, None, lambda stage: images[stage.level], lambda stage: 8
    )
    assert (ahead.images, ahead.later_images) == (100, pytest.approx((4 * 50 * 44 + 100 * 54) / 25))
    assert ahead.image_steps == pytest.approx(25 / (25 + 2 * 25) / 8)


def test_nothing_is_left_of_a_pace_that_was_not_measured() -> None:
    pace = Pace()
    assert pace.time_left(100, WorkAhead(1, 3, 50.0)) == (None, None)
    pace.add(10, 5.0)
    assert pace.time_left(100, WorkAhead(1, 3, 50.0)) == (50.0, 75.0)
    pace.add(5, 10.0)
    assert pace.time_left(30, WorkAhead(2, 3, 15.0)) == (30.0, 45.0)
    assert pace.time_left(30, WorkAhead(3, 3)) == (30.0, None)
    assert pace.time_left(0, ONLY_STAGE) == (0.0, None)
    for _ in range(PACE_INTERVALS):
        pace.add(1, 4.0)
    assert pace.time_left(1, ONLY_STAGE) == (4.0, None)


def test_what_was_measured_replaces_the_guess_also_in_the_next_stage() -> None:
    """Images are guessed at 2 s, and take 3 s; a start takes 11 s, of which one is its step's."""
    pace, ahead = Pace(), WorkAhead(1, 2, 50.0, 10, 20.0, 2.0)
    pace.add_start(11.0)
    pace.add(10, 10.0)
    assert pace.time_left(5, ahead) == (5 + 20, 5 + 20 + 50 + 40 + 10)
    pace.add_images(0, 0.0, 9, 2.0)  # the first batch tells what is left
    assert pace.time_left(0, ahead) == (18, 18 + 50 + 40 + 10)
    pace.add_images(4, 12.0, 6, 2.0)
    assert pace.time_left(0, ahead) == (18, 18 + 50 + 60 + 10)
    pace = Pace(pace)
    assert pace.time_left(5, ahead) == (None, None)
    pace.add(1, 2.0)
    assert pace.time_left(5, ahead) == (10 + 60, 10 + 60 + 100 + 120 + 9)
    pace.add_between(4.0)  # before the epoch that follows, but none is over yet
    assert pace.time_left(5, ahead, 3)[0] == 70
    pace.add_epoch()
    assert pace.time_left(5, ahead, 3)[0] == 82


class Simulation:
    """A run on a clock of its own, whose reporter tells at each moment how long it takes from there."""

    spe, num_steps, batch_size = 20, 60, 32
    loader_start = 6  # the time of the first validated batch, in those of others

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.told = 0.0, list[tuple[float, float]]()
        monkeypatch.setattr(reporter_module.time, "perf_counter", lambda: self.now)
        self.reporter = Reporter(
            folder, one_process(), batch_size=self.batch_size, log_steps=5, resumed_run_step=0,
            tensorboard=False, wandb=False, config={},
        )  # fmt: skip
        screen = self.reporter.screen
        assert screen
        monkeypatch.setattr(screen, "begin", self.tell)
        monkeypatch.setattr(screen, "show", self.tell)
        monkeypatch.setattr(screen, "expect", lambda eta_s, run_eta_s: self.note(eta_s, run_eta_s))

    def tell(self, numbers: Numbers) -> None:
        self.note(numbers.eta_s, numbers.run_eta_s)

    def note(self, eta_s: float | None, run_eta_s: float | None) -> None:
        left_s = eta_s if run_eta_s is None else run_eta_s
        if left_s is not None:
            self.told.append((self.now, left_s))

    def run(
        self, step_s: Sequence[float], image_s: Sequence[float], *, start_s: float, between_s: float = 0.0,
        num_images: int = 1984, begin: tuple[int, int] = (0, 0),
    ) -> list[float]:  # fmt: skip
        """Return by what factor each told time is wrong; steps and validated images take what is given."""
        for position in range(begin[0], len(PLAN)):
            first = begin[1] if position == begin[0] else 0
            ahead = work_ahead(
                PLAN, position, layers(), lambda level: 1, self.spe * self.batch_size, self.num_steps,
                lambda stage: num_images, lambda stage: self.batch_size,
            )  # fmt: skip
            self.reporter.stage_begins(PLAN[position], first, self.num_steps, self.spe, ahead)
            self.now += start_s
            for number in range(first + 1, self.num_steps + 1):
                if (number - 1) % self.spe == 0:
                    with self.reporter.off_the_clock():
                        self.now += between_s
                self.now += step_s[position]
                values = StepMetrics(("loss",), torch.tensor([(1.0, 1.0), (0.0, 1.0)]))
                self.reporter.step(number, number, 0.1, values)
            batches = (SimpleNamespace(bad=[]) for _ in range(-(-num_images // self.batch_size)))
            images = self.reporter.at_the_end(batches, self.batch_size, num_images)  # type: ignore[arg-type]
            for number, _ in enumerate(images):
                self.now += image_s[position] * self.batch_size * (1 if number else self.loader_start)
        self.reporter.close()
        return [left_s / (self.now - at) for at, left_s in self.told if self.now > at]


# Layers say that steps take 1, 1.73 and 1.87 s, and an image 0.01, 0.018 and 0.023 s.
@pytest.mark.parametrize("begin", [(0, 0), (0, 33), (1, 45), (2, 7)])
@pytest.mark.parametrize(
    ("step_s", "image_s"),
    [
        ((1.0, 1.73, 1.87), (0.0104, 0.0183, 0.0225)),
        ((1.0, 1.6, 2.0), (0.0135, 0.022, 0.032)),  # the validation is slower than guessed
        ((0.1, 0.16, 0.2), (0.0009, 0.0012, 0.0018)),  # and faster
    ],
)
@pytest.mark.parametrize(("start_s", "between_s"), [(0.0, 0.0), (400.0, 0.0), (10.0, 4.0)])  # in steps of S1
def test_a_told_time_is_wrong_by_a_half_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step_s: tuple[float, ...], image_s: tuple[float, ...],
    start_s: float, between_s: float, begin: tuple[int, int],
) -> None:  # fmt: skip
    """Also the first one, before a validated image was seen, and the first after a resume."""
    simulation = Simulation(tmp_path, monkeypatch)
    start_s, between_s = start_s * step_s[0], between_s * step_s[0]
    factors = simulation.run(step_s, image_s, start_s=start_s, between_s=between_s, begin=begin)
    assert factors and 1 / 1.5 < min(factors) <= max(factors) < 1.5
