"""The loader: samples of a data set in, batches of views on the device out.

Each sample is decoded once for all of its views, and images stay uint8 up to the device. Batches do not
depend on the number of threads, nor a step's samples on the number of ranks. The consumer's next() keeps a
bounded number of batches in flight in the loader's threads (engines.py). There is no producer thread, and
every error is raised in the consumer.
"""

import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent import futures
from contextlib import nullcontext
from typing import final

import numpy as np
import torch
from typing_extensions import override

from fastpsl.console.words import number_of
from fastpsl.files.atomic import Uncopyable
from fastpsl.files.workers import default_num_threads
from fastpsl.pipelines.beton.remote import FetchAhead, remote_pages
from fastpsl.pipelines.datasets.subset import Subset
from fastpsl.pipelines.decoders.choose import open_decoder
from fastpsl.pipelines.decoders.decoder import Decoder
from fastpsl.pipelines.interface.dataset import Dataset, size_in_words
from fastpsl.pipelines.loader.batch import Batch, checked_device
from fastpsl.pipelines.loader.device_windows import crops_on_device
from fastpsl.pipelines.loader.engines import PendingBatch, QueueEngine, ThreadEngine
from fastpsl.pipelines.loader.order import InOrder, Order, num_steps, numbered, step_indices, training_order
from fastpsl.pipelines.loader.quasi_random import QuasiRandom
from fastpsl.pipelines.loader.readahead import Readahead, fetch_ahead, prepare_fetching
from fastpsl.pipelines.loader.stages import LoaderSpec
from fastpsl.pipelines.views import ViewSpec, drawn_as, require_views

ORDERS = ("random", "quasi_random")


@final
class _Epoch:
    """An epoch's batches, which are started one after the other.

    Attributes:
        number: The epoch.
        own_order: The caller's order, or None.
        pending: The batches that are under way, the oldest first.
        readahead: What reads ahead of them, or None.
        is_left: Set when nobody wants them any more.
    """

    def __init__(self, number: int, steps: range, own_order: np.ndarray | None) -> None:
        self.number, self.own_order = number, own_order
        self.pending: deque[PendingBatch] = deque()
        self.readahead: Readahead | FetchAhead | None = None
        self.is_left = threading.Event()
        self._order: Order | None = None
        self._steps = steps

    @property
    def is_whole(self) -> bool:
        """Whether all of its batches have been started."""
        return not self._steps

    def is_of(self, number: int, own_order: np.ndarray | None) -> bool:
        """Return whether it is this epoch, in this order."""
        ours = self.own_order
        if ours is None or own_order is None:
            return number == self.number and ours is own_order
        return number == self.number and np.array_equal(ours, own_order)

    def start(self, loader: "Loader", most: int) -> None:
        """Start batches until `most` of them are under way."""
        while len(self.pending) < most and self._steps:
            # Only now, because `begin` may name the epoch long before, and what reads ahead has a thread.
            if self._order is None:
                self._order, self.readahead = loader._ordered(self.number, self._steps, self.own_order)
            loader._check_open()
            step, self._steps = self._steps[0], self._steps[1:]
            numbers = step_indices(self._order, step, loader.batch_size_per_rank, loader.rank, loader.world)
            # Before the batch, which would ask for its parts itself, and one by one.
            if self.readahead is not None:
                self.readahead.advance(step)
            pending = PendingBatch(loader._spec, self.number, step, numbers, self.is_left)
            loader._engine.start(pending)
            self.pending.append(pending)


@final
class Loader(Uncopyable):
    """A source of one rank's batches of views of a data set, in the order of (seed, epoch).

    Training shuffles and drops the last partial global batch. Evaluation keeps the data set's order and pads
    the last batch with index -1.

    Args:
        data: The open data set. The caller closes it.
        views: The views of each sample, at least one.
        batch_size_per_rank: Samples of this rank's batch. A step has `world` times as many.
        seed: The seed of the order and of the augmentations, 0 to 2**64 - 1.
        rank: This process's rank, 0 to world - 1.
        world: The number of ranks.
        train: Whether to train or to evaluate.
        order: "random", or "quasi_random" for training on dataset files larger than the page cache.
        lanes: For "quasi_random", the number of places of the data that are read at a time.
        decoder: The decoder's name, or "auto".
        num_threads: Threads that read and decode. By default, this process's share of the cores.
        device: The device of the batches.
        prefetch_batches: The most batches in flight or ready, not counting the one that the caller has.
        timeout_s: The longest wait for one batch, in seconds.
        on_bad_sample: For a sample that cannot be decoded: "raise", or "skip" to fill its place with another
            sample of the batch.
        hw_decoder_load: For the decoder dali, the share of each batch for the GPU's hardware JPEG decoder, in
            [0, 1]. By default 0.9.

    Attributes:
        num_steps: Steps of an epoch.
        num_samples: Samples of the data set.
        order: The order of an epoch's samples, in words.
        decoder_name: The name of the decoder.
        decoder_reason: Why this decoder was chosen, in words.

    Raises:
        ValueError: An argument is out of range, or the data, the views, the order, the decoder and the device
            do not fit together.
    """

    def __init__(
        self,
        data: Dataset,
        views: Sequence[ViewSpec],
        *,
        batch_size_per_rank: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        train: bool = True,
        order: str = "random",
        lanes: int = 64,  # with groups of 4 pages, a batch mixes 256 pages, of which 2 GiB are open
        decoder: str = "auto",
        num_threads: int | None = None,
        device: str | torch.device = "cpu",
        prefetch_batches: int = 4,  # each takes the memory of a batch; 3, 5 and 6 were not compared
        timeout_s: float = 120.0,  # longer than a disk or a server is usually gone (not measured)
        on_bad_sample: str = "raise",
        hw_decoder_load: float | None = None,
    ) -> None:
        if not hasattr(data, "image_sizes"):
            raise ValueError(
                f"Loader: data is {type(data).__name__}, not an open data set: give one, such as "
                "fastpsl.Beton(path), or give the path to fastpsl.loader"
            )
        num_threads = default_num_threads() if num_threads is None else num_threads
        numbers = {"batch_size_per_rank": batch_size_per_rank, "world": world, "num_threads": num_threads}
        for name, value in {**numbers, "prefetch_batches": prefetch_batches}.items():
            if value < 1:
                raise ValueError(f"Loader: {name} is {value}; it must be 1 or more")
        if not 0 <= rank < world:
            raise ValueError(f"Loader: rank is {rank}; it must be 0 to {world - 1} for a world of {world}")
        if not timeout_s > 0:
            raise ValueError(f"Loader: timeout_s is {timeout_s}; it must be above 0")
        if on_bad_sample not in ("raise", "skip"):
            raise ValueError(f"Loader: on_bad_sample is {on_bad_sample!r}; it must be 'raise' or 'skip'")
        if order not in ORDERS:
            raise ValueError(f"Loader: order is {order!r}; it must be {' or '.join(ORDERS)}")
        views = require_views(views)
        if train and data.num_samples < batch_size_per_rank * world:
            raise ValueError(
                f"{data.num_samples} samples are fewer than one global batch of "
                f"{batch_size_per_rank * world} "
                f"(world {world} x batch {batch_size_per_rank}); lower the batch size or use more data"
            )
        self.device = checked_device(device)
        min_height, min_width, _, _ = data.image_sizes()
        for view in views:
            view.crop.check(min_height, min_width)
        drawn_as(views)  # it refuses views that follow none
        self.data, self.views = data, views
        self.batch_size_per_rank, self.seed, self.train = batch_size_per_rank, seed, train
        self.rank, self.world = rank, world
        self.num_threads, self.prefetch_batches, self.timeout_s = num_threads, prefetch_batches, timeout_s
        self.num_samples = data.num_samples
        self.num_steps = num_steps(data.num_samples, batch_size_per_rank * world, train)
        self.order = "random" if train else "in order"
        self._quasi_random: QuasiRandom | None = None
        if train and order == "quasi_random":
            self._quasi_random = QuasiRandom(
                data, lanes=lanes, batch_size_per_rank=batch_size_per_rank, seed=seed, rank=rank, world=world
            )
            self.num_steps = self._quasi_random.num_steps
            self.order = f"quasi_random, {lanes} lanes"
        # Before the decoder opens: `resident` reads all of the data then.
        prepare_fetching(data, timeout_s, prefetch_batches, is_random=train and self._quasi_random is None)
        # A subset has no pages of its own to fetch ahead (`remote_pages`), but waits for those of its data.
        self._is_local = remote_pages(data.data if isinstance(data, Subset) else data) is None
        # Of its own, so that a copy does not wait for the steps that are queued on the current one.
        copy_stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self.decoder, self.decoder_reason = open_decoder(
            decoder,
            data,
            batch_size=batch_size_per_rank,
            num_threads=num_threads,
            num_views=len(self.views),
            device=self.device,
            hw_decoder_load=hw_decoder_load,
        )
        self.decoder_name = self.decoder.name
        self._spec = LoaderSpec(data, self.views, seed, self.decoder, on_bad_sample, self.device, copy_stream)
        self._present: _Epoch | None = None  # whose batches the consumer takes
        self._next: _Epoch | None = None
        self._engine: ThreadEngine | QueueEngine
        if isinstance(self.decoder, Decoder):
            on_device = crops_on_device(self.decoder, self.views, self.device)
            self._engine = ThreadEngine(self.decoder, num_threads, on_device)
        else:
            self._engine = QueueEngine(self.decoder, num_threads)

    @override
    def __repr__(self) -> str:
        return self.in_words(self.num_steps)

    def in_words(self, num_batches: int) -> str:
        """Return a line about the data and the batches, for a number of batches in an epoch."""
        batches = f"{number_of(num_batches, 'batch', 'batches')} of {self.batch_size_per_rank:,}"
        rank = f" on rank {self.rank} of {self.world}" if self.world > 1 else ""
        parts = [size_in_words(self.data), batches + rank, number_of(len(self.views), "view")]
        return f"Loader({', '.join(parts)}, decoder {self.decoder_name})"

    def epoch(
        self, epoch: int, first_step: int = 0, order: np.ndarray | None = None
    ) -> Generator[Batch, None, None]:
        """Return an iterator over the batches of an epoch. You may leave it early.

        Args:
            epoch: The epoch, from 0.
            first_step: The first step to yield. Nothing before it is decoded.
            order: An order that replaces the loader's own, for training only: dataset indices, int64
                [num_samples], the same on all ranks. If an index occurs several times, each time has its own
                augmentation.

        Returns:
            A generator of `Batch`.

        Raises:
            ValueError: There is no such epoch or step, the loader is closed, or `order` is given to a
                quasi-random loader. From the iterator: a file has been cut short.
            BadSampleError: From the iterator: a sample cannot be decoded and `on_bad_sample` is "raise", or
                no sample of a batch can be decoded.
            TimeoutError: From the iterator: a batch takes longer than `timeout_s`. This closes the loader.
            OSError: From the iterator: a file cannot be read.
        """
        # Here, because a generator would raise this at the first `next` only.
        if epoch < 0 or not 0 <= first_step <= self.num_steps:
            raise ValueError(f"epoch {epoch}, step {first_step}: an epoch has steps 0 to {self.num_steps}")
        self._check_open()
        if order is not None:
            self._check(order)
        return self._batches(epoch, first_step, order)

    def begin(self, epoch: int, order: np.ndarray | None = None) -> None:
        """Start the first batches of the epoch that comes next, once all of the present one's are started.

        `epoch(epoch, 0, order)` then takes them. Of data elsewhere nothing is started, because their cache
        has room for the pages of one epoch.

        Args:
            epoch: The epoch that comes next, from 0.
            order: As in `epoch`.
        """
        self._check_open()
        if order is not None:
            self._check(order)
        # An epoch that is already begun like this is left as it is.
        if self._is_local and not (self._next is not None and self._next.is_of(epoch, order)):
            self._leave_next()
            self._next = _Epoch(epoch, range(self.num_steps), order)
            self._start_next()

    def _start_next(self) -> None:
        present, num_pending = self._present, 0
        if present is not None:
            if not present.is_whole:  # its batches are wanted first
                return
            num_pending = len(present.pending)
        if self._next is not None:
            self._next.start(self, self.prefetch_batches - num_pending)

    def _leave_next(self) -> None:
        """Forget the batches of the next epoch, and end its read-ahead."""
        left, self._next = self._next, None
        if left is not None:
            left.is_left.set()
            if left.readahead is not None:
                left.readahead.leave()
                left.readahead.close(0.0)  # no wait: `leave` has told its thread, and nothing of it is used

    def _check(self, order: np.ndarray) -> None:
        assert self.train and order.dtype == np.int64 and order.shape == (self.num_samples,), order
        assert order.min() >= 0 and order.max() < self.num_samples
        if self._quasi_random is not None:
            raise ValueError(
                "an order of your own and the quasi-random order exclude each other; choose order random"
            )

    def _check_open(self) -> None:
        if self._engine.closed:
            raise ValueError(
                "the loader is closed, or was made before this process was forked; make a new one"
            )

    def _ordered(
        self, epoch: int, steps: range, own_order: np.ndarray | None
    ) -> tuple[Order, Readahead | FetchAhead | None]:
        """Return an epoch's order, with repeats numbered (`order.numbered`), and its read-ahead, if any."""
        readahead: Readahead | FetchAhead | None = None
        order: Order
        if own_order is not None:
            order = numbered(own_order)
        elif self._quasi_random is not None:
            order, readahead = self._quasi_random.epoch(epoch, steps.start, self.prefetch_batches)
            if self.decoder_name in ("resident", "synthetic"):  # they read no files
                readahead.close()
                readahead = None
        elif self.train:
            order = training_order(self.seed, epoch, self.num_samples)
        else:
            order = InOrder(self.num_samples)
        if readahead is None:
            share = self.batch_size_per_rank, self.rank, self.world
            readahead = fetch_ahead(self.data, order, steps, share, self.prefetch_batches, self.train)
        return order, readahead

    def _taken(self, epoch: int, first_step: int, own_order: np.ndarray | None) -> _Epoch:
        """Return the epoch that has begun, if it is this one, or a new one."""
        begun = self._next
        if begun is not None and first_step == 0 and begun.is_of(epoch, own_order):
            self._next = None
            return begun
        self._leave_next()
        return _Epoch(epoch, range(first_step, self.num_steps), own_order)

    def _batches(
        self, epoch: int, first_step: int, own_order: np.ndarray | None
    ) -> Generator[Batch, None, None]:
        # Local names, because the module's globals may be gone when the interpreter's exit closes this.
        wait, is_finalizing = futures.wait, sys.is_finalizing
        # At the first `next`: an iterator that nobody begins must not end the epoch that is being read.
        self._present = present = self._taken(epoch, first_step, own_order)
        try:
            present.start(self, self.prefetch_batches)
            while present.pending:
                self._check_open()  # threads of another process would never finish a batch
                with nullcontext() if present.readahead is None else present.readahead.waiting():
                    batch = present.pending[0].result(self.timeout_s)
                present.pending.popleft()  # only now: one that fails is still waited for at the end
                # Before the yield: the consumer's batch does not count as prefetched.
                present.start(self, self.prefetch_batches)
                self._start_next()
                yield batch
        except TimeoutError as error:
            if error.errno is None:  # not the ETIMEDOUT of a sample's file
                present.is_left.set()
                self.close(limit_s=0.0)  # without joining: a stuck daemon thread does not delay the exit
                present.pending.clear()  # they may never be done
            raise
        finally:
            present.is_left.set()  # first, so that threads give up what they have not begun
            if self._present is present:  # another epoch may have begun before this iterator is closed
                self._present = None
            if present.readahead is not None:
                present.readahead.leave()  # a thread may wait for a page, and the lines below for the thread
            # For the batches in flight, so that the caller may close the data right after. A closed engine
            # has waited already; threads that hang for longer are left alone.
            if not (self._engine.closed or is_finalizing()):
                wait([pending.done for pending in present.pending], self.timeout_s)
            # After them, because they read the parts that this gives back.
            if present.readahead is not None:
                # 5 s, because advice blocks while the storage's queue is full; its thread is then left alone.
                present.readahead.close(0.0 if self._engine.closed else 5.0)

    def device_memory(self) -> dict[str, int]:
        """Return the bytes in use on the CUDA device now.

        Returns:
            A dict, which is empty on the CPU. "used" is the total. "torch" is reserved by torch's allocator.
            "other" is all the rest, such as DALI's pools (which DALI does not report), CUDA's contexts and
            libraries, and other processes.
        """
        if self.device.type != "cuda":
            return {}
        free, total = torch.cuda.mem_get_info(self.device)
        by_torch = torch.cuda.memory_reserved(self.device)
        return {"used": total - free, "torch": by_torch, "other": total - free - by_torch}

    def close(self, limit_s: float | None = None) -> None:
        """End the threads, but leave the data open.

        Args:
            limit_s: The longest wait for the threads, in seconds; by default `timeout_s`.
        """
        self._leave_next()  # of the present epoch, threads still read what is prefetched: some batches
        self._engine.close(self.timeout_s if limit_s is None else limit_s)

    def __del__(self, is_exiting: Callable[[], bool] = sys.is_finalizing) -> None:
        """Warn about a missing `close`; the engine's finalizers end the threads."""
        engine = getattr(self, "_engine", None)  # none where `__init__` has raised
        if engine is not None and not engine.closed and not is_exiting():  # then globals may be gone
            warnings.warn(
                f"unclosed loader of {self.num_samples:,} samples", ResourceWarning, stacklevel=2, source=self
            )

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
