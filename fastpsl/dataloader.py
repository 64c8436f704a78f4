"""`fastpsl.loader`: the data path for a training loop that is somebody else's, as it expects it: tuples, epoch after epoch."""

import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor

from fastpsl.engine.distributed import choose_device
from fastpsl.kernels.crops import RandomResizedCrop, ShorterSideCrop
from fastpsl.kernels.flip import Flip
from fastpsl.pipelines.augment import Augment, AugmentName, choose_augment
from fastpsl.pipelines.batch import Batch, checked_device
from fastpsl.pipelines.data.dataset import Dataset
from fastpsl.pipelines.data.open import open_data
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.sample.betons import sample_paths
from fastpsl.pipelines.views import ViewSpec

Inputs = Tensor | list[Tensor]
_SIZE_PX = 224
_SHORTER_OF_SIZE = 256 / 224  # evaluation: ImageNet's usual "256, then the middle 224"


@final
class EpochLoader:
    """Each `for` over it is an epoch; made by `loader`.

    Training: the next epoch each time, other orders and draws, all batches full. Evaluation: each sample once, in the data
    set's order, no padding; the last batch may be smaller, and of several ranks some may have one batch less: sum over the
    ranks after the loop, not within it.

    dataset: the open data set. mean, std: of the (first) view's normalisation. epoch: the one that comes next.
    """

    def __init__(
        self, loader: Loader, augment: Augment, *, dtype: torch.dtype, with_indices: bool, owns_data: bool
    ):
        self.loader, self.dataset, self.batch_size = loader, loader.data, loader.batch_size
        self.num_samples, self.num_classes = loader.data.num_samples, loader.data.num_classes
        self.class_names = loader.data.class_names
        self.mean, self.std = loader.views[0].mean, loader.views[0].std
        self.device, self.dtype, self.with_indices = loader.device, dtype, with_indices
        self.augment = augment
        self.epoch = 0
        self._owns_data = owns_data

    def set_epoch(self, epoch: int) -> None:
        """The next `for` goes through this epoch: to resume, or to look at one again."""
        self.epoch = epoch

    @property
    def sampler(self) -> "EpochLoader":
        """Itself, as loops made for DistributedSampler call `loader.sampler.set_epoch(epoch)`."""
        return self

    def __len__(self) -> int:
        """Batches of this rank in an epoch."""
        loader = self.loader
        if loader.train:
            return loader.num_steps
        num_parts = -(-loader.num_samples // loader.batch_size)
        return max(0, -(-(num_parts - loader.rank) // loader.world))

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        """(inputs, labels), or (inputs, labels, indices): see `loader`."""
        epoch = self.epoch
        if self.loader.train:
            self.epoch += 1
        for batch in self.loader.epoch(epoch):
            for bad in batch.bad:
                warnings.warn(f"skipped {bad}", stacklevel=2)
            if not self.loader.train:
                batch = _without_padding(batch, self._num_in(batch.step))
                if not len(batch.indices):
                    continue
            inputs: Inputs = self.augment.inputs(batch, self.loader.views, self.dtype)
            if len(inputs) == 1:
                inputs = inputs[0]
            yield (inputs, batch.labels, batch.indices) if self.with_indices else (inputs, batch.labels)

    def _num_in(self, step: int) -> int:
        """Samples, not padding, in this rank's part of a step."""
        loader = self.loader
        left = loader.num_samples - (step * loader.world + loader.rank) * loader.batch_size
        return min(max(left, 0), loader.batch_size)

    def close(self) -> None:
        """End the threads, and close the data that `loader` opened."""
        self.loader.close()
        if self._owns_data:
            self.dataset.close()

    def __enter__(self) -> "EpochLoader":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _without_padding(batch: Batch, num: int) -> Batch:
    """The first `num` samples, without those that were skipped."""
    if num == len(batch.indices) and not batch.bad:
        return batch  # the usual case: nothing is copied, the device is not waited for
    keep = torch.arange(num, device=batch.indices.device)
    if batch.bad:
        keep = keep[batch.indices[:num] >= 0]
    return Batch(
        images=[images[keep] for images in batch.images],
        draws=[tuple({name: value[keep] for name, value in draw.items()} for draw in draws) for draws in batch.draws],
        indices=batch.indices[keep],
        labels=batch.labels[keep],
        epoch=batch.epoch,
        step=batch.step,
        ops=batch.ops,
    )  # fmt: skip


def loader(
    data: str | Path | Dataset | None = None,
    views: Sequence[ViewSpec] | None = None,
    *,
    batch_size: int,
    train: bool = True,
    num_views: int | None = None,
    size_px: int | None = None,
    with_indices: bool = False,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "auto",
    augment: AugmentName = "auto",
    rank: int | None = None,
    world: int | None = None,
    **options: Any,
) -> EpochLoader:
    """Batches for a training loop that has its own model and steps: `for inputs, labels in fastpsl.loader(...)`.

    data: a beton, a glob of shards, a folder of images, or an open data set; None is the embedded sample (its training or
    test part). views: what each sample becomes; or, without them, `num_views` (1) of `size_px` (224): for training
    torchvision's RandomResizedCrop and a flip, for evaluation the middle square of 7/8 of the shorter side.

    inputs: `dtype` [batch_size, 3, size_px, size_px], normalised, channels-last, on the device; a list of one such tensor a
    view where there are several. labels: int64 [batch_size], -1 where the data has none. With `with_indices` a third:
    int64 [batch_size], each sample's place in the data set (-1: skipped, filled by a neighbour).

    batch_size is per rank. rank and world are those of torch.distributed, else of torchrun's environment, else 0 of 1.
    device: auto (CUDA where there is one, this process's). augment: how the views' operations are computed: kornia, one after the
    other; fused, in few kernels; auto: fused where it can be. options: seed, order, lanes, decoder, num_threads,
    prefetch_batches, timeout_s, on_bad_sample, as `pipelines.loader.Loader` has them. ValueError for what cannot be.
    """
    if views is not None and (num_views is not None or size_px is not None):
        raise ValueError("loader: views were given, and num_views or size_px too; give either")
    if views is None:
        views = _default_views(
            1 if num_views is None else num_views, _SIZE_PX if size_px is None else size_px, train
        )
    if device == "auto":
        device = choose_device("auto", int(os.environ.get("LOCAL_RANK", "0")))
    chosen = choose_augment(augment, views, checked_device(device))
    own_rank, own_world = _place()
    if data is None:
        paths = sample_paths()
        data = paths.train if train else paths.test
    owns_data = isinstance(data, str | Path)
    opened = open_data(data) if isinstance(data, str | Path) else data
    try:
        made = Loader(
            opened, views, batch_size=batch_size, train=train, device=device,
            rank=own_rank if rank is None else rank, world=own_world if world is None else world, **options,
        )  # fmt: skip
    except BaseException:
        if owns_data:
            opened.close()
        raise
    return EpochLoader(made, chosen, dtype=dtype, with_indices=with_indices, owns_data=owns_data)


def _default_views(num_views: int, size_px: int, train: bool) -> list[ViewSpec]:
    if num_views < 1:
        raise ValueError(f"loader: num_views is {num_views}; it must be 1 or more")
    if train:
        return [ViewSpec(RandomResizedCrop(size_px), (Flip(),))] * num_views
    return [ViewSpec(ShorterSideCrop(round(size_px * _SHORTER_OF_SIZE), size_px, where="center"))] * num_views


def _place() -> tuple[int, int]:
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
