"""Train SimCLR in levels (PSL, section 3.3.3 and Table 3; section 4.1 "Contrastive learning")."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from typing_extensions import override

from fastpsl.engine.distributed import place_among_ranks
from fastpsl.engine.plan import Stage
from fastpsl.engine.stage_blocks import Metrics, StageBlocks
from fastpsl.engine.task import Task
from fastpsl.kernels.colour import ColourDistortion, Grey
from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.kernels.filters import GaussianBlur, Sobel
from fastpsl.kernels.geometry import Flip
from fastpsl.kernels.normalise import joined
from fastpsl.models.convolutional import mean_of_positions
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.views import Op, ViewSpec
from fastpsl.tasks.contrastive.nt_xent import NTXent, nt_xent

NUM_LEVELS = 3
# PSL does not state it.
SOBEL_P = 0.2
# SimCLR's colour jitter for ImageNet, at strength 1.
SIMCLR_COLOUR = ColourDistortion(0.8, 0.8, 0.8, 0.2, p=0.8)


def simclr_blur(size_px: int, p: float = 0.5) -> GaussianBlur:
    """Return SimCLR's blur: a kernel of a tenth of the image's side, made odd, and sigma 0.1 to 2."""
    return GaussianBlur(kernel_px=size_px // 10 // 2 * 2 + 1, p=p)


def contrastive_view(
    level: int,
    size_px: int,
    *,
    scale: tuple[float, float],
    colour: ColourDistortion,
    grey_p: float = 0.2,
    blur_p: float = 0.5,
    sobel_p: float = SOBEL_P,
) -> ViewSpec:
    """Return the view of a level: T1 crops, T2 adds colour distortion, T3 adds Gaussian blur and Sobel.

    With probability `sobel_p` each channel becomes the magnitude of its gradient. SimCLR and MoCo v2 as
    published have no Sobel: `sobel_p` 0 leaves it out, and T3 is theirs. `scale` is the range of the crop's
    share of the image's area.
    """
    if not 0 <= sobel_p <= 1:
        raise ValueError(f"--sobel-p {sobel_p:g}: it is a probability, 0 to 1")
    # PSL's table has no flip; here it is part of the crop, as in SimCLR.
    ops: tuple[Op, ...] = (Flip(0.5),)
    if level >= 2:  # jitter, then grey, as in SimCLR
        ops += (colour, Grey(grey_p))
    # Paper: does not state how Sobel is combined. Here: last and by channel, so that the network has three
    # input channels in every level.
    if level >= 3:
        ops += (simclr_blur(size_px, blur_p), *((Sobel(sobel_p),) if sobel_p else ()))
    return ViewSpec(RandomResizedCrop(size_px, scale=scale), ops=ops)


def side_by_side(inputs: Sequence[Tensor], views: Sequence[ViewSpec]) -> Tensor:
    """Return both views of each sample as the network sees them, float32 [n, 3, h, 2w + 4] in [0, 1]."""
    first, second = (view.denormalise(images) for images, view in zip(inputs, views, strict=True))
    return torch.cat([first, first.new_ones(*first.shape[:3], 4), second], 3)


def drawn(batch: Batch, hardest: ViewSpec) -> list[str]:
    """Return the ops that were drawn for each sample, such as "flip, colour, blur 1.3".

    The left view's ops are on the first line, the right view's on the second.
    """
    sides = [list(zip(hardest.ops, draws, strict=False)) for draws in batch.draws]
    texts = []
    for sample in range(len(batch.indices)):
        lines = [", ".join(filter(None, (_word(op, draw, sample) for op, draw in side))) for side in sides]
        texts.append("\n".join(line or "crop" for line in lines))
    return texts


def _word(op: Op, draw: Mapping[str, Tensor], sample: int) -> str:
    """Return a word for what `op` did to a sample, or "" if it did nothing."""
    if isinstance(op, Flip):
        return "flip" if draw["flip"][sample] else ""
    if not draw["apply"][sample]:
        return ""
    if isinstance(op, GaussianBlur):
        return f"blur {float(draw['sigma'][sample]):.1f}"
    return {ColourDistortion: "colour", Grey: "grey", Sobel: "Sobel"}[type(op)]


class SimCLR(Task):
    """A task that tells the other crop of an image from all other crops of the global batch, by NT-Xent.

    It is SimCLR in the levels of PSL, section 3.3.3 and Table 3: T1 crops (with flip), T2 adds colour
    distortion, T3 adds blur and Sobel. PSL does not state the strengths. Here they are SimCLR's for ImageNet:
    crops of area .08 to 1, and jitter of .8, .8, .8 and .2 turns (strength 1). The probability of jitter is
    .8, of grey .2, of blur .5. PSL does not state the temperature. The recipe has the default of SimCLR's
    code for ImageNet.

    Args:
        batch_size: Images of a step over all ranks, 2 or more, where a stage has no number of its own.
        size_px: Side of the crops, in pixels.
        temperature: Divisor of the similarities, above 0.
        embedding_width: Length of the embeddings.
        sobel_p: Probability of Sobel at level T3; 0 for SimCLR as published.

    Raises:
        ValueError: A value is out of range.
    """

    num_levels = NUM_LEVELS
    accuracy_name = "accuracy in finding the other view"

    def __init__(
        self,
        batch_size: int,
        *,
        size_px: int,
        temperature: float,
        embedding_width: int,
        sobel_p: float = SOBEL_P,
    ):
        if batch_size < 2:
            raise ValueError(
                f"--batch-size {batch_size}: NT-Xent tells an image from the others of its batch, "
                "so it needs 2 or more"
            )
        if not temperature > 0:
            raise ValueError(f"--temperature {temperature}: it must be above 0")
        if embedding_width < 1:
            raise ValueError(f"--embedding-width {embedding_width}: it must be 1 or more")
        self.batch_size, self.size_px, self.temperature = batch_size, size_px, temperature
        self.embedding_width, self.sobel_p = embedding_width, sobel_p

    @override
    def views(self, level: int) -> tuple[ViewSpec, ...]:
        scale, colour = (0.08, 1.0), SIMCLR_COLOUR
        view = contrastive_view(level, self.size_px, scale=scale, colour=colour, sobel_p=self.sobel_p)
        return (view, view)

    @override
    def head(self, level: int, channels: int) -> nn.Module:
        return ProjectionHead(channels, self.embedding_width)

    @override
    def start_stage(self, stage: Stage, blocks: StageBlocks, head: nn.Module) -> None:
        self.batch_size = stage.batch_size or self.batch_size

    @override
    def loss(
        self, blocks: StageBlocks, head: nn.Module, inputs: Sequence[Tensor], batch: Batch
    ) -> tuple[Tensor, Metrics]:
        """Return NT-Xent.

        Accuracy is the share of anchors whose positive is nearer than all other embeddings of the global
        batch.
        """
        whole = len(batch.indices) * place_among_ranks()[1] == self.batch_size
        assert whole or not head.training, (
            "part of the batch or another one: negatives would be left out, and chance would be wrong"
        )
        result = self._compared(blocks, head, inputs, batch)
        num = result.num_anchors
        return result.loss, {"loss": (result.loss_sum, num), "accuracy": (result.num_correct, num)}

    @override
    def losses(self, blocks: StageBlocks, head: nn.Module, inputs: Sequence[Tensor], batch: Batch) -> Tensor:
        return self._compared(blocks, head, inputs, batch).losses.mean(1)

    def _compared(
        self, blocks: StageBlocks, head: nn.Module, inputs: Sequence[Tensor], batch: Batch
    ) -> NTXent:
        # As one batch, as in SimCLR, so that BatchNorm sees both views together.
        first, second = head(blocks(joined(inputs))).chunk(2)
        return nt_xent(first, second, batch.indices >= 0, self.temperature)

    @override
    def chance(self, level: int) -> float:
        """Return the accuracy of guessing among the 2N - 1 other embeddings of a full batch."""
        return 1 / (2 * self.batch_size - 1)

    @override
    def contact_sheet(self, inputs: Sequence[Tensor], batch: Batch) -> Tensor:
        return side_by_side(inputs, self.views(1))

    @override
    def captions(self, batch: Batch) -> list[str]:
        return drawn(batch, self.views(self.num_levels)[0])


class ProjectionHead(nn.Module):
    """A projection head: average pool, Linear C→C, BatchNorm, ReLU, Linear C→width, shiftless BatchNorm.

    Paper: a 2-layer MLP to 128; it does not state hidden width and normalisation. Here: SimCLR's first
    version, with a hidden layer as wide as its input and BatchNorm instead of biases in both layers.
    """

    def __init__(self, channels: int, width: int):
        super().__init__()
        last = nn.BatchNorm1d(width)
        # Without a shift, as in SimCLR's code.
        last.bias.requires_grad_(False)
        self.layers = nn.Sequential(
            nn.Linear(channels, channels, bias=False),
            nn.BatchNorm1d(channels),
            nn.ReLU(inplace=True),
            nn.Linear(channels, width, bias=False),
            last,
        )

    @override
    def forward(self, features: Tensor) -> Tensor:
        """Return embeddings [B, width] of any length from features [B, C, h, w]."""
        embeddings: Tensor = self.layers(mean_of_positions(features))
        return embeddings
