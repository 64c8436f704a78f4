"""The loaders that are measured: ours, and each peer as its users write it.

All do the same work: decode each sample, crop it `num_views` times with torchvision's RandomResizedCrop (area
0.08 to 1, ratio 3/4 to 4/3) to size_px, and put uint8 on the device. As a program, this file serves one
loader to bench/interleaved.py; imports stand in functions, because such a process must not import another
loader's libraries.
"""

import io
import itertools
import json
import os
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from typing_extensions import override

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # because this file is a program, too
from fastpsl.engine.timing import samples_per_s

PEERS = ("ffcv_loader", "dali_reader", "dataloader", "webdataset")
TITLES = {
    "ffcv_loader": "ffcv Loader",
    "dali_reader": "DALI's reader",
    "dali_whole": "DALI's reader, whole pictures",
    "dataloader": "torchvision + DataLoader",
    "webdataset": "WebDataset",
}
NEED_FILES = ("dali_reader", "dali_whole", "webdataset")
MAX_FILES = 10_000  # images that are copied out of a beton for peers that cannot read one
_PACKAGES = {
    "ffcv_loader": "ffcv", "dali_reader": "nvidia.dali", "dali_whole": "nvidia.dali",
    "webdataset": "webdataset",
}  # fmt: skip
_WITH_PROCESSES = ("dataloader", "webdataset")
_AHEAD = 4  # batches discarded before a timed region: more than our loaders prefetch
_SHUFFLE = 1000  # samples in the shuffle buffers of DALI's reader and WebDataset, as in their examples


@dataclass(frozen=True)
class Work:
    """A loader and its task.

    Attributes:
        kind: A key of TITLES, or one of our decoders.
        data: A beton, or a glob of shards.
        files: A folder written by `copy_out`, for loaders in NEED_FILES.
        hw_decoder_load: The share of DALI's hardware decoder on a GPU, 0 to 1; None for the default.
    """

    kind: str
    data: str
    files: str
    batch_size: int
    num_threads: int
    size_px: int
    device: str
    hw_decoder_load: float | None = None


def why_missing(kind: str, data: str) -> str | None:
    """Return the reason why a peer cannot be measured on a beton, or None if it can."""
    from fastpsl.pipelines.beton.reader import Beton

    if kind in _PACKAGES and not _is_installed(_PACKAGES[kind]):
        return "not installed"
    with Beton(data) as opened:
        if kind == "ffcv_loader" and len(opened.paths) > 1:
            return f"it reads one file, and these are {len(opened.paths)} shards"
        if kind in NEED_FILES and opened.rows(_copied(opened.num_samples)).mode.any():
            return "it reads JPEGs, and these are raw pictures"
    return None


def why_no_decoder(name: str, device: torch.device) -> str | None:
    """Return the reason why our Loader cannot run with a decoder, or None if it can."""
    from fastpsl.pipelines.decoders import dali, libffcv

    if name == "ffcv":
        return libffcv.why_missing() or None
    return dali.why_missing(device) or None if name == "dali" else None


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # its parent package is missing
        return False


def _copied(num_samples: int) -> np.ndarray:
    """Return the indices of the samples that are copied out: all, or MAX_FILES in even steps."""
    return np.unique(np.linspace(0, num_samples - 1, min(num_samples, MAX_FILES)).round().astype(np.int64))


def copy_out(data: str, folder: Path, num_shards: int) -> tuple[int, int]:
    """Write the JPEGs of a beton as images/LABEL/NUMBER.jpg and into shards/*.tar.

    Returns:
        The number of JPEGs written, and the number of samples.
    """
    from fastpsl.pipelines.beton.reader import Beton

    (folder / "shards").mkdir(parents=True)
    shards = [tarfile.open(folder / "shards" / f"{i:04}.tar", "w") for i in range(num_shards)]  # noqa: SIM115
    with Beton(data) as opened:
        num_samples = opened.num_samples
        indices = _copied(num_samples)
        labels = opened.rows(indices).label
        for place, (index, label) in enumerate(zip(indices.tolist(), labels.tolist(), strict=True)):
            jpeg = opened.read(index)
            path = folder / "images" / f"{label:06}" / f"{index:09}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg)
            for suffix, data_bytes in (("jpg", jpeg), ("cls", str(label).encode())):
                member = tarfile.TarInfo(f"{index:09}.{suffix}")
                member.size = len(data_bytes)
                shards[place % num_shards].addfile(member, io.BytesIO(data_bytes))
    for shard in shards:
        shard.close()
    return len(indices), num_samples


@contextmanager
def open_ours(work: Work, num_views: int) -> Iterator[Any]:
    """Open our Loader with `num_views` random resized crops."""
    from fastpsl.kernels.crops import RandomResizedCrop
    from fastpsl.pipelines.beton.reader import Beton
    from fastpsl.pipelines.loader.loader import Loader
    from fastpsl.pipelines.views import ViewSpec

    view = ViewSpec(RandomResizedCrop(work.size_px))
    with (
        Beton(work.data) as data,
        Loader(
            data, [view] * num_views, batch_size_per_rank=work.batch_size, decoder=work.kind,
            num_threads=work.num_threads, device=work.device, hw_decoder_load=work.hw_decoder_load,
        ) as loader,
    ):  # fmt: skip
        yield loader


def _batches_of_ours(work: Work, num_views: int) -> Iterator[int]:
    with open_ours(work, num_views) as loader:
        for epoch in itertools.count():
            for batch in loader.epoch(epoch):
                yield len(batch.indices)


def _batches_of_ffcv(work: Work, num_views: int) -> Iterator[int]:
    from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.pipeline.pipeline_spec import PipelineSpec
    from ffcv.transforms import Squeeze, ToDevice, ToTensor, ToTorchImage

    to_device = [ToDevice(torch.device(work.device), non_blocking=True)] if work.device != "cpu" else []

    def crop() -> list[Any]:
        decoder = RandomResizedCropRGBImageDecoder((work.size_px, work.size_px))
        return [decoder, ToTensor(), *to_device, ToTorchImage()]

    pipelines: dict[str, Any] = {"image": crop(), "label": [IntDecoder(), ToTensor(), Squeeze(), *to_device]}
    for view in range(1, num_views):  # ffcv decodes again for each view
        pipelines[f"image_{view}"] = PipelineSpec("image", transforms=crop())
    loader = Loader(
        work.data, batch_size=work.batch_size, num_workers=work.num_threads, order=OrderOption.RANDOM,
        os_cache=True, drop_last=True, pipelines=pipelines,
    )  # fmt: skip
    while True:
        for images, *_ in loader:
            yield len(images)


def _batches_of_dali(work: Work, num_views: int, *, whole: bool = False) -> Iterator[int]:
    """Yield batches of DALI's reader; with one view it decodes only the crop, unless `whole` is set."""
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
            initial_fill=_SHUFFLE,
            name="files",
        )
        if num_views == 1 and not whole:
            views = [fn.resize(fn.decoders.image_random_crop(jpegs, **decoder), size=size)]
        else:
            images = fn.decoders.image(jpegs, **decoder)
            views = [fn.random_resized_crop(images, size=size) for _ in range(num_views)]
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


def _batches_of_dataloader(work: Work, num_views: int) -> Iterator[int]:
    """Yield batches as ImageFolder's users do, with PIL, torchvision and worker processes."""
    from PIL import Image

    from fastpsl.pipelines.beton.reader import Beton

    data, crops = Beton(work.data), _Crops(work.size_px, num_views)

    class Photos(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return data.num_samples

        @override
        def __getitem__(self, index: int) -> Any:
            row = data.rows(np.array([index]))
            stored = data.read(index)
            if row.mode[0]:
                pixels = np.frombuffer(stored, np.uint8).reshape(row.height[0], row.width[0], 3)
                image = Image.fromarray(pixels)
            else:
                image = Image.open(io.BytesIO(stored)).convert("RGB")
            return *crops(image), int(row.label[0])

    loader = torch.utils.data.DataLoader(
        Photos(), batch_size=work.batch_size, shuffle=True, drop_last=True, num_workers=work.num_threads,
        pin_memory=work.device != "cpu", persistent_workers=True,
    )  # fmt: skip
    while True:
        yield from _on_device(loader, work.device)


def _batches_of_webdataset(work: Work, num_views: int) -> Iterator[int]:
    """Yield batches as WebDataset's users do, with resampled shards and a shuffle buffer."""
    import webdataset

    crops = _Crops(work.size_px, num_views)
    shards = sorted(str(path) for path in (Path(work.files) / "shards").glob("*.tar"))
    samples = webdataset.WebDataset(shards, resampled=True, shardshuffle=False).shuffle(_SHUFFLE)
    pairs = samples.decode("pilrgb").to_tuple("jpg", "cls").map(lambda pair: (*crops(pair[0]), pair[1]))
    loader = webdataset.WebLoader(
        pairs.batched(work.batch_size, partial=False), batch_size=None, num_workers=work.num_threads,
        pin_memory=work.device != "cpu",
    )  # fmt: skip
    yield from _on_device(loader, work.device)


class _Crops:
    """A transform from a PIL image to `num_views` uint8 tensors [3, S, S]."""

    def __init__(self, size_px: int, num_views: int):
        from torchvision import transforms

        self.crop = transforms.Compose([transforms.RandomResizedCrop(size_px), transforms.PILToTensor()])
        self.num_views = num_views

    def __call__(self, image: Any) -> list[Any]:
        return [self.crop(image) for _ in range(self.num_views)]


def _on_device(loader: Any, device: str) -> Iterator[int]:
    for batch in loader:
        if device != "cpu":
            batch = [tensor.to(device, non_blocking=True) for tensor in batch]
        yield len(batch[-1])


def open_batches(work: Work, num_views: int) -> Iterator[int]:
    """Return an endless iterator over the numbers of samples in the batches."""
    functions: dict[str, Callable[[Work, int], Iterator[int]]] = {
        "ffcv_loader": _batches_of_ffcv,
        "dali_reader": _batches_of_dali,
        "dali_whole": partial(_batches_of_dali, whole=True),
        "dataloader": _batches_of_dataloader,
        "webdataset": _batches_of_webdataset,
    }
    return functions.get(work.kind, _batches_of_ours)(work, num_views)


def serve(work: Work) -> None:
    """Print a line at the first batch, then an answer to each request of `interleaved.Process.measure`."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # because libraries' own prints must not mix with the answers
    ahead = max(_AHEAD, 2 * work.num_threads + 1)  # because each of DataLoader's processes prefetches two
    running: dict[int, Iterator[int]] = {1: open_batches(work, 1)}
    next(running[1])
    print("first batch", file=answers, flush=True)
    for line in sys.stdin:
        num_views, seconds, num_batches = json.loads(line)
        if num_views not in running:
            running[num_views] = open_batches(work, num_views)
        batches = running[num_views]
        for _ in range(ahead):
            next(batches)
        cpu_s, start = time.process_time(), time.perf_counter()
        rate = samples_per_s(partial(next, batches), seconds, work.device, max(ahead, num_batches))
        cores = (time.process_time() - cpu_s) / (time.perf_counter() - start)
        # Wait until its prefetching is over, which would disturb other loaders.
        time.sleep(min(2 * ahead * work.batch_size / rate, 2.0))
        print(json.dumps([rate, None if work.kind in _WITH_PROCESSES else cores]), file=answers, flush=True)
    answers.close()
    running.clear()  # ends the processes of DataLoader
    os._exit(0)  # because ffcv's threads never end


if __name__ == "__main__":
    serve(Work(**json.loads(sys.argv[1])))
