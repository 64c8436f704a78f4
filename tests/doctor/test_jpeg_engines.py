"""What doctor tells of a GPU's JPEG engines, with a fake NVML and a fake loader."""

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fastpsl.doctor import examination, loader_rates
from fastpsl.doctor.examination import Examination
from fastpsl.doctor.loader_rates import (
    SHARES,
    best_share,
    check_engines,
    jpeg_utilisation,
    measure_engines,
    sampled,
)
from fastpsl.doctor.measurements import JpegEngines
from fastpsl.engine import gpu
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.embedded.draw_sample import sample_paths
from tests.doctor.measured import no_limit
from tests.fake_nvml import Nvml
from tests.pipelines.photos import RAW, photo, write

GPU = torch.device("cuda", 0)
UUID = "8ab0c1de-0000-1111-2222-333344445555"
RATES = {0.0: 9000.0, 0.5: 20_000.0, 0.65: 30_000.0, 0.9: 24_000.0, 1.0: 22_000.0}


class Engines(Nvml):
    """A library whose GPU's JPEG engines are busy by `percent`."""

    uuid = UUID
    percent = 67

    def nvmlDeviceGetJpgUtilization(self, handle: ctypes.c_void_p, percent: Any, period_us: Any) -> int:
        self.check(handle)
        percent._obj.value, period_us._obj.value = self.percent, 166_000
        return self.status


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Engines:
    library = Engines()
    monkeypatch.setattr(gpu, "_nvml", lambda: library)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid=UUID))
    return library


@pytest.mark.parametrize("uuid", [UUID, f"GPU-{UUID}"])
def test_the_engines_are_read_and_nvml_is_closed(
    nvml: Engines, uuid: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid=uuid))
    with jpeg_utilisation(GPU) as read:
        assert read() == 67
        nvml.percent = 3
        assert read() == 3
        nvml.status = 3  # NVML_ERROR_NOT_SUPPORTED, as for a MIG slice
        assert read() is None
    assert nvml.num_open == 0


@pytest.mark.parametrize("library", [None, Engines(is_known=False), SimpleNamespace(nvmlInit_v2=lambda: 9)])
def test_without_an_answer_nothing_is_told(
    library: Any, nvml: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "_nvml", lambda: library)
    with jpeg_utilisation(GPU) as read:
        assert read() is None


def test_a_driver_without_the_reading_tells_nothing(nvml: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Engines, "nvmlDeviceGetJpgUtilization")
    with jpeg_utilisation(GPU) as read:
        assert read() is None
    assert nvml.num_open == 0


def test_samples_come_from_a_thread_that_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader_rates, "_PERIOD_S", 0.001)
    readings, seen = iter([5, None, 80]), threading.Event()

    def read() -> int | None:
        value = next(readings, -1)
        if value == -1:
            seen.set()
            return None
        return value

    with sampled(read) as samples:
        assert seen.wait(10)
    assert samples == [5, 80]
    with sampled(lambda: 7, after_s=60) as samples:
        pass
    assert samples == []
    assert not [thread for thread in threading.enumerate() if thread.name == "fastpsl-jpeg-engines"]


class Feeds:
    """A fake of doctor's loaders, which keeps what it is asked for; `why` are the engines' faults."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, warm: Beton, share: float | None, why: str = ""
    ) -> None:
        self.setup = SimpleNamespace(
            world=SimpleNamespace(device=GPU), options=SimpleNamespace(hw_decoder_load=share)
        )
        self.warm, self.asked = warm, list[float]()
        self.seconds: dict[float, float] = {}
        monkeypatch.setattr(loader_rates, "why_slower", lambda _: why)
        monkeypatch.setattr(loader_rates.dali, "why_missing", lambda _: "")
        monkeypatch.setattr(loader_rates, "num_engines", lambda _: 7)
        monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
        monkeypatch.setattr(loader_rates, "sampled", self.sampled)

    @contextmanager
    def sampled(self, read: Any, *, after_s: float) -> Iterator[list[int]]:
        assert after_s == 1.0
        samples: list[int] = []
        yield samples
        samples.append(int(100 * self.asked[-1]))

    def rate(self, data: Beton, seconds: float, *, decoder: str, hw_decoder_load: float) -> float:
        assert data is self.warm and decoder == "dali"
        self.asked.append(hw_decoder_load)
        self.seconds[hw_decoder_load] = seconds
        # The second round is slower by half.
        return RATES.get(hw_decoder_load, 1000.0) * (1.0 if len(self.asked) <= len(set(self.asked)) else 0.5)


@pytest.mark.parametrize(("given", "share"), [(None, 0.9), (0.3, 0.3)])
def test_shares_are_timed_in_turn(
    given: float | None, share: float, nvml: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Beton(sample_paths().train) as warm:
        feeds = Feeds(monkeypatch, warm, given)
        engines = measure_engines(feeds, 3.0, no_limit(), lambda _: None)  # type: ignore[arg-type]
    shares = sorted({*SHARES, share})
    assert feeds.asked == [*shares, *reversed(shares)]
    assert feeds.seconds == {each: 2.0 if each == share else 3.0 / len(shares) for each in shares}
    assert engines is not None and (engines.num, engines.why_idle, engines.share) == (7, "", share)
    assert engines.busy_percent == int(100 * share)  # with the share that trains, not another
    assert engines.rates[0.65] == 0.75 * RATES[0.65] and engines.rates.keys() == set(shares)


def test_engines_that_do_not_work_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    with Beton(sample_paths().train) as warm:
        feeds = Feeds(monkeypatch, warm, None, "driver capability missing: start it with it")
        engines = measure_engines(feeds, 3.0, no_limit(), lambda _: None)  # type: ignore[arg-type]
    assert engines == JpegEngines(7, "driver capability missing: start it with it", 0.9)
    assert not feeds.asked and not best_share(engines, "dali", 1.0)
    for decoder, state, remedy in (("dali", "warning", "--decoder turbo needs none"), ("turbo", "ok", "")):
        (check,) = check_engines(engines, decoder)
        assert (check.state, check.remedy) == (state, remedy)
        assert check.text == "driver capability missing: start it with it"


def test_raw_images_and_a_cpu_have_no_use_for_engines(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = (photo(3, 50, 60).tobytes(), 50, 60, RAW)
    with Beton(write(tmp_path / "raw.beton", [raw] * 3)) as warm:
        feeds = Feeds(monkeypatch, warm, None)
        assert measure_engines(feeds, 3.0, no_limit(), lambda _: None) is None  # type: ignore[arg-type]
    with Beton(sample_paths().train) as warm:
        feeds = Feeds(monkeypatch, warm, None)
        feeds.setup.world.device = torch.device("cpu")
        assert measure_engines(feeds, 3.0, no_limit(), lambda _: None) is None  # type: ignore[arg-type]
    assert check_engines(None, "dali") == [] == best_share(None, "dali", 1.0)


@pytest.mark.parametrize(
    ("decoder", "share", "option", "beside"),
    [
        ("dali", 0.9, "--hw-decoder-load 0.65", RATES[0.9]),
        ("turbo", 0.9, "--decoder dali --hw-decoder-load 0.65", 12_000.0),
        ("dali", 0.65, None, 0),
        ("turbo", 0.65, None, 0),
    ],
)
def test_the_best_share_is_advised(decoder: str, share: float, option: str | None, beside: float) -> None:
    found = best_share(JpegEngines(7, "", share, 67, RATES), decoder, 12_000.0)
    assert [(each.option, each.images_per_s, each.beside) for each in found] == (
        [(option, 30_000.0, beside)] if option else []
    )


@pytest.mark.parametrize(
    ("decoder", "share", "percent", "state"),
    [
        ("dali", 0.9, 67, "ok"),
        ("dali", 0.9, 3, "warning"),
        ("turbo", 0.9, 3, "ok"),
        ("dali", 0.0, 0, "ok"),
        ("dali", 0.9, None, "ok"),
    ],
)
def test_engines_without_work_are_a_warning(
    decoder: str, share: float, percent: int | None, state: str
) -> None:
    (check,) = check_engines(JpegEngines(7, "", share, percent, RATES), decoder)
    assert check.state == state and bool(check.remedy) == (state == "warning")


@pytest.mark.parametrize(("rate", "best"), [(30_100.0, 0.9), (31_400.0, 0.9), (31_600.0, 0.65)])
def test_a_share_that_is_hardly_faster_is_no_advice(rate: float, best: float) -> None:
    engines = JpegEngines(7, "", 0.9, 67, {0.65: rate, 0.9: 30_000.0, 1.0: 29_000.0})
    assert engines.best_share == best and bool(best_share(engines, "dali", 1.0)) == (best == 0.65)
    assert ("--hw-decoder-load" in engines.line) == (best == 0.65)


def test_auto_is_asked_with_the_ranks_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank by itself, such as of --gpus 8, has all cores of the machine by its affinity."""

    def choose_decoder(name: str, data: Any, device: Any, **values: int) -> None:
        assert values == {"num_threads": 4, "num_views": 1, "num_cores": 2}
        raise ValueError("asked")

    monkeypatch.setattr(examination, "choose_decoder", choose_decoder)
    monkeypatch.setattr(
        examination, "measure_read", lambda *_: (SimpleNamespace(from_storage=False), range(64))
    )
    setup: Any = SimpleNamespace(
        experiment=None, stages=(), num_threads=4, world=SimpleNamespace(device=GPU),
        opened=SimpleNamespace(train=SimpleNamespace(num_samples=64), batch_size=32),
        options=SimpleNamespace(decoder="auto"),
    )  # fmt: skip
    with pytest.raises(ValueError, match="asked"):
        Examination(setup, 2, 1.0, no_limit(), lambda _: None).measure()
