"""The time left in a run: the measured pace, and the rule for the stages to come."""

import pytest
from torch import nn

from fastpsl.engine.plan import Stage, make_plan
from fastpsl.engine.reporter import ONLY_STAGE, PACE_INTERVALS, Pace, WorkAhead, step_cost, work_ahead
from fastpsl.models.factory import make_backbone

PLAN = make_plan("psl", (2, 2, 4))


def blocks() -> list[nn.Module]:
    return make_backbone("resnet50").blocks()


def test_a_step_costs_a_pass_forward_and_two_backward_where_it_learns() -> None:
    # ResNet-50's blocks have 1, 10, 13, 19 and 10 convolutions.
    assert [step_cost(blocks(), stage) for stage in PLAN] == [
        (1 + 10 + 13) + 2 * (1 + 10 + 13) + 3,
        (1 + 10 + 13 + 19) + 2 * (10 + 13 + 19) + 3,
        (1 + 10 + 13 + 19 + 10) + 2 * (13 + 19 + 10) + 3,
    ]
    head_alone = Stage("linear", 1, 6, 5, 1)
    assert step_cost(blocks(), head_alone) == 53 + 3


def test_later_stages_count_in_steps_of_this_one() -> None:
    costs = [step_cost(blocks(), stage) for stage in PLAN]
    ahead = work_ahead(PLAN, 0, blocks(), lambda level: 1, 10, None)
    assert ahead == (1, 3, pytest.approx((20 * costs[1] + 40 * costs[2]) / costs[0]))
    ahead = work_ahead(PLAN, 1, blocks(), lambda level: 1, 10, 25)
    assert ahead == (2, 3, pytest.approx(25 * costs[2] / costs[1]))
    # A step of eight inputs of each image takes four times as long as one of two.
    ahead = work_ahead(PLAN, 1, blocks(), {2: 2, 3: 8}.__getitem__, 10, None)
    assert ahead == (2, 3, pytest.approx(160 * costs[2] / costs[1]))
    assert work_ahead(PLAN, 2, blocks(), lambda level: 1, 10, None) == (3, 3, 0)
    in_steps = (PLAN[0], Stage("S2", 2, 2, 4, 0, num_steps=7))
    assert work_ahead(in_steps, 0, blocks(), lambda level: 1, 10, None).later_steps == pytest.approx(
        7 * costs[1] / costs[0]
    )


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
