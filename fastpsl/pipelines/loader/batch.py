"""The batch that a loader hands out: images, draws, indices, labels and the samples that were skipped."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NoReturn, final

import torch
from torch import Tensor
from typing_extensions import override

from fastpsl.console.words import number_of
from fastpsl.pipelines.decoders.memory import pinned_empty, to_device
from fastpsl.pipelines.views import Op, ViewSpec

# The fields that differ between steps and are no tensors, so a captured step cannot read them.
_OUT_OF_REACH = ("epoch", "step", "bad")
ALIGNMENT = 16  # bytes; enough for vectorised loads and for every dtype


class BadSampleError(ValueError):
    """A sample that cannot be decoded; the message names it."""

    remedy = "repair the image or its rights, or give --on-bad-sample skip, which takes another in its place"


@dataclass(frozen=True)
class BadSample:
    """A sample that was skipped because it cannot be decoded.

    Attributes:
        index: Its index in the data set.
        name: The sample in words.
        reason: Why it cannot be decoded.
    """

    index: int
    name: str
    reason: str

    @override
    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


@final
@dataclass
class Batch:
    """One rank's part of a step, as a `Loader` yields it.

    Attributes:
        images: One tensor per view, uint8 [B, 3, S, S], in channels-last memory, on the device.
        draws: Per view, one dict of tensors [B, ...] per operation, in the order of the view's operations, on
            the device.
        indices: Dataset indices, int64 [B]; -1 for padding and for skipped samples, which metrics and stores
            must not read.
        labels: Labels, int64 [B]; -1 for padding and if the data has none. A skipped sample has the label of
            the sample that fills its place.
        epoch: The epoch of this step.
        step: The step within its epoch.
        bad: The samples skipped in this batch, with `on_bad_sample="skip"`.
        ops: The operations of each view, by which `draw` finds their draws.
        extra: What the task has added for this step (`Task.batch_tensors`), by name, on the device.
        variant: The variant of the step that the task has chosen (`Task.variant`).
    """

    images: list[Tensor]
    draws: list[tuple[dict[str, Tensor], ...]]
    indices: Tensor
    labels: Tensor
    epoch: int
    step: int
    bad: list[BadSample] = field(default_factory=list)
    ops: Sequence[tuple[Op, ...]] = ()
    extra: dict[str, Tensor] = field(default_factory=dict)
    variant: int = 0

    if not TYPE_CHECKING:  # a type checker would allow any name after it

        def __getattr__(self, name: str) -> NoReturn:
            """Explain why a batch within a step lacks a field (`of_step`)."""
            if name in _OUT_OF_REACH:
                raise AttributeError(
                    f"Batch.{name} is out of reach within a step, which may be captured once and replayed "
                    "for every batch; Task.batch_tensors and Task.variant may depend on it"
                )
            raise AttributeError(f"Batch has no attribute {name}")

    def with_extra(self, variant: int, extra: Mapping[str, Tensor]) -> "Batch":
        """Return a batch of the same tensors with what the task adds.

        Args:
            variant: The variant of the step.
            extra: Tensors of the task by name, on the host. They are copied to a GPU without a wait.

        Returns:
            The batch.
        """
        device = self.indices.device
        if device.type == "cuda":
            extra = {name: to_device(tensor, device) for name, tensor in extra.items()}
        return replace(self, variant=variant, extra=dict(extra))

    def of_step(self) -> "Batch":
        """Return this batch as a task's `loss` sees it: without `epoch`, `step` and `bad`."""
        batch = copy.copy(self)
        for name in _OUT_OF_REACH:
            vars(batch).pop(name, None)  # no default of the class shows through: `bad` has a factory
        return batch

    @override
    def __repr__(self) -> str:
        """Return one line: the number of samples, and each view's images by dtype and shape."""
        images = [f"{str(each.dtype).removeprefix('torch.')} {list(each.shape)}" for each in self.images]
        return f"Batch({', '.join([number_of(len(self.indices), 'sample'), *images])})"

    def clone(self) -> "Batch":
        """Return a batch of copies of the tensors, in the same memory formats."""
        small = list(self._small())
        return self._with([i.clone() for i in self.images], small, [tensor.clone() for tensor in small])

    def copy_(self, source: "Batch") -> None:
        """Copy the values of another batch of the same sizes into this one's tensors.

        Args:
            source: A batch with the same views, draws and sizes, on the same device.
        """
        # One call, because most of the tensors are small.
        torch._foreach_copy_(list(self.tensors()), list(source.tensors()))

    def draw(self, kind: type[Op]) -> dict[str, Tensor]:
        """Return the draw of the views' only operation of a type.

        Args:
            kind: The type, such as `fastpsl.ops.Rotate90`.

        Returns:
            Tensors [B, ...] by name, on the device.
        """
        draws = [
            draw
            for ops, of_view in zip(self.ops, self.draws, strict=False)  # made by hand, it may have no ops
            for op, draw in zip(ops, of_view, strict=True)
            if isinstance(op, kind)
        ]
        names = [[type(op).__name__ for op in ops] for ops in self.ops]
        assert len(draws) == 1, (
            f"{kind.__name__} stands {len(draws)} times, not once, in the views' ops {names}"
        )
        return draws[0]

    def inputs(self, views: Sequence[ViewSpec], dtype: torch.dtype) -> list[Tensor]:
        """Return what the network reads of each view, as `ViewSpec.apply` gives it.

        Args:
            views: The views of the loader.
            dtype: The floating dtype of the result.

        Returns:
            One tensor [N, C, T, T] per view, on the batch's device.

        Raises:
            ValueError: There is not one view per tensor of images.
        """
        self.check_views(views)
        parts = zip(views, self.images, self.draws, strict=True)
        return [view.apply(images, draws, dtype) for view, images, draws in parts]

    def check_views(self, views: Sequence[ViewSpec]) -> None:
        """Raise ValueError unless there is one view per tensor of images."""
        if len(views) != len(self.images):
            raise ValueError(
                f"{len(views)} views for a batch of {len(self.images)}; pass the views of the loader"
            )

    def first(self, num: int) -> "Batch":
        """Copy the first samples to the host, to be shown to people.

        Args:
            num: The number of samples. If the batch has fewer, all of them.

        Returns:
            A batch of `num` samples or fewer on the CPU, in the same memory format. On a GPU, the host waits
            for it.
        """
        small = list(self._small())
        images = [images[:num].cpu() for images in self.images]
        return self._with(images, small, [tensor[:num].cpu() for tensor in small])

    def to(self, device: torch.device) -> "Batch":
        """Start a copy to a CUDA device on the current stream.

        Each tensor of images is copied by itself from pinned memory.

        Args:
            device: The device.

        Returns:
            The copy.
        """

        small = [tensor for tensor in self._small() if tensor.device != device]
        # Draws, indices and labels share one copy. torch keeps pinned memory until the copies from it have
        # ended, so the buffer may go.
        buffer, starts = pack(small, pin_memory=True)
        return self._with(
            [to_device(images, device) for images in self.images],
            small,
            unpack(to_device(buffer, device), starts, small),
        )

    def _with(self, images: list[Tensor], small: Sequence[Tensor], moved: Sequence[Tensor]) -> "Batch":
        """Return this batch with other images, and with moved[i] in place of small[i]."""
        # By identity: tensors compare by values, and one in two fields stays one.
        new = {id(tensor): moved_tensor for tensor, moved_tensor in zip(small, moved, strict=True)}

        def moved_ones(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: new.get(id(tensor), tensor) for name, tensor in named.items()}

        batch = copy.copy(self)  # not `replace`, because a batch within a step lacks some fields
        batch.images = images
        batch.draws = [tuple(map(moved_ones, draws)) for draws in self.draws]
        batch.indices = new.get(id(self.indices), self.indices)
        batch.labels = new.get(id(self.labels), self.labels)
        batch.extra = moved_ones(self.extra)
        return batch

    def _small(self) -> Iterator[Tensor]:
        yield self.indices
        yield self.labels
        for draws in self.draws:
            for draw in draws:
                yield from draw.values()
        yield from self.extra.values()

    def tensors(self) -> Iterator[Tensor]:
        """Yield every tensor of the batch."""
        yield from self.images
        yield from self._small()


def pack(tensors: Sequence[Tensor], *, pin_memory: bool = False) -> tuple[Tensor, list[int]]:
    """Copy small tensors into one buffer, uint8 [N] on the host; return it, and each one's byte offset."""
    starts, end = [], 0
    for tensor in tensors:
        starts.append(end)
        end += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
    buffer = pinned_empty(end) if pin_memory else torch.empty(end, dtype=torch.uint8, device="cpu")
    for tensor, view in zip(tensors, unpack(buffer, starts, tensors), strict=True):
        view.copy_(tensor)
    return buffer, starts


def unpack(buffer: Tensor, starts: Sequence[int], like: Sequence[Tensor]) -> list[Tensor]:
    """Return views of the buffer, or of its copy on a device, with the shapes and dtypes of `like`."""
    return [
        buffer[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        for start, tensor in zip(starts, like, strict=True)
    ]


def checked_device(device: str | torch.device) -> torch.device:
    """Return the device that batches go to, with its index."""
    if not str(device).startswith(("cpu", "cuda")):
        raise ValueError(f"device {device} was asked for; there are cpu and cuda")
    device = torch.device(device)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"device {device} was asked for, but torch finds no CUDA device; use device cpu")
        if device.index is None:  # tensors tell theirs, and are compared with it
            device = torch.device("cuda", torch.cuda.current_device())
    return device
