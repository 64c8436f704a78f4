"""SimCLR's step as users of plain PyTorch write it, in the forms that are measured: the faster one counts."""

from collections.abc import Callable, Iterator
from typing import Any, Literal

from bench.peers.peer import Work

Form = Literal["contiguous", "contiguous_joined", "channels_last", "channels_last_joined"]
"""How images lie in memory; with "joined", both views pass through the network as one batch."""


def loader_of(work: Work, data: Any) -> Any:
    """Return torch's DataLoader of a set that gives both views of an image."""
    import torch

    from bench.recipe_stages import MIN_STEPS

    # A small set has long epochs, as with ours.
    sampler = torch.utils.data.RandomSampler(
        data, replacement=True, num_samples=max(len(data), MIN_STEPS * work.batch_size)
    )
    return torch.utils.data.DataLoader(
        data, batch_size=work.batch_size, sampler=sampler, drop_last=True, num_workers=work.num_threads,
        pin_memory=work.device != "cpu", persistent_workers=True,
    )  # fmt: skip


def steps(
    work: Work, loader: Any, head: Callable[[int], Any], criterion: Callable[[Any, Any], Any]
) -> Iterator[int]:
    """Train, and yield each step's number of samples.

    Args:
        work: The network, its precision and its form.
        loader: Batches, whose first part is both views [B, 3, H, W].
        head: Width of the features → the projection head.
        criterion: Projections of both views → the loss.
    """
    import torch
    from torch import nn
    from torchvision.models import get_model

    from fastpsl.engine.train_step import DTYPES

    torch.backends.cudnn.benchmark = True
    backbone = get_model(work.backbone or "resnet50")
    width = backbone.fc.in_features
    backbone.fc = nn.Identity()
    memory = torch.channels_last if work.form.startswith("channels_last") else torch.contiguous_format
    is_joined = work.form.endswith("_joined")
    model = nn.Sequential(backbone, head(width)).to(work.device).to(memory_format=memory)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.06)
    device, dtype = torch.device(work.device).type, DTYPES[work.precision]
    scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)
    while True:
        for views, *_ in loader:
            images = [view.to(work.device, non_blocking=True, memory_format=memory) for view in views]
            with torch.autocast(device, dtype, enabled=dtype != torch.float32):
                first, second = model(torch.cat(images)).chunk(2) if is_joined else map(model, images)
                loss = criterion(first, second)
            scaler.scale(loss).backward()
            scaler.step(optimiser)
            scaler.update()
            optimiser.zero_grad()
            yield len(first)
