"""The module that one stage trains: frozen blocks, learning blocks, head and loss in one forward."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastpsl.engine.compile_modes import Runner, run_blocks
from fastpsl.engine.plan import Stage
from fastpsl.models.backbone import Backbone, check_size
from fastpsl.models.fold_batchnorm import check_foldable, folded
from fastpsl.pipelines.batch import Batch
from fastpsl.pipelines.views import ViewSpec

Metrics = dict[str, tuple[Tensor, Tensor]]
"""Metric name → (sum over the valid samples, number of them), both float32 scalars on the device."""


class Task(Protocol):
    """What the trainer asks of a pretext task. Nothing to inherit from: `docs/add_a_task.md` shows a short one.

    A task may also have `needs_labels = True`, which refuses data without them and held-out data of other classes,
    `fixed_sizes = False`, which says that its images have many sizes, for each of which cuDNN would time its algorithms
    anew, and, which the trainer then calls:
      held_out_views(level)            views of the held-out pass, where they are not views(level); none where there is no such pass
      train_loader(run)                batches of pictures that are no views, such as whole ones with boxes (pipelines/loader/annotated.py), by
                                       what has the Loader's epoch(), num_steps and names; views(level) is empty then, and …
      input_record()                   … this says what the network sees, for the checkpoint
      images_per_sample(level)         network inputs that one sample makes, as `--batch-size` counts them; 1 without it
      check_data(data, batch_size)     before anything is trained: ValueError where this data, or this global batch, cannot serve
      warm_up_batches(stage)           how many batches pass before a new stage's first step, without being steps …
      warm_up(trunk, head, inputs, batch)   … each of them, without gradients, in train mode; no epoch of training has their draws
      start_stage(stage, trunk, head)  a new stage's modules are made: build momentum copies, empty queues
      pass_views(level)                the views of its passes (below), to be checked before anything is trained
      start_epoch(passes)              before an epoch's first step: `fastpsl.engine.dataset_pass.Passes` shows it all training samples. Not where an
                                       epoch goes on after a resume. It may return figures, as end_of_epoch
      epoch_order(epoch)               the order of an epoch that begins or goes on, int64 [num_samples], the same on all ranks:
                                       dataset indices, each any number of times; it may depend on labels
      after_step()                     after each optimiser step: momentum updates, queues
      end_of_epoch()                   after an epoch's last step, also of one that --max-steps-per-stage cut short: new labels. It may
                                       return figures (name → number or None), which rank 0 writes to epochs.jsonl
      end_stage(passes)                after the stage's last step and held-out pass, also where it was cut short: what is made of the
                                       data once a network has learned. Called again where a pass was stopped
      state_dict(), load_state_dict()  everything it wants back on resume, in tensors, numbers, strings, lists and dicts.
                                       `state_dict()` is called on every rank at the
                                       same step and may communicate; rank 0's answer is the one that is saved
      chance(level)                    accuracy of guessing, to stand beside the held-out accuracy
      contact_sheet(inputs, batch)     float32 [n,3,h,w] in [0,1]: what the network sees, for people
      captions(batch)                  n strings: what it drew for each of them
    """

    num_levels: int

    def views(self, level: int) -> tuple[ViewSpec, ...]:
        """The views that level `level` (from 1) needs of each sample."""
        ...

    def head(self, level: int, channels: int) -> nn.Module:
        """A new head for the stage, on `channels` feature maps of the stage's last block."""
        ...

    def loss(
        self, trunk: "Trunk", head: nn.Module, inputs: Sequence[Tensor], batch: Batch
    ) -> tuple[Tensor, Metrics]:
        """Mean loss over samples with `batch.indices >= 0`, and metrics; `inputs[k]` is view k, ready for the trunk."""
        ...


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
        """batchnorm: of the blocks that learn, see `Job`."""
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
        # How blocks run in training: `step_modes.make_runner`.
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

    def train(self, mode: bool = True) -> "Trunk":
        super().train(mode)
        self.frozen.train(mode and self.frozen_batchnorm == "train")
        if self.batchnorm != "train":
            for norm in self._learning_norms():
                norm.eval()
        return self

    def _learning_norms(self) -> Iterator[nn.Module]:
        return (part for part in self.learning.modules() if isinstance(part, _BatchNorm))

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


class StageModule(nn.Module):
    """Trunk, head and the task's loss in one forward, as DDP must see exactly one a step."""

    def __init__(self, trunk: Trunk, head: nn.Module, task: Task):
        super().__init__()
        self.trunk, self.head = trunk, head
        self._loss = task.loss  # the task is no submodule: its momentum copies are no business of DDP's

    def forward(self, inputs: Sequence[Tensor], batch: Batch) -> tuple[Tensor, Metrics]:
        return self._loss(self.trunk, self.head, inputs, batch)

    def learning_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters that the stage's optimiser gets: learning blocks, then the head."""
        yield from self.trunk.learning.named_parameters(prefix="trunk")
        yield from self.head.named_parameters(prefix="head")


def call_if_there(task: Task, hook: str, *arguments: Any) -> Any:
    """Call an optional hook of a task (see `Task`); None where it has no such hook."""
    method = getattr(task, hook, None)
    return None if method is None else method(*arguments)


def held_out_views(task: Task, level: int) -> tuple[ViewSpec, ...]:
    """The views of a held-out pass."""
    views: tuple[ViewSpec, ...] | None = call_if_there(task, "held_out_views", level)
    return task.views(level) if views is None else views


def images_per_sample(task: Task, level: int) -> int:
    """How many of --batch-size's images one sample makes."""
    return call_if_there(task, "images_per_sample", level) or 1


def task_state(task: Task) -> Mapping[str, Any]:
    return call_if_there(task, "state_dict") or {}
