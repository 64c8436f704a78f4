"""Timing of the loader alone: with the chosen decoder and others, more threads, another order, smaller
images.
"""

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from fastpsl.doctor.doctor_setup import DoctorSetup
from fastpsl.doctor.measurements import BETON_WRITE, Alternative, DecoderCost
from fastpsl.doctor.reading import FIRST_EPOCH
from fastpsl.engine.gpu import milliseconds, samples_per_s
from fastpsl.engine.run_data import open_loader
from fastpsl.engine.stage_bench import endless
from fastpsl.files.caches import cache_folder
from fastpsl.pipelines.beton.encode import Target
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.beton.write import write_beton
from fastpsl.pipelines.data.dataset import MODE_RAW, Dataset, read_bytes
from fastpsl.pipelines.data.source import Sample
from fastpsl.pipelines.datasets.subset import Subset
from fastpsl.pipelines.decoders import dali, libffcv, resident
from fastpsl.pipelines.decoders.choose import READS
from fastpsl.pipelines.decoders.memory import pinned_empty
from fastpsl.pipelines.image import libturbo
from fastpsl.pipelines.views import ViewSpec, short_side_px

_WORTH_WRITING = 1.2  # least ratio of the images' shorter side to the needed one
_NUM_WRITTEN = 512


class Feed:
    """The loaders of one set of views.

    Attributes:
        warm: Data in memory, because it was read before.
        costs: The costs of the decoders that were timed on it, by name.
    """

    def __init__(
        self, setup: DoctorSetup, views: Sequence[ViewSpec], batch_size: int, warm: Dataset, seconds: float
    ):
        self.setup, self.views, self.batch_size = setup, tuple(views), batch_size
        self.warm, self.seconds = warm, seconds
        self.costs: dict[str, DecoderCost] = {}
        self._epochs: Iterator[int] = itertools.count(FIRST_EPOCH + 1_000_000)

    def rate(self, data: Dataset, seconds: float | None = None, **changes: object) -> float:
        """Return images/s on the device before augmentation.

        Args:
            data: The data to load.
            seconds: Length of the timed region; None for the default.
            **changes: Changed options.
        """
        options = self.setup.options
        # Quasi-random order needs whole pages, which a part of the data does not fill.
        if data is not self.setup.opened.train:
            options = replace(options, order="random")
        options = replace(options, **changes)  # type: ignore[arg-type]
        with open_loader(
            data, self.views, options, self.setup.world, batch_size_per_rank=self.batch_size, train=True
        ) as loader:
            batches = endless(loader, self._epochs)
            next(batches)
            cpu_s, started = time.process_time(), time.perf_counter()
            rate = samples_per_s(
                lambda: len(next(batches).indices),
                seconds or self.seconds,
                loader.device,
                loader.prefetch_batches + 1,
            )
            cores = (time.process_time() - cpu_s) / (time.perf_counter() - started)
            batches.close()
            if data is self.warm and changes.keys() <= {"decoder"}:
                self.costs[loader.decoder_name] = DecoderCost(rate, 1e3 * cores / rate)
        return rate

    def decode(self) -> float:
        """Return images/s from data in memory."""
        return self.rate(self.warm)

    def as_it_lies(self) -> float:
        """Return images/s from the data as it is stored, in training order."""
        return self.rate(self.setup.opened.train)

    def other_decoders(
        self, chosen: str, decode: float, log: Callable[[str], None]
    ) -> tuple[list[Alternative], dict[str, str]]:
        """Time the other decoders briefly.

        Returns:
            Their rates, and option → reason for decoders that do not run.
        """
        data, device = self.setup.opened.train, self.setup.world.device
        alternatives, untried = [], {}
        for name in READS[data.kind]:
            if name in (chosen, "synthetic"):
                continue
            reason = ""
            if name == "turbo":
                reason = libturbo.why_missing()
            elif name == "ffcv":
                reason = libffcv.why_missing()
            elif name == "dali":
                reason = dali.why_missing(device)
            elif name == "resident" and not resident.is_small(data):
                continue
            if not reason:
                log(f"decode by {name}")
                try:
                    alternatives.append(
                        Alternative(
                            f"--decoder {name}", self.rate(self.warm, self.seconds / 2, decoder=name), decode
                        )
                    )
                    continue
                except (ValueError, RuntimeError, OSError) as error:
                    reason = f"does not run here: {' '.join(str(error).split())[:300]}"
            untried[f"--decoder {name}"] = reason
        return alternatives, untried

    def all_cores(self, num_cores: int, decode: float) -> list[Alternative]:
        """Time one thread per core, if there are fewer threads now."""
        if num_cores <= self.setup.num_threads:
            return []
        rate = self.rate(self.warm, workers=num_cores)
        return [Alternative(f"--workers {num_cores}", rate, decode, num_threads=num_cores)]

    def quasi_random(self, loader: float, note: str) -> Alternative:
        """Time reading whole pages from storage; raise ValueError if data, lanes or batch do not allow it."""
        rate = self.rate(self.setup.opened.train, order="quasi_random")
        return Alternative("--order quasi_random", rate, loader, note, "read")

    def written(self, views: Sequence[ViewSpec]) -> list[Alternative]:
        """Time some images written as a dataset file, beside the same images as they are.

        They are shrunk if the crops allow it; a folder's images are also tried at full size. The file is
        written into the cache folder and removed.

        Args:
            views: Views of all stages; their crops decide the size that is needed.

        Raises:
            ValueError: The images cannot be written as a dataset file.
            OSError: The cache folder cannot be written.
        """
        rows = self.warm.rows(np.arange(self.warm.num_samples))
        sides = np.minimum(rows.height, rows.width)
        short_side = short_side_px(views)
        targets: list[int | None] = [None] if self.warm.kind == "folder" else []
        if (
            short_side
            and np.median(sides) >= _WORTH_WRITING * short_side
            and not (rows.mode == MODE_RAW).any()
        ):
            targets.append(short_side)
        if not targets:
            return []
        num = min(self.warm.num_samples, max(_NUM_WRITTEN, 4 * self.batch_size))
        part = Subset(self.warm, np.arange(num))
        unchanged_rate = self.rate(part)
        pixels = rows.height[:num].astype(float) * rows.width[:num]
        parent = cache_folder()
        parent.mkdir(parents=True, exist_ok=True)
        alternatives = []
        for target in targets:
            samples = (Sample(str(i), read_bytes(rows, i), int(rows.label[i])) for i in range(num))
            with tempfile.TemporaryDirectory(dir=parent, prefix="doctor-") as folder:
                out = Path(folder) / "tried.beton"
                write_beton(samples, out, num_samples=num, target=Target(short_side=target))
                with Beton(out) as beton:
                    rate = self.rate(beton, decoder=self.setup.opened.options.decoder)
            option, note = BETON_WRITE, f"tried with {num:,} of the images"
            if target is not None:
                shrunk = pixels * np.minimum(1, target / sides[:num]) ** 2
                option += f" --short-side {target}"
                note = f"costs detail: {shrunk.sum() / pixels.sum():.0%} of the pixels stay; {note}"
            alternatives.append(Alternative(option, rate, unchanged_rate, note))
        return alternatives


def copy_rate(views: Sequence[ViewSpec], batch_size: int, device: torch.device) -> float:
    """Return images/s of copying a batch's crops from pinned memory to the device."""
    crops = [pinned_empty(batch_size, view.crop.size_px, view.crop.size_px, 3) for view in views]
    times = milliseconds(lambda: [crop.to(device, non_blocking=True) for crop in crops], device)
    return batch_size / (sorted(times)[len(times) // 2] / 1e3)
