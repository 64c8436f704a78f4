"""Train SimCLR in levels (PSL, section 3.3.3 and Table 3; section 4.1 "Contrastive learning")."""

from collections.abc import Sequence

from torch import Tensor, nn
from typing_extensions import override

from fastpsl.engine.distributed import place_among_ranks
from fastpsl.engine.stage_blocks import Metrics, StageBlocks
from fastpsl.engine.task import Task
from fastpsl.kernels.layout import joined
from fastpsl.models.layers import mean_of_positions
from fastpsl.pipelines.data.dataset import Dataset
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.views import ViewSpec
from fastpsl.tasks.contrastive.nt_xent import nt_xent
from fastpsl.tasks.contrastive.views import (
    NUM_LEVELS,
    SIMCLR_COLOUR,
    SOBEL_P,
    contrastive_view,
    drawn,
    side_by_side,
)


class SimCLR(Task):
    """A task that tells the other crop of an image from all other crops of the global batch, by NT-Xent.

    It is SimCLR in the levels of PSL, section 3.3.3 and Table 3: T1 crops (with flip), T2 adds colour
    distortion, T3 adds blur and Sobel. PSL does not state the strengths. Here they are SimCLR's for ImageNet:
    crops of area .08 to 1, and jitter of .8, .8, .8 and .2 turns (strength 1). The probability of jitter is
    .8, of grey .2, of blur .5. PSL does not state the temperature. The recipe has the default of SimCLR's
    code for ImageNet.

    Args:
        batch_size: Images of a step over all ranks, 2 or more. `chance` depends on it.
        size_px: Side of the crops, in pixels.
        temperature: Divisor of the similarities, above 0.
        embedding_width: Length of the embeddings.
        sobel_p: Probability of Sobel at level T3; 0 for SimCLR as published.

    Raises:
        ValueError: A value is out of range.
    """

    num_levels = NUM_LEVELS

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
        if temperature <= 0:
            raise ValueError(f"--temperature {temperature}: it must be above 0")
        if embedding_width < 1:
            raise ValueError(f"--embedding-width {embedding_width}: it must be 1 or more")
        self.batch_size, self.size_px, self.temperature = batch_size, size_px, temperature
        self.embedding_width, self.sobel_p = embedding_width, sobel_p

    @override
    def views(self, level: int) -> tuple[ViewSpec, ...]:
        """Return two views of one kind, which have their own draws."""
        view = contrastive_view(
            level,
            self.size_px,
            scale=(0.08, 1.0),
            colour=SIMCLR_COLOUR,
            sobel_p=self.sobel_p,
        )
        return (view, view)

    @override
    def check_data(self, data: Dataset, batch_size: int) -> None:
        """Check that the trainer's batch is the one that chance depends on."""
        assert batch_size == self.batch_size, (batch_size, self.batch_size)

    @override
    def head(self, level: int, channels: int) -> nn.Module:
        return ProjectionHead(channels, self.embedding_width)

    @override
    def loss(
        self, blocks: StageBlocks, head: nn.Module, inputs: Sequence[Tensor], batch: Batch
    ) -> tuple[Tensor, Metrics]:
        """Return NT-Xent.

        Accuracy is the share of anchors whose positive is nearer than all other embeddings of the global
        batch. Both views pass through the network as one batch, as in SimCLR, so BatchNorm sees them
        together.
        """
        whole = len(batch.indices) * place_among_ranks()[1] == self.batch_size
        assert whole or not head.training, (
            "part of the batch: gradient accumulation would leave out negatives"
        )
        first, second = head(blocks(joined(inputs))).chunk(2)
        result = nt_xent(first, second, batch.indices >= 0, self.temperature)
        return result.loss, {
            "loss": (result.loss_sum, result.num_anchors),
            "accuracy": (result.num_correct, result.num_anchors),
        }

    @override
    def chance(self, level: int) -> float:
        """Return the accuracy of guessing among the 2N - 1 other embeddings of a full batch."""
        return 1 / (2 * self.batch_size - 1)

    @override
    def contact_sheet(self, inputs: Sequence[Tensor], batch: Batch) -> Tensor:
        """Return both views of each sample side by side, as the network sees them."""
        return side_by_side(inputs, self.views(1))

    @override
    def captions(self, batch: Batch) -> list[str]:
        """Return the ops that were drawn for both views."""
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
