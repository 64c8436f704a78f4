"""The loader alone: by the chosen decoder and by the others, with other threads, another order, smaller pictures."""

import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from fastpsl.doctor.measurements import BETON_WRITE, Alternative
from fastpsl.doctor.reading import FIRST_EPOCH
from fastpsl.doctor.setting import Setting
from fastpsl.engine.run import open_loader
from fastpsl.engine.stage_bench import endless
from fastpsl.engine.timing import milliseconds, samples_per_s
from fastpsl.kernels.crops import RandomResizedCrop, ShorterSideCrop
from fastpsl.pipelines.beton.encode import Target
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.beton.write import write_beton
from fastpsl.pipelines.data.dataset import MODE_RAW, Dataset, read_bytes
from fastpsl.pipelines.data.subset import Subset
from fastpsl.pipelines.decoders import READS, dali, libffcv, resident
from fastpsl.pipelines.files.cache_folder import cache_folder
from fastpsl.pipelines.sources import Sample
from fastpsl.pipelines.views import ViewSpec

# Of ImageNet's usual recipe: pictures of 256 px for crops of 224.
_SHORT_SIDE_OVER_CROP = 256 / 224
_WORTH_WRITING = 1.2
_NUM_WRITTEN = 512


class Feed:
    """Loaders of one view set. data: what was read just before, from memory; batch_size: samples of a rank's batch."""

    def __init__(
        self, setting: Setting, views: Sequence[ViewSpec], batch_size: int, warm: Dataset, seconds: float
    ):
        self.setting, self.views, self.batch_size = setting, tuple(views), batch_size
        self.warm, self.seconds = warm, seconds
        self._epochs: Iterator[int] = itertools.count(FIRST_EPOCH + 1_000_000)

    def rate(self, data: Dataset, seconds: float | None = None, **changes: object) -> float:
        """Images/s on the device, ready to be augmented; `changes` of the options."""
        options = self.setting.options
        if data is not self.setting.opened.train_data:  # parts lie in no pages of their own
            options = replace(options, order="random")
        options = replace(options, **changes)  # type: ignore[arg-type]
        with open_loader(
            data, self.views, options, self.setting.world, batch_size=self.batch_size, train=True
        ) as loader:
            batches = endless(loader, self._epochs)
            next(batches)
            rate = samples_per_s(
                lambda: len(next(batches).indices),
                seconds or self.seconds,
                loader.device,
                loader.prefetch_batches + 1,
            )
            batches.close()
        return rate

    def decode(self) -> float:
        """From memory."""
        return self.rate(self.warm)

    def as_it_lies(self) -> float:
        """From where the data is, in training order."""
        return self.rate(self.setting.opened.train_data)

    def other_decoders(
        self, chosen: str, decode: float, say: Callable[[str], None]
    ) -> tuple[list[Alternative], dict[str, str]]:
        """The others that can read this data, each shortly; and of the rest, by option, why they cannot."""
        data, device = self.setting.opened.train_data, self.setting.world.device
        found, untried = [], {}
        for name in READS[data.kind]:
            if name in (chosen, "synthetic"):
                continue
            why = ""
            if name == "ffcv":
                why = libffcv.why_missing()
            elif name == "dali":
                why = dali.why_missing(device)
            elif name == "resident" and not resident.is_small(data):
                continue
            if not why:
                say(f"decode by {name}")
                try:
                    found.append(
                        Alternative(
                            f"--decoder {name}", self.rate(self.warm, self.seconds / 2, decoder=name), decode
                        )
                    )
                    continue
                except (ValueError, RuntimeError, OSError) as error:
                    why = f"does not run here: {' '.join(str(error).split())[:300]}"
            untried[f"--decoder {name}"] = why
        return found, untried

    def all_cores(self, num_cores: int, decode: float) -> list[Alternative]:
        """With a thread a core, where there are fewer."""
        if num_cores <= self.setting.num_threads:
            return []
        rate = self.rate(self.warm, num_threads=num_cores)
        return [Alternative(f"--num-threads {num_cores}", rate, decode, num_threads=num_cores)]

    def quasi_random(self, loader: float, note: str) -> Alternative:
        """Whole pages instead of single samples, from storage. ValueError where there are none, or lanes and batch do not go with them."""
        rate = self.rate(self.setting.opened.train_data, order="quasi_random")
        return Alternative("--order quasi_random", rate, loader, note, "read")

    def written(self, views: Sequence[ViewSpec]) -> list[Alternative]:
        """Some of the pictures as a beton with smaller ones, and of a folder as a beton at all, beside the same ones as they are.

        views: of all stages, whose crops say what is needed. Written into the cache's folder, and removed. ValueError, OSError where
        that cannot be.
        """
        rows = self.warm.rows(np.arange(self.warm.num_samples))
        sides = np.minimum(rows.height, rows.width)
        wanted = short_side_px(views)
        targets: list[int | None] = [None] if self.warm.kind == "folder" else []
        if wanted and np.median(sides) >= _WORTH_WRITING * wanted and not (rows.mode == MODE_RAW).any():
            targets.append(wanted)
        if not targets:
            return []
        num = min(self.warm.num_samples, max(_NUM_WRITTEN, 4 * self.batch_size))
        part = Subset(self.warm, np.arange(num))
        beside = self.rate(part)
        pixels = rows.height[:num].astype(float) * rows.width[:num]
        found = []
        for target in targets:
            samples = (Sample(str(i), read_bytes(rows, i), int(rows.label[i])) for i in range(num))
            with tempfile.TemporaryDirectory(dir=_made(cache_folder()), prefix="doctor-") as folder:
                out = Path(folder) / "tried.beton"
                write_beton(samples, out, num_samples=num, target=Target(short_side=target))
                with Beton(out) as beton:
                    rate = self.rate(beton)
            option, note = BETON_WRITE, f"tried with {num:,} of the images"
            if target is not None:
                shrunk = pixels * np.minimum(1, target / sides[:num]) ** 2
                option += f" --short-side {target}"
                note = f"costs detail: {shrunk.sum() / pixels.sum():.0%} of the pixels stay; {note}"
            found.append(Alternative(option, rate, beside, note))
        return found


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def short_side_px(views: Sequence[ViewSpec]) -> int | None:
    """The shorter side that all views can do with; None where a crop does not tell."""
    needed = []
    for view in views:
        if isinstance(view.crop, ShorterSideCrop):
            needed.append(view.crop.shorter_px)
        elif isinstance(view.crop, RandomResizedCrop):
            needed.append(round(view.crop.size_px * _SHORT_SIDE_OVER_CROP))
        else:
            return None
    return max(needed, default=None)


def copy_rate(views: Sequence[ViewSpec], batch_size: int, device: torch.device) -> float:
    """Images/s of a batch's crops from pinned memory to the device."""
    crops = [
        torch.zeros((batch_size, view.crop.size_px, view.crop.size_px, 3), dtype=torch.uint8).pin_memory()
        for view in views
    ]
    times = milliseconds(lambda: [crop.to(device, non_blocking=True) for crop in crops], device)
    return batch_size / (sorted(times)[len(times) // 2] / 1e3)
