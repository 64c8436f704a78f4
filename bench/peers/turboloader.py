"""TurboLoader's DataLoader of a tar, with `train_aug`: crop, flip and normalisation in one pass.

It has no second view of an image. Two views are two loaders of other seeds. Their images agree only without a
shuffle, and each decodes. Its threads are as many as the cores. On a GPU its batches are in pinned memory.
"""

import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from bench.peers.peer import TAR, Peer, Views, Work


def batches(work: Work, num_views: int, *, antialias: bool = False) -> Iterator[Views]:
    """Yield the views of its batches, float32; with `antialias` pixels are as torchvision's."""
    import turboloader

    loaders = [
        turboloader.DataLoader(
            str(Path(work.files) / TAR), batch_size=work.batch_size, num_workers=work.num_threads,
            image_size=work.size_px, output_format="pytorch", transform=turboloader.ImageNetNormalize(),
            shuffle=num_views == 1, train_aug=True, antialias=antialias, seed=view, drop_last=True,
            pin_memory=work.device != "cpu",
        )
        for view in range(num_views)
    ]  # fmt: skip
    for epoch in itertools.count():
        for loader in loaders:
            loader.set_epoch(epoch)
        for batch in zip(*loaders, strict=True):
            yield [torch.as_tensor(images).to(work.device, non_blocking=True) for images, _ in batch]


PEER = Peer("TurboLoader (tar)", batches, ("turboloader",), reads="tar")
ANTIALIAS = Peer(
    "TurboLoader (tar), antialias", partial(batches, antialias=True), ("turboloader",), reads="tar"
)
