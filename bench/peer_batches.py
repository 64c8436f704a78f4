"""Endless batches of every loader that is measured: ours, and each peer as its users write it.

All make the same: each sample decoded, `num_views` of torchvision's RandomResizedCrop (area 0.08 to 1, ratio 3/4 to
4/3) to size_px, uint8 on the device. An iterator gives the number of samples of each batch.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from bench.peers import Work

SHUFFLE = 1000  # samples in the buffers of DALI's reader and WebDataset; theirs in their examples


def batches_of_ours(work: Work, num_views: int) -> Iterator[int]:
    from fastpsl.kernels.crops import RandomResizedCrop
    from fastpsl.pipelines.beton.reader import Beton
    from fastpsl.pipelines.loader.loader import Loader
    from fastpsl.pipelines.views import ViewSpec

    view = ViewSpec(RandomResizedCrop(work.size_px))
    with (
        Beton(work.data) as data,
        Loader(
            data, [view] * num_views, batch_size=work.batch_size, decoder=work.kind,
            num_threads=work.num_threads, device=work.device, hw_decoder_load=work.hw_decoder_load,
        ) as loader,
    ):  # fmt: skip
        epoch = 0
        while True:
            for batch in loader.epoch(epoch):
                yield len(batch.indices)
            epoch += 1


def batches_of_ffcv(work: Work, num_views: int) -> Iterator[int]:
    import torch
    from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.pipeline.pipeline_spec import PipelineSpec
    from ffcv.transforms import Squeeze, ToDevice, ToTensor, ToTorchImage

    to_device = [ToDevice(torch.device(work.device), non_blocking=True)] if work.device != "cpu" else []

    def crop() -> list[Any]:
        decoder = RandomResizedCropRGBImageDecoder((work.size_px, work.size_px))
        return [decoder, ToTensor(), *to_device, ToTorchImage()]

    pipelines: dict[str, Any] = {"image": crop(), "label": [IntDecoder(), ToTensor(), Squeeze(), *to_device]}
    for view in range(1, num_views):  # it decodes again for each
        pipelines[f"image_{view}"] = PipelineSpec("image", transforms=crop())
    loader = Loader(
        work.data, batch_size=work.batch_size, num_workers=work.num_threads, order=OrderOption.RANDOM,
        os_cache=True, drop_last=True, pipelines=pipelines,
    )  # fmt: skip
    while True:
        for images, *_ in loader:
            yield len(images)


def batches_of_dali(work: Work, num_views: int, *, whole: bool = False) -> Iterator[int]:
    """DALI's own reader. One view: it decodes only what the crop needs, unless `whole`; several: the picture once, then each crop."""
    import torch
    from nvidia.dali import fn, pipeline_def
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
            pictures = fn.decoders.image(jpegs, **decoder)
            views = [fn.random_resized_crop(pictures, size=size) for _ in range(num_views)]
        return (*views, labels.gpu() if is_cuda else labels)

    names = [f"view_{view}" for view in range(num_views)]
    device_id = torch.device(work.device).index or 0 if is_cuda else None
    built = pipeline(batch_size=work.batch_size, num_threads=work.num_threads, device_id=device_id)
    loader = DALIGenericIterator(
        built, [*names, "label"], reader_name="files", auto_reset=True, last_batch_policy=LastBatchPolicy.DROP
    )
    while True:
        for (batch,) in loader:
            yield len(batch["label"])


def batches_of_dataloader(work: Work, num_views: int) -> Iterator[int]:
    """As ImageFolder's users do: PIL, torchvision's transforms, worker processes; the bytes come from the beton."""
    import io

    import numpy as np
    import torch
    from PIL import Image

    from fastpsl.pipelines.beton.reader import Beton

    data, crops = Beton(work.data), _Crops(work.size_px, num_views)

    class Photos(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return data.num_samples

        def __getitem__(self, index: int) -> Any:
            row = data.rows(np.array([index]))
            stored = data.read(index)
            if row.mode[0]:
                pixels = np.frombuffer(stored, np.uint8).reshape(row.height[0], row.width[0], 3)
                picture = Image.fromarray(pixels)
            else:
                picture = Image.open(io.BytesIO(stored)).convert("RGB")
            return *crops(picture), int(row.label[0])

    loader = torch.utils.data.DataLoader(
        Photos(), batch_size=work.batch_size, shuffle=True, drop_last=True, num_workers=work.num_threads,
        pin_memory=work.device != "cpu", persistent_workers=True,
    )  # fmt: skip
    while True:
        yield from _on_device(loader, work.device)


def batches_of_webdataset(work: Work, num_views: int) -> Iterator[int]:
    """As its users train: shards drawn again and again, a shuffle buffer, PIL, torchvision's transforms, worker processes."""
    import webdataset

    crops = _Crops(work.size_px, num_views)
    shards = sorted(str(path) for path in (Path(work.files) / "shards").glob("*.tar"))
    samples = webdataset.WebDataset(shards, resampled=True, shardshuffle=False).shuffle(SHUFFLE)
    pairs = samples.decode("pilrgb").to_tuple("jpg", "cls").map(lambda pair: (*crops(pair[0]), pair[1]))
    loader = webdataset.WebLoader(
        pairs.batched(work.batch_size, partial=False), batch_size=None, num_workers=work.num_threads,
        pin_memory=work.device != "cpu",
    )  # fmt: skip
    yield from _on_device(loader, work.device)


class _Crops:
    """PIL picture → `num_views` uint8 [3, S, S]."""

    def __init__(self, size_px: int, num_views: int):
        from torchvision import transforms

        self.crop = transforms.Compose([transforms.RandomResizedCrop(size_px), transforms.PILToTensor()])
        self.num_views = num_views

    def __call__(self, picture: Any) -> list[Any]:
        return [self.crop(picture) for _ in range(self.num_views)]


def _on_device(loader: Any, device: str) -> Iterator[int]:
    for batch in loader:
        if device != "cpu":
            batch = [tensor.to(device, non_blocking=True) for tensor in batch]
        yield len(batch[-1])


OPEN: dict[str, Callable[[Work, int], Iterator[int]]] = {
    "ffcv_loader": batches_of_ffcv,
    "dali_reader": batches_of_dali,
    "dali_whole": partial(batches_of_dali, whole=True),
    "dataloader": batches_of_dataloader,
    "webdataset": batches_of_webdataset,
}  # whatever else is a decoder of ours
