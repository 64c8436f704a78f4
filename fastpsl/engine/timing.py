"""Timed regions: samples a second of a loop, milliseconds of a piece of work; the device is waited for inside."""

import time
from collections.abc import Callable

import torch


def samples_per_s(
    work: Callable[[], int], seconds: float, device: torch.device | str, min_calls: int = 1
) -> float:
    """Call `work` (its answer: samples done) for `seconds`, `min_calls` times at least; the device is waited for inside."""
    synchronise(device)
    start, num_samples, num_calls = time.perf_counter(), 0, 0
    while num_calls < min_calls or time.perf_counter() - start < seconds:
        num_samples += work()
        num_calls += 1
    synchronise(device)
    return num_samples / (time.perf_counter() - start)


def synchronise(device: torch.device | str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def milliseconds(work: Callable[[], object], device: torch.device | str, repeats: int = 10) -> list[float]:
    """Of each of `repeats` calls, by the device's own clock; one call before them is not counted."""
    work()
    if torch.device(device).type != "cuda":
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            work()
            times.append(1e3 * (time.perf_counter() - start))
        return times
    events = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)
    ]
    synchronise(device)
    for begin, end in events:
        begin.record()
        work()
        end.record()
    synchronise(device)
    return [begin.elapsed_time(end) for begin, end in events]
