"""What a loader hands out: pictures, their draws, where they come from, and which samples were bad."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from fastpsl.pipelines.views import ViewSpec


class BadSampleError(ValueError):
    """A sample that cannot be decoded; the message names it."""


@dataclass(frozen=True)
class BadSample:
    index: int
    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


@final
@dataclass
class Batch:
    """One rank's part of a step.

    images: a view each, uint8 [B, 3, S, S], channels-last memory, on the device.
    draws: a view each: a tuple aligned with the view's ops of dicts of tensors [B, ...], on the device.
    indices: int64 [B], the dataset index; -1 for padding and for skipped samples: no metric and no store may read those.
    labels: int64 [B]; -1 for padding, that of the sample which fills it for a skipped one.
    bad: the samples skipped in this batch (`on_bad_sample="skip"`).
    """

    images: list[Tensor]
    draws: list[tuple[dict[str, Tensor], ...]]
    indices: Tensor
    labels: Tensor
    epoch: int
    step: int
    bad: list[BadSample] = field(default_factory=list)

    def inputs(self, views: Sequence[ViewSpec], dtype: torch.dtype) -> list[Tensor]:
        """Every view with its ops applied one after the other, normalised, of `dtype`; `views` are those of the loader."""
        self.check_views(views)
        parts = zip(views, self.images, self.draws, strict=True)
        return [view.apply(images, draws, dtype) for view, images, draws in parts]

    def check_views(self, views: Sequence[ViewSpec]) -> None:
        """ValueError unless there is a view for each of the images."""
        if len(views) != len(self.images):
            raise ValueError(
                f"{len(views)} views for a batch of {len(self.images)}; pass the views of the loader"
            )

    def to(self, device: torch.device) -> "Batch":
        """A copy on a CUDA device, under way on the current stream; what is neither there nor pinned is pinned first."""

        def move(tensor: Tensor) -> Tensor:
            if tensor.device == device:
                return tensor
            pinned = tensor if tensor.is_pinned() else tensor.pin_memory()
            return pinned.to(device, non_blocking=True)

        return Batch(
            images=[move(images) for images in self.images],
            draws=[
                tuple({key: move(value) for key, value in draw.items()} for draw in draws)
                for draws in self.draws
            ],
            indices=move(self.indices),
            labels=move(self.labels),
            epoch=self.epoch,
            step=self.step,
            bad=self.bad,
        )

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor of the batch."""
        yield from self.images
        yield self.indices
        yield self.labels
        for draws in self.draws:
            for draw in draws:
                yield from draw.values()


def checked_device(device: str | torch.device) -> torch.device:
    """The device that batches go to, with its number; ValueError where there is none such."""
    if not str(device).startswith(("cpu", "cuda")):
        raise ValueError(f"device {device} was asked for; there are cpu and cuda")
    device = torch.device(device)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"device {device} was asked for, but torch finds no CUDA device; use device cpu")
        if device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
    return device
