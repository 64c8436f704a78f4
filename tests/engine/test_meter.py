"""A training's seconds, images and joules: by a fake clock and a fake NVML, on two ranks, over a resume."""

import ctypes
import json
import threading
from collections.abc import Callable
from contextlib import closing, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fastpsl.engine import gpu, meter
from fastpsl.engine.distributed import World
from fastpsl.engine.meter import Meter
from fastpsl.engine.online_probe import OnlineProbe
from fastpsl.engine.train_step import TrainStep
from fastpsl.plots import charts
from fastpsl.tables.runs import Run as Record
from tests.engine.exact_signals import train_until
from tests.engine.test_trainer import tiny_experiment
from tests.engine.tiny import one_process, tiny_run
from tests.fake_nvml import Nvml
from tests.programs import newest_checkpoint, records
from tests.threaded_world import results_of_threads

GPU = torch.device("cuda", 0)
WATTS = 200.0


class Now:
    """A clock that goes when it is told, with a counter of energy; watts of None tell none."""

    def __init__(self, watts: float | None = WATTS) -> None:
        self.seconds, self.watts = 100.0, watts

    def perf_counter(self) -> float:
        return self.seconds

    def ask(self, question: str, millijoules: ctypes.c_ulonglong) -> bool:
        assert question == "nvmlDeviceGetTotalEnergyConsumption"
        millijoules.value = round(1000 * self.seconds * (self.watts or 0))
        return self.watts is not None


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Now:
    clock = Now()
    monkeypatch.setattr(meter, "time", clock)
    monkeypatch.setattr(meter, "nvml", lambda device: nullcontext(clock.ask))
    return clock


def world(rank: int = 0, size: int = 1) -> World:
    return World(rank=rank, size=size, local_rank=rank, local_size=size, device=GPU)


def test_looks_take_nothing_and_a_resume_goes_on(now: Now) -> None:
    first = Meter(world(), None)
    now.seconds += 7  # before the start
    assert first.so_far() == {"seconds": 0.0, "joules": 0.0}
    first.start()
    now.seconds += 3
    assert first.so_far() == {"seconds": 3.0, "joules": 600.0}
    with first.stopped():
        now.seconds += 50
        assert first.so_far() == {"seconds": 3.0, "joules": 600.0}
    now.seconds += 2
    saved = first.so_far()
    assert saved == {"seconds": 5.0, "joules": 1000.0}
    again = Meter(world(), saved)
    now.seconds += 1000
    again.start()
    now.seconds += 1
    assert again.so_far() == {"seconds": 6.0, "joules": 1200.0}


def test_an_energy_that_is_not_told_once_stays_unknown(now: Now) -> None:
    running = Meter(world(), None)
    running.start()
    now.watts = None
    assert running.so_far() == {"seconds": 0.0, "joules": None}
    now.watts = WATTS
    now.seconds += 1
    assert running.so_far() == {"seconds": 1.0, "joules": None}
    assert Meter(world(), {}).so_far() == {"seconds": None, "joules": None}  # an older checkpoint


def test_joules_of_all_ranks_are_summed(now: Now) -> None:
    """The second rank's GPU uses half; rank 0 brings what both used before the checkpoint."""

    def of_rank(rank: int, size: int) -> dict[str, float | None]:
        running = Meter(world(rank, size), {"seconds": 10.0, "joules": 5000.0})
        running._ask = rates[rank].ask  # type: ignore[assignment]
        running.start()
        ready.wait()
        if rank == 0:
            for rate in (now, *rates):
                rate.seconds += 4
        ready.wait()
        return running.so_far()

    ready, rates = threading.Barrier(2), (Now(), Now(WATTS / 2))
    assert results_of_threads(of_rank, 2) == [{"seconds": 14.0, "joules": 5000 + 800 + 400}] * 2


class Energy(Nvml):
    """A library whose GPU has used some energy."""

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: ctypes.c_void_p, energy: Any) -> int:
        self.check(handle)
        energy._obj.value = 123_456_789_012
        return self.status


def test_the_counter_is_that_of_the_ranks_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Energy()
    monkeypatch.setattr(gpu, "_nvml", lambda: library)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid=Nvml.uuid))
    with closing(Meter(world(), None)) as running:
        assert running._counter() == 123_456_789.012
        library.status = 3  # NVML_ERROR_NOT_SUPPORTED
        assert running._counter() is None
    assert library.num_open == 0
    with closing(Meter(one_process(), None)) as running:
        assert running._counter() is None and library.num_open == 0


@pytest.fixture
def _steps_take_a_second(now: Now, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a step take a second, and each look ten."""

    def taking(seconds: float, work: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            now.seconds += seconds
            return work(*arguments, **options)

        return timed

    monkeypatch.setattr(TrainStep, "step", taking(1, TrainStep.step))
    monkeypatch.setattr(OnlineProbe, "_measured", taking(10, OnlineProbe._measured))
    monkeypatch.setattr(charts, "draw_probes", lambda lines, path: path)


@pytest.mark.usefixtures("_steps_take_a_second")
def test_looks_and_stages_have_what_the_training_took_over_a_stop(tmp_path: Path, now: Now) -> None:
    """After step 7 of 30, the run is stopped and resumed an hour later."""
    options: dict[str, Any] = {"batch_size": 96, "probe_every": 1}
    assert not train_until(7, tiny_experiment(), tiny_run(tmp_path, **options))
    assert newest_checkpoint(tmp_path)["so_far"] == {"seconds": 7.0, "joules": 7 * WATTS, "images": 7 * 96}
    now.seconds += 3600
    assert train_until(None, tiny_experiment(), tiny_run(tmp_path, **options))
    names, lines = ("run_step", "seconds", "joules", "images"), records(tmp_path / "probe.jsonl")
    assert [tuple(line[name] for name in names) for line in lines] == [
        *[(0, 0, 0, 0)] * 3, *((step, step, step * WATTS, step * 96) for step in range(5, 31, 5)),
    ]  # fmt: skip
    ends = [summary["so_far"] for summary in json.loads((tmp_path / "results.json").read_text())]
    assert ends == [{"seconds": n, "joules": n * WATTS, "images": n * 96} for n in (10, 20, 30)]
    record = Record.of(tmp_path)
    assert (record.seconds, record.joules, record.images) == (30, 30 * WATTS, 30 * 96)


def test_a_run_from_before_the_meter_goes_on_without_its_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(charts, "draw_probes", lambda lines, path: path)
    options: dict[str, Any] = {"max_steps_per_stage": 1, "epochs": (1, 1, 1)}
    run = tiny_run(tmp_path, **options)
    train_until(2, tiny_experiment(), run)
    for path in run.checkpoints.paths():
        state = torch.load(path, weights_only=True)
        del state["so_far"]
        for summary in state["position"]["summaries"]:
            del summary["so_far"]
        torch.save(state, path)
    run = tiny_run(tmp_path, **options)
    assert train_until(None, tiny_experiment(), run)
    ends = [summary.get("so_far") for summary in run.position.summaries]
    assert ends[-1] == {"seconds": None, "joules": None, "images": 3 * 32}
