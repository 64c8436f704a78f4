"""Extract features of a frozen backbone: a block's pooled outputs of every sample, in one .npy file."""

import contextlib
import functools
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastpsl.console.screen import Progress
from fastpsl.engine.dataset_pass import PassStopped
from fastpsl.engine.distributed import World, own_commit, share, sum_over_ranks, wait_for_all
from fastpsl.engine.gpu import AsyncCopy, one_behind
from fastpsl.engine.options import RunOptions
from fastpsl.engine.train_step import DTYPES
from fastpsl.evaluation.feature_file import (
    FORMAT,
    FeatureFile,
    PartialFeatures,
    labels_path,
    read_features,
)
from fastpsl.evaluation.options import EvaluationOptions
from fastpsl.evaluation.protocols import Pool, block_number, block_shapes, pooled, pooled_width
from fastpsl.files.digest import sha256_of_json
from fastpsl.files.system_errors import output_errors
from fastpsl.kernels.autocast import autocast
from fastpsl.models.weights import Pretrained
from fastpsl.pipelines.decoders.choose import choose_decoder
from fastpsl.pipelines.interface.dataset import Dataset
from fastpsl.pipelines.interface.identity import parts_of
from fastpsl.pipelines.loader.augment import choose_augment
from fastpsl.pipelines.loader.batch import BadSample
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.views import ViewSpec, center_view, squashed_view

STORED = ("float16", "float32")
SAVE_EVERY_S = 5.0


@dataclass(frozen=True)
class Extraction:
    """The settings of an extraction of one block's features."""

    pretrained: Pretrained
    data: Dataset
    block: int
    size_px: int
    batch_size: int = 256  # samples per pass of one rank
    precision: str = "fp32"
    dtype: str = "float16"  # the file's, float16 or float32
    whole: bool = False  # as in `center_view`
    # Further options of `Loader`, such as decoder and num_threads.
    loader: dict[str, Any] = field(default_factory=dict)
    # Pools a block's map [C, h, w], which is then flattened (`pooled`); None averages over all positions.
    pool: Pool | None = None
    squashed: bool = False  # whether the view is `squashed_view` instead of `center_view`
    # The advice for features that are out of the range of the file's dtype.
    if_too_large: str = field(default="give another --block", compare=False)

    @classmethod
    def of(
        cls,
        options: EvaluationOptions,
        pretrained: Pretrained,
        data: Dataset,
        block: str,
        world: World,
        dtype: str,
        pool: Pool | None = None,
    ) -> "Extraction":
        """Return the extraction that options describe.

        Raises ValueError if the backbone lacks block or size, or if --decoder cannot read the data.
        """
        backbone = pretrained.backbone
        number = block_number(block, backbone.num_blocks, backbone.block_names)
        if options.size_px < backbone.min_px:
            raise ValueError(
                f"--size-px {options.size_px}: this backbone reads images of {backbone.min_px} px or more; "
                "give a larger --size-px"
            )
        if options.decoder != "auto":
            choose_decoder(options.decoder, data, world.device)
        return cls(
            pretrained, data, number, options.size_px, options.rank_batch(world.size),
            options.resolved_precision(world.device), dtype, options.whole,
            loader_options(options), pool,
        )  # fmt: skip

    @classmethod
    def for_blocks(
        cls,
        options: EvaluationOptions,
        pretrained: Pretrained,
        data: Dataset,
        blocks: Sequence[str],
        world: World,
        dtype: str,
        pools: Sequence[Pool | None] = (),
    ) -> "list[Extraction]":
        """Return an extraction for each of `blocks`; ValueError if `blocks` is empty or repeats one."""
        pairs = zip(blocks, pools or (None,) * len(blocks), strict=True)
        works = [cls.of(options, pretrained, data, block, world, dtype, pool) for block, pool in pairs]
        if not works or len({(work.block, work.pool) for work in works}) < len(works):
            raise ValueError(f"--block {' '.join(blocks)}: give one block or several, each once")
        return works

    @functools.cached_property
    def width(self) -> int:
        """The number of features per sample."""
        backbone = self.pretrained.backbone
        if self.pool is None:
            return backbone.channels[self.block - 1]
        return pooled_width(block_shapes(backbone, self.view, self.block)[-1], self.pool)

    @property
    def view(self) -> ViewSpec:
        if self.squashed:
            return squashed_view(self.pretrained.input, self.size_px)
        return center_view(self.pretrained.input, self.size_px, self.whole)

    def open_loader(self, world: World) -> Loader:
        """Open a loader of a rank's share of the images."""
        return Loader(
            self.data, [self.view], batch_size_per_rank=self.batch_size, train=False, rank=world.rank,
            world=world.size, device=world.device, **self.loader,
        )  # fmt: skip

    def of_maps(self, maps: Tensor) -> Tensor:
        """Return the features, float32 [B, width], of the block's maps [B, C, h, w]."""
        maps = maps.float()
        return maps.mean((2, 3)) if self.pool is None else pooled(maps, self.pool).flatten(1)

    def wanted(self) -> dict[str, Any]:
        """Return what the file's values depend on. Decoders differ too little to count."""
        return {
            "format": FORMAT,
            "shape": [self.data.num_samples, self.width],
            "dtype": self.dtype,
            "block": f"B{self.block}",
            "size_px": self.size_px,
            "precision": self.precision,
            "input": self.pretrained.input.as_dict(),
            "backbone": self.pretrained.record["backbone"],
            "weights": self.pretrained.record["sha256"],
            "data": self.data.digest(),
            # Only if they differ from the default, so that older files keep their digests.
            **({"files": stamp} if (stamp := self.data.stamp()) else {}),
            **({"whole": True} if self.whole else {}),
            **({"squashed": True} if self.squashed else {}),
            **({"pool": asdict(self.pool)} if self.pool else {}),
        }

    def digest(self) -> str:
        return sha256_of_json(self.wanted())

    def to_file(
        self, out: Path, world: World, *, overwrite: bool = False, save_every_s: float = SAVE_EVERY_S
    ) -> FeatureFile:
        """Call `extract` for this extraction."""
        return extract([self], [out], world, overwrite=overwrite, save_every_s=save_every_s)[0]

    def publish(self, file: PartialFeatures, seconds: float) -> None:
        """Give the file its final name, with its record beside it; on rank 0 alone."""
        labels = self.data.labels()
        has_labels = bool((labels >= 0).any())
        record = self.wanted() | {
            "digest": file.digest, "rows": "samples of the data, in its order",
            "pooling": "average over all positions" if self.pool is None else "by pool, then flattened",
            "labels": labels_path(file.path).name if has_labels else None,
            "class_names": self.data.class_names, "bad": sorted(file.bad),
            "checkpoint": self.pretrained.record, "commit": own_commit(),
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "seconds": round(seconds, 1),
        }  # fmt: skip
        file.publish(record, labels if has_labels else None)


def loader_options(options: RunOptions) -> dict[str, Any]:
    """Return what `Extraction.loader` takes from the options of a script."""
    names = ("decoder", "hw_decoder_load", "prefetch_batches", "timeout_s", "on_bad_sample")
    return {name: getattr(options, name) for name in names} | {"num_threads": options.workers}


@torch.no_grad()
def extract(
    works: Sequence[Extraction],
    outs: Sequence[Path],
    world: World,
    *,
    overwrite: bool = False,
    save_every_s: float = SAVE_EVERY_S,
    stopped: Callable[[], bool] = lambda: False,
) -> list[FeatureFile]:
    """Write the features of each extraction to its file, with all ranks; existing files are kept.

    The extractions may differ in block, pool and dtype only: images pass through the decoder and the backbone
    once for all. An interrupted extraction continues with the rows that were saved every `save_every_s`
    seconds. `stopped` is called after every batch, on all ranks, and returns the same there.

    Raises:
        ValueError: A file holds other features and `overwrite` is not set.
        PassStopped: `stopped` returned True. The rows so far are saved.
    """
    first = works[0]
    of_file: dict[str, Any] = {"block": first.block, "pool": first.pool, "dtype": first.dtype}
    assert all(replace(work, **of_file) == first and work.dtype in STORED for work in works)
    kept = [_kept(work, out) for work, out in zip(works, outs, strict=True)] if world.rank == 0 else []
    kept = share(world, kept)  # rank 0's copy of the images has times of its own
    for out, how in zip(outs, kept, strict=True):
        if how == _OTHERS and not overwrite:
            raise ValueError(f"{out} exists and holds other features; give --overwrite, or another --out")
        if how in _AGAIN and world.rank == 0:
            print(f"{out}: made anew, because {how}", file=sys.stderr, flush=True)
    missing = {out: work for work, out, how in zip(works, outs, kept, strict=True) if how}
    if missing:
        _write(missing, world, save_every_s, stopped)
        wait_for_all(world)
    written = [read_features(out) for out in outs]
    assert None not in written, outs
    return [file for file in written if file is not None]


# What `_kept` returns of a file that is not the wanted one: it is not whole, it has other features, or (two
# sentences) its images may have changed.
_NONE, _OTHERS = "none", "others"
_AGAIN = _OLD, _WRITTEN = (
    "it was kept before digests of contents, by which other pixels under the same names are told",
    "images were written to, or their status has changed, since it was made",
)


def _kept(work: Extraction, out: Path) -> str:
    """Return "" if the file at `out` has the wanted features, or one of the values above."""
    file = read_features(out)
    if file is None:
        return _OTHERS if out.exists() else _NONE
    wanted, there = work.wanted(), file.record["digest"]
    if there == sha256_of_json(wanted):
        return ""
    if there == sha256_of_json(wanted | {"files": file.record.get("files")}):
        return _WRITTEN
    wanted.pop("files", None)
    return _OLD if there == sha256_of_json(wanted | {"data": parts_of(wanted["data"])[0]}) else _OTHERS


def _write(
    wanted: Mapping[Path, Extraction], world: World, save_every_s: float, stopped: Callable[[], bool]
) -> None:
    started, works = time.monotonic(), list(wanted.values())
    with ExitStack() as stack:
        files = [
            stack.enter_context(closing(PartialFeatures(out, work.digest(), work.wanted(), world)))
            for out, work in wanted.items()
        ]
        loader = stack.enter_context(works[0].open_loader(world))
        _fill(works, files, loader, world, save_every_s, stopped)
        if world.rank == 0:
            for work, file in zip(works, files, strict=True):
                with output_errors(file.path):
                    work.publish(file, time.monotonic() - started)


def _fill(
    works: Sequence[Extraction],
    files: Sequence[PartialFeatures],
    loader: Loader,
    world: World,
    save_every_s: float,
    stopped: Callable[[], bool],
) -> None:
    batch_size, num_samples = loader.batch_size_per_rank, loader.num_samples
    step_rows = batch_size * world.size
    first_step = min(file.num_rows for file in files) // step_rows
    batches = feature_batches(works, loader, first_step, world.device)
    saved = time.monotonic()
    if first_step and world.rank == 0:
        names = ", ".join(str(file.path) for file in files)
        print(f"{names}: goes on from row {first_step * step_rows:,}", file=sys.stderr, flush=True)
    left = num_samples - first_step * step_rows
    with Progress("features", "images", left) if world.rank == 0 else contextlib.nullcontext() as progress:
        for step, (features, bad) in enumerate(batches, start=first_step):
            num_rows = min((step + 1) * step_rows, num_samples)
            for file, rows in zip(files, features, strict=True):
                file.write(step * step_rows + world.rank * batch_size, rows)
                file.bad.update(bad)
            # Rank 0's clock decides. The sum also ensures that all ranks have written this step.
            due = torch.tensor(float(world.rank == 0 and time.monotonic() - saved >= save_every_s))
            stops = stopped()
            if sum_over_ranks(world, due) > 0 or stops or num_rows == num_samples:
                for file in files:
                    file.save(num_rows)
                saved = time.monotonic()
            if progress:
                progress.update(num_rows - first_step * step_rows, len(files[0].bad))
            if stops and num_rows < num_samples:
                raise PassStopped


def feature_batches(
    works: Sequence[Extraction], loader: Loader, first_step: int, device: torch.device
) -> Iterator[tuple[list[np.ndarray], list[int]]]:
    """Yield, for each batch, the features [B, width] of each extraction and the indices of bad samples."""
    for fetched, indices, bad in one_behind(_launched(works, loader, first_step, device)):
        for sample in bad:
            print(f"skipped {' '.join(str(sample).split())}", file=sys.stderr, flush=True)
        skipped = indices.values().numpy() < 0  # including padding, which `PartialFeatures.write` drops
        pairs = zip(fetched, works, strict=True)
        stored = [_stored(each.values().numpy(), work, skipped) for each, work in pairs]
        yield stored, [sample.index for sample in bad]


def _launched(
    works: Sequence[Extraction], loader: Loader, first_step: int, device: torch.device
) -> Iterator[tuple[list[AsyncCopy], AsyncCopy, list[BadSample]]]:
    """Yield, for each batch, features [B, width] and indices on their way to the host, and bad samples."""
    first = works[0]
    blocks = first.pretrained.backbone.blocks()[: max(work.block for work in works)]
    network = nn.Sequential(*blocks).to(device).to(memory_format=torch.channels_last).eval()
    dtype, augment = DTYPES[first.precision], choose_augment("torch", loader.views, device)
    for batch in loader.epoch(0, first_step):
        (maps,) = augment.inputs(batch, loader.views, dtype)
        features: dict[int, Tensor] = {}
        with autocast(device, dtype):
            for number, block in enumerate(network, start=1):
                maps = block(maps)
                for place, work in enumerate(works):
                    if work.block == number:
                        # A copy, because the next block's first operation may be in place.
                        features[place] = work.of_maps(maps).clone()
        yield [AsyncCopy(features[place]) for place in range(len(works))], AsyncCopy(batch.indices), batch.bad


def _stored(features: np.ndarray, work: Extraction, skipped: np.ndarray) -> np.ndarray:
    """Return float32 [B, width] in the file's dtype, with NaN where `skipped`; ValueError if out of range."""
    with np.errstate(over="ignore", under="ignore"):
        values = features.astype(work.dtype)
    if not np.isfinite(values).all():
        finite = np.isfinite(features).all()
        remedy = work.if_too_large if finite else "check the weights and their input record"
        raise ValueError(
            f"features of B{work.block} reach {np.abs(features).max():.3g}, which {work.dtype} cannot hold: "
            f"{remedy}"
        )
    values[skipped] = np.nan
    return values
