"""Other seeds for a whole run of the tests: `pytest --add-to-seeds 3` adds 3 to each seed for torch or numpy.

Tests that pass only by luck fail with other seeds. Recipes in processes of their own keep their seeds.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from typing_extensions import override

from fastpsl.pipelines.embedded.draw_sample import sample_paths
from fastpsl.pipelines.embedded.draw_voc import drawn_voc

added = 0


def pytest_configure(config: pytest.Config) -> None:
    add_to_seeds(config.getoption("--add-to-seeds"))


def add_to_seeds(more: int) -> None:
    """Change seeds from here on, in this process and in the ranks that it starts."""
    global added
    added = more
    if not more:
        return
    sample_paths(), drawn_voc()  # they stay in the cache and must be drawn from their own seeds
    seed_torch, seed_numpy = torch.manual_seed, np.random.default_rng

    def manual_seed(seed: int) -> torch.Generator:
        return seed_torch(int(seed) + more)

    def default_rng(seed: Any = None) -> np.random.Generator:
        if isinstance(seed, int):
            return seed_numpy(seed + more)
        return seed_numpy([*seed, more] if isinstance(seed, Sequence) else seed)

    class Generator(torch.Generator):
        @override
        def manual_seed(self, seed: int) -> torch.Generator:
            return super().manual_seed(int(seed) + more)

    torch.manual_seed, torch.Generator = manual_seed, Generator  # type: ignore[misc, assignment]
    np.random.default_rng = default_rng  # type: ignore[assignment]


@pytest.fixture(autouse=True)
def seed_of_its_own() -> None:
    """Set each test's seed, so that its random numbers do not depend on earlier tests."""
    # torch.manual_seed takes 4 ms without a GPU, because it stores the caller's stack for three kinds of
    # device.
    torch.default_generator.manual_seed(added)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(added)


@pytest.fixture
def own_seeds() -> None:
    """Skip tests of images drawn from published seeds if seeds are changed."""
    if added:
        pytest.skip("other seeds draw other pictures")
