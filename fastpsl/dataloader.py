"""`fastpsl.loader`, the data loader for a training loop of the user's own: tuples, epoch after epoch."""

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor
from typing_extensions import TypedDict, Unpack, override

from fastpsl.console.interrupts import imports_undisturbed
from fastpsl.console.offered import named_arguments
from fastpsl.console.terminal import number_in, own_rank
from fastpsl.console.words import words_of_python
from fastpsl.engine.distributed import choose_device
from fastpsl.files.atomic import Uncopyable
from fastpsl.files.paths import FORMS, require_path
from fastpsl.pipelines.datasets.open import open_data
from fastpsl.pipelines.embedded.draw_sample import sample_paths
from fastpsl.pipelines.interface.dataset import Dataset
from fastpsl.pipelines.interface.identity import not_compared, same_data
from fastpsl.pipelines.interface.reading import PLAIN, Reading
from fastpsl.pipelines.loader.augment import Augment, AugmentName, choose_augment
from fastpsl.pipelines.loader.batch import Batch, checked_device
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.views import Input, ViewSpec, center_view, require_views, train_view

Inputs = Tensor | list[Tensor]
_SIZE_PX = 224
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@final
class EpochLoader(Uncopyable):
    """An iterable over epochs, returned by `fastpsl.loader`: each `for` loop over it is one epoch.

    In training, each loop is the next epoch, with another order and other augmentations, and all batches are
    full. In evaluation, each sample comes once, in the order of the data and without padding. The last batch
    may be smaller, and some ranks may have one batch fewer. Sum over the ranks after the loop, not within it.

    `state_dict` tells the place of the last loop. `load_state_dict` has the next loop go on there, with the
    same order, crops and draws, and without decoding what lies before. Both behave as those of torchdata's
    StatefulDataLoader.

    Attributes:
        loader: The `fastpsl.Loader` that it reads from.
        dataset: The open data set.
        batch_size: Samples per step over all ranks.
        batch_size_per_rank: Samples per step on this rank.
        num_samples: Samples of the data set.
        num_classes: Classes of the data set.
        class_names: The names of the classes, or None.
        mean: The mean of the first view's normalisation, one value per channel, for pixels in [0, 1].
        std: The standard deviation of the first view's normalisation, one value per channel.
        device: The device of the batches.
        dtype: The dtype of the inputs.
        with_indices: Whether tuples have indices.
        augment: The implementation of the views' operations.
        epoch: The epoch of the next loop.
    """

    loader: Loader
    dataset: Dataset
    batch_size: int
    batch_size_per_rank: int
    num_samples: int
    num_classes: int
    class_names: list[str] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    device: torch.device
    dtype: torch.dtype
    with_indices: bool
    augment: Augment
    epoch: int

    def __init__(
        self,
        loader: Loader,
        augment: Augment,
        *,
        dtype: torch.dtype,
        with_indices: bool,
        as_batch: Callable[..., Any] | None,
        owns_data: bool,
    ):
        self.loader, self.dataset, self.batch_size_per_rank = loader, loader.data, loader.batch_size_per_rank
        self.batch_size = loader.batch_size_per_rank * loader.world
        self.num_samples, self.num_classes = loader.data.num_samples, loader.data.num_classes
        self.class_names = loader.data.class_names
        self.mean, self.std = loader.views[0].mean, loader.views[0].std
        self.device, self.dtype, self.with_indices = loader.device, dtype, with_indices
        self.augment, self._as_batch = augment, as_batch
        self.epoch = 0
        self._first_step = 0  # of the next loop
        self._unfinished: list[int] | None = None  # a loop's epoch and the steps it has done
        self._owns_data = owns_data

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next loop, to resume or to repeat one.

        It begins at its first batch, unless `load_state_dict` has named another one of the same epoch.
        """
        if epoch != self.epoch:
            self._first_step = 0
        self.epoch, self._unfinished = epoch, None

    def state_dict(self) -> dict[str, int | str]:
        """Return the place in the batches, to be saved beside the model.

        Within a loop, the batch that the loop has counts as done. In training, all ranks have the same state.

        Returns:
            A dict of numbers and texts: "epoch"; "batch", the number of its batches that are done; and what
            fixes the samples of each batch: "data" (a digest), "order", "seed" and "batch_size".
        """
        epoch, step = self._unfinished or (self.epoch, self._first_step)
        return {"epoch": epoch, "batch": step, **self._identity}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Have the next loop continue where a loader's `state_dict` was taken.

        The views are not part of a state, nor is the number of ranks. A state may be from within a loop, at
        the epoch's last batch. Then the next loop has no batches, and the one after it is the next epoch.

        Args:
            state: What `state_dict` returned, on any number of ranks with the same `batch_size`.

        Raises:
            ValueError: The state is not one of a loader of these batches.
        """
        expected = self.state_dict()
        if not isinstance(state, Mapping) or state.keys() != expected.keys():
            found = (", ".join(map(str, state)) or "nothing") if isinstance(state, Mapping) else repr(state)
            raise ValueError(
                f"loader: a state has {', '.join(expected)}, not {found}; give what state_dict() returned"
            )
        identity = self._identity
        recorded, data = str(state["data"]), str(identity["data"])
        differences = [
            f"{name} {state[name]!r} there, {value!r} here"
            for name, value in identity.items()
            if (not same_data(recorded, data) if name == "data" else state[name] != value)
        ]
        if differences:
            raise ValueError(
                f"loader: this is a state of other batches ({'; '.join(differences)}); "
                f"make the loader with the data and arguments of the first one"
            )
        epoch, step = state["epoch"], state["batch"]
        are_numbers = type(epoch) is type(step) is int
        if not (are_numbers and 0 <= epoch < 1 << 32 and 0 <= step <= self.loader.num_steps):
            raise ValueError(
                f"loader: a state of epoch {epoch!r}, batch {step!r}; an epoch has batches 0 to "
                f"{self.loader.num_steps}; give what state_dict() returned"
            )
        for line in not_compared("loader: the state", recorded, data):
            warnings.warn(line, stacklevel=2)
        self.epoch, self._first_step, self._unfinished = epoch, step, None

    @cached_property
    def _identity(self) -> dict[str, int | str]:
        """What fixes the samples of each step, the digest of the data among them."""
        loader = self.loader
        return {
            "data": self.dataset.digest(),
            "order": loader.order,
            "seed": loader.seed,
            "batch_size": self.batch_size,
        }

    @property
    def sampler(self) -> "EpochLoader":
        """This object, because loops for DistributedSampler call `loader.sampler.set_epoch(epoch)`."""
        return self

    batch_sampler = None  # where there is a sampler, Lightning asks for this before it validates

    @override
    def __repr__(self) -> str:
        return self.loader.in_words(len(self))

    def __len__(self) -> int:
        """Return the number of this rank's batches in an epoch, also where the next loop has fewer."""
        loader = self.loader
        if loader.train:
            return loader.num_steps
        num_parts = -(-loader.num_samples // loader.batch_size_per_rank)
        return max(0, -(-(num_parts - loader.rank) // loader.world))

    def __iter__(self) -> Iterator[Any]:
        """Iterate over one epoch: (inputs, labels) or (inputs, labels, indices), or `as_batch` of them."""
        epoch, first_step = self.epoch, self._first_step
        if self.loader.train:
            self.epoch += 1
        self._first_step = 0
        place = self._unfinished = [epoch, first_step]
        around: Callable[[], AbstractContextManager[None]] = imports_undisturbed
        for batch in self.loader.epoch(epoch, first_step):
            place[1] = batch.step + 1
            for bad in batch.bad:
                warnings.warn(f"skipped a bad sample: {bad}", stacklevel=2)
            if not self.loader.train:
                batch = _without_padding(batch, self._num_in(batch.step))
                if not len(batch.indices):
                    continue
            with around():  # the first batch imports numba or Kornia
                inputs: Inputs = self.augment.inputs(batch, self.loader.views, self.dtype)
            around = nullcontext
            if len(inputs) == 1:
                inputs = inputs[0]
            parts = (inputs, batch.labels, batch.indices) if self.with_indices else (inputs, batch.labels)
            yield parts if self._as_batch is None else self._as_batch(*parts)
        if self._unfinished is place:
            self._unfinished = None

    def _num_in(self, step: int) -> int:
        """Return the number of samples, without padding, in this rank's part of a step."""
        loader = self.loader
        num_before = (step * loader.world + loader.rank) * loader.batch_size_per_rank
        return min(max(loader.num_samples - num_before, 0), loader.batch_size_per_rank)

    def close(self) -> None:
        """End the threads, and close the data that `loader` opened. A state can be had afterwards, too."""
        self.loader.close()
        with contextlib.suppress(OSError):  # it was closed before
            _ = self._identity
        if self._owns_data:
            self.dataset.close()

    def __enter__(self) -> "EpochLoader":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _without_padding(batch: Batch, num: int) -> Batch:
    """Return the first `num` samples without those that were skipped."""
    if num == len(batch.indices) and not batch.bad:
        return batch
    # Padding stands at the end, so that only skipped samples need copies, and the device a synchronisation.
    keep = torch.nonzero(batch.indices[:num] >= 0)[:, 0] if batch.bad else slice(num)
    return Batch(
        images=[images[keep] for images in batch.images],
        draws=[
            tuple({name: value[keep] for name, value in draw.items()} for draw in draws)
            for draws in batch.draws
        ],
        indices=batch.indices[keep],
        labels=batch.labels[keep],
        epoch=batch.epoch,
        step=batch.step,
        ops=batch.ops,
    )


class LoaderOptions(TypedDict, total=False):
    """The further options of `loader`, which are those of `fastpsl.Loader`."""

    seed: int
    order: str
    lanes: int
    decoder: str
    num_threads: int | None
    prefetch_batches: int
    timeout_s: float
    on_bad_sample: str
    hw_decoder_load: float | None


@named_arguments(*LoaderOptions.__annotations__)
@imports_undisturbed()
@words_of_python()
def loader(
    data: str | os.PathLike[str] | Dataset | None = None,
    views: Sequence[ViewSpec] | None = None,
    *,
    batch_size: int,
    train: bool = True,
    num_views: int | None = None,
    size_px: int | None = None,
    with_indices: bool = False,
    as_batch: Callable[..., Any] | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "auto",
    augment: AugmentName = "auto",
    rank: int | None = None,
    world: int | None = None,
    cache_dir: str | Path | None = None,
    cache_gb: float | None = None,
    range: str | tuple[float, float] | None = None,
    bands: Sequence[int] | None = None,
    **options: Unpack[LoaderOptions],
) -> EpochLoader:
    """Open data for a training loop that you write, where `batch_size` is that of all ranks together.

    Use it as `for inputs, labels in fastpsl.loader(...)`. Each loop is an epoch.

    Args:
        data: The path of a folder of images, a list of images, a dataset file (.beton) or a glob of such
            files. Or the address of dataset files that live elsewhere (s3://, gs://, hf://, https://). Or an
            open data set. None means the generated sample (its training or its test part).
        views: The views of each sample. By default, `num_views` views of `size_px`. In training, a default
            view is torchvision's RandomResizedCrop and a flip; in evaluation, the middle square of 7/8 of the
            shorter side.
        batch_size: Samples per step over all ranks, which share them equally.
        train: Whether to train (shuffled, full batches) or to evaluate (in order, each sample once).
        num_views: The number of default views; 1 if it is not given.
        size_px: The side of the default views in pixels; 224 if it is not given.
        with_indices: Whether to yield indices, too.
        as_batch: A function of the parts of a tuple, such as `lambda inputs, labels: {"image": inputs}`. What
            it returns is yielded in the tuple's place.
        dtype: The floating dtype of the inputs.
        device: The device of the batches. "auto" is this process's CUDA device if there is one.
        augment: How the views' operations run: "kornia" or "torch" (one after the other), "fused" (few
            kernels), or "auto" (fused if possible, or torch).
        rank: This process's rank. By default, torch.distributed's, or else that of torchrun's environment, or
            0.
        world: The number of ranks. By default, from the same place, or 1.
        cache_dir: For an address: a folder on a local disk for what is in use. By default, in the folder for
            temporary files.
        cache_gb: For an address: the most that the folder may hold, in GB. By default, 80 % of what the disk
            has free.
        range: For a path to images of more than 8 bits: the two values that become 0 and 255, or "auto" for
            the least and the greatest of up to 256 images. By default, all values that their bits hold.
        bands: For a path to images of more bands than colours: one or three to take, counted from 1.
        **options: Further options of `fastpsl.Loader`: seed, order, lanes, decoder, hw_decoder_load,
            num_threads, prefetch_batches, timeout_s and on_bad_sample.

    Returns:
        An iterable that yields tuples on the device, or what `as_batch` makes of them. The inputs are `dtype`
        [B, C, size_px, size_px], normalised, in channels-last memory; for several views, a list of such
        tensors. The labels are int64 [B], -1 if the data has none. With `with_indices`, the data set's
        indices follow, int64 [B], -1 for a skipped sample that another replaces. B is this rank's share,
        `batch_size` over the number of ranks. Batches may be kept. On the CPU, a later batch takes an input's
        memory once nothing refers to it: no part of it, no array and no graph of autograd.

    Raises:
        ValueError: An argument is out of range, or the arguments do not fit together.
    """
    if views is not None and (num_views is not None or size_px is not None):
        raise ValueError("loader: views were given, and num_views or size_px too; give either")
    if views is None:
        num_views = 1 if num_views is None else num_views
        if num_views < 1:
            raise ValueError(f"loader: num_views is {num_views}; it must be 1 or more")
        make_view = train_view if train else center_view
        views = [make_view(Input(), _SIZE_PX if size_px is None else size_px)] * num_views
    views = require_views(views)
    if device == "auto":
        device = choose_device("auto", number_in("LOCAL_RANK", 0))
    if dtype not in _DTYPES:
        raise ValueError(f"loader: dtype is {dtype}; it must be {', '.join(map(str, _DTYPES))}")
    if not (as_batch is None or callable(as_batch)):
        parts = "inputs, labels, indices" if with_indices else "inputs, labels"
        raise ValueError(f"loader: as_batch is {as_batch!r}; it must be a function of ({parts})")
    implementation = choose_augment(augment, views, checked_device(device))
    if rank is None or world is None:
        default_rank, default_world = _place()
        rank, world = default_rank if rank is None else rank, default_world if world is None else world
    share = _share(batch_size, world)
    if data is None:
        paths = sample_paths()
        data = paths.train if train else paths.test
    owns_data = not hasattr(data, "image_sizes")  # no open data set
    if owns_data:
        require_path("data", data, f"{FORMS}, or an open data set")
    reading = Reading.of(range, bands)
    if reading != PLAIN and not owns_data:
        raise ValueError(
            "loader: range or bands were given for an open data set, which has its own; leave them out"
        )
    folder = None if cache_dir is None else Path(cache_dir)
    with warnings.catch_warnings() if rank else nullcontext():
        if rank:  # rank 0 gives the same ones
            warnings.simplefilter("ignore", UserWarning)
        if isinstance(data, str | os.PathLike):
            data = open_data(os.fspath(data), folder, cache_gb, reading)
    try:
        batches = Loader(
            data,
            views,
            batch_size_per_rank=share,
            train=train,
            device=device,
            rank=rank,
            world=world,
            **options,
        )
    except BaseException:
        if owns_data:
            data.close()
        raise
    return EpochLoader(
        batches,
        implementation,
        dtype=dtype,
        with_indices=with_indices,
        as_batch=as_batch,
        owns_data=owns_data,
    )


def _share(batch_size: int, world: int) -> int:
    """Return a rank's part of a batch; ValueError if the ranks cannot share it equally."""
    if world < 1:
        raise ValueError(f"loader: world is {world}; it must be 1 or more")
    if batch_size < 1:
        raise ValueError(f"loader: batch_size is {batch_size}; it must be 1 or more")
    share, rest = divmod(batch_size, world)
    if rest:
        nearest = " or ".join(str(number * world) for number in (share, share + 1) if number)
        raise ValueError(
            f"loader: batch_size is {batch_size}, of all {world} ranks together, which cannot share it "
            f"equally; give {nearest}"
        )
    return share


def _place() -> tuple[int, int]:
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    if not os.environ.get("RANK"):
        # Lightning sets the first in processes that it starts, before it joins them.
        for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"):
            if (number := os.environ.get(name) or "1") != "1":
                raise ValueError(
                    f"loader: {name} is {number} and RANK is not set; start with torchrun, make the loader "
                    "once torch.distributed is initialised, or give rank and world (0 and 1 for a program "
                    "of its own)"
                )
    return own_rank(), number_in("WORLD_SIZE", 1)
