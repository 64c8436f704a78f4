"""Set-up of a process that runs tests. Without a GPU, it skips `gpu` tests, and Triton uses its interpreter.

Triton reads TRITON_INTERPRET on import, and torchvision imports it, so the variable is set here, before any
test is imported. With several workers of pytest-xdist, each computes with one thread, because the others use
the other cores.
"""

import atexit
import ctypes
import gc
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from tests.pipelines.memory import own_memory

pytest_plugins = ["tests.cheaper", "tests.cli", "tests.seeds"]

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1:
    torch.set_num_threads(1)

# pytest-xdist's workers ignore Ctrl-C, and so would the processes that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Skip `gpu` tests without a GPU. With one, modules whose DEVICE is the GPU are `gpu` tests, too."""
    for item in items:
        if not torch.cuda.is_available():
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        elif getattr(getattr(item, "module", None), "DEVICE", None) == torch.device("cuda"):
            item.add_marker(pytest.mark.gpu)


def pytest_collection_finish() -> None:
    """Exclude imported objects from garbage collection, which would take seconds, also pytest's at its end.

    Libraries report unfreed objects at the interpreter's end, so the freeze ends there.
    """
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Let a worker of pytest-xdist end in peace: one that takes more than 5 s sends itself a Ctrl-C."""
    if hasattr(session.config, "workerinput"):
        signal.signal(signal.SIGINT, signal.SIG_IGN)


KEPT_BYTES = 1 << 29  # the growth that triggers a garbage collection, which takes an eighth of a second


@pytest.fixture(scope="session")
def looked() -> dict[str, int]:
    """Return the resident memory after the last garbage collection."""
    return {"bytes": own_memory("VmRSS")}


@pytest.fixture(autouse=True, scope="module")
def memory_is_given_back(looked: dict[str, int]) -> Iterator[None]:
    """Collect garbage after a file that leaves much, such as networks in exceptions' frames."""
    yield
    if own_memory("VmRSS") - looked["bytes"] > KEPT_BYTES:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        looked["bytes"] = own_memory("VmRSS")


@pytest.fixture
def cwd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the test's folder the working directory, and return it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Compute with one thread, as the ranks do. Other numbers change the last bits of sums."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
