"""Images on which pretext tasks can be learned in seconds."""

from pathlib import Path

import numpy as np
import pytest

from fastpsl.pipelines.embedded.backgrounds import landscape
from tests.pipelines.written import write_raw


@pytest.fixture(scope="session")
def landscapes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Draw 480 and 160 landscapes of 32 px. What is hidden in one, or its colour, follows from the rest."""
    random, folder = np.random.default_rng(0), tmp_path_factory.mktemp("landscapes")
    for name, num in (("train", 480), ("val", 160)):
        images = [
            landscape(random, 32, 32, int(random.integers(12, 20)), i % 2 == 0, random.random()).clip(0, 255)
            for i in range(num)
        ]
        write_raw(folder / name, np.stack(images).astype(np.uint8), [0] * num)
    return folder / "train", folder / "val"
