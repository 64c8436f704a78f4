"""Test the tasks with a target per position on backbones that end in fully-connected layers."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from fastpsl.engine.plan import Stage
from fastpsl.engine.stage_blocks import StageBlocks
from fastpsl.models.factory import BACKBONES, OF_VECTORS, make_backbone
from fastpsl.tasks.sslpp.colorization import Colorization
from fastpsl.tasks.sslpp.context import Context, FromVectors


@pytest.mark.parametrize("side", [4, 7, 8, 15, 56, 64])
def test_sides_and_gradients(side: int) -> None:
    decoder = FromVectors(6, 3, side)
    vectors = torch.randn(2, 6, 1, 1, requires_grad=True)
    maps = decoder(vectors)
    assert maps.shape == (2, 3, side, side)
    assert decoder.decode(vectors).shape[-1] == next(power for power in (8, 16, 32, 64) if power >= side)
    whole = functional.interpolate(decoder.decode(vectors), (side, side), mode="bilinear")
    torch.testing.assert_close(maps, whole)
    maps.square().sum().backward()
    assert vectors.grad is not None and (vectors.grad != 0).all()


def test_of_224_px_there_are_six_doublings_and_halved_widths() -> None:
    decoder = FromVectors(4096, 3, 224)
    assert [type(part) for part in decoder.decode[1:4]] == [nn.BatchNorm2d, nn.ReLU, nn.ConvTranspose2d]
    widths = [
        (part.in_channels, part.out_channels)
        for part in decoder.decode
        if isinstance(part, nn.ConvTranspose2d)
    ]
    assert widths == [(4096, 512), (512, 256), (256, 128), (128, 64), (64, 64), (64, 64), (64, 3)]


@pytest.mark.parametrize("name", BACKBONES)
def test_which_backbones_end_in_vectors(name: str) -> None:
    backbone = make_backbone(name).eval()
    side = max(64, backbone.min_px)
    shape = backbone(torch.zeros(1, 3, side, side)).shape
    last_is_fc = backbone.block_names[-1] in ("fc7", "mlp")
    assert (name in OF_VECTORS) == last_is_fc
    assert not last_is_fc or shape[2:] == (1, 1)


def test_colorization_names_the_colours_of_a_quarter_of_the_side() -> None:
    task, backbone = (
        Colorization(64, "random_resized", of_vectors=True),
        make_backbone("alexnet_rotnet", num_channels=1),
    )
    stage = Stage("E", 1, 1, 7, 1)
    head = task.head(1, 4096)
    task.start_stage(stage, StageBlocks(backbone, stage), head)
    assert tuple(task.map_size) == (16, 16)
    assert head(torch.zeros(2, 4096, 1, 1)).shape == (2, 313, 16, 16)


def test_context_restores_images_in_their_own_size() -> None:
    head = Context(0.5, 64, "random_resized", of_vectors=True).head(1, 128)
    vectors = 100 * torch.randn(2, 128, 1, 1)
    images = head(vectors)
    assert images.shape == (2, 3, 64, 64)
    assert isinstance(head, nn.Sequential) and torch.equal(images, head[0](vectors).tanh())
