"""DALI's example of ResNet-50 for PyTorch (docs/examples/use_cases/pytorch/resnet50): its reader, decoder and
normalisation on the GPU, and supervised training.

apex's half precision is torch's here, with the example's option of channels-last. DALI prefetches beyond the
ends of epochs, so they need no lengthening.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from bench.peers.peer import Peer, Work

# Of ImageNet's pixels, times 255.
_MEAN, _STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
# The example's paddings of nvJPEG's memory, in bytes, which avoid later allocations.
_DEVICE_PADDING, _HOST_PADDING = 211_025_920, 140_544_512


def batches(work: Work, num_views: int) -> Iterator[int]:
    """Train the network, and yield each step's number of samples."""
    from nvidia.dali import fn, pipeline_def, types
    from nvidia.dali.plugin.pytorch import DALIClassificationIterator, LastBatchPolicy
    from torch import nn
    from torchvision.models import get_model

    is_cuda = work.device != "cpu"
    memory: dict[str, Any] = {"device_memory_padding": _DEVICE_PADDING, "host_memory_padding": _HOST_PADDING}
    size = work.size_px

    @pipeline_def
    def pipeline() -> Any:
        jpegs, labels = fn.readers.file(
            file_root=str(Path(work.files) / "images"), shard_id=0, num_shards=1, random_shuffle=True,
            pad_last_batch=True, name="Reader",
        )  # fmt: skip
        images = fn.decoders.image_random_crop(
            jpegs, device="mixed" if is_cuda else "cpu", output_type=types.RGB,
            random_aspect_ratio=[0.8, 1.25], random_area=[0.1, 1.0], num_attempts=100,
            **(memory if is_cuda else {}),
        )  # fmt: skip
        images = fn.resize(images, resize_x=size, resize_y=size, interp_type=types.INTERP_TRIANGULAR)
        images = fn.crop_mirror_normalize(
            images, dtype=types.FLOAT, output_layout="CHW", crop=(size, size), mean=list(_MEAN),
            std=list(_STD), mirror=fn.random.coin_flip(probability=0.5),
        )  # fmt: skip
        return images, labels.gpu() if is_cuda else labels

    torch.backends.cudnn.benchmark = True
    device_id = torch.device(work.device).index or 0 if is_cuda else None
    built = pipeline(batch_size=work.batch_size, num_threads=work.num_threads, device_id=device_id, seed=12)
    loader = DALIClassificationIterator(
        built, reader_name="Reader", last_batch_policy=LastBatchPolicy.DROP, auto_reset=True
    )
    model = get_model(work.backbone or "resnet50").to(work.device, memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(
        model.parameters(), lr=0.1 * work.batch_size / 256, momentum=0.9, weight_decay=1e-4
    )
    criterion = nn.CrossEntropyLoss()
    scaler = torch.amp.GradScaler(enabled=is_cuda)
    while True:
        for (batch,) in loader:
            images = batch["data"].contiguous(memory_format=torch.channels_last)
            labels = batch["label"].squeeze(-1).long()
            with torch.autocast("cuda", torch.float16, enabled=is_cuda):
                loss = criterion(model(images), labels)
            optimiser.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimiser)
            scaler.update()
            yield len(labels)


PEER = Peer("DALI's example of ResNet-50, supervised", batches, ("nvidia.dali",), reads="folder")
