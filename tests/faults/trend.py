"""Whether something grows: a straight line by least squares, after a warm-up, and how sure its slope is."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from typing_extensions import override


class Held(NamedTuple):
    """What a process holds."""

    threads: int
    descriptors: int
    resident_bytes: int


def held_by(pid: int) -> Held:
    """Of a process that is there; OSError where it is not."""
    lines = (line.split(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    status = {name: value.split() for name, value in lines}
    return Held(int(status["Threads"][0]), len(os.listdir(f"/proc/{pid}/fd")), 1024 * int(status["VmRSS"][0]))


class Slope(NamedTuple):
    """Growth per unit of x, and its standard error."""

    value: float
    error: float

    def above(self, bound: float) -> bool:
        """Whether it is above `bound` beyond doubt: by three standard errors."""
        return self.value - 3 * self.error > bound

    @override
    def __str__(self) -> str:
        return f"{self.value:.3g} ± {self.error:.2g}"


def slope(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> Slope:
    """Of the line through [n] points, n >= 3. Neighbours in time are alike: the error grows with the residuals' correlation r from one to
    the next, by the root of (1 + r) / (1 - r).
    """
    times, values = np.asarray(x, float), np.asarray(y, float)
    times = times - times.mean()
    squares = float(times @ times)
    value = float(times @ values) / squares
    residuals = values - values.mean() - value * times
    left = float(residuals @ residuals)
    r = min(max(float(residuals[1:] @ residuals[:-1]) / left, 0.0), 0.99) if left > 0 else 0.0
    return Slope(value, float(np.sqrt(left / (len(times) - 2) / squares * (1 + r) / (1 - r))))


def told(
    x: Sequence[float], held: Sequence[Held], bounds: Mapping[str, float], unit: str
) -> tuple[bool, str]:
    """(whether anything grows beyond its bound, the slopes of all in one line). bounds: of each of `Held`'s, per `unit` of x."""
    grows, words = False, []
    for name, bound in bounds.items():
        found = slope(x, [getattr(each, name) for each in held])
        grows |= found.above(bound)
        words.append(
            f"{name} {found} per {unit} (bound {bound:g}; {getattr(held[0], name):,} → {getattr(held[-1], name):,})"
        )
    return grows, "; ".join(words)
