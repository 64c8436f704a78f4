"""Compiled loops give the same bits in the process that compiles them as in those that load them."""

import hashlib
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
import torch

from tests.warm import on_ranks


def run_loop(_: int, name: str, cache: Path, result: Path) -> None:
    """Import fastpsl anew with another cache, run a compiled loop, and save what it gives and how it came."""
    numba.config.CACHE_DIR = str(cache)  # type: ignore[attr-defined]
    for module_name in [*sys.modules]:
        if module_name.startswith("fastpsl."):
            del sys.modules[module_name]
    rng, module = np.random.default_rng(0), import_module(name)
    out: Any
    box: tuple[float, ...]
    if name.endswith("photometric"):
        loop, num, side = module.process_images.dispatcher(), 4, 33
        yes, weights = np.ones(num, bool), np.array([[0.4, 0.2, 0.1]] * num, np.float32)
        pixels = rng.integers(0, 256, (num, side, 3 * side), dtype=np.uint8)
        orders, factors = np.array([[0, 1, 2, 3]] * num), rng.uniform(0.6, 1.4, (num, 4)).astype(np.float32)
        out = np.empty((num, side, side, 3), np.float32)
        sobel, taps = np.array([False, True, False, True]), np.array([0, 0, 3, 3])
        norm = np.array([3.7, 3.6, 3.9], np.float32)
        loop(pixels, yes, yes, orders, factors, ~yes, weights, taps, sobel, norm, norm, out, 0, 1)
    else:
        pixels, out = rng.integers(0, 256, 100 * 90 * 3, dtype=np.uint8), np.empty((17, 17, 3), np.uint8)
        if name.endswith("isotropic_loops"):
            loop, box = module.isotropic_resize, (30, 27, 35, True)
        else:
            loop, box = module.area_resize, (3.5, 2.25, 80.5, 61.0)
        loop(pixels, 100, 90, *box, out)
    parts = []
    if not loop.stats.cache_hits:  # code from the cache has no listing
        (listing,) = loop.inspect_asm().values()
        fast = [key for key, each in vars(module).items() if "fastmath" in getattr(each, "targetoptions", {})]
        own = r"^_ZN(?!08NumbaEnv)\S*\d{}B\S*:$"
        parts = [key for key in fast if re.search(own.format(key), listing, re.MULTILINE)]
    hits = sum(loop.stats.cache_hits.values())
    torch.save({"digest": hashlib.sha256(out).hexdigest(), "hits": hits, "parts": parts}, result)


@pytest.mark.parametrize(
    "module",
    [
        "fastpsl.pipelines.image.area",
        pytest.param("fastpsl.kernels.isotropic_loops", marks=pytest.mark.slow),
        pytest.param("fastpsl.kernels.fused_cpu.photometric", marks=pytest.mark.slow),
    ],
)
def test_the_process_that_compiles_computes_the_same_bits_as_those_that_load(
    module: str, tmp_path: Path
) -> None:
    """On most processors the bits are equal by luck, so no reordered sum may be left outside the loop."""
    results: list[Any] = []
    for number in range(2):
        on_ranks(run_loop, (module, tmp_path / "cache", tmp_path / f"{number}.pt"), 1)
        results.append(torch.load(tmp_path / f"{number}.pt"))
    compiled, loaded = results
    assert compiled["hits"] == 0 and loaded["hits"] == 1
    assert compiled["parts"] == []
    assert compiled["digest"] == loaded["digest"]
