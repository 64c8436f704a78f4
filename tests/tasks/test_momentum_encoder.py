"""Test the key encoder: what it shares, how it follows the query, and its BatchNorm."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from typing_extensions import override

from fastpsl.engine.plan import make_plan
from fastpsl.engine.stage_blocks import StageBlocks
from fastpsl.models.backbone import Backbone
from fastpsl.models.revnet import RevNet
from fastpsl.tasks.contrastive.moco import KeyEncoder
from tests.engine.tiny import TinyNet


def query(
    frozen_batchnorm: str = "eval", sync: bool = False, reversible: bool = False
) -> tuple[nn.Module, StageBlocks, nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    backbone: Backbone = TinyNet()
    if reversible:
        backbone = RevNet(channels=(8, 8, 12, 16, 16), units=(1, 2, 2, 2), widths=(4, 4, 4, 4))
    if sync:
        backbone = nn.SyncBatchNorm.convert_sync_batchnorm(backbone)
    blocks = StageBlocks(backbone, make_plan("psl", (1, 1, 1))[1], frozen_batchnorm)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
    return backbone, blocks, head, torch.randn(8, 3, 32, 32)


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize(
    ("frozen_batchnorm", "reversible"), [("eval", False), ("train", False), ("eval", True)]
)
def test_keys_are_normalised_by_their_own_images_and_move_nothing(
    frozen_batchnorm: str, reversible: bool
) -> None:
    backbone, blocks, head, images = query(frozen_batchnorm, reversible=reversible)
    encoder = KeyEncoder(blocks, head, 0.9)
    before = snapshot(backbone)
    keys = encoder(images, 8)
    blocks.eval(), head.eval()  # keys are the same in validation passes
    again = encoder(images, 8)
    blocks.train(), head.train()
    assert all(torch.equal(before[name], value) for name, value in backbone.state_dict().items())
    assert not keys.requires_grad and torch.equal(keys, again)
    assert torch.allclose(keys.norm(dim=1), torch.ones(8))
    expected = nn.functional.normalize(head(blocks(images)))  # train mode uses these images' statistics
    assert torch.allclose(keys, expected, atol=1e-6)
    assert not torch.allclose(keys[:4], encoder(images[:4], 4), atol=1e-3)


@pytest.mark.parametrize("frozen_batchnorm", ["eval", "train"])
def test_each_group_is_normalised_by_itself(frozen_batchnorm: str) -> None:
    _, blocks, head, images = query(frozen_batchnorm)
    encoder = KeyEncoder(blocks, head, 0.9)
    whole = encoder(images, 4)
    parts = [encoder(group, 4) for group in images.split(4)]
    assert torch.allclose(whole, torch.cat(parts), atol=1e-6)
    assert not torch.allclose(whole, encoder(images, 8), atol=1e-3)


class Casts(TorchDispatchMode):
    """A dispatch mode that counts weights cast to bfloat16."""

    num = 0

    @override
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        is_cast = function._schema.name == "aten::_to_copy" and (kwargs or {}).get("dtype") == torch.bfloat16
        self.num += is_cast and isinstance(args[0], nn.Parameter)
        return function(*args, **(kwargs or {}))


def test_weights_are_cast_once_a_step_under_autocast() -> None:
    """The values are those of autocast's own casts in each call."""
    _, blocks, head, images = query()
    encoder, plain = KeyEncoder(blocks, head, 0.5), KeyEncoder(blocks, head, 0.5)
    plain._as_run = lambda device_type: (plain.learning, plain.head)  # type: ignore[method-assign]
    with torch.autocast("cpu", torch.bfloat16):
        for step in range(2):
            assert torch.equal(encoder(images, 2), plain(images, 2)), step
            for p in [*blocks.learning.parameters(), *head.parameters()]:
                p.data.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(step)))
            encoder.follow()
            plain.follow()
        encoder.load_state_dict(plain.state_dict())
        assert torch.equal(encoder(images, 2), plain(images, 2))
        with Casts() as encoder_casts:
            encoder(images, 2)
        with Casts() as autocasts:
            plain(images, 2)
    # The frozen block is cast once for all groups; autocast would cast the other weights in each group.
    assert (encoder_casts.num, autocasts.num) == (1, 1 + 4 * 5)


def test_synchronised_batchnorm_is_by_the_group_in_the_copy() -> None:
    """In train mode, torch's SyncBatchNorm would join the groups of all ranks, and refuse CPU tensors."""
    _, blocks, head, images = query()
    expected = KeyEncoder(blocks, head, 0.9)(images, 8)
    _, blocks, head, images = query(sync=True)
    assert isinstance(blocks.learning[0][1], nn.SyncBatchNorm)  # type: ignore[index]
    encoder = KeyEncoder(blocks, head, 0.9)
    assert torch.equal(encoder(images, 8), expected)
    assert not any(part.training for part in [*encoder.learning.modules(), *encoder.head.modules()])


def test_it_follows_by_the_momentum_formula() -> None:
    _, blocks, head, _ = query()
    encoder = KeyEncoder(blocks, head, 0.75)
    query_parameters = [*blocks.learning.parameters(), *head.parameters()]
    key_parameters = [*encoder.learning.parameters(), *encoder.head.parameters()]
    assert len(key_parameters) == 11 and not any(p.requires_grad for p in key_parameters)
    expected = [p.detach().clone() for p in query_parameters]
    for step in range(3):
        for p in query_parameters:
            p.data.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(step)))
        encoder.follow()
        expected = [0.75 * k + 0.25 * q.detach() for k, q in zip(expected, query_parameters, strict=True)]
        for parameter, value in zip(key_parameters, expected, strict=True):
            assert torch.allclose(parameter, value, atol=1e-6)


def test_frozen_blocks_are_shared_and_only_the_rest_is_saved() -> None:
    _, blocks, head, images = query()
    encoder = KeyEncoder(blocks, head, 0.5)
    assert encoder.frozen is blocks.frozen
    assert not any("running" in name for part in encoder.state_dict().values() for name in part)
    state = copy.deepcopy(encoder.state_dict())
    keys = encoder(images, 8)
    for p in [*blocks.learning.parameters(), *head.parameters()]:
        p.data.add_(1.0)
    encoder.follow()
    assert not torch.allclose(encoder(images, 8), keys, atol=1e-3)
    encoder.load_state_dict(state)
    assert torch.equal(encoder(images, 8), keys)
