"""Fixtures of the kernels' tests: images, tensors from draws, and the table of tolerances."""

import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch

from fastpsl.doctor.proof import views_apart

# (relative, absolute) by the result's dtype. Half is one rounding of a float32 result. uint8 results are
# exact, because ops only move them.
TOLERANCES = {
    torch.uint8: (0.0, 0.0),
    torch.float32: (1e-5, 1e-5),
    torch.float16: (1e-3, 5e-4),
    torch.bfloat16: (8e-3, 4e-3),
}


@pytest.fixture
def make_images():
    """Return a function that makes images [B, 3, H, W], channels-last: noise on a slope, partly grey."""

    def make(batch: int, height: int, width: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
        generator = np.random.default_rng(seed)
        slope = np.linspace(0, 1, height * width).reshape(1, 1, height, width)
        x = 0.5 * slope + 0.5 * generator.random((batch, 3, height, width))
        x[:, :, ::5, ::3] = x[:, :1, ::5, ::3]
        x[:, :, 1::7] = np.round(x[:, :, 1::7])  # black, white and pure colours, hue's corner cases
        images = torch.from_numpy(x * 255).round().to(torch.uint8)
        if dtype != torch.uint8:
            images = (images.to(torch.float32) / 255).to(dtype)
        return images.contiguous(memory_format=torch.channels_last)

    return make


@pytest.fixture
def as_tensors():
    """Return a function that converts a draw of numpy arrays to tensors."""

    def convert(draw: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in draw.items()}

    return convert


@pytest.fixture
def assert_close():
    """Return a check that two tensors agree in shape and, within the first one's tolerance, in values."""

    def compare(actual: torch.Tensor, expected: torch.Tensor) -> None:
        relative, absolute = TOLERANCES[actual.dtype]
        assert actual.shape == expected.shape, (actual.shape, expected.shape)
        error = (actual.double() - expected.double()).abs() - relative * expected.double().abs()
        worst = error.max().item() if error.numel() else 0.0
        assert worst <= absolute, f"off by {worst} beyond the relative tolerance, {actual.dtype}"

    return compare


@pytest.fixture
def assert_fused_close():
    """Return a check like `assert_close` with the bounds of the fused path; NaN fails it."""

    def compare(actual: torch.Tensor, expected: torch.Tensor) -> None:
        assert actual.shape == expected.shape, (actual.shape, expected.shape)
        apart = views_apart(actual, expected)
        assert apart <= 1, f"off by {apart} bounds, {actual.dtype}"

    return compare


@pytest.fixture
def by_any_threads():
    """Return a check that a call has the same bits on one thread of torch, on two, and from three callers."""
    threads_before = torch.get_num_threads()

    def check(call: Callable[[], torch.Tensor]) -> None:
        results: list[torch.Tensor] = []
        for num in (1, 2):
            torch.set_num_threads(num)
            results.append(call())
        callers = [threading.Thread(target=lambda: results.append(call())) for _ in range(3)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join(60)
        assert len(results) == 5 and all(torch.equal(result, results[0]) for result in results)

    yield check
    torch.set_num_threads(threads_before)
