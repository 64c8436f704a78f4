"""SimCLR in levels (psl.txt, section 3.3.3 and Table 3; section 4.1 "Contrastive learning")."""

from collections.abc import Sequence

from torch import Tensor, nn
from typing_extensions import override

from fastpsl.engine.distributed import place_among_ranks
from fastpsl.engine.task import Task
from fastpsl.engine.trunk import Metrics, Trunk
from fastpsl.kernels.layout import joined
from fastpsl.pipelines.batch import Batch
from fastpsl.pipelines.data.dataset import Dataset
from fastpsl.pipelines.views import ViewSpec
from fastpsl.tasks.contrastive.nt_xent import nt_xent
from fastpsl.tasks.contrastive.views import NUM_LEVELS, SIMCLR_COLOUR, contrastive_view, drawn, side_by_side


class SimCLR(Task):
    """Tell which of all other crops of the global batch is of the same image, by NT-Xent (`fastpsl.tasks.contrastive.nt_xent`).

    Levels: T1 crops (with flip), T2 with colour distortion, T3 with blur and Sobel too (`contrastive_view`), for both views.
    Paper: strengths are not stated. Here: SimCLR's for ImageNet: crops of area .08 to 1; jitter of .8, .8, .8 and .2 turns
    (strength 1) with probability .8, grey .2, blur .5.
    Paper: the temperature is not stated. Here: .1, SimCLR's code default for ImageNet.

    batch_size: images of a step over all ranks: chance depends on it, and one image has nothing to be told from.
    """

    num_levels = NUM_LEVELS

    def __init__(
        self,
        batch_size: int,
        *,
        size_px: int = 224,
        temperature: float = 0.1,
        embedding_width: int = 128,
        sobel_p: float = 0.2,
    ):
        if batch_size < 2:
            raise ValueError(
                f"--batch-size {batch_size}: NT-Xent tells an image from the others of its batch, so it needs 2 or more"
            )
        if temperature <= 0:
            raise ValueError(f"--temperature {temperature}: it must be above 0")
        if embedding_width < 1:
            raise ValueError(f"--embedding-width {embedding_width}: it must be 1 or more")
        self.batch_size, self.size_px, self.temperature = batch_size, size_px, temperature
        self.embedding_width, self.sobel_p = embedding_width, sobel_p

    @override
    def views(self, level: int) -> tuple[ViewSpec, ...]:
        """Two crops of one decode, each with draws of its own."""
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
        """The trainer's batch must be the one that chance is told for."""
        assert batch_size == self.batch_size, (batch_size, self.batch_size)

    @override
    def head(self, level: int, channels: int) -> nn.Module:
        return ProjectionHead(channels, self.embedding_width)

    @override
    def loss(
        self, trunk: Trunk, head: nn.Module, inputs: Sequence[Tensor], batch: Batch
    ) -> tuple[Tensor, Metrics]:
        """NT-Xent; accuracy = anchors whose positive is the nearest of all other embeddings of the global batch.

        Both views go through the network as one batch, as in SimCLR: BatchNorm sees them together.
        """
        whole = len(batch.indices) * place_among_ranks()[1] == self.batch_size
        assert whole or not head.training, (
            "part of the batch: gradient accumulation would leave out negatives"
        )
        first, second = head(trunk(joined(inputs))).chunk(2)
        result = nt_xent(first, second, batch.indices >= 0, self.temperature)
        return result.loss, {
            "loss": (result.loss_sum, result.num_anchors),
            "accuracy": (result.num_right, result.num_anchors),
        }

    @override
    def chance(self, level: int) -> float:
        """Accuracy of guessing among the 2N - 1 other embeddings of a full batch."""
        return 1 / (2 * self.batch_size - 1)

    @override
    def contact_sheet(self, inputs: Sequence[Tensor], batch: Batch) -> Tensor:
        """Both views of each sample side by side, as the network sees them."""
        return side_by_side(inputs, self.views(1))

    @override
    def captions(self, batch: Batch) -> list[str]:
        """What was drawn for both views."""
        return drawn(batch, self.views(self.num_levels)[0])


class ProjectionHead(nn.Module):
    """Average pool, Linear C→C, BatchNorm, ReLU, Linear C→width, BatchNorm without a shift.

    Paper: a 2-layer MLP to 128; its hidden width and normalisation are not stated. Here: SimCLR's first version, whose hidden
    layer is as wide as its input and both of whose layers have BatchNorm instead of biases.
    """

    def __init__(self, channels: int, width: int):
        super().__init__()
        last = nn.BatchNorm1d(width)
        # As SimCLR's code: a shift that all embeddings share is none of theirs.
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
        """Features [B, C, h, w] to embeddings [B, width], of any length."""
        embeddings: Tensor = self.layers(features.mean((2, 3)))
        return embeddings
