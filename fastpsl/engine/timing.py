"""Timing of loops and functions, with the device synchronised."""

import time
from collections.abc import Callable

import torch


def samples_per_s(
    work: Callable[[], int], seconds: float, device: torch.device | str, min_calls: int = 1
) -> float:
    """Measure the samples per second of repeated calls.

    Args:
        work: The function, which returns the number of samples that it processed.
        seconds: The shortest duration of the measurement.
        device: The device, whose work is included.
        min_calls: The smallest number of calls.
    """
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
    """Return the milliseconds of each of `repeats` calls, by the device's clock, after one untimed call."""
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
