"""Epochs of a small set are lengthened by whole random orders of its images, each with draws of its own."""

import itertools
from collections.abc import Iterator

import numpy as np
import pytest

from bench.long_epochs import MIN_STEPS, LongEpochs, long_order
from bench.recipe_stages import recipe_options, stage_experiment
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.loader.order import index_of
from fastpsl.pipelines.sample.betons import sample_paths
from tests.engine.tiny import one_process


@pytest.fixture
def bench() -> Iterator[LongEpochs]:
    options = recipe_options(
        "simclr", is_sample=True, batch_size=200, backbone="resnet18", device="cpu", decoder="pillow",
        workers=1, size_px=16,
    )  # fmt: skip
    experiment, number = stage_experiment("simclr", "S1", options, one_process())
    with Beton(sample_paths().train_32) as data:
        yield LongEpochs(experiment, number, options, data, one_process(), seconds=0.0)


def test_an_epochs_orders_are_whole_and_differ(bench: LongEpochs) -> None:
    with bench.loader() as loader:
        num, orders = loader.num_samples, [long_order(loader, epoch) for epoch in range(2)]
    for order in orders:
        assert order.shape == (MIN_STEPS * 200,) and len(np.unique(order)) == len(order)
        indices = index_of(order)
        assert (np.sort(indices[:num]) == np.arange(num)).all()
        assert (np.bincount(indices) >= len(order) // num).all()
    assert (orders[0] != orders[1]).any()


def test_the_loader_yields_them_and_ends_an_epoch_after_its_steps(bench: LongEpochs) -> None:
    with bench.loader() as loader:
        assert loader.num_steps == loader.num_samples // 200 < MIN_STEPS
        first = long_order(loader, 0).reshape(MIN_STEPS, 200)
        second = long_order(loader, 1).reshape(MIN_STEPS, 200)
        batches = bench.batches(loader)
        skipped = loader.prefetch_batches + 1
        for number, batch in enumerate(itertools.islice(batches, MIN_STEPS - skipped + 1), start=skipped):
            expected = first[number] if number < MIN_STEPS else second[0]
            assert (batch.indices.numpy() == index_of(expected)).all()
        batches.close()
