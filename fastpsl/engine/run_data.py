"""The data of a recipe: opened, checked against views and batch size, and served by loaders."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from typing_extensions import Self

from fastpsl.engine.distributed import World
from fastpsl.engine.options import PretrainOptions, RunOptions, TrainingOptions
from fastpsl.pipelines.data.dataset import Dataset
from fastpsl.pipelines.datasets.open import open_data
from fastpsl.pipelines.decoders.choose import READS, is_kept_on_device
from fastpsl.pipelines.loader.annotated import AnnotatedImage, AnnotatedLoader
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.sample.betons import sample_paths
from fastpsl.pipelines.views import ViewSpec

OpenData = Callable[[RunOptions], tuple[Dataset, Dataset | None]]
"""A function that opens the training and validation data."""


class BatchSource(Protocol):
    """A source of training batches: a `Loader`, or a loader of annotated images."""

    decoder_name: str
    decoder_reason: str
    views: tuple[ViewSpec, ...]
    batch_size_per_rank: int
    num_samples: int
    num_steps: int

    def epoch(
        self, epoch: int, first_step: int = 0, order: np.ndarray | None = None
    ) -> Generator[Any, None, None]:
        """Yield the batches of an epoch, starting with `first_step`."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, place: TracebackType | None
    ) -> None: ...


class RunData:
    """The training and validation data of a recipe, and this rank's share of each batch.

    Attributes:
        train: The training data.
        val: The validation data, or None.
        batch_size: The number of images that this rank takes at a time.
        decoder: The decoder of all loaders: that of --decoder, or what `auto` chose for the run.
        decoder_reason: The reason for that choice.
    """

    def __init__(
        self,
        options: TrainingOptions,
        world: World,
        open: OpenData | None = None,
        part: Callable[[Dataset], Dataset] | None = None,
    ):
        """Open the data.

        Args:
            options: The options of the run.
            world: The ranks.
            open: Replaces the opening of --data and --val as images; see `Experiment`.
            part: Selects the part of the training data to train on.

        Raises:
            ValueError: The data cannot be read, or the batch is not divisible by the ranks.
        """
        self.options, self.world = options, world
        self.decoder, self.decoder_reason = options.decoder, ""
        self.batch_size = options.rank_batch(world.size)
        self.train, self.val = (open or open_both)(options)
        if part is not None:
            try:
                self.train = part(self.train)
            except BaseException:
                self.close()
                raise

    def check_batch(self) -> None:
        """Raise ValueError if there are fewer training images than one batch."""
        if self.train.num_samples < self.options.batch_size:
            preset = "give --preset small, " if isinstance(self.options, PretrainOptions) else ""
            raise ValueError(
                f"{self.train.num_samples} training images are fewer than one batch of "
                f"{self.options.batch_size}: lower --batch-size, {preset}or give more data"
            )

    def check_views(self, views: Sequence[ViewSpec], val_views: Sequence[ViewSpec]) -> None:
        """Check that the smallest images can be cropped.

        Raises:
            ValueError: An image is too small for a crop.
        """
        for data, data_views in ((self.train, views), (self.val, val_views)):
            if data is not None:
                min_height, min_width, _, _ = data.image_sizes()
                for view in data_views:
                    view.crop.check(min_height, min_width)

    def loader(
        self, data: Dataset, views: Sequence[ViewSpec], *, train: bool, batch_size: int | None = None
    ) -> Loader:
        """Return a loader of this rank's share, shuffled for training, else in the data's order.

        Args:
            data: Data of the run.
            views: The views of each image.
            train: Whether it is for training.
            batch_size: The images that this rank takes at a time; None for `batch_size` of the run.
        """
        loader = open_loader(
            data,
            views,
            replace(self.options, decoder=self.decoder_of(data)),
            self.world,
            batch_size_per_rank=batch_size or self.batch_size,
            train=train,
        )
        if loader.decoder_name == self.decoder != self.options.decoder:
            loader.decoder_reason = "; ".join(filter(None, (self.decoder_reason, loader.decoder.remark)))
        return loader

    def decoder_of(self, data: Dataset) -> str:
        """Return the decoder for data of the run: "auto" where the chosen one is not for them."""
        if self.options.decoder != "auto" or self.decoder == "auto":
            return self.decoder
        is_other = self.decoder not in READS[data.kind] or is_kept_on_device(data, self.world.device)
        return "auto" if is_other else self.decoder

    def annotated_loader(self, read: Callable[[int, int], AnnotatedImage]) -> AnnotatedLoader:
        """Return a loader of this rank's share of the training data as whole images.

        Args:
            read: Returns an image, given its index and the epoch.
        """
        options, world = self.options, self.world
        return AnnotatedLoader(
            read,
            self.train.num_samples,
            batch_size_per_rank=self.batch_size,
            seed=options.seed,
            rank=world.rank,
            world=world.size,
            num_threads=options.workers,
            device=world.device,
            prefetch_batches=options.prefetch_batches,
            timeout_s=options.timeout_s,
        )

    def close(self) -> None:
        """Close both data sets."""
        self.train.close()
        if self.val is not None:
            self.val.close()


def open_both(options: RunOptions) -> tuple[Dataset, Dataset | None]:
    """Open training and validation data: --data and --val, or the embedded sample."""
    train: str | Path | None = options.data
    val: str | Path | None = options.val
    if train is None:
        train, val = sample_paths()[:2]
    opened = open_given(options, train)
    try:
        return opened, open_given(options, val) if val else None
    except BaseException:
        opened.close()
        raise


def open_given(options: RunOptions, source: str | Path) -> Dataset:
    """Open data, with the cache that the options give for data that live elsewhere."""
    return open_data(source, options.cache_dir, options.cache_gb)


def open_loader(
    data: Dataset,
    views: Sequence[ViewSpec],
    options: TrainingOptions,
    world: World,
    *,
    batch_size_per_rank: int,
    train: bool,
) -> Loader:
    """Build a loader of this rank's batches, as the options define it."""
    return Loader(
        data,
        views,
        batch_size_per_rank=batch_size_per_rank,
        seed=options.seed,
        rank=world.rank,
        world=world.size,
        train=train,
        order=options.order,
        lanes=options.lanes,
        decoder=options.decoder,
        hw_decoder_load=options.hw_decoder_load,
        num_threads=options.workers,
        device=str(world.device),
        prefetch_batches=options.prefetch_batches,
        timeout_s=options.timeout_s,
        on_bad_sample=options.on_bad_sample,
    )
