"""Encode keys (MoCo, section 3.2) by a slowly moving copy of the blocks and the head that a stage trains."""

import copy
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import get_ema_multi_avg_fn

from fastpsl.engine.stage_blocks import StageBlocks

Module = TypeVar("Module", bound=nn.Module)


class KeyEncoder:
    """A copy of the learning blocks and the head, without gradients, that follows them by momentum.

    Its BatchNorm always uses the statistics of the images of the call, in training and in validation passes.
    So a key does not depend on a rank's history. Frozen blocks are the backbone's own, because they are equal
    in both encoders. Only if frozen BatchNorm uses batch statistics (frozen_batchnorm "train") are they
    copied, because keys would otherwise change their running statistics. The encoder is not part of the
    stage's module, so DDP and the optimiser do not see it. Its blocks run as the backbone's do, folded and
    compiled where those are.

    Under autocast, copies with weights of its type run. Autocast would cast weights without gradients in
    every call, and there is a call per group: 424 casts per step for ResNet-50 and 8 groups instead of 53.
    """

    def __init__(self, blocks: StageBlocks, head: nn.Module, momentum: float):
        self.blocks = blocks
        shared = blocks.frozen_batchnorm == "eval"
        self.frozen = blocks.frozen if shared else _by_batch_statistics(blocks.frozen)
        self.learning, self.head = _by_batch_statistics(blocks.learning), _by_batch_statistics(head)
        self._mine: list[Tensor] = [*self.learning.parameters(), *self.head.parameters()]
        self._theirs = [*blocks.learning.parameters(), *head.parameters()]
        self._update = get_ema_multi_avg_fn(momentum)

        self._cast: tuple[nn.ModuleList, nn.Module] | None = None

    @torch.no_grad()
    def __call__(self, images: Tensor, group_size: int) -> Tensor:
        """Encode images in groups, each normalised by its own statistics.

        Frozen blocks that normalise by running statistics see all images at once.

        Args:
            images: [B, C, H, W]; group_size divides B.
            group_size: Images that are normalised together.

        Returns:
            Keys of length 1, float32 [B, width].
        """
        blocks = self.blocks
        learning, head = self._as_run(images.device.type)
        is_shared = self.frozen is blocks.frozen
        if is_shared:
            images = blocks.run(blocks.frozen_as_run, images)
        keys = []
        for group in images.split(group_size):
            if not is_shared:
                group = blocks.run(self.frozen, group)  # type: ignore[arg-type]  # a ModuleList is a sequence
            keys.append(F.normalize(head(blocks.run(learning, group)).float()))  # type: ignore[arg-type]
        return torch.cat(keys)

    def _as_run(self, device_type: str) -> tuple[nn.ModuleList, nn.Module]:
        """Return the learning blocks and the head, under autocast with weights of its type."""
        if not torch.is_autocast_enabled(device_type):
            return self.learning, self.head
        if self._cast is None:
            dtype = torch.get_autocast_dtype(device_type)
            self._cast = copy.deepcopy((self.learning, self.head))
            for part in self._cast:
                for layer in part.modules():
                    if isinstance(layer, nn.Conv2d | nn.Linear):
                        layer.to(dtype)
        # The two dtypes one after the other: torch 2.10 takes all destinations for the first one's.
        pairs = list(zip((p for part in self._cast for p in part.parameters()), self._mine, strict=True))
        for is_cast in (True, False):
            chosen = [pair for pair in pairs if (pair[0].dtype != pair[1].dtype) == is_cast]
            if chosen:
                torch._foreach_copy_([copied for copied, _ in chosen], [mine for _, mine in chosen])
        return self._cast

    def follow(self) -> None:
        """Update every parameter after a step: k ← momentum * k + (1 - momentum) * q (MoCo, equation 2)."""
        self._update(self._mine, self._theirs, None)

    def parameters(self) -> list[Tensor]:
        """Return the parameters that `follow` writes."""
        return self._mine

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        return {"learning": self.learning.state_dict(), "head": self.head.state_dict()}

    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        self.learning.load_state_dict(state["learning"])
        self.head.load_state_dict(state["head"])


def _by_batch_statistics(module: Module) -> Module:
    """Return a copy without gradients whose BatchNorm uses the batch statistics of this rank alone.

    In eval mode without running statistics, torch normalises by the batch. SyncBatchNorm does so too, without
    communication.
    """
    module = copy.deepcopy(module).requires_grad_(False).eval()
    for part in module.modules():
        if isinstance(part, _BatchNorm):
            part.track_running_stats = False
            part.running_mean = part.running_var = part.num_batches_tracked = None
    return module
