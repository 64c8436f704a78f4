"""The first run of each DALI pipeline is a full batch, also of those that are built after an error."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastpsl.files.workers import Workers
from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.decoders import dali_pipeline
from fastpsl.pipelines.decoders.dali_pipeline import DaliPipeline, Graph, build
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.views import ViewSpec
from tests.pipelines.photos import jpeg, needs_dali, photo, photo_samples, write

BATCH, DEPTH, CPU = 6, 3, torch.device("cpu")
GOOD = [np.frombuffer(jpeg(photo(seed, 50, 60)), np.uint8) for seed in range(4)]
CUT = GOOD[0][: len(GOOD[0]) // 2]  # DALI's error names this sample
HEADLESS = np.concatenate([np.frombuffer(b"\xff\xd8\xff\xdb", np.uint8), GOOD[0][6:]])  # but not this one
GRAPHS = [
    Graph(is_raw, turns, (24, 17), isotropic)
    for is_raw, turns in ((False, False), (False, True), (True, False))
    for isotropic in ((False, False), (False, True), (True, True))
]


class Recorded:
    """A pipeline that keeps the sizes of the batches that each of its inputs is fed."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self.sizes: dict[str, list[int]] = {}

    def feed_input(self, name: str, values: Any) -> None:
        self.sizes.setdefault(name, []).append(len(values))
        self._pipe.feed_input(name, values)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipe, name)


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, list[int]]]:
    """Return the sizes of what each pipeline is fed, one entry for each that is built."""
    sizes: list[dict[str, list[int]]] = []

    def recorded(*args: Any) -> Recorded:
        pipe = Recorded(build(*args))
        sizes.append(pipe.sizes)
        return pipe

    monkeypatch.setattr(dali_pipeline, "build", recorded)
    return sizes


def assert_full(built: list[dict[str, list[int]]], *, num: int) -> None:
    assert len(built) == num > 0
    for sizes in built:
        assert sizes and {fed[0] for fed in sizes.values()} == {BATCH}, sizes
        assert all(len(fed) >= DEPTH for fed in sizes.values())


@needs_dali("first runs")
@pytest.mark.parametrize("graph", GRAPHS)
def test_each_kind_of_pipeline_starts_with_a_full_batch(
    graph: Graph, built: list[dict[str, list[int]]]
) -> None:
    workers = Workers(1, "fastpsl-test")
    pipeline = DaliPipeline(graph, BATCH, 1, CPU, DEPTH, workers)
    sides = [[3, 5, 40, 41, 0], [15, 20, 10, 10, 1]]
    samples = [photo(3, 50, 60)] if graph.is_raw else GOOD[:1]
    boxes = [np.array([sides[int(kernel)]], np.int32) for kernel in graph.isotropic]
    pipeline.submit(samples, np.array([[50, 60]]), boxes)
    crops, failed = pipeline.collect()
    pipeline.close()
    workers.close(5.0)
    assert [len(crop) for crop in crops] == [1, 1] and not failed
    assert_full(built, num=1)
    assert all(fed[DEPTH:] == [1] for fed in built[0].values())  # the batch itself is not filled up


@needs_dali("first runs")
@pytest.mark.parametrize(("bad", "num_pipelines"), [([CUT], 2), ([HEADLESS], 3), ([CUT, HEADLESS], 4)])
def test_so_does_each_one_that_is_built_after_an_error(
    bad: list[np.ndarray], num_pipelines: int, built: list[dict[str, list[int]]]
) -> None:
    pipeline = DaliPipeline(Graph(False, False, (24,), (False,)), BATCH, 1, CPU, DEPTH)
    for samples in ([*GOOD[:2], *bad], GOOD[:1]):
        boxes = [np.array([[3, 5, 40, 41, 0]] * len(samples), np.int32)]
        pipeline.submit(samples, np.array([[50, 60]] * len(samples)), boxes)
    assert len(pipeline.collect()[1]) == len(bad)
    crops, failed = pipeline.collect()
    assert len(crops[0]) == 1 and not failed
    assert len(built) >= num_pipelines
    assert_full(built, num=len(built))


@needs_dali("first runs")
def test_a_loaders_short_last_batch_is_no_first_run(
    tmp_path: Path, built: list[dict[str, list[int]]]
) -> None:
    views = [ViewSpec(RandomResizedCrop(24))]
    with (
        Beton(write(tmp_path / "a.beton", photo_samples(BATCH + 1))) as data,
        Loader(data, views, batch_size_per_rank=BATCH, train=False, decoder="dali", num_threads=1) as loader,
    ):
        assert [(batch.indices >= 0).sum() for batch in loader.epoch(0, first_step=1)] == [1]
    assert_full(built, num=len(built))
