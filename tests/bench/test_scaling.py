"""The parts of bench/scaling.py: the summed bytes, the efficiency of a rank, and storage outside the page
cache.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from bench.recipe_stages import recipe_options, stage_experiment
from bench.scaling import Options, efficiencies, numbers_of_ranks, rows_of_ranks, storage_rate
from bench.schema import spread
from fastpsl.models.factory import make_backbone
from tests.engine.tiny import one_process


@pytest.mark.usefixtures("published_widths")
def test_rows_of_a_rank_and_what_it_would_sum() -> None:
    """Only learning blocks and the head count, with four bytes per parameter."""
    options = Options(
        recipe=("jigsaw",), stages=("S3",), backbone="resnet18", device="cpu", decoder="pillow",
        batch_size=2, repeats=1, steps=1,
    )  # fmt: skip
    rows = {row["measured"]: row for row in rows_of_ranks(options, one_process())}
    assert set(rows) == {"step", "both", "loader", "gradients"}
    assert all(
        (row["recipe"], row["stage"], row["num_ranks"]) == ("jigsaw", "S3", 1) for row in rows.values()
    )
    task = stage_experiment(
        "jigsaw", "S3", recipe_options("jigsaw", is_sample=True, batch_size=2), one_process()
    )[0].task
    learning = [*make_backbone("resnet18").blocks()[2:], task.head(3, 512)]  # type: ignore[operator]
    num = sum(weights.numel() for module in learning for weights in module.parameters())
    assert rows["gradients"]["num_bytes"] == 4 * num


def row(measured: str, num_ranks: int, rate: float, stage: str = "S1") -> dict[str, Any]:
    return {
        "measured": measured,
        "recipe": "jigsaw",
        "stage": stage,
        "num_ranks": num_ranks,
        **spread([rate]),
    }


def test_a_ranks_rate_is_compared_with_that_of_the_fewest() -> None:
    rows = [
        row("step", 2, 200.0),
        row("both", 2, 190.0),
        row("loader", 2, 9e9),
        row("step", 8, 720.0),
        row("both", 8, 798.0),
    ]
    by_rank = {
        (ratio["what"].split()[0], ratio["num_ranks"]): ratio["median"] for ratio in efficiencies(rows)
    }
    assert by_rank == {("step", 8): pytest.approx(0.9), ("both", 8): pytest.approx(1.05)}


def test_numbers_of_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert numbers_of_ranks(Options(device="cpu")) == [1]
    assert numbers_of_ranks(Options(ranks=(4, 1))) == [1, 4]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for num_gpus, expected in ((1, [1]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])):
        monkeypatch.setattr(torch.cuda, "device_count", lambda num_gpus=num_gpus: num_gpus)
        assert numbers_of_ranks(Options()) == expected


def test_storage_is_read_and_left_as_it_was(tmp_path: Path) -> None:
    try:
        assert storage_rate(tmp_path, 20_000_000, 2) > 0
    except ValueError as error:  # on a file system in memory
        assert "page cache keeps" in str(error)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (Options(steps=0), "--steps 0"),
        (Options(ranks=(0,)), "--ranks"),
        (Options(storage=Path("nowhere")), "--storage nowhere"),
    ],
)
def test_values_that_cannot_be_are_refused(options: Options, says: str) -> None:
    Options().check()
    with pytest.raises(ValueError, match=says):
        options.check()
