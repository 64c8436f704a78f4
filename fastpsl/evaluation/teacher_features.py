"""A distillation that learns from stored features: one of each whole image, computed once.

Every crop of an image has the target that the whole image has. FKD (arXiv 2112.01528) and TinyViT (arXiv
2207.10666) store a teacher's outputs for each of the very crops, because theirs are classes of ImageNet, of
which a small crop may show another one than the image.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self, override

from fastpsl.console.progress import clock, operation
from fastpsl.engine.distributed import share
from fastpsl.engine.plan import Stage
from fastpsl.engine.run import Run, RunData
from fastpsl.engine.stage_blocks import StageBlocks
from fastpsl.evaluation.feature_file import FeatureFile, read_features
from fastpsl.evaluation.features import Extraction, extract, loader_options
from fastpsl.files.system_errors import output_errors
from fastpsl.models.backbone import Backbone
from fastpsl.models.teacher import Teacher
from fastpsl.models.weights import Pretrained
from fastpsl.pipelines.data.dataset import Dataset
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.views import ViewSpec, center_view
from fastpsl.tasks.distill import Distill

FOLDER = "teacher-features"
"""The folder of the features within that of a run."""
# What makes features others, in words. The precision in which they were computed does not.
_KEY = {
    "weights": "teacher", "input": "input of the teacher", "size_px": "--teacher-px", "block": "block",
    "data": "images", "whole": "part of each image", "squashed": "shape of each image", "pool": "pooling",
}  # fmt: skip


class TeacherFeatures:
    """The teacher's features of all training images, a file for each block that is learned from.

    Copies are the same features: a task in parts (`--plan blockwise`) has them once.

    Args:
        teacher: The teacher.
        blocks: Its blocks, from 1.
        folder: Where the files are, or are to be; None for the run's own folder.
    """

    def __init__(self, teacher: Teacher, blocks: Sequence[int], folder: Path | None):
        self.teacher, self.folder = teacher, folder
        self.blocks = sorted(set(blocks))
        self.files = dict[int, FeatureFile]()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    @property
    def view(self) -> ViewSpec:
        """The teacher's view: the whole middle square of an image."""
        return center_view(self.teacher.input, self.teacher.size_px, True)

    @property
    def is_whole(self) -> bool:
        """Whether `folder` has all files. They may be of something else."""
        return self.folder is not None and all(map(read_features, self._paths(self.folder)))

    def _paths(self, folder: Path) -> list[Path]:
        return [folder / f"teacher-B{block}.npy" for block in self.blocks]

    def make(self, run: Run) -> None:
        """Compute the files that are missing, by one pass over the images with all ranks.

        Raises:
            ValueError: The folder cannot be written, or holds features of something else.
            PassStopped: A signal arrived. The same command goes on with the images that are left.
        """
        if self.files:
            return
        world, folder = run.world, self.folder or run.folder / FOLDER
        with output_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        parts = zip(self._paths(folder), self.blocks, strict=True)
        works = {out: self._extraction(block, run) for out, block in parts}
        found = share(world, {out: _state(work, out) for out, work in works.items()} if not world.rank else 0)
        for out, differs in found.items():
            if differs:
                raise ValueError(
                    f"--teacher-features {folder}: {out.name} is of {differs}; give the same, or another "
                    "folder"
                )
        missing = {out: works[out] for out, differs in found.items() if differs is None}
        if missing:
            run.stop_signal.other_pace()
            stopped = lambda: run.stop_signal.after_step().stop
            extract([*missing.values()], [*missing], world, overwrite=True, stopped=stopped)
        self.teacher.network.cpu()  # its work is done
        for block, out in zip(self.blocks, works, strict=True):
            file = read_features(out)
            assert file is not None, out
            self.files[block] = file

    def _extraction(self, block: int, run: Run) -> Extraction:
        teacher, options = self.teacher, run.options
        pretrained = Pretrained(teacher.network, teacher.input, teacher.record)
        return Extraction(
            pretrained, run.data.train, block, teacher.size_px, run.data.batch_size, run.precision,
            whole=True, loader=loader_options(options),
        )  # fmt: skip

    def of_block(self, block: int, num_images: int) -> Tensor:
        """Return a block's features [N, D] on the host; zeros where nothing was made, as before a dry run."""
        if not self.files:
            return torch.zeros(num_images, self.teacher.channels[block - 1], dtype=torch.float16)
        file = self.files[block]
        with operation(f"reading {file.path}"):
            return torch.from_numpy(np.array(file.features()))


def _state(work: Extraction, out: Path) -> str | None:
    """Return "" if a file's features are the wanted ones, what they are of instead, or None to make them."""
    file = read_features(out)
    if file is None:
        return None
    wanted, record = work.wanted(), file.record
    differences = [
        f"another {words} ({_short(record.get(name))} there, {_short(wanted.get(name))} now)"
        for name, words in _KEY.items()
        if record.get(name) != wanted.get(name)
    ]
    if differences:
        return ", ".join(differences)
    return "" if record.get("files") == wanted.get("files") else None


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:16]}…"


class DistillStored(Distill):
    """A task that learns a frozen network's stored features of the whole images.

    All images' features are on the device, in half precision. The validation images have none, so there is
    no validation loss.

    Args:
        teacher: As in `Distill`.
        num_blocks: As in `Distill`.
        size_px: As in `Distill`.
        store: The features.
    """

    def __init__(self, teacher: Teacher, num_blocks: int, *, size_px: int, store: TeacherFeatures):
        super().__init__(teacher, num_blocks, size_px=size_px)
        self.store, self.why_uncapturable = store, ""

    @override
    def views(self, level: int) -> tuple[ViewSpec, ...]:
        """Return the student's view."""
        return super().views(level)[:1]

    @override
    def val_views(self, level: int) -> tuple[ViewSpec, ...]:
        return ()

    @override
    def check_data(self, data: Dataset, batch_size: int) -> None:
        super().check_data(data, batch_size)
        self.num_images = data.num_samples

    @override
    def before_training(self, run: Run) -> None:
        self.store.make(run)

    @override
    def start_stage(self, stage: Stage, blocks: StageBlocks, head: nn.Module) -> None:
        """Begin with a full queue, of images in random order."""
        device = next(head.parameters()).device
        self._begin_queue(stage, device)
        self.features = self.store.of_block(self.block, self.num_images).to(device)
        self.is_known = ~self.features[:, 0].isnan()  # images that could not be decoded have no feature
        self.features.nan_to_num_(0.0)
        order = torch.randperm(len(self.features), generator=torch.Generator().manual_seed(0))
        first = order[: len(self.queue)].to(device)
        self.queue[: len(first)] = F.normalize(self.features[first].float())
        self.num_queued.fill_(len(first))

    @override
    def num_warm_up_batches(self, stage: Stage) -> int:
        return 0

    @override
    def valid(self, batch: Batch) -> Tensor:
        return (batch.indices >= 0) & self.is_known[batch.indices.clamp(min=0)]

    @override
    def targets(self, inputs: Sequence[Tensor], batch: Batch) -> Tensor:
        return self.features[batch.indices.clamp(min=0)].float()

    @property
    @override
    def teacher_view(self) -> ViewSpec:
        return self.store.view

    @override
    def cost_line(
        self,
        teacher_ms: Sequence[float],
        backbone: Backbone,
        images: Tensor,
        stages: Sequence[Stage],
        data: RunData,
    ) -> str:
        store, channels, num = self.store, self.teacher.channels, data.train.num_samples
        if store.is_whole:
            return f"its features of {num:,} whole images are in {store.folder}"
        seconds = num * teacher_ms[store.blocks[-1] - 1] / (1000 * data.world.size)
        size = 2 * num * sum(channels[block - 1] for block in store.blocks)
        return (
            f"its features of {num:,} whole images are computed first, in about {clock(seconds)}, and kept: "
            f"{size / 1e6:,.3g} MB in {store.folder or f'{FOLDER} of the run'}"
        )
