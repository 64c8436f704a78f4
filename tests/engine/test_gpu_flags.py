"""Leaving a world restores the process's own values of torch's flags."""

from collections.abc import Iterator

import pytest
import torch

from fastpsl.engine import distributed
from fastpsl.engine.distributed import join_world, leave_world
from fastpsl.engine.experiment import Experiment
from fastpsl.engine.options import TrainingOptions
from fastpsl.engine.plan import make_plan
from fastpsl.engine.trainer import make_train_step
from fastpsl.pipelines.views import Input
from fastpsl.tasks.rotation import Rotation
from fastpsl.transfer.detection.task import Detection
from fastpsl.transfer.segmentation.fcn import FCN32s
from fastpsl.transfer.segmentation.task import ScaledCrop, Segmentation
from tests.engine.tiny import TinyNet, one_process


def flags() -> tuple[bool, str]:
    return torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    before = flags()
    yield
    leave_world()
    torch.backends.cudnn.benchmark = before[0]
    torch.set_float32_matmul_precision(before[1])


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


def test_a_world_on_the_cpu_leaves_them() -> None:
    before = flags()
    join_world("cpu", timeout_s=1)
    assert flags() == before


class ManySizes(Rotation):
    fixed_sizes = False


@pytest.mark.parametrize(("task", "expected"), [(Rotation, True), (ManySizes, False)])
def test_images_of_many_sizes_have_no_benchmark(task: type[Rotation], expected: bool) -> None:
    torch.backends.cudnn.benchmark = True
    experiment = Experiment(
        task(shorter_px=36, size_px=32), TinyNet(), make_plan("psl", (1, 1, 1)), lambda moment: 0.1
    )
    for stage in range(2):
        make_train_step(experiment, stage, TrainingOptions(batch_size=8), one_process())
        assert torch.backends.cudnn.benchmark == expected
    leave_world()
    assert torch.backends.cudnn.benchmark


def test_whose_images_have_many_sizes() -> None:
    network, crop = FCN32s(98, 191, 13.0, 8), ScaledCrop(16, (1.0, 1.0), 1.0)
    assert not Detection.fixed_sizes and not Segmentation(network, Input()).fixed_sizes
    assert Segmentation(network, Input(), crop).fixed_sizes
    assert "fixed_sizes" not in repr(Segmentation(network, Input()))  # results store the repr
