"""Losses for a training loop that you write."""

from torch import Tensor, nn
from typing_extensions import override

from fastpsl.tasks.contrastive.nt_xent import nt_xent

__all__ = ["NTXent"]


class NTXent(nn.Module):
    """A module of NT-Xent, SimCLR's contrastive loss (arXiv 2002.05709, equation 1), in float32.

    Under torch.distributed, the embeddings of all ranks are negatives. The mean over ranks that DDP takes is
    then the gradient of the global batch's loss.

    Args:
        temperature: Divisor of the similarities, above 0.

    Raises:
        ValueError: The temperature is not above 0.
    """

    def __init__(self, temperature: float = 0.1):
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature {temperature}: it must be above 0")
        self.temperature = temperature

    @override
    def forward(self, first: Tensor, second: Tensor, valid: Tensor | None = None) -> Tensor:
        """Return the mean loss of the anchors.

        Args:
            first: Embeddings of the first view, float [B, D], of any length. B is the same on all ranks.
            second: Embeddings of the second view, float [B, D].
            valid: Which samples count, bool [B], such as `indices >= 0`. None means all.

        Returns:
            The loss, a float32 scalar.

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
