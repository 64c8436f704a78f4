"""Decoders by name, samples for them, one call for both kinds of decoder, and loaders of dataset files."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import pytest
import torch

from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.decoders import codes
from fastpsl.pipelines.decoders.dali import DaliDecoder
from fastpsl.pipelines.decoders.decoder import BatchDecoder, Decoder
from fastpsl.pipelines.decoders.pillow import PillowDecoder
from fastpsl.pipelines.interface.dataset import Dataset, SampleTable
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.views import ViewSpec


def make(name: str) -> Decoder | BatchDecoder:
    if name == "dali":
        return DaliDecoder("beton", 600, 2, torch.device("cpu"))
    if name == "pillow":
        return PillowDecoder()
    if name == "turbo":
        from fastpsl.pipelines.decoders.turbo import TurboDecoder

        return TurboDecoder()
    assert name == "ffcv", name
    from fastpsl.pipelines.decoders.ffcv import FfcvDecoder

    return FfcvDecoder()


class Samples:
    """A file of samples, open during a test, and their rows."""

    open_fds: ClassVar[list[int]] = []

    def __init__(self, path: Path, samples: list[tuple[bytes, int, int, int]]) -> None:
        path.write_bytes(b"before" + b"".join(data for data, *_ in samples))
        self.fd = os.open(path, os.O_RDONLY)
        self.open_fds.append(self.fd)
        sizes = np.array([len(data) for data, *_ in samples], np.int64)
        self.rows = SampleTable.empty(np.arange(len(samples)))
        self.rows.fd[:], self.rows.label[:] = self.fd, 0
        self.rows.offset[:], self.rows.num_bytes[:] = 6 + np.cumsum(sizes) - sizes, sizes
        for i, (_, height, width, mode) in enumerate(samples):
            self.rows.height[i], self.rows.width[i], self.rows.mode[i] = height, width, mode


@pytest.fixture(autouse=True)
def samples_are_closed() -> Iterator[None]:
    yield
    while Samples.open_fds:
        os.close(Samples.open_fds.pop())


def decode(
    decoder: Decoder | BatchDecoder, rows: SampleTable, boxes: list[np.ndarray], sizes: list[int]
) -> tuple[np.ndarray, list[np.ndarray]]:
    boxes = [with_resampling(box) for box in boxes]
    if isinstance(decoder, DaliDecoder):
        encoded = decoder.begin(rows)
        for i in range(0, len(rows.fd), 16):
            decoder.encode(rows, encoded, slice(i, min(i + 16, len(rows.fd))))
        decoder.submit(rows, encoded, boxes, sizes)
        status, images = decoder.collect()
        return status, [image.numpy() for image in images]
    outs = [np.zeros((len(rows.fd), size, size, 3), np.uint8) for size in sizes]
    return cast(Decoder, decoder).decode(rows, boxes, outs), outs


def with_resampling(boxes: np.ndarray, resampling: int = codes.AREA) -> np.ndarray:
    """Add the resampling to boxes [n, 4]; boxes [n, 5] have one and stay."""
    complete = boxes if np.shape(boxes)[1] == 5 else np.column_stack([boxes, np.full(len(boxes), resampling)])
    return np.asarray(complete).astype(np.int32)


def whole(rows: SampleTable) -> np.ndarray:
    zero = np.zeros(len(rows.fd), np.int32)
    return np.stack([zero, zero, rows.height, rows.width], axis=1)


@contextmanager
def loader_of(path: Path, views: Sequence[ViewSpec], batch_size: int, **options: Any) -> Iterator[Loader]:
    """Open a dataset file and a loader of it."""
    with Beton(path) as data, Loader(data, views, batch_size_per_rank=batch_size, **options) as loader:
        yield loader


def batches_of(
    data: Dataset, views: Sequence[ViewSpec], batch_size: int, epoch: int = 0, step: int = 0, **options: Any
) -> list[Batch]:
    """Return the batches of an epoch from a step on."""
    with Loader(data, views, batch_size_per_rank=batch_size, **options) as loader:
        return list(loader.epoch(epoch, step))
