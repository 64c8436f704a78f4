"""Losses for a training loop of one's own."""

from torch import Tensor, nn
from typing_extensions import override

from fastpsl.tasks.contrastive.nt_xent import nt_xent

__all__ = ["NTXent"]


class NTXent(nn.Module):
    """A module of NT-Xent, SimCLR's contrastive loss (arXiv 2002.05709, equation 1), in float32.

    Under torch.distributed all ranks' embeddings are negatives, and DDP's mean over ranks is the gradient of
    the global batch's loss.

    Args:
        temperature: Divisor of the similarities, above 0.
    """

    def __init__(self, temperature: float = 0.1):
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature {temperature}: it must be above 0")
        self.temperature = temperature

    @override
    def forward(self, first: Tensor, second: Tensor, valid: Tensor | None = None) -> Tensor:
        """Return the mean loss of the anchors, a float32 scalar.

        Args:
            first: Embeddings [B, D] of the first view, of any length; B is the same on all ranks.
            second: Embeddings [B, D] of the second view.
            valid: bool [B]: which samples count, such as `indices >= 0`; None for all.

        Raises:
            ValueError: The shapes differ, or are not [B, D].
        """
        if first.ndim != 2 or first.shape != second.shape:
            raise ValueError(
                f"embeddings of shapes {tuple(first.shape)} and {tuple(second.shape)}: give two of one "
                "shape [B, D], a row per sample"
            )
        if valid is None:
            valid = first.new_ones(len(first)).bool()
        return nt_xent(first, second, valid, self.temperature).loss
