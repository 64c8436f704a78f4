"""Each category of the harness with a few of its faults; `make faults` runs thousands."""

from pathlib import Path

import pytest

from tests.faults.process import run
from tests.faults.report import Category
from tests.slow import nightly


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "seed", "count"),
    [
        ("betons", 0, 30),
        ("side_files", 0, 20),
        ("images", 0, 20),
        ("hostile", 0, 10),  # code in pickles
        ("hostile", 18, 34),  # weights, checkpoints, arrays
        nightly("betons", 30, 30),
        nightly("side_files", 20, 20),
        nightly("images", 20, 20),
    ],
)
def test_no_fault_of_a_few_does_harm(name: str, seed: int, count: int, tmp_path: Path) -> None:
    category = Category(name, seed, count)
    run(category, tmp_path / name)
    assert category.finished and category.num_done == count
    assert not category.failures, [(finding.case, *finding[2:]) for finding in category.failures]
