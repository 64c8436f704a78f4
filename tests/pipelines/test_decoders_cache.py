"""The ffcv decoder's compiled loop: cached between processes, compiled again after a change."""

import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from numba.core.caching import NullCache

from fastpsl.pipelines.decoders import ffcv, libffcv

FRESH = """
import gc, sys, tempfile, numpy as np, numba, torch
torch_threads, numba_threads = torch.get_num_threads(), numba.get_num_threads()
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from fastpsl.pipelines.data.dataset import SampleTable
from tests.pipelines.photos import photo_samples, write
from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.kernels.geometry import Flip
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.views import ViewSpec
view = ViewSpec(RandomResizedCrop(32), (Flip(),))
with tempfile.TemporaryDirectory() as folder:
    path = write(Path(folder) / "a.beton", photo_samples(4))
    with Beton(path) as data, Loader(data, [view, view], batch_size_per_rank=2, decoder="ffcv") as loader:
        assert len(list(loader.epoch(0))) == 2
from numba.core.dispatcher import Dispatcher
compiled = [
    x for x in gc.get_objects() if isinstance(x, Dispatcher) and x.py_func.__module__.startswith("fastpsl")
]
assert len(compiled) > 5, compiled
assert not any(name.split(".")[0] == "ffcv" for name in sys.modules)
assert (torch_threads, numba_threads) == (torch.get_num_threads(), numba.get_num_threads())
misses = sum(sum(x.stats.cache_misses.values()) for x in compiled)
print(misses, sum(sum(x.stats.cache_hits.values()) for x in compiled))
"""


@pytest.mark.slow
def test_a_second_process_compiles_nothing_and_never_imports_ffcv() -> None:
    def fresh() -> tuple[int, int]:
        command = [sys.executable, "-c", FRESH, str(Path(__file__).parents[2])]
        process = subprocess.run(command, check=False, capture_output=True, text=True, timeout=240)
        assert process.returncode == 0, process.stderr
        misses, hits = process.stdout.split()
        return int(misses), int(hits)

    fresh()  # fills the cache if it is empty
    misses, hits = fresh()
    assert misses == 0 and hits >= 1  # the loop; what it calls is cached in it


def test_the_cached_loop_is_compiled_again_when_a_file_it_calls_changes() -> None:
    # numba's key has the date of the function's own file and the free variables (numba/core/caching.py).
    modules = (
        ffcv.area,
        ffcv.codes,
        ffcv.read_samples,
        ffcv.isotropic,
        ffcv.isotropic_loops,
        ffcv.jpeg,
        libffcv,
        ffcv.dataset,
    )
    files = [Path(str(module.__file__)) for module in modules]
    cells = [cell.cell_contents for cell in ffcv._decode_chunk.py_func.__closure__]  # type: ignore[attr-defined]
    assert zlib.crc32(b"".join(file.read_bytes() for file in files)) in cells
    assert isinstance(ffcv._decode_one._cache, NullCache)  # type: ignore[attr-defined]
