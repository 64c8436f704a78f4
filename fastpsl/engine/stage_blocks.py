"""A backbone's blocks as a stage runs them: frozen blocks, then learning blocks."""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from typing_extensions import override

from fastpsl.engine.plan import Stage
from fastpsl.models.backbone import Backbone, check_size
from fastpsl.models.fold_batchnorm import check_foldable, folded

Metrics = dict[str, tuple[Tensor, Tensor]]
"""Metric name → (sum over valid samples, number of valid samples), both float32 scalars on the device."""


class StepMetrics(NamedTuple):
    """The metrics of a step, still on the device.

    `values`, float32 [len(names) + 1, 2], has a sum and a number per metric. The last row is the number of
    the stage's skipped steps up to this one, and 1.
    """

    names: tuple[str, ...]
    values: Tensor


class Runner(Protocol):
    """A function that runs blocks in sequence, with the arguments and result of `run_blocks`."""

    def __call__(self, blocks: Sequence[nn.Module], images: Tensor, every: bool = False) -> list[Tensor]: ...


def run_blocks(blocks: Sequence[nn.Module], images: Tensor, every: bool = False) -> list[Tensor]:
    """Run blocks in sequence."""
    outputs = []
    for block in blocks:
        images = block(images)
        if every:
            outputs.append(images)
    return outputs or [images]


class StageBlocks(nn.Module):
    """The blocks 1 to `stage.last_block` of a backbone. It sets requires_grad of all parameters.

    Only the stage's own blocks learn (PSL, section 3.4). The blocks before them run under no_grad. With
    `frozen_batchnorm="eval"` they normalise by their running statistics, which do not change. The paper does
    not say which mode it used. "eval" is our choice, so that a finished block stays unchanged; "train" is the
    other reading.
    """

    def __init__(
        self,
        backbone: Backbone,
        stage: Stage,
        frozen_batchnorm: str = "eval",
        batchnorm: Literal["train", "eval", "fixed"] = "train",
    ):
        super().__init__()
        blocks, self.min_px = backbone.blocks(), backbone.min_px
        backbone.requires_grad_(False)
        self.frozen = nn.ModuleList(blocks[: stage.first_learning - 1])
        self.learning = nn.ModuleList(blocks[stage.first_learning - 1 : stage.last_block])
        self.learning.requires_grad_(True)
        self.frozen_batchnorm, self.batchnorm = frozen_batchnorm, batchnorm
        if batchnorm == "fixed":
            for norm in self._learning_norms():
                norm.requires_grad_(False)
        # `step_modes.make_runner` sets how blocks run in training.
        self.runner: Runner = run_blocks
        # A list, not a submodule, so that state_dict, DDP and the optimiser ignore the copies.
        self._folded: list[nn.Module] = []
        self.train()

    def fold_frozen(self, dtype: torch.dtype) -> None:
        """Run frozen blocks from now on as copies with folded BatchNorms (`fastpsl.models.fold_batchnorm`).

        `dtype` is autocast's type, or float32. The copies have the blocks' present values, so weights and
        running statistics must not change afterwards.
        """
        check_foldable(self.frozen, self.frozen_batchnorm)
        self._folded = [folded(block, dtype) for block in self.frozen]

    @property
    def frozen_as_run(self) -> Sequence[nn.Module]:
        """The frozen blocks, or their folded copies."""
        return self._folded or self.frozen  # type: ignore[return-value]  # a ModuleList is a sequence of modules

    @override
    def train(self, mode: bool = True) -> "StageBlocks":
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
        """Return the features of the stage's last block."""
        check_size(min(images.shape[-2:]), self.min_px)
        with torch.no_grad():
            images = self.run(self.frozen_as_run, images)
        return self.run(self.learning, images)  # type: ignore[arg-type]

    def features(self, images: Tensor) -> list[Tensor]:
        """Return the features of every block that runs, B1 first."""
        check_size(min(images.shape[-2:]), self.min_px)
        outputs: list[Tensor] = []
        with torch.no_grad():
            outputs += self._outputs(self.frozen_as_run, images, every=True)
        last = outputs[-1] if outputs else images
        return outputs + self._outputs(self.learning, last, every=True)  # type: ignore[arg-type]

    def run(self, blocks: Sequence[nn.Module], images: Tensor) -> Tensor:
        """Run `blocks`, of which there may be none, as in this stage's steps."""
        return self._outputs(blocks, images)[-1] if len(blocks) else images

    def _outputs(self, blocks: Sequence[nn.Module], images: Tensor, every: bool = False) -> list[Tensor]:
        """Run blocks, compiled only in training, because evaluation has few batches, and of other sizes."""
        runner = self.runner if self.training else run_blocks
        return runner(blocks, images, every) if len(blocks) else []
