"""Loaders in processes of their own: the peers', and ours from an empty process to its first batch.

ffcv sets thread counts where it is imported and DataLoader forks, so neither shares a process with what is measured
beside it. All make the same crop of the same files, uint8 on the device: shorter side to shorter_px, a window of
size_px (ffcv's Loader has no random window: the middle one, the same work).
"""

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this file is a program, too
from bench.timing import samples_per_s

TITLES = {"ffcv_loader": "ffcv Loader", "dataloader": "torchvision + DataLoader"}
AHEAD = 4  # batches thrown away before a timed region: more than any of the loaders holds ready
_TIMEOUT_S = 120.0  # compiling included; ffcv's Loader can hang for ever


@dataclass(frozen=True)
class Work:
    """What is to be loaded, and how."""

    kind: str  # ffcv_loader, dataloader, or one of our decoders
    data: str
    batch_size: int
    num_threads: int
    shorter_px: int
    size_px: int
    device: str


def why_missing(work: Work) -> str | None:
    """Why a peer cannot be measured, None where it can."""
    from fastpsl.pipelines.beton import Beton

    if work.kind != "ffcv_loader":
        return None
    if find_spec("ffcv") is None:
        return "not installed"
    with Beton(work.data) as data:
        if len(data.paths) > 1:
            return f"it reads one file, and these are {len(data.paths)} shards"
    return None


class Peer:
    """A loader in its own process. Raises RuntimeError with its last words where it ends or hangs."""

    def __init__(self, work: Work) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        start = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, __file__, json.dumps(asdict(work))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, bufsize=0,
        )  # fmt: skip
        self._answer()
        self.first_batch_s = time.perf_counter() - start

    def samples_per_s(self, num_views: int, seconds: float) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{num_views} {seconds}\n".encode())
        return float(self._answer())

    def _answer(self) -> bytes:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], _TIMEOUT_S)
        line = self._process.stdout.readline() if ready else b""
        if not line:
            self._end()
            self._errors.seek(0)
            words = self._errors.read().decode(errors="replace").strip().splitlines()
            self._errors.close()
            raise RuntimeError(words[-1] if ready and words else f"no batch within {_TIMEOUT_S:g} s")
        return line

    def close(self) -> None:
        self._end()
        self._errors.close()

    def _end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()  # the end of its commands
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def batches_of_ours(work: Work, num_views: int) -> Iterator[int]:
    from fastpsl.kernels.crops import ShorterSideCrop
    from fastpsl.pipelines.beton import Beton
    from fastpsl.pipelines.loader import Loader
    from fastpsl.pipelines.views import ViewSpec

    view = ViewSpec(ShorterSideCrop(work.shorter_px, work.size_px))
    with (
        Beton(work.data) as data,
        Loader(
            data, [view] * num_views, batch_size=work.batch_size, decoder=work.kind,
            num_threads=work.num_threads, device=work.device,
        ) as loader,
    ):  # fmt: skip
        epoch = 0
        while True:
            for batch in loader.epoch(epoch):
                yield len(batch.indices)
            epoch += 1


def batches_of_ffcv(work: Work, num_views: int) -> Iterator[int]:
    import torch
    from ffcv.fields.decoders import CenterCropRGBImageDecoder, IntDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.pipeline.pipeline_spec import PipelineSpec
    from ffcv.transforms import Squeeze, ToDevice, ToTensor, ToTorchImage

    to_device = [ToDevice(torch.device(work.device), non_blocking=True)] if work.device != "cpu" else []

    def crop() -> list[Any]:
        ratio = work.size_px / work.shorter_px
        decoder = CenterCropRGBImageDecoder((work.size_px, work.size_px), ratio)
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


def batches_of_dataloader(work: Work, num_views: int) -> Iterator[int]:
    """As ImageFolder's users do: PIL, torchvision's transforms, worker processes; the bytes come from the beton."""
    import io

    import numpy as np
    import torch
    from PIL import Image
    from torchvision import transforms

    from fastpsl.pipelines.beton import Beton

    data = Beton(work.data)
    crop = transforms.Compose(
        [transforms.Resize(work.shorter_px), transforms.RandomCrop(work.size_px), transforms.PILToTensor()]
    )

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
            return [crop(picture) for _ in range(num_views)], int(row.label[0])

    is_cuda = work.device != "cpu"
    loader = torch.utils.data.DataLoader(
        Photos(), batch_size=work.batch_size, shuffle=True, drop_last=True, num_workers=work.num_threads,
        pin_memory=is_cuda, persistent_workers=True,
    )  # fmt: skip
    while True:
        for views, labels in loader:
            if is_cuda:
                views = [images.to(work.device, non_blocking=True) for images in views]
                labels = labels.to(work.device, non_blocking=True)
            yield len(labels)


def serve(work: Work) -> None:
    """In the process: a line at the first batch; then, for each "num_views seconds" on stdin, samples/s."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the libraries print is no answer
    open_batches = {"ffcv_loader": batches_of_ffcv, "dataloader": batches_of_dataloader}.get(
        work.kind, batches_of_ours
    )
    running: dict[int, Iterator[int]] = {1: open_batches(work, 1)}
    next(running[1])
    print("first batch", file=answers, flush=True)
    for line in sys.stdin:
        num_views, seconds = int(line.split()[0]), float(line.split()[1])
        if num_views not in running:
            running[num_views] = open_batches(work, num_views)
        batches = running[num_views]
        for _ in range(AHEAD):
            next(batches)
        rate = samples_per_s(lambda: next(batches), seconds, work.device, min_calls=AHEAD)  # noqa: B023
        # What it reads ahead must not disturb others.
        time.sleep(min(2 * AHEAD * work.batch_size / rate, 2.0))
        print(rate, file=answers, flush=True)
    answers.close()
    running.clear()  # ends DataLoader's processes
    os._exit(0)  # ffcv's threads are waited for by nobody


if __name__ == "__main__":
    serve(Work(**json.loads(sys.argv[1])))
