"""The timed region of every bench of samples per second."""

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
