"""Train a small network on a pretext task of SSL++ with the sample's 32-px images, for several tests."""

import torch
from torch import Tensor, nn

from fastpsl.engine.plan import make_plan
from fastpsl.engine.stage_blocks import Metrics, StageBlocks
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.sample.betons import NUM_TEST, sample_paths
from fastpsl.tasks.sslpp.sslpp import Proxy
from tests.engine.tiny import TinyNet


def small_modules(proxy: Proxy) -> tuple[StageBlocks, nn.Module]:
    """Build five small blocks of a stage, and the task's head."""
    torch.manual_seed(0)
    backbone = TinyNet()
    return StageBlocks(backbone, make_plan("end_to_end", (1,))[0]), proxy.head(1, backbone.channels[-1])


def learned(proxy: Proxy, num_epochs: int = 12) -> tuple[StageBlocks, nn.Module]:
    """Train the modules for `num_epochs` of the 480 images by Adam, in seconds on one core."""
    blocks, head = small_modules(proxy)
    optimiser = torch.optim.Adam([*blocks.parameters(), *head.parameters()], lr=3e-3)
    view = proxy.view()
    with Beton(sample_paths().train_32) as data, Loader(
        data, [view], batch_size_per_rank=48, decoder="pillow", num_threads=1
    ) as loader:  # fmt: skip
        for epoch in range(num_epochs):
            for batch in loader.epoch(epoch):
                (inputs,) = batch.inputs([view], torch.float32)
                optimiser.zero_grad()
                proxy.features_loss(blocks(inputs), head, batch)[0].backward()
                optimiser.step()
    return blocks.eval(), head.eval()


def val(proxy: Proxy) -> tuple[Tensor, Batch]:
    """Return the sample's 160 validation images as the network sees them."""
    view = proxy.view()
    with Beton(sample_paths().test_32) as data, Loader(
        data, [view], batch_size_per_rank=NUM_TEST, train=False, decoder="pillow", num_threads=1
    ) as loader:  # fmt: skip
        (batch,) = loader.epoch(0)
    (inputs,) = batch.inputs([view], torch.float32)
    return inputs, batch


def means(metrics: Metrics) -> dict[str, float]:
    return {name: float(total / num) for name, (total, num) in metrics.items()}
