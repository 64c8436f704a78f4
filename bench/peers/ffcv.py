"""ffcv's own Loader. It decodes again for each view."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from bench.peers.peer import MEAN, STD, Peer, Views, Work


def batches(work: Work, num_views: int) -> Iterator[Views]:
    """Yield the views of its batches."""
    from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.pipeline.pipeline_spec import PipelineSpec
    from ffcv.transforms import (
        NormalizeImage,
        RandomHorizontalFlip,
        Squeeze,
        ToDevice,
        ToTensor,
        ToTorchImage,
    )

    to_device = [ToDevice(torch.device(work.device), non_blocking=True)] if work.device != "cpu" else []

    def crop() -> list[Any]:
        decoder = RandomResizedCropRGBImageDecoder((work.size_px, work.size_px))
        tensors = [ToTensor(), *to_device, ToTorchImage()]
        if not work.floats:
            return [decoder, *tensors]
        normalise = NormalizeImage(255 * np.array(MEAN), 255 * np.array(STD), np.float32)
        # On a CPU it takes arrays, on a GPU images.
        steps = [*tensors, normalise] if to_device else [normalise, *tensors]
        return [decoder, RandomHorizontalFlip(), *steps]

    pipelines: dict[str, Any] = {"image": crop(), "label": [IntDecoder(), ToTensor(), Squeeze(), *to_device]}
    for view in range(1, num_views):
        pipelines[f"image_{view}"] = PipelineSpec("image", transforms=crop())
    loader = Loader(
        work.data, batch_size=work.batch_size, num_workers=work.num_threads, order=OrderOption.RANDOM,
        os_cache=True, drop_last=True, pipelines=pipelines,
    )  # fmt: skip
    while True:
        for first, _, *others in loader:
            yield [first, *others]


PEER = Peer("ffcv Loader", batches, ("ffcv",))
