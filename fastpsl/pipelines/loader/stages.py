"""The stages of a batch beside decoding (engines.py): `plan` before it, and `assemble` after it."""

import errno
import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from fastpsl.kernels.draws import Keys
from fastpsl.pipelines.decoders.choose import reason_of
from fastpsl.pipelines.decoders.codes import AREA, GOOD, READING
from fastpsl.pipelines.decoders.decoder import BatchDecoder, Decoder
from fastpsl.pipelines.decoders.resident import ResidentDecoder
from fastpsl.pipelines.interface.dataset import Dataset, SampleTable
from fastpsl.pipelines.loader.batch import BadSample, BadSampleError, Batch
from fastpsl.pipelines.loader.order import PADDING, index_of
from fastpsl.pipelines.views import Crop, ViewSpec, drawn_as

_MAX_NAMES = 3  # samples named in one line of an error, so that the line stays readable


@final
@dataclass(frozen=True)
class LoaderSpec:
    """The settings that all batches of a loader share."""

    data: Dataset
    views: tuple[ViewSpec, ...]
    seed: int
    decoder: Decoder | BatchDecoder
    on_bad_sample: str  # "raise" or "skip"
    device: torch.device
    copy_stream: torch.cuda.Stream | None  # for copies to a CUDA device

    def on_copy_stream(self) -> AbstractContextManager[object]:
        """Return a context in which this thread's CUDA work goes to the copy stream, if there is one."""
        if self.copy_stream is None:
            return nullcontext()
        # A thread starts on device 0, and leaving the stream would create a CUDA context there.
        torch.cuda.set_device(self.device)
        return torch.cuda.stream(self.copy_stream)

    def rows(self, indices: np.ndarray) -> SampleTable:
        """Return where samples lie, when they are there."""
        if isinstance(self.decoder, ResidentDecoder):
            return self.decoder.table.part(indices)
        self.data.wait(indices)  # in a thread of the loader, so the consumer's limit of time holds
        return self.data.rows(indices)

    def names(self, indices: np.ndarray) -> str:
        """Return the first few of samples in words, for messages."""
        rest = f" and {len(indices) - _MAX_NAMES} more" if len(indices) > _MAX_NAMES else ""
        return ", ".join(self.data.name(int(index)) for index in indices[:_MAX_NAMES]) + rest


@final
@dataclass(frozen=True, eq=False)
class Plan:
    """A batch without its pixels: B samples, of which the first V are not padding."""

    spec: LoaderSpec
    epoch: int
    step: int
    indices: np.ndarray  # int64 [B]
    rows: SampleTable  # of V samples
    boxes: list[np.ndarray]  # for each view int32 [V, 5]
    draws: list[tuple[dict[str, np.ndarray], ...]]  # for each view a dict of arrays [B, ...] per op

    @property
    def num_valid(self) -> int:
        return len(self.rows.indices)


def plan(spec: LoaderSpec, epoch: int, step: int, numbers: np.ndarray) -> Plan:
    """Plan the batch of `numbers`, int64 [B]: indices, or `order.numbered` for an order with repeats."""
    indices = index_of(numbers)
    num = int((indices != PADDING).sum())
    try:
        rows = spec.rows(indices[:num])
    except ValueError as error:  # a file was cut short: the message names the file, and here the samples
        raise ValueError(f"{error} (while reading {spec.names(indices[:num])})") from None
    boxes, draws = [], []
    for number, view in zip(drawn_as(spec.views), spec.views, strict=True):
        boxes.append(_boxes(view.crop, Keys(spec.seed, epoch, numbers[:num], number), rows))
        # Padding has draws too (with index -1), because ops are applied to whole batches.
        draws.append(view.draw(Keys(spec.seed, epoch, numbers, number)))
    return Plan(spec, epoch, step, indices, rows, boxes, draws)


def _boxes(crop: Crop, keys: Keys, rows: SampleTable) -> np.ndarray:
    """Return int32 [n, 5]: the crop's boxes and their resampling (AREA, ISOTROPIC or DIAGONAL)."""
    resampling = getattr(crop, "resampling", None)
    kinds = np.full(len(keys.indices), AREA, np.int32) if resampling is None else resampling(keys)
    return np.column_stack([crop.boxes(keys, rows.height, rows.width), kinds]).astype(np.int32, copy=False)


def assemble(planned: Plan, images: list[Tensor], codes: np.ndarray) -> Batch:
    """Return the batch of decoded images, for each view uint8 [B, S, S, 3], and codes, int8 [V]."""
    indices = planned.indices.astype(np.int64)
    labels = np.full(len(indices), PADDING, np.int64)
    labels[: planned.num_valid] = planned.rows.label
    return Batch(
        bad=_fill_bad(planned, images, codes, indices, labels),
        images=[of_view.permute(0, 3, 1, 2) for of_view in images],
        draws=[
            tuple({key: torch.from_numpy(value) for key, value in draw.items()} for draw in of_view)
            for of_view in planned.draws
        ],
        indices=torch.from_numpy(indices),
        labels=torch.from_numpy(labels),
        epoch=planned.epoch,
        step=planned.step,
        ops=[view.ops for view in planned.spec.views],
    )


def _fill_bad(
    planned: Plan, images: list[Tensor], codes: np.ndarray, indices: np.ndarray, labels: np.ndarray
) -> list[BadSample]:
    """Replace bad samples by the batch's next good ones, with index -1, and return the bad ones."""
    if not codes.any():
        return []
    data = planned.spec.data
    # The system's errors, which are never skipped: the image may be good.
    for i in np.flatnonzero(codes < READING).tolist():
        number, name = READING - int(codes[i]), data.name(int(indices[i]))
        if number == errno.ENOMEM:
            raise MemoryError(f"{name}: no memory to decode it")
        raise OSError(number, os.strerror(number), name)
    bad, places = [], np.flatnonzero(codes != GOOD).tolist()
    for i in places:
        reason = reason_of(int(codes[i]), planned.rows, i)
        bad.append(BadSample(int(indices[i]), data.name(int(indices[i])), reason))
        if planned.spec.on_bad_sample == "raise":
            raise BadSampleError(str(bad[-1]))
    good = np.flatnonzero(codes == GOOD)
    if not len(good):
        raise BadSampleError(
            f"{bad[0]} (all {len(bad)} samples of epoch {planned.epoch}, step {planned.step} are bad)"
        )
    for i in places:
        source = int(good[np.searchsorted(good, i) % len(good)])
        for of_view in images:
            of_view[i] = of_view[source]
        # Without the source's index, so that metrics and stores do not count it twice.
        labels[i], indices[i] = labels[source], PADDING
    return bad
