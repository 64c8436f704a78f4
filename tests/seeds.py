"""Other seeds for a whole run of the tests: `pytest --add-to-seeds 3` adds 3 to each that a test gives to torch or numpy.

What passes by the luck of one seed fails with another. Seeds that are given in other processes stay as they are.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--add-to-seeds", type=int, default=0, metavar="N", help="other seeds: each plus N")


def pytest_configure(config: pytest.Config) -> None:
    more = config.getoption("--add-to-seeds")
    if not more:
        return
    seed_torch, seed_numpy = torch.manual_seed, np.random.default_rng

    def manual_seed(seed: int) -> torch.Generator:
        return seed_torch(int(seed) + more)

    def default_rng(seed: Any = None) -> np.random.Generator:
        if isinstance(seed, int):
            return seed_numpy(seed + more)
        return seed_numpy([*seed, more] if isinstance(seed, Sequence) else seed)

    class Generator(torch.Generator):
        def manual_seed(self, seed: int) -> torch.Generator:
            return super().manual_seed(int(seed) + more)

    torch.manual_seed, torch.Generator = manual_seed, Generator  # type: ignore[misc, assignment]
    np.random.default_rng = default_rng  # type: ignore[assignment]


@pytest.fixture(autouse=True)
def seed_of_its_own() -> None:
    """A test has the numbers that it would have alone, whichever came before it."""
    torch.manual_seed(0)
