"""lightly's SimCLR, as its documentation has it for PyTorch: SimCLRTransform, LightlyDataset, DataLoader,
NTXentLoss.

Ours besides: the network and its precision are those of the bench, with all cores.
"""

from collections.abc import Iterator
from pathlib import Path

from bench.peers.peer import Peer, Work
from bench.peers.simclr import loader_of, steps


def batches(work: Work, num_views: int) -> Iterator[int]:
    """Train SimCLR, and yield each step's number of samples. Each is shown in two views."""
    from lightly.data import LightlyDataset
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform

    transform = SimCLRTransform(input_size=work.size_px)
    data = LightlyDataset(input_dir=str(Path(work.files) / "images"), transform=transform)
    return steps(
        work, loader_of(work, data), lambda width: SimCLRProjectionHead(width, width, 128), NTXentLoss()
    )


PEER = Peer("lightly, SimCLR, as its documentation has it", batches, ("lightly",), reads="folder")
