"""Waits for the loader: what counts, by a clock of its own, and the cause that is named."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fastpsl.engine import data_waits
from fastpsl.engine.data_waits import DataWaits, Usage, Waits, line_of
from fastpsl.engine.reporter import Reporter
from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.pipelines.image import libturbo
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.views import ViewSpec
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
        self.waits = DataWaits(device, AHEAD, self.told.append, clock=lambda: self.now, usage=self.usage)

    def usage(self) -> Usage:
        return Usage(cpu_s=3 * self.now, read_bytes=int(1000 * self.now))

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
    assert waits.busy_cores == pytest.approx(3.0) and waits.read_bytes == pytest.approx(60_000, abs=480)


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
    ("batch_s", "copy_s", "share", "of_copies"),
    [
        (0.09, 0.0, None, 0.0),
        (0.12, 0.0, 0.019 / 0.12, 0.0),
        (0.09, 0.09, None, 0.0),
        (0.0005, 0.12, 0.02 / 0.12, 1.0),  # copies one after the other, for which the device waits
    ],
)
def test_on_a_gpu_only_the_devices_waits_count(
    batch_s: float, copy_s: float, share: float | None, of_copies: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(lambda i: batch_s, 0.1, copy_s=copy_s, is_cuda=True)
    monkeypatch.setattr(torch.cuda, "Event", machine.event)
    machine.train(1500)
    assert batch_s < 0.05 or machine.host_waits_s > 0.3 * machine.now
    assert len(machine.told) == (share is not None)
    for waits in machine.told:
        assert waits.share == pytest.approx(share, rel=0.01)
        assert waits.copy_s == pytest.approx(of_copies * waits.idle_s, abs=0.01 * waits.idle_s)
    assert machine.num_events == 2  # of the first step, for all others


def loader_of(**values: Any) -> Any:
    """Return a loader that was never opened, with some attributes."""
    loader = Loader.__new__(Loader)
    sides = {"height": np.full(256, values.pop("side_px", 300)), "width": np.full(256, 2000)}
    rows = SimpleNamespace(**sides, num_bytes=np.full(256, 50_000))
    data = SimpleNamespace(kind=values.pop("kind", "beton"), num_samples=1000, rows=lambda indices: rows)
    if remote := values.pop("remote", None):
        data.remote = SimpleNamespace(share_here=lambda _: remote[0], room_bytes=lambda: remote[1])
    usual = {
        "data": data, "decoder_name": "turbo", "decoder": SimpleNamespace(remark=""), "num_threads": 8,
        "batch_size_per_rank": 100, "device": CPU, "views": (ViewSpec(RandomResizedCrop(224)),),
    }  # fmt: skip
    vars(loader).update(usual | values)
    return loader


IDLE = Waits(num_batches=100, seconds=60, idle_s=15, host_s=20, cpu_s=20)
BUSY, READING = replace(IDLE, cpu_s=8 * 20), replace(IDLE, read_bytes=400_000_000)
COPYING = replace(IDLE, host_s=1, copy_s=14)
DALI = {"decoder_name": "dali", "device": GPU}


@pytest.mark.parametrize(
    ("values", "waits", "cause", "words"),
    [
        ({}, BUSY, "cores", "8 cores"),
        ({"device": GPU}, BUSY, "cores", "--short-side 256) or packed coefficients (--mode coefficients)"),
        ({"num_threads": 3}, BUSY, "threads", "--workers 8"),
        ({"kind": "folder"}, BUSY, "cores", "8 cores"),
        ({"decoder_name": "dali"}, BUSY, "decoder", "give --decoder turbo"),
        (DALI, BUSY, "cores", "OUT --short-side 256)"),
        ({"kind": "folder", "side_px": 1200}, BUSY, "size", "--max-side 512"),
        ({"side_px": 511}, BUSY, "cores", "8 cores"),
        ({"decoder_name": "pillow"}, BUSY, "decoder", "give --decoder turbo"),
        ({"decoder_name": "ffcv", "no_turbo": True}, BUSY, "decoder", "no compiler: apt install gcc"),
        ({"device": GPU, "has_engines": True}, BUSY, "cores", "try --decoder dali, or write smaller"),
        (DALI | {"has_engines": True}, BUSY, "cores", "give it more, or write"),
        ({**DALI, "decoder": SimpleNamespace(remark="no video")}, BUSY, "engines", "no video"),
        ({**DALI, "decoder": SimpleNamespace(remark="no video")}, IDLE, "engines", "no video"),
        ({**DALI, "decoder": SimpleNamespace(remark="no video")}, READING, "storage", "--max-side"),
        (DALI, IDLE, "busy engines", "--decoder turbo with all cores (--workers 8)"),
        (DALI, COPYING, "busy engines", "--short-side 256"),
        ({"device": GPU}, COPYING, "copy", "their copies to the GPU"),
        ({"device": GPU, "fault": True}, BUSY, "unknown", "The cause is not known"),
        ({}, IDLE, "unknown", "fastpsl doctor"),
        ({}, READING, "storage", "--max-side"),
        ({"remote": (0.4, None)}, IDLE, "network", "40% of the data is in --cache-dir. Later epochs"),
        ({"remote": (0.4, 10)}, IDLE, "network", "--cache-gb"),
        ({"remote": (1.0, None)}, IDLE, "unknown", "fastpsl doctor"),
        ({"remote": (0.4, None)}, BUSY, "cores", "8 cores"),
        ({"decoder_name": "synthetic"}, BUSY, "unknown", "fastpsl doctor"),
    ],
)
def test_the_cause_is_what_the_code_knows(
    values: dict[str, Any], waits: Waits, cause: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = dict(values)
    missing = "no compiler" if values.pop("no_turbo", False) else ""
    monkeypatch.setattr(libturbo, "why_missing", lambda: missing)
    monkeypatch.setattr(data_waits, "default_num_threads", lambda: 8)
    why = "" if values.pop("has_engines", False) else "a GPU without engines"
    monkeypatch.setattr(data_waits, "why_slower", lambda _: why)
    if values.pop("fault", False):
        monkeypatch.delattr(data_waits, "why_slower")
    loader = loader_of(**values)
    key, line = line_of("S1", waits, loader)
    assert key == cause and words in line and "\n" not in line
    assert line.startswith(
        f"S1 waits for its data 25% of the time: the decoder {loader.decoder_name} with "
        f"{loader.num_threads} threads needs 600 ms for a batch, and the step 450 ms. "
    )


def test_a_run_tells_a_cause_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of three stages would, because here any time is long."""
    lines: list[str] = []
    monkeypatch.setattr(Reporter, "log", lambda _, text: lines.append(text))
    monkeypatch.setattr(data_waits, "WINDOW_S", 0.0)
    monkeypatch.setattr(data_waits, "LONG_SHARE", -1.0)
    monkeypatch.setattr(data_waits, "cause_of", lambda *_: ("cores", "Buy some"))
    fit(tmp_path, prefetch_batches=1)
    told = [line for line in lines if "waits for its data" in line]
    assert len(told) == 1 and told[0].startswith("S1 waits") and told[0].endswith(" ms. Buy some")
