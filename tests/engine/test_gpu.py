"""Copies to the host arrive, and leaving a world restores the settings of the process."""

import ctypes
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from fastpsl.engine import distributed
from fastpsl.engine.distributed import join_world, leave_world
from fastpsl.engine.experiment import Experiment
from fastpsl.engine.gpu import AsyncCopy, one_behind
from fastpsl.engine.options import TrainingOptions
from fastpsl.engine.plan import make_plan
from fastpsl.engine.trainer import make_train_step
from fastpsl.pipelines.views import Input
from fastpsl.tasks.rotation import Rotation
from fastpsl.transfer.detection.task import Detection
from fastpsl.transfer.segmentation.fcn import FCN32s
from fastpsl.transfer.segmentation.task import ScaledCrop, Segmentation
from tests.engine.tiny import TinyNet, one_process


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64, torch.bool])
def test_values_are_those_given(dtype: torch.dtype) -> None:
    values = torch.arange(6).view(2, 3).to(dtype)
    fetch = AsyncCopy(values)
    assert fetch.values().dtype == dtype and torch.equal(fetch.values(), values)


@pytest.mark.parametrize("num", [0, 1, 2, 5])
def test_each_is_seen_once_and_after_the_next_was_made(num: int) -> None:
    drawn_items: list[int] = []

    def items() -> Iterator[int]:
        for number in range(num):
            drawn_items.append(number)
            yield number

    results = []
    for item in one_behind(items()):
        results.append(item)
        assert len(drawn_items) == min(item + 2, num)
    assert results == list(range(num))


def flags() -> tuple[bool, str]:
    return torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()


@pytest.fixture
def _restored() -> Iterator[None]:
    before = flags()
    yield
    leave_world()
    torch.backends.cudnn.benchmark = before[0]
    torch.set_float32_matmul_precision(before[1])


@pytest.mark.usefixtures("_restored")
@pytest.mark.parametrize("own", [(False, "highest"), (True, "medium")])
def test_a_world_on_a_gpu_sets_them_and_gives_them_back(
    own: tuple[bool, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "choose_device", lambda *_: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    torch.backends.cudnn.benchmark = own[0]
    torch.set_float32_matmul_precision(own[1])
    for _ in range(2):  # joined twice, as by two commands if the first was interrupted
        join_world("cuda", timeout_s=1)
        assert flags() == (True, "high")
    leave_world()
    assert flags() == own
    leave_world()
    assert flags() == own


@pytest.mark.usefixtures("_restored")
def test_a_world_on_the_cpu_leaves_them() -> None:
    before = flags()
    join_world("cpu", timeout_s=1)
    assert flags() == before


class ManySizes(Rotation):
    fixed_sizes = False


@pytest.mark.usefixtures("_restored")
@pytest.mark.parametrize(("task", "expected"), [(Rotation, True), (ManySizes, False)])
def test_images_of_many_sizes_have_no_benchmark(task: type[Rotation], expected: bool) -> None:
    torch.backends.cudnn.benchmark = True
    stages = make_plan("psl", (1, 1, 1))
    experiment = Experiment(task(shorter_px=36, size_px=32), TinyNet(), stages, lambda moment: 0.1)
    for stage in range(2):
        make_train_step(experiment, stage, TrainingOptions(batch_size=8), one_process())
        assert torch.backends.cudnn.benchmark == expected
    leave_world()
    assert torch.backends.cudnn.benchmark


@pytest.mark.usefixtures("_restored")
def test_whose_images_have_many_sizes() -> None:
    network, crop = FCN32s(98, 191, 13.0, 8), ScaledCrop(16, (1.0, 1.0), 1.0)
    assert not Detection.fixed_sizes and not Segmentation(network, Input()).fixed_sizes
    assert Segmentation(network, Input(), crop).fixed_sizes
    assert "fixed_sizes" not in repr(Segmentation(network, Input()))  # results store the repr


# In a process of its own: once malloc has failed, glibc serves the main thread from small heaps.
# Small tensors may be cut out of a large one's memory, so that the first rounds need some more.
FAULTS = """
import resource, torch
from fastpsl.engine.gpu import keep_freed_memory, restore_flags

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.empty(64 << 20, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

keep_freed_memory()
print(min(faults() for _ in range(6)))
restore_flags()
print(faults())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="malloc is another libc's")
def test_a_run_keeps_the_memory_of_large_tensors_that_are_freed() -> None:
    """Pages that Linux has cleared anew are its faults; a page has 2 MiB at most."""
    told = subprocess.run(
        [sys.executable, "-c", FAULTS], check=True, stdout=subprocess.PIPE, text=True, timeout=240
    )
    kept, restored = map(int, told.stdout.split())
    assert kept < 32 <= restored
