"""ffcv's own Loader. It decodes again for each view."""

from collections.abc import Iterator
from typing import Any

import torch

from bench.peers.peer import Peer, Work


def batches(work: Work, num_views: int) -> Iterator[int]:
    """Yield the numbers of samples in its batches."""
    from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.pipeline.pipeline_spec import PipelineSpec
    from ffcv.transforms import Squeeze, ToDevice, ToTensor, ToTorchImage

    to_device = [ToDevice(torch.device(work.device), non_blocking=True)] if work.device != "cpu" else []

    def crop() -> list[Any]:
        decoder = RandomResizedCropRGBImageDecoder((work.size_px, work.size_px))
        return [decoder, ToTensor(), *to_device, ToTorchImage()]

    pipelines: dict[str, Any] = {"image": crop(), "label": [IntDecoder(), ToTensor(), Squeeze(), *to_device]}
    for view in range(1, num_views):
        pipelines[f"image_{view}"] = PipelineSpec("image", transforms=crop())
    loader = Loader(
        work.data, batch_size=work.batch_size, num_workers=work.num_threads, order=OrderOption.RANDOM,
        os_cache=True, drop_last=True, pipelines=pipelines,
    )  # fmt: skip
    while True:
        for images, *_ in loader:
            yield len(images)


PEER = Peer("ffcv Loader", batches, ("ffcv",))
