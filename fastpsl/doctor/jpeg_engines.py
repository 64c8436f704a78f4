"""A GPU's JPEG engines while DALI decodes: whether they work, how busy they are, and the best share."""

import contextlib
import ctypes
import statistics
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from fastpsl.doctor.loader_rates import Feed
from fastpsl.doctor.measurements import Alternative, JpegEngines
from fastpsl.doctor.report import Check
from fastpsl.pipelines.data.dataset import MODE_JPEG
from fastpsl.pipelines.decoders import dali
from fastpsl.pipelines.decoders.dali import num_engines, nvjpeg_library, why_slower
from fastpsl.pipelines.decoders.dali_pipeline import HW_DECODER_LOAD

SHARES = (0.0, 0.5, 0.65, 0.8, 0.9, 1.0)
IDLE_PERCENT = 5  # below it, no image of a batch seems to have reached the engines
_ROUNDS = 2
_PERIOD_S = 0.05
_NVML_S = 1.0  # a reading is the average over up to so long
_NO_NEED = "--decoder turbo needs none"
_IDLE_REMEDY = (
    "they read baseline JPEGs, which `fastpsl data write` makes of others; "
    "DALI_NVIMGCODEC_LOG_LEVEL=3 before the command tells which decoder is used"
)


def measure_engines(feed: Feed, seconds: float, log: Callable[[str], None]) -> JpegEngines | None:
    """Time decoding by DALI with several shares of a batch for the engines, in turn."""
    device = feed.setup.world.device
    if device.type != "cuda" or dali.why_missing(device):
        return None
    if not (feed.warm.rows(np.arange(feed.warm.num_samples)).mode == MODE_JPEG).any():
        return None
    with torch.cuda.device(device):
        num = num_engines(nvjpeg_library())
    given = feed.setup.options.hw_decoder_load
    share = HW_DECODER_LOAD if given is None else given
    if why := why_slower(device):
        return JpegEngines(num, why, share)
    rates: dict[float, list[float]] = {each: [] for each in sorted({*SHARES, share})}
    busy: list[int] = []
    with jpeg_utilisation(device) as read:
        for round_number in range(_ROUNDS):
            for each in sorted(rates, reverse=round_number % 2 == 1):
                log(f"decode by dali, {each:g} of a batch for the JPEG engines")
                # The share that trains is decoded long enough for a reading of it alone.
                region_s = max(seconds / len(rates), 2 * _NVML_S if each == share else 0.0)
                with sampled(read, after_s=_NVML_S) as samples:
                    rate = feed.rate(feed.warm, region_s, decoder="dali", hw_decoder_load=each)
                rates[each].append(rate)
                busy += samples if each == share else []
    means = {each: statistics.mean(values) for each, values in rates.items()}
    return JpegEngines(num, "", share, max(busy, default=None), means)


def best_share(engines: JpegEngines | None, decoder: str, decode: float) -> list[Alternative]:
    """Return the fastest share as an alternative, if it is not the one that trains."""
    if engines is None or engines.best_share == engines.share:
        return []
    option, rate = f"--hw-decoder-load {engines.best_share:g}", engines.rates[engines.best_share]
    if decoder != "dali":
        return [Alternative(f"--decoder dali {option}", rate, decode)]
    return [Alternative(option, rate, engines.rates[engines.share])]


def check_engines(engines: JpegEngines | None, decoder: str) -> list[Check]:
    """Check that the engines work and have something to do, if `dali` is the decoder that trains."""
    if engines is None:
        return []
    if engines.why_idle:
        if decoder == "dali":
            return [Check("jpeg engines", "warning", engines.why_idle, _NO_NEED)]
        return [Check("jpeg engines", "ok", engines.why_idle)]
    is_idle = engines.busy_percent is not None and engines.busy_percent < IDLE_PERCENT
    if is_idle and engines.share > 0 and decoder == "dali":
        return [Check("jpeg engines", "warning", engines.text, _IDLE_REMEDY)]
    return [Check("jpeg engines", "ok", engines.text)]


@contextlib.contextmanager
def jpeg_utilisation(device: torch.device) -> Iterator[Callable[[], int | None]]:
    """Yield a function that reads how busy the JPEG engines are, in percent; None if NVML does not tell.

    Source: NVML's API, nvmlDeviceGetJpgUtilization.
    """
    uuid = str(torch.cuda.get_device_properties(device).uuid).removeprefix("GPU-")
    library, handle = _nvml(), ctypes.c_void_p()
    percent, period_us = ctypes.c_uint(), ctypes.c_uint()

    def read() -> int | None:
        try:
            ask = library.nvmlDeviceGetJpgUtilization
            status = ask(handle, ctypes.byref(percent), ctypes.byref(period_us))
        except AttributeError:  # an older driver
            return None
        return int(percent.value) if status == 0 else None

    if library is None or library.nvmlInit_v2() != 0:
        yield lambda: None
        return
    try:
        is_found = library.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}".encode(), ctypes.byref(handle)) == 0
        yield read if is_found else lambda: None
    finally:
        library.nvmlShutdown()


def _nvml() -> Any:
    """Return the driver's NVML, or None."""
    with contextlib.suppress(OSError):
        return ctypes.CDLL("libnvidia-ml.so.1")
    return None


@contextlib.contextmanager
def sampled(read: Callable[[], int | None], *, after_s: float = 0.0) -> Iterator[list[int]]:
    """Yield a list that gets what `read` returns every 50 ms, without None, until the context ends."""
    samples: list[int] = []
    ended = threading.Event()

    def sample() -> None:
        ended.wait(after_s)
        while not ended.wait(_PERIOD_S):
            if (value := read()) is not None:
                samples.append(value)

    thread = threading.Thread(target=sample, name="fastpsl-jpeg-engines", daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join(_PERIOD_S + 1)
