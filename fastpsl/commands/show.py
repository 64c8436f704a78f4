"""`fastpsl show`: what the network sees of a data set, by the task's own views and drawing.

A task stands here as its constructor at the paper's sizes; another shorter side scales them all.
"""

import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from fastpsl.engine.distributed import choose_device
from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.kernels.permutations import permutation_set
from fastpsl.pipelines.batch import Batch
from fastpsl.pipelines.data.open import open_data
from fastpsl.pipelines.files.atomic import output_errors, partial_path
from fastpsl.pipelines.input_record import Input
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.sample.betons import sample_paths
from fastpsl.pipelines.standard_views import train_view
from fastpsl.pipelines.views import ViewSpec
from fastpsl.plots.contact_sheet import captions, save_contact_sheet
from fastpsl.tasks.contrastive.moco import MoCo
from fastpsl.tasks.contrastive.simclr import SimCLR
from fastpsl.tasks.jigsaw import Jigsaw
from fastpsl.tasks.pseudo_labels.iic import IIC
from fastpsl.tasks.pseudo_labels.uic import UIC
from fastpsl.tasks.rotation import Rotation
from fastpsl.tasks.sslpp.aet import AET
from fastpsl.tasks.sslpp.colorization import Colorization
from fastpsl.tasks.sslpp.context import Context
from fastpsl.tasks.sslpp.rotnet import RotNet
from fastpsl.tasks.sslpp.sslpp import Proxy, SSLPlusPlus

SHORTER_PX = 256
MAX_PICTURES = 400


class Shown(Protocol):
    """The part of a task that a contact sheet needs; it may have `captions(batch)` too."""

    num_levels: int

    def views(self, level: int) -> tuple[ViewSpec, ...]: ...

    def contact_sheet(self, inputs: Sequence[Tensor], batch: Batch) -> Tensor: ...


class Crops:
    """No task: two random resized crops of each sample, side by side, as the decoder makes them."""

    num_levels = 1

    def __init__(self, shorter_px: int):
        self.view = ViewSpec(RandomResizedCrop(_scaled(224, shorter_px)))

    def views(self, level: int) -> tuple[ViewSpec, ...]:
        return (self.view, self.view)

    def contact_sheet(self, inputs: Sequence[Tensor], batch: Batch) -> Tensor:
        crops = [images.float().cpu() / 255 for images in batch.images]
        gap = crops[0].new_ones(*crops[0].shape[:3], 4)
        return torch.cat([crops[0], gap, crops[1]], 3)


def jigsaw(shorter_px: int) -> Jigsaw:
    counts = (500, 1000, 2000)  # psl.txt, Table 1
    return Jigsaw(
        permutation_set(9, counts).permutations,
        counts,
        shorter_px=shorter_px,
        cell_px=_scaled(75, shorter_px),
        tile_px=_scaled(64, shorter_px),
    )


def rotation(shorter_px: int) -> Rotation:
    return Rotation(shorter_px=shorter_px, size_px=_scaled(224, shorter_px))


def simclr(shorter_px: int) -> SimCLR:
    return SimCLR(batch_size=256, size_px=_scaled(224, shorter_px))


def moco(shorter_px: int) -> MoCo:
    return MoCo(seed=0, batch_size=256, size_px=_scaled(224, shorter_px))


def uic(shorter_px: int) -> UIC:
    size_px = _scaled(224, shorter_px)
    return UIC(3000, Input.usual("SobelXY", size_px), size_px, seed=0)


def iic(size_px: int) -> IIC:
    return IIC(70, size_px=size_px)


def of_sslpp(proxy: Callable[[int], Proxy]) -> Callable[[int], SSLPlusPlus]:
    """SSL++'s tasks show pictures whole: the paper's are of 32 px."""
    return lambda size_px: SSLPlusPlus(proxy(size_px), train_view(Input(size_px=size_px), size_px, "padded"))


TASKS: dict[str, Callable[[int], Shown]] = {
    "crops": Crops,
    "jigsaw": jigsaw,
    "rotation": rotation,
    "simclr": simclr,
    "moco": moco,
    "uic": uic,
    "iic": iic,
    "colorization": of_sslpp(Colorization),
    "context": of_sslpp(lambda size_px: Context(size_px=size_px)),
    "rotnet": of_sslpp(RotNet),
    "aet": of_sslpp(lambda size_px: AET(size_px=size_px)),
}


def _scaled(px: int, shorter_px: int) -> int:
    return round(px * shorter_px / SHORTER_PX)


@dataclass(frozen=True)
class Sheet:
    """What was drawn, for the terminal."""

    path: Path
    num_samples: int
    data: str
    decoder: str
    reason: str

    def __str__(self) -> str:
        return (
            f"{self.path}: {self.num_samples} samples of {self.data}, decoder {self.decoder} ({self.reason})"
        )


def show(
    data: str | None,
    task: str = "crops",
    level: int = 1,
    *,
    num: int = 16,
    decoder: str = "auto",
    shorter_px: int = SHORTER_PX,
    seed: int = 0,
    device: str = "auto",
    out: Path | None = None,
) -> Sheet:
    """Draw `num` samples, those that begin epoch 0 under `seed`, into `out` (a PNG; by default TASK-GLEVEL.png).

    data: a beton, a glob of shards or a folder; None: the embedded sample. Samples that cannot be decoded are named on
    stderr and left out. ValueError where the request cannot be met.
    """
    if task not in TASKS:
        raise ValueError(f"--task {task}: there are {', '.join(TASKS)}")
    # Below 16, three cells of whole pixels need not fit.
    for name, value, low, high in (("num", num, 1, MAX_PICTURES), ("shorter-px", shorter_px, 16, 4096)):
        if not low <= value <= high:
            raise ValueError(f"--{name} {value}: give a number from {low} to {high}")
    shown = TASKS[task](shorter_px)
    if not 1 <= level <= shown.num_levels:
        has = f"levels 1 to {shown.num_levels}" if shown.num_levels > 1 else "level 1 alone"
        raise ValueError(f"--level {level}: {task} has {has}")
    out = out or Path(f"{task}-G{level}.png")
    with closing(open_data(sample_paths().train if data is None else data)) as opened:
        views = shown.views(level)
        with Loader(
            opened, views, batch_size=min(num, opened.num_samples), seed=seed, decoder=decoder,
            device=choose_device(device, 0), prefetch_batches=1, on_bad_sample="skip",
        ) as loader:  # fmt: skip
            batches = loader.epoch(0)
            batch = next(batches).first(num)
            batches.close()
        for bad in batch.bad:
            print(f"left out {' '.join(str(bad).split())}", file=sys.stderr)
        pictures = shown.contact_sheet(batch.inputs(views, torch.float32), batch)
        of_task = shown.captions(batch) if hasattr(shown, "captions") else ()
        texts = captions(batch, opened.class_names, of_task)
    good = batch.indices >= 0
    texts = [text for text, is_good in zip(texts, good.tolist(), strict=True) if is_good]
    with output_errors(out):
        try:
            save_contact_sheet(pictures[good], partial_path(out), texts, num)
            partial_path(out).replace(out)
        finally:
            partial_path(out).unlink(missing_ok=True)
    return Sheet(out, len(texts), data or "the embedded sample", loader.decoder_name, loader.decoder_reason)
