"""lightly's SimCLR, as its documentation has it for PyTorch: SimCLRTransform, LightlyDataset, DataLoader,
NTXentLoss.

Ours besides: ResNet-50 instead of ResNet-18, half precision with channels-last, and all cores. So it is as
fast as its users can have it without changing it.
"""

from collections.abc import Iterator
from pathlib import Path

from bench.peers.peer import Peer, Work


def batches(work: Work, num_views: int) -> Iterator[int]:
    """Train SimCLR, and yield each step's number of samples. Each is shown in two views."""
    import torch
    from lightly.data import LightlyDataset
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform
    from torch import nn
    from torchvision.models import get_model

    from bench.recipe_stages import MIN_STEPS
    from fastpsl.engine.train_step import DTYPES

    is_cuda = work.device != "cpu"
    torch.backends.cudnn.benchmark = True
    transform = SimCLRTransform(input_size=work.size_px)
    data = LightlyDataset(input_dir=str(Path(work.files) / "images"), transform=transform)
    # A small set has long epochs, as with ours.
    sampler = torch.utils.data.RandomSampler(
        data, replacement=True, num_samples=max(len(data), MIN_STEPS * work.batch_size)
    )
    loader = torch.utils.data.DataLoader(
        data, batch_size=work.batch_size, sampler=sampler, drop_last=True, num_workers=work.num_threads,
        pin_memory=is_cuda, persistent_workers=True,
    )  # fmt: skip
    backbone = get_model(work.backbone or "resnet50")
    width = backbone.fc.in_features
    backbone.fc = nn.Identity()
    model = nn.Sequential(backbone, SimCLRProjectionHead(width, width, 128))
    model.to(work.device).to(memory_format=torch.channels_last)
    criterion = NTXentLoss()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.06)
    device, dtype = torch.device(work.device).type, DTYPES[work.precision]
    scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)
    while True:
        for views, _, _ in loader:
            images = [
                view.to(work.device, non_blocking=True, memory_format=torch.channels_last) for view in views
            ]
            with torch.autocast(device, dtype, enabled=dtype != torch.float32):
                first, second = map(model, images)
                loss = criterion(first, second)
            scaler.scale(loss).backward()
            scaler.step(optimiser)
            scaler.update()
            optimiser.zero_grad()
            yield len(first)


PEER = Peer("lightly, SimCLR, as its documentation has it", batches, ("lightly",), reads="folder")
