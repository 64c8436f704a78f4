import math

import pytest

from fastpsl.engine.optim.schedules import (
    Moment,
    cosine,
    inverse_root,
    linear_decay,
    polynomial,
    step_drops,
    warmed_up,
)

STEPS_PER_EPOCH = 7


def of_stage(step: int, num_steps: int) -> Moment:
    return Moment(step, num_steps, 0, 60, 180)


@pytest.mark.parametrize(
    ("epoch", "drops"), [(0, 0), (19, 0), (20, 1), (39, 1), (40, 2), (49, 2), (50, 3), (59, 3)]
)
def test_rate_drops_on_the_first_step_of_its_epoch(epoch: int, drops: int) -> None:
    rate = step_drops(0.01, (20, 20, 10, 10))
    num_steps = 60 * STEPS_PER_EPOCH
    for step in (epoch * STEPS_PER_EPOCH, epoch * STEPS_PER_EPOCH + STEPS_PER_EPOCH - 1):
        assert math.isclose(rate(of_stage(step, num_steps)), 0.01 * 0.1**drops)


def test_intervals_stretch_with_the_stage() -> None:
    rate = step_drops(1.0, (20, 20, 10, 10))
    assert [round(math.log10(rate(of_stage(step, 180)))) for step in (59, 60, 119, 120, 149, 150)] == [
        0,
        -1,
        -1,
        -2,
        -2,
        -3,
    ]


@pytest.mark.parametrize(("lr", "intervals"), [(0.0, (1,)), (0.1, ()), (0.1, (1, 0))])
def test_impossible_schedules_are_refused(lr: float, intervals: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="above 0"):
        step_drops(lr, intervals)


def test_a_warm_up_rises_in_a_straight_line_and_then_is_gone() -> None:
    """VISSL's detection in Detectron2: 100 steps from .00002 to .02, and a drop after 17,000 of 25,000."""
    rate = warmed_up(step_drops(0.02, (17, 8)), 100)
    steps = (0, 1, 50, 99, 100, 16_999, 17_000, 24_999)
    expected = (2e-5, 0.02 * 0.01099, 0.02 * 0.5005, 0.02 * 0.99001, 0.02, 0.02, 0.002, 0.002)
    for step, value in zip(steps, expected, strict=True):
        assert math.isclose(rate(of_stage(step, 25_000)), value), step


def test_a_warm_up_of_no_steps_changes_nothing() -> None:
    plain = step_drops(0.1, (3, 1))
    rate = warmed_up(plain, 0)
    assert all(rate(of_stage(step, 8)) == plain(of_stage(step, 8)) for step in range(8))


@pytest.mark.parametrize(("num_steps", "factor"), [(-1, 0.1), (10, -0.1), (10, 1.5)])
def test_impossible_warm_ups_are_refused(num_steps: int, factor: float) -> None:
    with pytest.raises(ValueError, match="warm-up"):
        warmed_up(step_drops(0.1, (1,)), num_steps, factor)


def test_one_cosine_goes_through_all_stages() -> None:
    """PSL: 60, 70 and 70 epochs "with a cosine decay schedule without restart"."""
    rate = cosine(0.3)
    rates = [
        rate(Moment(epoch * 5 + i, epochs * 5, first, epochs, 200))
        for first, epochs in ((0, 60), (60, 70), (130, 70))
        for epoch in range(epochs)
        for i in range(5)
    ]
    assert len(rates) == 1000
    for step, value in enumerate(rates):
        assert math.isclose(value, 0.15 * (1 + math.cos(math.pi * step / 1000)), abs_tol=1e-12), step
    assert rate(Moment(350, 350, 130, 70, 200)) == pytest.approx(0, abs=1e-12)


def test_warm_up_rises_in_a_line_and_the_cosine_follows_it() -> None:
    rate = cosine(0.3, warmup_epochs=10)
    assert rate(Moment(0, 60, 0, 60, 200)) == 0
    assert rate(Moment(5, 60, 0, 60, 200)) == pytest.approx(0.15)
    assert rate(Moment(10, 60, 0, 60, 200)) == pytest.approx(0.3)
    assert rate(Moment(45, 70, 60, 70, 200)) == pytest.approx(0.15)
    with pytest.raises(ValueError, match="above 0"):
        cosine(0.0)
    with pytest.raises(ValueError, match="0 or more"):
        cosine(0.1, -1)


@pytest.mark.parametrize(
    ("epoch", "expected"), [(0, 0.1), (1, 0.0998), (125, 0.075), (250, 0.05), (400, 0.02), (499, 0.0002)]
)
def test_a_line_falls_to_0(epoch: int, expected: float) -> None:
    """UIC, section 4.2: 500 epochs with "0.1 learning rate decaying linearly"."""
    steps = 500 * STEPS_PER_EPOCH
    rate = linear_decay(0.1)(Moment(epoch * STEPS_PER_EPOCH, steps, 0, 500, 500))
    assert rate == pytest.approx(expected, rel=1e-9)


def test_a_line_falls_at_each_step_through_all_stages() -> None:
    rate = linear_decay(0.1)
    rates = [
        rate(Moment(step, epochs * 5, first, epochs, 200))
        for first, epochs in ((0, 60), (60, 70), (130, 70))
        for step in range(epochs * 5)
    ]
    assert rates == pytest.approx([0.1 - 0.0001 * step for step in range(1000)], rel=1e-9)
    with pytest.raises(ValueError, match="above 0"):
        linear_decay(0.0)


@pytest.mark.parametrize(
    ("lr", "decay", "step", "expected"),
    [
        (0.01, 1e-7, 0, 0.01),
        (0.01, 1e-7, 450_000, 0.01 / math.sqrt(1.00045)),
        (0.01, 1e-4, 1_000_000, 0.01 / math.sqrt(2)),
        (2.0, 0.5, 3, 1.0),
        (2.0, 0.5, 8, 2 / 3),
        (2.0, 0.0, 8, 2.0),
    ],
)
def test_the_inverse_root_counts_steps(lr: float, decay: float, step: int, expected: float) -> None:
    """DeepCluster's rule does not depend on the stage's length. Expected values are computed by hand."""
    for num_steps in (step + 1, 10 * step + 1):
        assert inverse_root(lr, decay)(Moment(step, num_steps, 0, 90, 90)) == pytest.approx(
            expected, rel=1e-9
        )


@pytest.mark.parametrize(("lr", "decay"), [(0.0, 0.1), (-1.0, 0.1), (0.1, -1e-9)])
def test_impossible_inverse_roots_are_refused(lr: float, decay: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        inverse_root(lr, decay)


def test_a_polynomial_falls_to_its_end() -> None:
    """mmsegmentation's schedule: .01 to .0001 over 20,000 steps by a power of .9."""
    rate = polynomial(0.01, 0.9, 1e-4)
    for step, share in ((0, 1.0), (5_000, 0.75**0.9), (10_000, 0.5**0.9), (19_999, 5e-5**0.9)):
        assert math.isclose(rate(of_stage(step, 20_000)), 1e-4 + 0.0099 * share), step
    assert math.isclose(polynomial(1.0, 1.0)(of_stage(3, 4)), 0.25)


@pytest.mark.parametrize(
    ("lr", "power", "end_lr"), [(0.0, 0.9, 0.0), (0.1, 0.0, 0.0), (0.1, 0.9, 0.1), (0.1, 1, -1)]
)
def test_impossible_polynomials_are_refused(lr: float, power: float, end_lr: float) -> None:
    with pytest.raises(ValueError, match="power"):
        polynomial(lr, power, end_lr)
