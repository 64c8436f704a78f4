"""A stage's rates are measured with the trainer's own step and loader."""

import itertools
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fastpsl.engine import stage_bench
from fastpsl.engine.experiment import Experiment, place_backbone
from fastpsl.engine.gpu import milliseconds, samples_per_s
from fastpsl.engine.optim.schedules import cosine
from fastpsl.engine.options import PretrainOptions
from fastpsl.engine.plan import make_plan
from fastpsl.engine.stage_bench import StageBench, endless
from fastpsl.models.backbone import Backbone
from fastpsl.models.factory import make_backbone
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.datasets.subset import Synthetic
from fastpsl.pipelines.embedded.draw_sample import sample_paths
from fastpsl.tasks.rotation import Rotation
from tests.engine.tiny import TinyNet, noise_batch, one_process


def bench_of(data: Beton, task: Rotation, net: Backbone, seconds: float = 0.0) -> StageBench:
    """Return a benchmark of a stage whose step has two batches of two images."""
    options = PretrainOptions(batch_size=4, accumulate=2, epochs=(1, 1, 1), decoder="pillow")
    experiment = Experiment(task, net, make_plan("psl", (1, 1, 1)), cosine(0.1))
    place_backbone(experiment, options, one_process())
    return StageBench(experiment, 1, options, data, one_process(), seconds=seconds)


@pytest.fixture
def bench() -> StageBench:
    with Beton(sample_paths().train) as data:
        return bench_of(data, Rotation(shorter_px=36, size_px=32), TinyNet())


def test_rates_of_a_stage() -> None:
    task = Rotation(shorter_px=36, size_px=32, rotations_per_image="all")
    with Beton(sample_paths().train) as data:
        bench = bench_of(data, task, make_backbone("resnet18"), seconds=0.01)
        assert bench.batch_size == 4 // 2
        assert bench.synthetic_batch() is bench.synthetic_batch()
        steps = []
        bench.train_step.optimiser.register_step_post_hook(lambda *_: steps.append(1))
        rates = [bench.loader_alone(), bench.step_alone(), bench.both(), bench.loader_alone("synthetic")]
        assert min(rates) > 0 and len(steps) >= 2
        before = len(steps)
        assert len(bench.step_ms(3)) == 3 and len(steps) == before + 4
        assert len(bench.augment_ms(2)) == 2 and len(steps) == before + 4


def test_a_step_is_the_trainers_and_counts_the_images_of_all_its_batches(
    bench: StageBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, task, calls = list[tuple[int, float, int]](), bench.experiment.task, list[str]()
    note = lambda batches, lr, num: steps.append((len(list(batches)), lr, num))
    monkeypatch.setattr(bench.train_step, "step", note)
    monkeypatch.setattr(task, "num_warm_up_batches", lambda stage: 3)
    monkeypatch.setattr(bench.train_step, "warm_up", lambda *_: calls.append("warm-up"))
    monkeypatch.setattr(bench, "synthetic_batch", lambda: None)
    for _ in range(2):
        assert bench._step(itertools.repeat(noise_batch(bench.views, 2))) == 4
    assert steps == [(2, 0.1, 2)] * 2 and calls == ["warm-up"] * 3


def test_a_loader_alone_is_timed_over_as_many_epochs_as_the_time_takes(
    bench: StageBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader: Any = SimpleNamespace(
        prefetch_batches=2, device=bench.world.device,
        epoch=lambda epoch: (SimpleNamespace(indices=[epoch, step]) for step in range(4)),
    )  # fmt: skip
    monkeypatch.setattr(bench, "loader", lambda decoder: nullcontext(loader))
    counted = list[int]()

    def rate(work: Callable[[], int], seconds: float, device: torch.device, min_calls: int) -> float:
        assert min_calls == 3  # one batch more than the loader prefetches
        counted.extend(work() for _ in range(11))
        return 3.0

    monkeypatch.setattr(stage_bench, "samples_per_s", rate)
    assert bench.loader_alone() == 3.0 and counted == 11 * [2]


def test_the_first_step_on_a_loaders_batches_is_not_timed(
    bench: StageBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = list[str]()
    loader: Any = SimpleNamespace(prefetch_batches=2, epoch=lambda epoch: iter([]))
    monkeypatch.setattr(bench, "loader", lambda decoder: nullcontext(loader))
    monkeypatch.setattr(bench, "_step", lambda batches: calls.append("step"))

    def rate(work: Callable[[], int]) -> float:
        calls.append("clock")
        work()
        return 5.0

    monkeypatch.setattr(bench, "_rate", rate)
    assert bench.both() == 5.0 and calls == ["step", "clock", "step"]


def test_synthetic_data_are_drawn_in_random_order(bench: StageBench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.options = replace(bench.options, order="quasi_random")
    orders = list[str]()
    monkeypatch.setattr(
        "fastpsl.engine.stage_bench.open_loader",
        lambda data, views, options, *_, **__: orders.append(options.order),
    )
    bench.loader()
    bench.loader(data=Synthetic(12, 3))
    assert orders == ["quasi_random", "random"]


def test_batches_that_were_ready_before_are_not_timed() -> None:
    """The loader prefetches two, and one more may have waited."""
    epoch = lambda epoch: iter([(epoch, step) for step in range(4)])
    loader: Any = SimpleNamespace(prefetch_batches=2, epoch=epoch)
    batches = endless(loader, itertools.count(5))
    assert [next(batches) for _ in range(6)] == [(5, 3), *((6, step) for step in range(4)), (7, 0)]


def test_times_are_per_sample_and_in_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def work() -> int:
        now[0] += 0.25
        return 3

    assert samples_per_s(work, 1.0, "cpu") == pytest.approx(12.0) and now[0] == 1.0
    assert samples_per_s(work, 0.0, "cpu", min_calls=3) == pytest.approx(12.0) and now[0] == 1.75
    assert milliseconds(work, "cpu", 2) == pytest.approx([250.0, 250.0]) and now[0] == 2.5
