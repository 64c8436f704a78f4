"""Waits for the loader: what counts, by a clock of its own, and the line of it."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fastpsl.engine import data_waits
from fastpsl.engine.data_waits import DataWaits, Waits
from fastpsl.engine.reporter import Reporter
from tests.engine.test_trainer import fit

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
AHEAD = 4


class Machine:
    """A loader, a step and a device, all by one clock that nobody waits for.

    The loader needs `batch_s(i)` for batch i, and prepares AHEAD batches ahead. Batches are copied one after
    the other, and the host waits for the device every tenth step alone.
    """

    def __init__(
        self, batch_s: Callable[[int], float], step_s: float, *, copy_s: float = 0.0, is_cuda: bool = False
    ) -> None:
        self.batch_s, self.step_s, self.is_cuda = batch_s, step_s, is_cuda
        self.now = self.device_free_at = self.host_waits_s = self.copied_at = 0.0
        self.copy_s, self.num_events = copy_s, 0
        self.told: list[Waits] = []
        device = GPU if is_cuda else CPU
        self.waits = DataWaits(device, AHEAD, self.told.append, clock=lambda: self.now)

    def batches(self, num: int) -> Iterator[int]:
        ready, taken = self.now, [self.now] * AHEAD
        for i in range(num):
            ready = max(ready, taken[i]) + self.batch_s(i)
            self.host_waits_s += max(0.0, ready - self.now)
            self.now = max(self.now, ready)
            self.copied_at = max(self.copied_at, ready) + self.copy_s
            self.device_free_at = max(self.device_free_at, self.copied_at)
            taken.append(self.now)
            yield i

    def train(self, num: int) -> None:
        """Train an epoch."""
        for i in self.waits.track(self.batches(num), num):
            if not self.is_cuda:
                self.now += self.step_s
                continue
            self.now += 0.001  # launching, behind which the device begins
            self.device_free_at = max(self.device_free_at, self.now) + self.step_s
            if i % 10 == 0:
                self.now = max(self.now, self.device_free_at)

    def event(self, enable_timing: bool) -> Any:
        """Return a CUDA event: it happens when the device has done what was launched before."""
        assert enable_timing
        self.num_events += 1
        event = SimpleNamespace(query=lambda: True)
        event.record = lambda: setattr(event, "at", max(self.now, self.device_free_at))
        event.elapsed_time = lambda other: 1e3 * (other.at - event.at)
        return event


def test_a_slow_loader_is_told_once_with_its_figures() -> None:
    machine = Machine(lambda i: 0.125, 0.1)
    machine.train(470)
    assert not machine.told  # 470 - 2 * 4 - 1 batches take 57.6 s
    machine.train(2000)
    (waits,) = machine.told
    assert waits.num_batches == 480 and waits.seconds == pytest.approx(60.0)
    assert waits.share == pytest.approx(0.2) and waits.batch_ms == pytest.approx(125)
    assert waits.step_ms == pytest.approx(100)


@pytest.mark.parametrize(
    "batch_s",
    [
        lambda i: 0.104,  # 4 % of the time
        lambda i: 60.0 if i < AHEAD else 0.05,  # the first batches of an epoch
        lambda i: 60.0 if i >= 50 - AHEAD else 0.05,  # the last ones
    ],
)
def test_short_waits_and_the_ends_of_epochs_do_not_count(batch_s: Callable[[int], float]) -> None:
    machine = Machine(batch_s, 0.1)
    for _ in range(40):
        machine.train(50)
    assert not machine.told


@pytest.mark.parametrize(
    ("batch_s", "copy_s", "share"),
    [
        (0.09, 0.0, None),
        (0.12, 0.0, 0.019 / 0.12),
        (0.09, 0.09, None),
        (0.0005, 0.12, 0.02 / 0.12),  # copies one after the other, for which the device waits
    ],
)
def test_on_a_gpu_only_the_devices_waits_count(
    batch_s: float, copy_s: float, share: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(lambda i: batch_s, 0.1, copy_s=copy_s, is_cuda=True)
    monkeypatch.setattr(torch.cuda, "Event", machine.event)
    machine.train(1500)
    assert batch_s < 0.05 or machine.host_waits_s > 0.3 * machine.now
    assert len(machine.told) == (share is not None)
    for waits in machine.told:
        assert waits.share == pytest.approx(share, rel=0.01)
    assert machine.num_events == 2  # of the first step, for all others


def test_each_stage_of_a_run_tells_its_waits_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here any time is long, so all three stages wait."""
    lines: list[str] = []
    monkeypatch.setattr(Reporter, "log", lambda _, text: lines.append(text))
    monkeypatch.setattr(data_waits, "WINDOW_S", 0.0)
    monkeypatch.setattr(data_waits, "LONG_SHARE", -1.0)
    fit(tmp_path, prefetch_batches=1)
    told = [line for line in lines if "waits for its data" in line]
    assert [line.split()[0] for line in told] == ["S1", "S2", "S3"]
    for line in told:
        assert re.search(
            r"the decoder \w+ with \d+ threads? needs [\d.,]+ ms for a batch, and the step", line
        )
        assert "fastpsl doctor" in line and "\n" not in line
