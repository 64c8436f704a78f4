"""Features of a frozen backbone: average-pooled outputs of one block, of every sample of a data set, in one .npy file."""

import contextlib
import hashlib
import io
import json
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fastpsl.checkpoint import write_atomically
from fastpsl.distributed import World, sum_over_ranks, wait_for_all
from fastpsl.evaluation.feature_file import FORMAT, FeatureFile, PartialFeatures, read_features, record_path
from fastpsl.evaluation.options import EvaluationOptions
from fastpsl.evaluation.views import center_view
from fastpsl.evaluation.weights import Pretrained
from fastpsl.learner import DTYPES
from fastpsl.pipelines.beton_file import output_errors
from fastpsl.pipelines.loader import Loader
from fastpsl.pipelines.rows import Data
from fastpsl.progress import Progress
from fastpsl.run import own_commit

STORED = ("float16", "float32")
SAVE_EVERY_S = 5.0


def block_number(text: str, num_blocks: int) -> int:
    """ "final" or "B1" … as a number from 1. ValueError for what the backbone has not."""
    if text == "final":
        return num_blocks
    number = text[1:]
    if text[:1] not in ("B", "b") or not number.isdecimal() or not 1 <= int(number) <= num_blocks:
        raise ValueError(f"--block {text}: this backbone has B1 to B{num_blocks}; final is the last")
    return int(number)


@dataclass(frozen=True)
class Extraction:
    """What is to be extracted, and how a rank goes about it.

    block: from 1. batch_size: samples of one rank's pass. precision: fp32, bf16 or fp16; dtype: of the file, float16 or
    float32. whole: of the view, `views.center_view`. loader: further options of `pipelines.loader.Loader`, such as decoder and num_threads.
    """

    pretrained: Pretrained
    data: Data
    block: int
    size_px: int
    batch_size: int = 256
    precision: str = "fp32"
    dtype: str = "float16"
    whole: bool = False
    loader: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        options: EvaluationOptions,
        pretrained: Pretrained,
        data: Data,
        block: str,
        world: World,
        dtype: str,
    ) -> "Extraction":
        """As an evaluation's options have it; block: final or B1, B2, … ValueError for a block, or a size, that is none."""
        backbone = pretrained.backbone
        number = block_number(block, backbone.num_blocks)
        if options.size_px < backbone.min_px:
            raise ValueError(
                f"--size-px {options.size_px}: this backbone reads pictures of {backbone.min_px} px and more"
            )
        names = ("decoder", "num_threads", "prefetch_batches", "timeout_s", "on_bad_sample")
        return cls(
            pretrained, data, number, options.size_px, options.rank_batch(world.size),
            options.resolved_precision(world.device), dtype, options.whole,
            {name: getattr(options, name) for name in names},
        )  # fmt: skip

    def wanted(self) -> dict[str, Any]:
        """What the file's values depend on. Decoders differ by less than a grey value, and count as the machine's."""
        return {
            "format": FORMAT,
            "shape": [self.data.num_samples, self.pretrained.backbone.channels[self.block - 1]],
            "dtype": self.dtype,
            "block": f"B{self.block}",
            "size_px": self.size_px,
            "precision": self.precision,
            "input": self.pretrained.input.as_dict(),
            "backbone": self.pretrained.record["backbone"],
            "weights": self.pretrained.record["sha256"],
            "data": self.data.digest(),
        } | ({"whole": True} if self.whole else {})

    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.wanted(), sort_keys=True).encode()).hexdigest()

    @torch.no_grad()
    def to_file(
        self, out: Path, world: World, *, overwrite: bool = False, save_every_s: float = SAVE_EVERY_S
    ) -> FeatureFile:
        """Write the features to `out`, every rank its share, and return them; at once where they are there already.

        What an interrupted extraction of the same features left beside `out` is gone on with: every `save_every_s` the rows that
        all ranks have written are noted. ValueError where `out` holds something else and `overwrite` is not given.
        """
        assert self.dtype in STORED
        digest, found = self.digest(), read_features(out)
        if found is not None and found.record["digest"] == digest:
            return found
        if out.exists() and not overwrite:
            raise ValueError(f"{out} exists and holds other features; give --overwrite, or another name")
        wait_for_all(world)  # every rank has looked before one writes
        started = time.monotonic()
        view = center_view(self.pretrained.input, self.size_px, self.whole)
        with (
            closing(PartialFeatures(out, digest, self.wanted(), world)) as file,
            Loader(
                self.data, [view], batch_size=self.batch_size, train=False, rank=world.rank, world=world.size,
                device=world.device, **self.loader,
            ) as loader,
        ):  # fmt: skip
            self._fill(file, loader, world, save_every_s)
            if world.rank == 0:
                with output_errors(out):
                    self._publish(file, time.monotonic() - started)
        wait_for_all(world)
        return FeatureFile(out, json.loads(record_path(out).read_text()))

    def _fill(self, file: PartialFeatures, loader: Loader, world: World, save_every_s: float) -> None:
        step_rows = self.batch_size * world.size
        first_step = file.num_rows // step_rows
        batches = self._features(loader, first_step, world.device)
        saved = time.monotonic()
        left = self.data.num_samples - first_step * step_rows
        if first_step and world.rank == 0:
            print(f"{file.path}: goes on from row {first_step * step_rows:,}", file=sys.stderr, flush=True)
        with Progress("images", left) if world.rank == 0 else contextlib.nullcontext() as progress:
            for step, (features, bad) in enumerate(batches, start=first_step):
                file.write(step * step_rows + world.rank * self.batch_size, features)
                file.bad.update(bad)
                num_rows = min((step + 1) * step_rows, self.data.num_samples)
                # Rank 0's clock decides; that all ranks come together here also says that they have written this step.
                due = torch.tensor(float(world.rank == 0 and time.monotonic() - saved >= save_every_s))
                if sum_over_ranks(world, due) > 0 or num_rows == self.data.num_samples:
                    file.save(num_rows)
                    saved = time.monotonic()
                if progress:
                    progress.update(num_rows - first_step * step_rows, len(file.bad))

    def _features(
        self, loader: Loader, first_step: int, device: torch.device
    ) -> Iterator[tuple[np.ndarray, list[int]]]:
        """Of each batch the pooled features [B, C] of the file's dtype, and the indices of samples that were bad."""
        blocks = self.pretrained.backbone.blocks()[: self.block]
        trunk = nn.Sequential(*blocks).to(device).to(memory_format=torch.channels_last).eval()
        dtype, stored = DTYPES[self.precision], np.dtype(self.dtype)
        for batch in loader.epoch(0, first_step):
            (images,) = batch.inputs(loader.views, dtype)
            with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
                features = trunk(images).float().mean((2, 3)).cpu().numpy()
            bad = [sample.index for sample in batch.bad]
            for sample in batch.bad:
                print(f"skipped {sample}", file=sys.stderr, flush=True)
            with np.errstate(over="ignore"):
                values = features.astype(stored)
            if not np.isfinite(values).all():
                remedy = (
                    "fastpsl features --dtype float32 can"
                    if np.isfinite(features).all()
                    else "look at the weights"
                )
                raise ValueError(
                    f"features of B{self.block} reach {np.abs(features).max():.3g}, which {self.dtype} cannot hold: {remedy}"
                )
            skipped = batch.indices.cpu().numpy() < 0  # padding too, which is cut off in writing
            values[skipped] = np.nan
            yield values, bad

    def _publish(self, file: PartialFeatures, seconds: float) -> None:
        out, labels = file.path, self.data.labels()
        has_labels = bool((labels >= 0).any())
        labels_path = out.with_name(f"{out.stem}-labels.npy")
        record = self.wanted() | {
            "digest": file.digest,
            "rows": "samples of the data, in its order",
            "pooling": "average over all positions",
            "labels": labels_path.name if has_labels else None,
            "class_names": self.data.class_names,
            "bad": sorted(file.bad),
            "checkpoint": self.pretrained.record,
            "commit": own_commit(),
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "seconds": round(seconds, 1),
        }
        # Never a record beside features that are not its own: without one, what is there counts as unknown.
        record_path(out).unlink(missing_ok=True)
        if has_labels:
            data = io.BytesIO()
            np.save(data, labels.astype(np.int32))
            write_atomically(labels_path, data.getbuffer())
        file.publish()
        write_atomically(record_path(out), (json.dumps(record, indent=1) + "\n").encode())
