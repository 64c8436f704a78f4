"""bench/detection.py: both models compute the same, on images of the sizes that are said."""

import itertools
from dataclasses import replace

import pytest
import torch

from bench.detection import drawn_batches, our_train_step, ours, torchvisions, torchvisions_model
from fastpsl.engine.distributed import World
from fastpsl.engine.options import TrainingOptions
from fastpsl.transfer.detection.protocols import PROTOCOLS
from tests.slow import slow

CPU = torch.device("cpu")
TINY = replace(PROTOCOLS["pirl"], num_rois=8, rpn_train=(100, 20))


@pytest.mark.parametrize("backbone", ["resnet18", slow("resnet50")])
@pytest.mark.usefixtures("published_widths")
def test_torchvisions_model_is_ours(backbone: str) -> None:
    """Feature maps, the RPN's outputs, the trained parameters and a training step agree."""
    world = World(0, 1, 0, 1, CPU)
    train_step = our_train_step(TINY, backbone, TrainingOptions(batch_size=1, device="cpu"), world)
    model = torchvisions_model(TINY, backbone, train_step)
    blocks, head = train_step.module.blocks, train_step.module.head
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        maps = blocks.run([*blocks.frozen, *blocks.learning][:4], image)
        theirs = model.backbone(image)
        assert maps.shape == theirs.shape and maps.std() > 1e-3
        assert torch.allclose(maps, theirs, rtol=1e-4, atol=1e-5)
        for our_maps, their_maps in zip(head.rpn.head([maps]), model.rpn.head([theirs]), strict=True):  # type: ignore[operator, union-attr]
            assert torch.allclose(our_maps[0], their_maps[0], rtol=1e-4, atol=1e-5)
        rois = torch.randn(2, maps.shape[1], 14, 14)
        features = head.roi_heads.box_head(rois)  # type: ignore[operator, union-attr]
        assert torch.allclose(features, model.roi_heads.box_head(rois), rtol=1e-4, atol=1e-5)  # type: ignore[operator]
    batches = drawn_batches(1, 1, 64, CPU)
    before = {name: value.clone() for name, value in model.named_parameters()}
    peers = (
        ours(train_step, itertools.cycle(batches)),
        torchvisions(model, itertools.cycle(batches), TINY, "fp32"),
    )
    assert peers[0].num_learning == peers[1].num_learning
    assert [peer.boxes_in_a_step() for peer in peers] == [8, 8]
    moved_names = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    frozen_names = {name for name in before if name.startswith(("backbone.conv1", "backbone.layer1"))}
    assert moved_names and not moved_names & frozen_names
