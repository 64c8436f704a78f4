"""A process that runs tests: without a GPU, those marked `gpu` are skipped, and Triton's kernels run under its interpreter.

Triton reads TRITON_INTERPRET when it is imported, and torchvision imports it: so it is set here, before any test is. Where pytest-xdist
runs a worker for each core, a worker computes with one thread: its neighbours have the other cores.
"""

import ctypes
import gc
import os
import signal
from collections.abc import Iterator, Sequence

import pytest
import torch

from tests.pipelines.memory import own_memory

pytest_plugins = ["tests.cheaper", "tests.seeds"]

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1:
    torch.set_num_threads(1)

if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # pytest-xdist's workers; what they start would ignore Ctrl-C, too
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_collection_finish() -> None:
    """What is imported stays: looking through it again and again for garbage takes seconds."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Libraries count at the interpreter's end what was never freed."""
    gc.unfreeze()


KEPT_BYTES = 1 << 29  # what files may leave before it is looked for: a look takes an eighth of a second


@pytest.fixture(scope="session")
def looked() -> dict[str, int]:
    """Resident memory after the last look for what is not needed any more."""
    return {"bytes": own_memory("VmRSS")}


@pytest.fixture(autouse=True, scope="module")
def memory_is_given_back(looked: dict[str, int]) -> Iterator[None]:
    """After a file, where much is kept: what an exception's frames hold in cycles, networks and open data among it, and malloc's pages."""
    yield
    if own_memory("VmRSS") - looked["bytes"] > KEPT_BYTES:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        looked["bytes"] = own_memory("VmRSS")
