"""The loader in quasi-random order: 1, 2 and 4 ranks, from any step on, by every decoder of raw images."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.datasets.subset import Synthetic
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.views import ViewSpec
from tests.pipelines.paged import write_paged
from tests.pipelines.photos import DECODERS
from tests.pipelines.threads import loader_threads

NUM, LANES, GLOBAL_BATCH = 403, 4, 16
VIEW = ViewSpec(RandomResizedCrop(12))


@pytest.fixture(scope="module")
def beton(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        return write_paged(patch, tmp_path_factory.mktemp("paged") / "paged.beton", NUM)


def epoch(data: Beton, number: int = 0, first_step: int = 0, **options: Any) -> list[Batch]:
    values = {
        "batch_size_per_rank": GLOBAL_BATCH,
        "order": "quasi_random",
        "lanes": LANES,
        "decoder": "resident",
    }
    with Loader(data, [VIEW], **{**values, **options}) as loader:  # type: ignore[arg-type]
        return list(loader.epoch(number, first_step))


def indices(batches: list[Batch]) -> list[list[int]]:
    return [batch.indices.tolist() for batch in batches]


@pytest.mark.parametrize("decoder", [*DECODERS, "resident"])
def test_a_step_is_the_same_set_with_the_same_images_on_any_number_of_ranks(
    beton: Path, decoder: str
) -> None:
    with Beton(beton) as data:
        alone = epoch(data, 2, decoder=decoder)
        all_indices = torch.cat([batch.indices for batch in alone])
        assert len(all_indices.unique()) == len(all_indices) > 0.9 * NUM
        assert all(torch.equal(batch.indices, batch.labels) for batch in alone)
        for world in (2, 4):
            size = GLOBAL_BATCH // world
            ranks = [
                epoch(data, 2, decoder=decoder, world=world, rank=rank, batch_size_per_rank=size)
                for rank in range(world)
            ]
            assert all(len(rank) == len(alone) for rank in ranks)
            for whole, *parts in zip(alone, *ranks, strict=True):
                together = torch.cat([part.indices for part in parts])
                assert together.tolist() == whole.indices.tolist()
                assert torch.equal(torch.cat([part.images[0] for part in parts]), whole.images[0])


def test_epochs_differ_repeat_and_can_be_entered_anywhere(beton: Path) -> None:
    with Beton(beton) as data:
        whole = epoch(data, 1)
        assert indices(whole) == indices(epoch(data, 1))
        assert indices(whole) != indices(epoch(data, 2)) != indices(epoch(data, 1, seed=1))
        tail = epoch(data, 1, first_step=7)
        assert [batch.step for batch in tail] == list(range(7, len(whole)))
        assert indices(tail) == indices(whole[7:])
        val = epoch(data, train=False)  # in order, for any order of training
        assert [i for batch in indices(val) for i in batch if i >= 0] == list(range(NUM))


def test_leaving_early_leaves_nothing(beton: Path) -> None:
    files = len(os.listdir("/proc/self/fd"))
    with (
        Beton(beton) as data,
        Loader(data, [VIEW], batch_size_per_rank=16, order="quasi_random", lanes=LANES) as loader,
    ):
        batches = loader.epoch(0)
        next(batches)
        batches.close()
        assert len(list(loader.epoch(0))) == loader.num_steps
    assert loader_threads() == [] and len(os.listdir("/proc/self/fd")) == files


@pytest.mark.parametrize(("decoder", "reads"), [("pillow", True), ("resident", False)])
def test_only_what_will_be_read_is_asked_for(
    beton: Path, decoder: str, reads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    advise = os.posix_fadvise

    def recorded(fd: int, offset: int, length: int, advice: int) -> None:
        calls.append(offset)
        advise(fd, offset, length, advice)

    monkeypatch.setattr(os, "posix_fadvise", recorded)
    with Beton(beton) as data:
        epoch(data, decoder=decoder)
    assert bool(calls) == reads


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": "sequential"}, "order is 'sequential'; it must be random or quasi_random"),
        ({"world": 3, "rank": 0, "batch_size_per_rank": 8}, "--lanes 4 cannot be shared by 3 ranks"),
        ({"batch_size_per_rank": 6}, "a batch of 6 .* has no equal shares for --lanes 4"),
        ({"lanes": 64, "batch_size_per_rank": 64}, "cannot be dealt evenly to --lanes 64"),
    ],
)
def test_what_does_not_go_together_is_refused(beton: Path, options: dict[str, Any], message: str) -> None:
    with Beton(beton) as data, pytest.raises(ValueError, match=message) as error:
        epoch(data, **options)
    assert "\n" not in str(error.value) and loader_threads() == []


def test_data_without_pages_is_refused() -> None:
    with pytest.raises(ValueError, match="synthetic data lies in no pages"):
        Loader(Synthetic(1000), [VIEW], batch_size_per_rank=64, order="quasi_random")


def test_an_order_of_ones_own_is_refused(beton: Path) -> None:
    with (
        Beton(beton) as data,
        Loader(data, [VIEW], batch_size_per_rank=16, order="quasi_random", lanes=LANES) as loader,
        pytest.raises(ValueError, match="exclude each other; choose order random"),
    ):
        loader.epoch(0, 0, np.arange(NUM))
