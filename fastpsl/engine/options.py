"""The options that all recipes share."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from typing_extensions import Self, override
from tyro.conf import arg

from fastpsl.engine.distributed import choose_device
from fastpsl.engine.optim.apex import fused_sgd, require_apex
from fastpsl.engine.optim.sgd_adam import sgd
from fastpsl.engine.plan import Stage, make_plan
from fastpsl.pipelines.augment import AugmentName

# Fields with this metadata may change on resume. All others are science and must stay equal.
MACHINE = {"machine": True}


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The options of a run. Fields marked MACHINE may change on resume; the others define the experiment."""

    data: Annotated[
        str | None,
        arg(
            help="Training images: a beton, a quoted glob of shards, a folder of images or a list of them "
            "(docs/sources.md). Without it: the embedded sample."
        ),
    ] = field(default=None, metadata=MACHINE)
    val: str | None = field(default=None, metadata=MACHINE)
    """Held-out images, likewise, for the score at each stage's end (the sample brings its own)."""
    out: Path | None = field(default=None, metadata=MACHINE)
    """The run's folder; without it a new numbered one under runs/."""
    resume: Annotated[
        str,
        arg(
            help="auto: from the newest checkpoint in --out, if there is one; never: only into a fresh "
            "folder; or a checkpoint's PATH."
        ),
    ] = field(default="auto", metadata=MACHINE)
    batch_size: int = 256
    """Images a step, over all ranks and accumulated batches."""
    seed: int = 0
    """Of weights, orders and draws."""
    order: Literal["random", "quasi_random"] = "random"
    """quasi_random reads whole pages: for betons larger than the page cache."""
    lanes: int = 64
    """Of the quasi-random order: each takes an equal share of every batch; the ranks share them."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: fp16 on CUDA, fp32 on the CPU."""
    sync_batchnorm: bool = False
    """BatchNorm statistics over all ranks (CUDA only)."""
    max_steps_per_stage: int | None = field(default=None, metadata=MACHINE)
    """Cut each stage short after so many steps; its schedule stays that of the whole stage."""
    device: Literal["auto", "cpu", "cuda"] = field(default="auto", metadata=MACHINE)
    """auto: CUDA where there is one."""
    decoder: str = field(default="auto", metadata=MACHINE)
    """ffcv, dali, torchvision, resident, synthetic, or auto."""
    num_threads: int | None = field(default=None, metadata=MACHINE)
    """Decoding threads of this rank; default: this machine's cores over its ranks."""
    augment: Annotated[
        AugmentName,
        arg(
            help="kornia: views' operations one after the other, by Kornia and torch; fused: in few kernels "
            "(on the CPU not of every recipe); auto: fused where it can be."
        ),
    ] = field(default="auto", metadata=MACHINE)
    step: Annotated[
        Literal["auto", "eager", "fused", "compiled", "graphed"],
        arg(
            help="How the learning blocks run: as they are, with fused BatchNorms, by torch.compile, in CUDA "
            "graphs, or as was measured to be fastest."
        ),
    ] = field(default="auto", metadata=MACHINE)
    fold_frozen: bool = field(default=False, metadata=MACHINE)
    """Fold BatchNorm into the convolutions of blocks that do not learn."""
    accumulate: int = field(default=1, metadata=MACHINE)
    """Batches whose gradients make one step: the paper's batch on fewer GPUs."""
    prefetch_batches: int = field(default=4, metadata=MACHINE)
    """Batches that are read, decoded or ready while a step runs."""
    timeout_s: float = field(default=120.0, metadata=MACHINE)
    """Longest wait for a batch (and, ten times that, for another rank)."""
    on_bad_sample: Literal["raise", "skip"] = field(default="raise", metadata=MACHINE)
    """A sample that cannot be decoded: stop, or replace it from the batch and list it in bad-samples.csv."""
    checkpoint_minutes: float = field(default=20.0, metadata=MACHINE)
    """Checkpoint so often (0: not by the clock); also at each stage's end and on SIGTERM or SIGINT."""
    checkpoint_steps: int = field(default=0, metadata=MACHINE)
    """Checkpoint every so many steps (0: not by steps)."""
    keep_checkpoints: int = field(default=3, metadata=MACHINE)
    """The newest ones; older are removed."""
    log_steps: int = field(default=10, metadata=MACHINE)
    """Steps between looks at the numbers: the only times that the host waits for the device."""
    tensorboard: bool = field(default=True, metadata=MACHINE)
    """Curves for TensorBoard in the run's folder."""
    wandb: bool = field(default=False, metadata=MACHINE)
    """Curves for Weights & Biases."""

    def __post_init__(self) -> None:
        if self.val is not None and self.data is None:
            raise ValueError(
                f"--val {self.val} without --data: give both, or neither for the embedded sample"
            )
        positive = (
            "batch_size",
            "accumulate",
            "prefetch_batches",
            "timeout_s",
            "keep_checkpoints",
            "log_steps",
            "lanes",
        )
        for name in positive:
            if getattr(self, name) <= 0:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)}: it must be above 0")
        for name in ("checkpoint_minutes", "checkpoint_steps"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"--{name.replace('_', '-')} {getattr(self, name)}: it must be 0 (never) or more"
                )
        for name in ("max_steps_per_stage", "num_threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} {value}: it must be 1 or more, or left out")

    def science(self) -> dict[str, Any]:
        """Return the fields that must be equal on resume, as plain values."""
        chosen = (f.name for f in fields(self) if not f.metadata.get("machine"))
        return {name: plain_value(getattr(self, name)) for name in chosen}

    def completed(self) -> Self:
        """Return these options with derived values filled in. Subclasses override it."""
        return self

    def as_dict(self) -> dict[str, Any]:
        """Return all fields as plain values."""
        return {f.name: plain_value(getattr(self, f.name)) for f in fields(self)}

    def rank_batch(self, world_size: int) -> int:
        """Return the number of images that a rank decodes at a time.

        Raises:
            ValueError: The batch is not divisible by the ranks and --accumulate.
        """
        share, rest = divmod(self.batch_size, world_size * self.accumulate)
        if rest or not share:
            raise ValueError(
                f"--batch-size {self.batch_size} over {world_size} ranks with --accumulate "
                f"{self.accumulate} does not divide: choose a batch that is a multiple of "
                f"{world_size * self.accumulate}"
            )
        return share

    def resolved_precision(self, device: torch.device) -> str:
        if self.precision != "auto":
            return self.precision
        return "fp16" if device.type == "cuda" else "fp32"


@dataclass(frozen=True, kw_only=True)
class PretrainOptions(RunOptions):
    """The options of recipes that train a backbone by a plan."""

    plan: Literal["psl", "sl", "psl_f", "end_to_end"] = "psl"
    """Which blocks learn what, and when (psl.txt, sections 3.2 and 4.5)."""
    stage_epochs: tuple[int, ...] = (60, 60, 60)
    """Epochs of each stage."""
    partition: Annotated[
        tuple[str, ...],
        arg(
            help="Blocks that learn in each stage, such as 1-3 2-4 3-5; by default n stages of all but n - 1 "
            "blocks each."
        ),
    ] = ()
    levels: tuple[int, ...] = ()
    """The task's level in each stage; by default from the easiest to the hardest."""
    frozen_batchnorm: Literal["eval", "train"] = "eval"
    """How blocks before the stage normalise."""
    apex: bool = False
    """SGD by NVIDIA apex's FusedSGD, where the recipe uses SGD."""
    probe_every: int = field(default=0, metadata=MACHINE)
    """Epochs between looks at the features by held-out labels (0: never)."""

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        if self.probe_every < 0:
            raise ValueError(f"--probe-every {self.probe_every}: it must be 0 (never) or more epochs")

    def stages(self, num_levels: int, num_blocks: int) -> tuple[Stage, ...]:
        """Return the plan's stages for a task and backbone with these numbers of levels and blocks."""
        return make_plan(
            self.plan,
            self.stage_epochs,
            num_levels=num_levels,
            num_blocks=num_blocks,
            partition=self.partition,
            levels=self.levels,
        )

    def sgd(self) -> Callable[..., torch.optim.Optimizer]:
        """Return the SGD optimiser, or apex's fused one for --apex.

        Raises:
            ValueError: apex cannot run.
        """
        if not self.apex:
            return sgd
        require_apex(choose_device(self.device, 0))
        return fused_sgd

    def refuse_apex(self, method: str, optimiser: str) -> None:
        """Raise ValueError for --apex, because `method` learns by `optimiser` and not by SGD."""
        if self.apex:
            raise ValueError(f"--apex: it has SGD, and {method} learns by {optimiser}; leave it out")


def plain_value(value: Any) -> Any:
    """Return paths as text, tuples as lists and other values unchanged, as in JSON."""
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value
