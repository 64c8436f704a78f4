"""Options that the commands on frozen features share: the weights, the images' size, and the machine.

They repeat a part of EvaluationOptions with help texts of their own, because importing it imports torch,
which is slow.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from fastpsl.models.names import ANY_BACKBONE

if TYPE_CHECKING:
    from fastpsl.engine.distributed import World
    from fastpsl.evaluation.options import EvaluationOptions

CHECKPOINT = tyro.conf.arg(
    metavar="CKPT",
    help="A run's folder (its newest checkpoint), a checkpoint, a file of `fastpsl export`, or "
    "others' weights.",
)


@dataclass(frozen=True)
class ExtractionOptions:
    """The options of the weights and the extraction of features."""

    size_px: Annotated[int, tyro.conf.arg(metavar="PX")] = 224
    """Side of the middle that is cut from each image, whose shorter side becomes PX * 256 / 224."""
    whole: bool = False
    """The shorter side becomes PX, so that small images are seen whole."""
    backbone: Annotated[
        str | None,
        tyro.conf.arg(
            metavar="NAME",
            help=f"For others' weights, random ones and your own module: {ANY_BACKBONE}.",
        ),
    ] = None
    input_channels: Annotated[
        Literal["RGB", "L", "Sobel", "SobelXY"] | None, tyro.conf.arg(metavar="RGB|L|Sobel|SobelXY")
    ] = None
    """For others' weights: what they were trained on."""
    input_mean: Annotated[tuple[float, ...] | None, tyro.conf.arg(metavar="NUM...")] = None
    """For others' weights: the mean that was taken off, one value per channel, of pixels in [0, 1]."""
    input_std: Annotated[tuple[float, ...] | None, tyro.conf.arg(metavar="NUM...")] = None
    """For others' weights: the standard deviation that was divided by."""
    batch_size: Annotated[int, tyro.conf.arg(metavar="NUM")] = 256
    """Images of one pass, over all ranks."""
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"], tyro.conf.arg(metavar="auto|fp32|bf16|fp16")
    ] = "auto"
    """auto: fp16 on CUDA, fp32 on the CPU."""
    device: Annotated[Literal["auto", "cpu", "cuda"], tyro.conf.arg(metavar="auto|cpu|cuda")] = "auto"
    """Where to compute; auto is CUDA if there is a GPU."""
    decoder: Annotated[str, tyro.conf.arg(metavar="NAME")] = "auto"
    """As in a recipe."""
    workers: Annotated[int | None, tyro.conf.arg(metavar="NUM")] = None
    """Decoding threads per GPU."""
    on_bad_sample: Annotated[Literal["raise", "skip"], tyro.conf.arg(metavar="raise|skip")] = "raise"
    """A sample that cannot be decoded: stop, or leave it out (its row is NaN) and name it."""

    @contextmanager
    def joined(self, checkpoint: Path | None, **more: Any) -> Iterator[tuple["EvaluationOptions", "World"]]:
        """Join torchrun's ranks and yield the evaluation's options; leave the ranks at the end.

        Args:
            checkpoint: The weights, or None with `random_weights`.
            **more: Further fields of EvaluationOptions, such as seed.

        Raises:
            ValueError: Weights are given twice or not at all, or a value is out of range.
        """
        from fastpsl.engine.distributed import join_world, leave_world
        from fastpsl.evaluation.options import EvaluationOptions
        from fastpsl.scripts.recipe import require_paths

        if (checkpoint is not None) == more.get("random_weights", False):
            raise ValueError("give either CKPT, or --random-weights and --backbone")
        if more.get("seed", 0) < 0:
            raise ValueError(f"--seed {more['seed']}: it must be 0 or more")
        options = EvaluationOptions(checkpoint=checkpoint, **vars(self), **more)
        require_paths(options)
        world = join_world(options.device, timeout_s=10 * options.timeout_s)
        try:
            yield options, world
        finally:
            leave_world()
