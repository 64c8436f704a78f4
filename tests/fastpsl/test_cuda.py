"""What only a GPU can show."""

import pytest
import torch

from fastpsl.backbones.resnet import ResNet
from fastpsl.distributed import World
from fastpsl.kernels.permutations import permutation_set
from fastpsl.learner import Learner
from fastpsl.optimisers import sgd
from fastpsl.pipelines.decoders.synthetic import Synthetic
from fastpsl.pipelines.loader import Loader
from fastpsl.plan import make_plan
from fastpsl.stage import StageModule, Trunk
from fastpsl.tasks.jigsaw import Jigsaw

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_ten_steps_without_a_hidden_sync(precision: str) -> None:
    device = torch.device("cuda", 0)
    task = Jigsaw(permutation_set(9, [500, 1000, 2000]).permutations)
    stage = make_plan("psl", (60, 60, 60))[1]
    backbone = ResNet("resnet50").to(device).to(memory_format=torch.channels_last)
    module = StageModule(Trunk(backbone, stage), task.head(2, 1024).to(device), task)
    world = World(0, 1, 0, 1, device)
    learner = Learner(module, sgd(module.learning_parameters()), task.views(2), precision, world)
    with Loader(Synthetic(2000), task.views(2), batch_size=16, device=device) as loader:
        batches = loader.epoch(0)
        learner.step(batches, 1, 0.01)  # the first step makes buffers
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(10):
                learner.step(batches, 1, 0.01)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        batches.close()
