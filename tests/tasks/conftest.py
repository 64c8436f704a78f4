"""Images on which pretext tasks can be learned in seconds."""

from pathlib import Path

import numpy as np
import pytest

from fastpsl.pipelines.beton.encode import Target
from fastpsl.pipelines.beton.write import write_beton
from fastpsl.pipelines.data.source import Sample
from fastpsl.pipelines.sample.landscapes import landscape


@pytest.fixture(scope="session")
def landscapes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Draw 480 and 160 landscapes of 32 px. What is hidden in one, or its colour, follows from the rest."""
    random, folder = np.random.default_rng(0), tmp_path_factory.mktemp("landscapes")
    for name, num in (("train", 480), ("val", 160)):
        images = [
            landscape(random, 32, 32, int(random.integers(12, 20)), i % 2 == 0, random.random()).clip(0, 255)
            for i in range(num)
        ]
        samples = (Sample(f"{i}", image.astype(np.uint8), 0) for i, image in enumerate(images))
        write_beton(samples, folder / name, num_samples=num, target=Target(mode="raw"))
    return folder / "train", folder / "val"
