"""The options that all recipes share. This module does not import torch, which is slow."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args

from typing_extensions import Self, override
from tyro.conf import arg

from fastpsl.engine.plan import FreezeRule, Stage, make_plan, with_values
from fastpsl.files.paths import FORMS
from fastpsl.files.remote.address import is_remote
from fastpsl.models.names import ANY_BACKBONE, BACKBONES, MAX_DOWNLOAD_GB, is_module, is_own
from fastpsl.pipelines.interface.reading import Reading

if TYPE_CHECKING:
    import torch

# Fields with this metadata may change on resume. All others are science and must stay equal. A run adds the
# digest of its data to them.
MACHINE = {"machine": True}
# In a run's science: where the weights that it began with are from, if they were not random. It may differ on
# resume, since a checkpoint has weights of its own.
INITIAL_WEIGHTS = "initial_weights"
# The group of --help in which a field stands; those without one come first.
DATA, PLAN, OPTIMISATION, OUTPUT, MONITORING, SPEED = (
    {"group": name} for name in ("data", "plan", "optimisation", "output", "monitoring", "speed")
)
# How a step's blocks run: as torch has them, with our BatchNorms, or by torch.compile.
CompileName = Literal["auto", "off", "fused", "on"]
GraphName = Literal["auto", "on", "off"]
FoldName = Literal["auto", "on", "off"]
_MAX_WORKERS = 4096  # threads, some for each core of the largest machines
_MAX_SIDE_PX = 65_535  # of JPEG, and of dataset files
# The word of --val for no validation images. Otherwise it names data or a share (`share_of`).
NO_VAL = "none"
PerStage = int | tuple[int, ...]
"""One value for all stages, or one for each."""
AnyBackbone = Annotated[str, arg(help=f"{ANY_BACKBONE}.")]
DecoderName = Literal["auto", "turbo", "ffcv", "dali", "pillow", "resident", "synthetic"]


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The options of a script. Fields marked MACHINE may change on resume; the others must not."""

    without: ClassVar[Mapping[str, str]] = {}
    """The shared options that a script refuses, each with the reason. --help leaves them out."""
    forms: ClassVar[str] = FORMS
    """What may be given as --data and --val."""

    data: str | None = field(default=None, metadata=MACHINE | DATA)
    """Training images: a folder, a .beton file (FFCV's format), a quoted glob of such files, or a list of
    images. Dataset files may live elsewhere: s3://bucket/train-*.beton, gs://, hf:// or https://. Without it:
    a small sample that the package generates.
    """
    val: str | None = field(default=None, metadata=MACHINE | DATA)
    """Validation images, in the same forms; or a share of --data, such as 10%, held back by the images'
    names; or none. By default the sample's own, with --preset small or cpu-... 10%, else none.
    """
    cache_dir: Path | None = field(default=None, metadata=MACHINE | DATA)
    """For data that live elsewhere: a folder on a local disk for what is in use; by default in $TMPDIR."""
    cache_gb: float | None = field(default=None, metadata=MACHINE | DATA)
    """The most that --cache-dir may hold, in GB; by default 80 % of what the disk has free."""
    range: Annotated[str | None, arg(metavar="auto|LOW:HIGH")] = field(default=None, metadata=MACHINE | DATA)
    """Of images of more than 8 bits: the values that become 0 and 255, such as 0:4095; auto: the least and
    the greatest of up to 256 images. By default those of the weights, else all that the bits hold.
    """
    bands: Annotated[str | None, arg(metavar="N,N,N")] = field(default=None, metadata=MACHINE | DATA)
    """Of images of more bands than colours: one or three to take, counted from 1, such as 4,3,2."""
    out: Path | None = field(default=None, metadata=MACHINE | OUTPUT)
    """Folder of the run; by default a new numbered one under runs/."""
    resume: str = field(default="auto", metadata=MACHINE | OUTPUT)
    """auto: from the newest checkpoint in --out, if there is one; never: only into a fresh folder; or the
    path of a checkpoint.
    """
    batch_size: int = field(default=256, metadata=OPTIMISATION)
    """Images per step, over all GPUs and accumulated batches."""
    config: Path | None = field(default=None, metadata=MACHINE | OUTPUT)
    """Repeat a run: take all values of its config.json that the command does not give."""
    seed: int = field(default=0, metadata=OUTPUT)
    """Random seed of the initial weights, the order of the images and their augmentations."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = field(default="auto", metadata=SPEED)
    """Number format of the network; auto is fp16 on CUDA. On the CPU it is fp32, and in pre-training of a
    network of ours bf16 where the CPU has instructions for it.
    """
    device: Literal["auto", "cpu", "cuda"] = field(default="auto", metadata=MACHINE | SPEED)
    """Where to compute; auto is CUDA if there is a GPU."""
    decoder: DecoderName = field(default="auto", metadata=MACHINE | SPEED)
    """Reader of the images; auto decides by the data, the device and the cores."""
    workers: int | None = field(default=None, metadata=MACHINE | SPEED)
    """Decoding threads per GPU; by default the machine's cores divided by its GPUs' processes."""
    hw_decoder_load: float | None = field(default=None, metadata=MACHINE | SPEED)
    """For dali on a GPU: share of each batch for its JPEG engines, from 0 to 1; by default 0.9."""
    prefetch_batches: int = field(default=4, metadata=MACHINE | SPEED)
    """Batches that are read, decoded or ready while a step runs."""
    timeout_s: float = field(default=120.0, metadata=MACHINE | SPEED)
    """Longest wait for a batch, in seconds. The wait for another rank is ten times as long."""
    on_bad_sample: Literal["raise", "skip"] = field(default="raise", metadata=MACHINE | DATA)
    """For an image that cannot be decoded: stop, or replace it and list it in bad-samples.csv."""

    def __post_init__(self) -> None:
        for option in fields(self):
            value = getattr(self, option.name)
            if option.name in self.without and value != option.default:
                given = flag(option.name) if value is True else f"{flag(option.name)} {value}"
                raise ValueError(f"{given}: {self.without[option.name]}")
            numbers = value if isinstance(value, tuple | list) else (value,)
            if not all(math.isfinite(number) for number in numbers if isinstance(number, float)):
                given = " ".join(map(str, numbers))
                raise ValueError(f"{flag(option.name)} {given}: it must be a finite number")
            is_side = option.name.endswith("_px") and value is not None
            if is_side and not all(1 <= number <= _MAX_SIDE_PX for number in numbers):
                given = " ".join(map(str, numbers))
                raise ValueError(f"{flag(option.name)} {given}: a side has 1 to {_MAX_SIDE_PX:,} px")
        share_of(self.val)
        Reading.of(self.range, self.bands)
        if self.val not in (None, NO_VAL) and self.data is None:
            raise ValueError(
                f"--val {self.val} without --data: give both, or neither for the embedded sample"
            )
        if not any(map(is_remote, (self.data, self.val))):
            for name in ("cache_dir", "cache_gb"):
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"{flag(name)} {getattr(self, name)}: it is for data that live elsewhere, such as "
                        "s3://bucket/train-*.beton; leave it out"
                    )
        self._require_positive("batch_size", "prefetch_batches", "timeout_s")
        self._require_positive_or_none("workers")
        if (self.workers or 0) > _MAX_WORKERS:
            raise ValueError(f"--workers {self.workers}: a process has at most {_MAX_WORKERS:,} of them")
        if self.hw_decoder_load is not None and not 0 <= self.hw_decoder_load <= 1:
            raise ValueError(
                f"--hw-decoder-load {self.hw_decoder_load}: it must be from 0 to 1, or left out (0.9)"
            )

    def _require_positive(self, *names: str) -> None:
        for name in names:
            values = per_stage(getattr(self, name))
            if not values or min(values) <= 0:
                given = " ".join(map(str, values))
                raise ValueError(f"{flag(name)} {given}: it must be above 0")

    def _require_positive_or_none(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{flag(name)} {value}: it must be 1 or more, or left out")

    def reading(self) -> tuple[Reading, str]:
        """Return how images of --data are read, and who decided it in words; "" where the options did."""
        return Reading.of(self.range, self.bands), ""

    def science(self) -> dict[str, Any]:
        """Return the fields that must be equal on resume, as plain values."""
        chosen = (f.name for f in fields(self) if not f.metadata.get("machine"))
        return {name: plain_value(getattr(self, name)) for name in chosen}

    def of_run(self) -> dict[str, Any]:
        """Return the defaults that a trained run brings to its evaluation. Evaluations override it."""
        return {}

    def goes_on(self) -> bool:
        """Return whether the run resumes from a checkpoint, which has its weights."""
        if self.resume == "auto":
            return self.out is not None and any(self.out.glob(f"checkpoints/step-{8 * '[0-9]'}.pt"))
        return self.resume != "never"

    def completed(self) -> Self:
        """Return these options with derived values filled in. Subclasses override it."""
        return self

    @classmethod
    def renewed(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of options that follow from those under former names. Subclasses override it."""
        return {}

    def as_dict(self) -> dict[str, Any]:
        """Return all fields as plain values."""
        return {f.name: plain_value(getattr(self, f.name)) for f in fields(self)}

    @property
    def passes_per_step(self) -> int:
        """The number of batches whose gradients make one step."""
        return 1

    def batch_of(self, stage: Stage | None = None) -> int:
        """Return the images of a step over all GPUs and accumulated batches: a stage's, or else the most."""
        own = stage.batch_size if stage is not None else None
        return own or max(per_stage(self.batch_size))

    def rank_batch(self, world_size: int, batch_size: int | None = None) -> int:
        """Return the images that a rank decodes at a time, of a step of `batch_size` or else of the largest.

        Raises:
            ValueError: The batch is not divisible by the ranks and --accumulate.
        """
        parts, batch_size = world_size * self.passes_per_step, batch_size or self.batch_of()
        share, rest = divmod(batch_size, parts)
        if rest or not share:
            accumulated = f" with --accumulate {self.passes_per_step}" if self.passes_per_step > 1 else ""
            raise ValueError(
                f"--batch-size {batch_size} over {world_size} ranks{accumulated} does not divide: "
                f"choose a batch that is a multiple of {parts}"
            )
        return share

    def resolved_precision(self, device: torch.device) -> str:
        if self.precision == "bf16" and device.type == "cuda":
            _require_bf16(device)
        if self.precision != "auto":
            return self.precision
        return "fp16" if device.type == "cuda" else "fp32"


def _require_bf16(device: torch.device) -> None:
    """Raise ValueError for a GPU that lacks bf16: torch would emulate it, and cuDNN has no convolutions."""
    import torch

    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        raise ValueError(
            "--precision bf16: GPUs have it from compute capability 8.0 on, and this one is of "
            f"{capability[0]}.{capability[1]}; use --precision fp16, or auto"
        )


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(RunOptions):
    """The options of scripts that train, be it a backbone or a classifier on it."""

    order: Literal["random", "quasi_random"] = field(default="random", metadata=DATA)
    """Order of the images; quasi_random reads whole pages, for data larger than the memory."""
    lanes: int = field(default=64, metadata=DATA)
    """For quasi_random: places of the data that are read at a time. Each gives an equal share of a batch."""
    sync_batchnorm: bool = field(default=False, metadata=OPTIMISATION)
    """Compute BatchNorm's statistics over all GPUs."""
    accumulate: int = field(default=1, metadata=MACHINE | OPTIMISATION)
    """Batches whose gradients make one step. It reaches the paper's batch on fewer GPUs."""
    max_steps_per_stage: int | None = field(default=None, metadata=MACHINE | OUTPUT)
    """Cut each stage short after this many steps. Its learning rates stay those of the whole stage."""
    dry_run: bool = field(default=False, metadata=MACHINE | OUTPUT)
    """Tell the steps, the memory and the stages' ends from a few steps of each, and write nothing."""
    checkpoint_minutes: float = field(default=20.0, metadata=MACHINE | OUTPUT)
    """Minutes between checkpoints (0: none by the clock). Stages' ends and interruptions have one too."""
    checkpoint_steps: int = field(default=0, metadata=MACHINE | OUTPUT)
    """Steps between checkpoints (0: none by steps)."""
    keep_checkpoints: int = field(default=3, metadata=MACHINE | OUTPUT)
    """Number of the most recent checkpoints to keep."""
    log_steps: int = field(default=10, metadata=MACHINE | MONITORING)
    """Steps between records of loss and speed. Only then does the host wait for the GPU."""
    tensorboard: bool = field(default=True, metadata=MACHINE | MONITORING)
    """Write curves for TensorBoard to the run's folder."""
    wandb: bool = field(default=False, metadata=MACHINE | MONITORING)
    """Send curves to Weights & Biases."""
    augment_backend: Literal["auto", "kornia", "torch", "fused"] = field(
        default="auto", metadata=MACHINE | SPEED
    )
    """Augmentation by single operations, or in few kernels (fused); auto: fused if possible, else torch."""
    compile: CompileName = field(default="auto", metadata=MACHINE | SPEED)
    """How the blocks run: off, as they are; fused, with fused BatchNorms; on, by torch.compile; auto, the
    fastest known way.
    """
    graph: GraphName = field(default="auto", metadata=MACHINE | SPEED)
    """Replay each step as one CUDA graph; auto: wherever the stage can be captured."""
    fold_frozen: FoldName = field(default="auto", metadata=MACHINE | SPEED | {"bare": "on"})
    """Fold BatchNorm into the convolutions of blocks that do not learn; auto: in captured steps in half
    precision, wherever it can be done.
    """

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_positive("accumulate", "keep_checkpoints", "log_steps", "lanes")
        self._require_positive_or_none("max_steps_per_stage")
        for name, known in (("compile", CompileName), ("graph", GraphName), ("fold_frozen", FoldName)):
            if (value := getattr(self, name)) not in get_args(known):
                names = ", ".join(get_args(known))
                raise ValueError(f"unknown value {value!r} of {name}: allowed are {names}")
        for name in ("checkpoint_minutes", "checkpoint_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"{flag(name)} {getattr(self, name)}: it must be 0 (never) or more")
        if not (decay := getattr(self, "weight_decay", 0.0)) >= 0:  # most recipes have it
            raise ValueError(f"--weight-decay {decay:g}: it must be 0 or more")

    @property
    @override
    def passes_per_step(self) -> int:
        return self.accumulate


@dataclass(frozen=True, kw_only=True)
class PretrainOptions(TrainingOptions):
    """The options of recipes that train a backbone by a plan."""

    preset: Literal["auto", "paper", "small", "sample", "cpu-large", "cpu-medium", "cpu-small"] = field(
        default="auto", metadata=MACHINE | PLAN
    )
    """The defaults: the paper's; small, a batch and a length for few images; cpu-..., a small network for a
    CPU; sample, a minute's values. auto: sample without --data; else paper, for fewer than 100,000 images
    small. Without a GPU, `fastpsl train` takes that of cpu-... which ends in about half an hour.
    """
    init: str | None = field(default=None, metadata=MACHINE | PLAN)
    """Begin with these weights: a run's folder, a checkpoint, a file of `fastpsl export` or of another
    project; or published ones: timm/NAME[.TAG], or an address such as hf://ORG/NAME/model.safetensors.
    """
    init_partial: bool = field(default=False, metadata=MACHINE | PLAN)
    """Let --init take the tensors that fit by name and shape. A line lists the others."""
    max_download_gb: float = field(default=MAX_DOWNLOAD_GB, metadata=MACHINE | PLAN)
    """The largest file that --init downloads from an address, in GB."""
    plan: Literal["psl", "sl", "psl_f", "end_to_end", "blockwise", "continue"] = field(
        default="psl", metadata=PLAN
    )
    """Which blocks learn in which stage (PSL, sections 3.2 and 4.5); end_to_end: all of them; blockwise: all
    at once, each stage's blocks by a loss of their own; continue: those from --first-learning, the others
    stay as --init has them.
    """
    first_learning: str | None = field(default=None, metadata=PLAN)
    """For --plan continue: the first block that learns, such as B3; by default the one above the best kNN."""
    epochs: tuple[int, ...] = field(default=(60, 60, 60), metadata=PLAN)
    """Epochs of each stage; their number is that of the stages. One value trains all blocks end to end."""
    batch_size: PerStage = field(default=256, metadata=OPTIMISATION)  # type: ignore[assignment]
    """Images per step, over all GPUs and accumulated batches: one value, or one for each stage."""
    crop_scale: tuple[float, ...] | None = field(default=None, metadata=PLAN)
    """The least share of an image's area in a random resized crop: one value, or one for each stage; by
    default the method's own.
    """
    partition: tuple[str, ...] = field(default=(), metadata=PLAN)
    """Blocks that learn in each stage, such as 1-3 2-4 3-5; by default n stages of all but n - 1 blocks each.
    """
    levels: tuple[int, ...] = field(default=(), metadata=PLAN)
    """Difficulty of the task in each stage, or one for all; by default from the easiest to the hardest."""
    frozen_batchnorm: Literal["eval", "train"] = field(default="eval", metadata=PLAN)
    """How BatchNorm of blocks before the stage normalises: by running or by batch statistics."""
    learning_batchnorm: Literal["train", "eval"] = field(default="train", metadata=PLAN)
    """How BatchNorm of blocks that learn normalises: by batch statistics, or by those that --init has."""
    probe_every: int | None = field(default=None, metadata=MACHINE | MONITORING)
    """Epochs between further tests of the features by kNN, which each stage's end has anyway (0: no test)."""
    freeze_when: Literal["never", "knn", "similarity"] = field(default="never", metadata=PLAN)
    """End a stage once its features' kNN accuracy, or the features themselves, stay from test to test."""
    freeze_looks: int = field(default=3, metadata=PLAN)
    """For --freeze-when: tests in a row without a change. The tests are those of --probe-every."""
    freeze_within: float = field(default=0.01, metadata=PLAN)
    """For --freeze-when: the largest gain of accuracy, or loss of similarity, that counts as no change."""
    freeze_min_epochs: int = field(default=1, metadata=PLAN)
    """For --freeze-when: epochs that a stage has at least."""

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        for scale in self.crop_scale or ():
            if not 0 < scale <= 1:
                raise ValueError(f"--crop-scale {scale:g}: it is a share of the area, above 0 and up to 1")
        if self.probe_every is not None and self.probe_every < 0:
            raise ValueError(f"--probe-every {self.probe_every}: it must be 0 (no test) or more epochs")
        self._require_positive("freeze_looks", "freeze_min_epochs", "max_download_gb")
        if not 0 <= self.freeze_within < 1:
            raise ValueError(f"--freeze-within {self.freeze_within:g}: it must be 0 or more, and below 1")
        if self.freeze_when != "never" and self.probe_every == 0:
            raise ValueError(
                f"--freeze-when {self.freeze_when} with --probe-every 0: it needs tests; give 1 or more"
            )
        if self.init == "":
            raise ValueError("--init without a name: give the weights, or leave it out")
        if self.plan == "continue" and self.frozen_batchnorm != "eval":
            raise ValueError(
                f"--frozen-batchnorm {self.frozen_batchnorm} with --plan continue, whose lower blocks keep "
                "their statistics: leave it out"
            )

    @override
    def completed(self) -> Self:
        """Write blocks in one form; let --freeze-when probe after each epoch unless --probe-every is given.

        Raises:
            ValueError: An option lacks the one that it belongs to, which --config may have brought.
        """
        if self.init_partial and self.init is None:
            raise ValueError("--init-partial without --init: give the weights, or leave it out")
        if self.plan != "continue" and self.first_learning is not None:
            raise ValueError(
                f"--first-learning {self.first_learning} with --plan {self.plan}: it is for --plan continue"
            )
        first, every = self.first_learning, self.probe_every
        first = f"B{first}" if first is not None and first.isdecimal() else first
        every = 1 if self.freeze_when != "never" and every is None else every
        partition = tuple(part.replace("B", "") for part in self.partition)
        return replace(self, first_learning=first, partition=partition, probe_every=every)

    @override
    def resolved_precision(self, device: torch.device) -> str:
        is_ours = getattr(self, "backbone", None) in BACKBONES  # others are not measured in bf16
        if self.precision == "auto" and device.type == "cpu" and is_ours:
            from fastpsl.engine.gpu import cpu_has_bf16  # imports torch, which --help does without

            return "bf16" if cpu_has_bf16() else "fp32"
        return super().resolved_precision(device)

    @override
    def science(self) -> dict[str, Any]:
        """Return the fields that must be equal on resume; options that have no effect here are left out."""
        science = super().science()
        if self.first_learning is None:
            del science["first_learning"]
        if self.learning_batchnorm == "train":
            del science["learning_batchnorm"]
        if self.freeze_when == "never":
            return {name: value for name, value in science.items() if not name.startswith("freeze_")}
        return science | {"probe_every": self.probe_every}

    @property
    def freeze_rule(self) -> FreezeRule:
        """The rule by which stages end early."""
        return FreezeRule(self.freeze_when, self.freeze_looks, self.freeze_within, self.freeze_min_epochs)

    def stages(self, num_levels: int, num_blocks: int) -> tuple[Stage, ...]:
        """Return the plan's stages for a task and a backbone.

        Args:
            num_levels: The task's number of levels.
            num_blocks: The backbone's number of blocks.

        Returns:
            The stages, in order.

        Raises:
            ValueError: Options of the plan do not fit each other, the task or the backbone.
        """
        name, needs_several = getattr(self, "backbone", ""), len(self.epochs) > 1 or self.plan == "continue"
        is_users = is_own(name) or is_module(name)
        if num_blocks == 1 and needs_several and self.plan != "end_to_end" and is_users:
            from fastpsl.models.given import stages_of_one_block

            raise stages_of_one_block(self.plan, name)
        stages = make_plan(
            self.plan, self.epochs, num_levels=num_levels, num_blocks=num_blocks, partition=self.partition,
            levels=self.levels, first_learning=self.first_learning,
        )  # fmt: skip
        values = {name: getattr(self, name, None) for name in ("size_px", "crop_scale", "batch_size")}
        own = {name: value for name, value in values.items() if isinstance(value, tuple)}
        return with_values(self.plan, stages, own)


@dataclass(frozen=True, kw_only=True)
class SGDOptions(PretrainOptions):
    """The options of recipes that learn by SGD."""

    apex: bool = field(default=False, metadata=OPTIMISATION)
    """Use FusedSGD of NVIDIA apex."""

    def sgd(self) -> Callable[..., torch.optim.Optimizer]:
        """Return the function that builds SGD, or with --apex apex's fused one.

        Returns:
            `sgd`, or a function of the same arguments.

        Raises:
            ValueError: --apex is given, and there is no apex or no GPU.
        """
        from fastpsl.engine.distributed import choose_device
        from fastpsl.engine.optim.optimisers import fused_sgd, require_apex, sgd

        if not self.apex:
            return sgd
        require_apex(choose_device(self.device, 0))
        return fused_sgd


def per_stage(value: Any) -> tuple[Any, ...]:
    """Return the values of an option as a tuple.

    Args:
        value: One value for all stages, or a tuple with one for each.

    Returns:
        The tuple, or a tuple of the single value.
    """
    return value if isinstance(value, tuple) else (value,)


def at_end(value: PerStage) -> int:
    """Return the last stage's value of an option.

    Args:
        value: One value for all stages, or one for each.

    Returns:
        The value, which a run's views and weights record.
    """
    return int(per_stage(value)[-1])


def share_of(val: str | None) -> float | None:
    """Return the share of --data that --val holds back, such as 0.1 for 10%; None if it names data or none.

    Raises:
        ValueError: It is no share between 0 and 100 %.
    """
    if val is None or not str(val).endswith("%"):
        return None
    try:
        share = float(str(val)[:-1]) / 100
    except ValueError:
        return None  # a path
    if not 0 < share < 1:
        raise ValueError(f"--val {val}: give a share above 0% and below 100%, such as 10%, or --val {NO_VAL}")
    return share


def names_val(options: RunOptions) -> bool:
    """Return whether --val names data, and not a part of --data or none."""
    return options.val not in (None, NO_VAL) and share_of(options.val) is None


def flag(name: str) -> str:
    """Return the flag of a field, such as --batch-size."""
    return f"--{name.replace('_', '-')}"


def plain_value(value: Any) -> Any:
    """Return paths as text, tuples as lists and other values unchanged, as in JSON."""
    if isinstance(value, Path | str):
        return str(value)  # a backbone's name may be more than text
    return list(value) if isinstance(value, tuple) else value
