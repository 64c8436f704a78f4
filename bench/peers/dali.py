"""DALI's own reader of files; with one view it decodes only what the crop needs."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.peers.peer import MEAN, SHUFFLE, STD, Peer, Views, Work


def batches(work: Work, num_views: int, *, whole: bool = False) -> Iterator[Views]:
    """Yield the views of its batches; with `whole`, one view has whole images decoded, too."""
    from nvidia.dali import fn, pipeline_def, types
    from nvidia.dali.plugin.pytorch import DALIGenericIterator, LastBatchPolicy

    is_cuda = work.device != "cpu"
    decoder: dict[str, Any] = {"device": "mixed" if is_cuda else "cpu"}
    if is_cuda and work.hw_decoder_load is not None:
        decoder["hw_decoder_load"] = work.hw_decoder_load
    size = (work.size_px, work.size_px)

    @pipeline_def
    def pipeline() -> Any:
        jpegs, labels = fn.readers.file(
            file_root=str(Path(work.files) / "images"),
            random_shuffle=True,
            initial_fill=SHUFFLE,
            name="files",
        )
        if num_views == 1 and not whole:
            views = [fn.resize(fn.decoders.image_random_crop(jpegs, **decoder), size=size)]
        else:
            images = fn.decoders.image(jpegs, **decoder)
            views = [fn.random_resized_crop(images, size=size) for _ in range(num_views)]
        if work.floats:
            views = [
                fn.crop_mirror_normalize(
                    view, dtype=types.FLOAT, output_layout="CHW", mean=[255 * each for each in MEAN],
                    std=[255 * each for each in STD], mirror=fn.random.coin_flip(),
                )
                for view in views
            ]  # fmt: skip
        return (*views, labels.gpu() if is_cuda else labels)

    names = [f"view_{view}" for view in range(num_views)]
    device_id = torch.device(work.device).index or 0 if is_cuda else None
    built = pipeline(batch_size=work.batch_size, num_threads=work.num_threads, device_id=device_id)
    loader = DALIGenericIterator(
        built, [*names, "label"], reader_name="files", auto_reset=True, last_batch_policy=LastBatchPolicy.DROP
    )
    while True:
        for (batch,) in loader:
            yield [batch[name] for name in names]


PEER = Peer("DALI's reader", batches, ("nvidia.dali",), reads="folder")
WHOLE = Peer("DALI's reader, whole images", partial(batches, whole=True), ("nvidia.dali",), reads="folder")


# Of ImageNet's pixels, times 255.
_MEAN, _STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
# The example's paddings of nvJPEG's memory, in bytes, which avoid later allocations.
_DEVICE_PADDING, _HOST_PADDING = 211_025_920, 140_544_512


def training_batches(work: Work, num_views: int) -> Iterator[int]:
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


RESNET50 = Peer("DALI's example of ResNet-50, supervised", training_batches, ("nvidia.dali",), reads="folder")
