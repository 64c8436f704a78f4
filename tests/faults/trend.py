"""A test for growth: the slope of a least-squares line after a warm-up, with its error."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from typing_extensions import override


class Held(NamedTuple):
    """The resources that a process holds."""

    threads: int
    descriptors: int
    resident_bytes: int


def held_by(pid: int) -> Held:
    """Return the resources of a running process; raise OSError if there is none."""
    lines = (line.split(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    status = {name: value.split() for name, value in lines}
    return Held(int(status["Threads"][0]), len(os.listdir(f"/proc/{pid}/fd")), 1024 * int(status["VmRSS"][0]))


class Slope(NamedTuple):
    """The growth per unit of x, and its standard error."""

    value: float
    error: float

    def above(self, bound: float) -> bool:
        """Return whether the slope exceeds `bound` by more than three standard errors."""
        return self.value - 3 * self.error > bound

    @override
    def __str__(self) -> str:
        return f"{self.value:.3g} ± {self.error:.2g}"


def slope(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> Slope:
    """Fit a line through [n] points, n >= 3.

    Points that are close in time are correlated. So the error grows by the square root of (1 + r) / (1 - r),
    where r is the correlation of successive residuals.
    """
    times, values = np.asarray(x, float), np.asarray(y, float)
    times = times - times.mean()
    squares = float(times @ times)
    value = float(times @ values) / squares
    residuals = values - values.mean() - value * times
    residual_squares = float(residuals @ residuals)
    r = (
        min(max(float(residuals[1:] @ residuals[:-1]) / residual_squares, 0.0), 0.99)
        if residual_squares > 0
        else 0.0
    )
    return Slope(value, float(np.sqrt(residual_squares / (len(times) - 2) / squares * (1 + r) / (1 - r))))


def judge_growth(
    x: Sequence[float], held: Sequence[Held], bounds: Mapping[str, float], unit: str
) -> tuple[bool, str]:
    """Return whether anything grows beyond its bound, and all slopes in one line.

    Args:
        x: The times of the measurements.
        held: The measurements.
        bounds: The bound of each resource, per `unit` of x.
        unit: The unit of x.
    """
    grows, words = False, []
    for name, bound in bounds.items():
        values = [getattr(each, name) for each in held]
        growth = slope(x, values)
        grows |= growth.above(bound)
        words.append(f"{name} {growth} per {unit} (bound {bound:g}; {values[0]:,} → {values[-1]:,})")
    return grows, "; ".join(words)
