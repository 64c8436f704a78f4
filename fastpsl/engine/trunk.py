"""A backbone's blocks as one stage runs them: frozen ones, then those that learn."""

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from typing_extensions import override

from fastpsl.engine.block_runner import Runner, run_blocks
from fastpsl.engine.plan import Stage
from fastpsl.models.backbone import Backbone, check_size
from fastpsl.models.fold_batchnorm import check_foldable, folded

Metrics = dict[str, tuple[Tensor, Tensor]]
"""Metric name → (sum over the valid samples, number of them), both float32 scalars on the device."""


class Trunk(nn.Module):
    """Blocks 1 to `stage.last_block` of a backbone: images [B,C,H,W] to that block's features. Sets requires_grad.

    Only blocks of the stage learn (psl.txt, section 3.4). Blocks before them run under no_grad; with
    `frozen_batchnorm="eval"` they also normalise by their running statistics and do not move them. The paper does not
    say which it used: "eval" is our choice, so that a finished block stays as it is; "train" is the other reading.
    """

    def __init__(
        self,
        backbone: Backbone,
        stage: Stage,
        frozen_batchnorm: str = "eval",
        batchnorm: Literal["train", "eval", "fixed"] = "train",
    ):
        """batchnorm: of the blocks that learn, see `Experiment`."""
        super().__init__()
        blocks, self.min_px = backbone.blocks(), backbone.min_px
        backbone.requires_grad_(False)
        self.frozen = nn.ModuleList(blocks[: stage.first_learning - 1])
        self.learning = nn.ModuleList(blocks[stage.first_learning - 1 : stage.last_block]).requires_grad_(
            True
        )
        self.frozen_batchnorm, self.batchnorm = frozen_batchnorm, batchnorm
        if batchnorm == "fixed":
            for norm in self._learning_norms():
                norm.requires_grad_(False)
        # How blocks run in training: `compile_modes.make_runner`.
        self.runner: Runner = run_blocks
        # A list, so that it is no submodule: neither state_dict nor DDP nor the optimiser know it.
        self._folded: list[nn.Module] = []
        self.train()

    def fold_frozen(self, dtype: torch.dtype) -> None:
        """Run copies of the frozen blocks from now on whose BatchNorms are in their convolutions (`fastpsl.models.fold_batchnorm`).

        As the blocks are now, so neither their weights nor their running statistics may change afterwards. dtype: that of autocast, or
        float32. ValueError where blocks cannot be folded.
        """
        check_foldable(self.frozen, self.frozen_batchnorm)
        self._folded = [folded(block, dtype) for block in self.frozen]

    @property
    def frozen_as_run(self) -> Sequence[nn.Module]:
        """The frozen blocks, or their folded copies."""
        return self._folded or self.frozen  # type: ignore[return-value]  # a ModuleList is a sequence of modules

    @override
    def train(self, mode: bool = True) -> "Trunk":
        super().train(mode)
        self.frozen.train(mode and self.frozen_batchnorm == "train")
        if self.batchnorm != "train":
            for norm in self._learning_norms():
                norm.eval()
        return self

    def _learning_norms(self) -> Iterator[nn.Module]:
        return (part for part in self.learning.modules() if isinstance(part, _BatchNorm))

    @override
    def forward(self, images: Tensor) -> Tensor:
        """Features of the stage's last block."""
        check_size(min(images.shape[-2:]), self.min_px)
        with torch.no_grad():
            images = self.run(self.frozen_as_run, images)
        return self.run(self.learning, images)  # type: ignore[arg-type]

    def features(self, images: Tensor) -> list[Tensor]:
        """Features of every block that runs, B1 first."""
        check_size(min(images.shape[-2:]), self.min_px)
        outputs: list[Tensor] = []
        with torch.no_grad():
            outputs += self._outputs(self.frozen_as_run, images, every=True)
        last = outputs[-1] if outputs else images
        return outputs + self._outputs(self.learning, last, every=True)  # type: ignore[arg-type]

    def run(self, blocks: Sequence[nn.Module], images: Tensor) -> Tensor:
        """`images` through `blocks`, which may be none, as this stage's steps have them run."""
        return self._outputs(blocks, images)[-1] if len(blocks) else images

    def _outputs(self, blocks: Sequence[nn.Module], images: Tensor, every: bool = False) -> list[Tensor]:
        """Held-out passes and looks at features are few, and of sizes of their own: those are not compiled."""
        runner = self.runner if self.training else run_blocks
        return runner(blocks, images, every) if len(blocks) else []
