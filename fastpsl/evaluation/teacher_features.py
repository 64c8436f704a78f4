"""A distillation that learns from stored features of the whole images, computed once.

Every crop of an image has the target that the whole image has. FKD (arXiv 2112.01528) and TinyViT (arXiv
2207.10666) store a teacher's outputs for each of the very crops: classes of ImageNet, of which a small crop
may show another one than the image.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self, override

from fastpsl.console.progress import clock, operation
from fastpsl.console.words import gigabytes
from fastpsl.engine.distributed import share
from fastpsl.engine.plan import Stage
from fastpsl.engine.run import Run, RunData
from fastpsl.engine.stage_blocks import StageBlocks
from fastpsl.evaluation.feature_file import FeatureFile, read_features
from fastpsl.evaluation.features import STORED, Extraction, extract, loader_options
from fastpsl.files.system_errors import output_errors
from fastpsl.models.names import is_own
from fastpsl.models.teacher import Teacher
from fastpsl.models.weights import Pretrained
from fastpsl.pipelines.data.dataset import Dataset
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.views import ViewSpec, center_view
from fastpsl.tasks.distill import BlockTimes, Distill

FOLDER = "teacher-features"
"""The folder of the features within that of a run."""
# What makes features others, in words. The precision in which they were computed does not.
_KEY = {
    "weights": "teacher", "backbone": "network of the teacher", "channels": "channels of the teacher",
    "mean": "mean of the teacher", "std": "std of the teacher", "size_px": "--teacher-px", "block": "block",
    "data": "images", "shape": "number of images and features", "whole": "part of each image",
    "squashed": "shape of each image", "pool": "pooling",
}  # fmt: skip
_ROWS_AT_A_TIME = 1 << 16


class TeacherFeatures:
    """The teacher's features of all training images: files of a folder, one of each block.

    Copies are the same features: a task in parts (`--plan blockwise`) has them once.

    Args:
        teacher: The teacher.
        stages: The plan's stages. The features are of the blocks that they learn from.
        num_blocks: The number of the student's blocks.
        folder: Where the files are, or are to be; None for the run's own folder.
    """

    def __init__(self, teacher: Teacher, stages: Sequence[Stage], num_blocks: int, folder: Path | None):
        self.teacher, self.folder = teacher, folder
        learned = [part.last_block for stage in stages for part in stage.parts or (stage,)]
        self.blocks = sorted({teacher.block_beside(block, num_blocks) for block in learned})
        self.files = dict[int, FeatureFile]()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    @property
    def view(self) -> ViewSpec:
        """The teacher's view of whole images: their middle square."""
        return center_view(self.teacher.input, self.teacher.size_px, True)

    def path(self, folder: Path, block: int) -> Path:
        """Return the file of a block's features."""
        return folder / f"teacher-B{block}.npy"

    def make(self, run: Run) -> None:
        """Compute the files that are missing, by one pass over the images with all ranks.

        A replay makes them in its own folder.

        Args:
            run: The run.

        Raises:
            ValueError: The folder cannot be written, or holds features of something else.
            PassStopped: A signal arrived. The same command goes on with the images that are left.
        """
        if self.files:
            return
        world, works, own = run.world, self.works(run.data), run.folder / FOLDER
        folder = self.folder or own
        found: list[int] | ValueError | None = None
        if world.rank == 0:  # its copy of the images has times of its own
            try:
                found = self.missing(folder, works)
            except ValueError as error:
                found = error
        missing = share(world, found)
        if isinstance(missing, ValueError):
            raise missing
        out = own if run.is_replay else folder
        paths = {block: self.path(out if block in missing else folder, block) for block in works}
        if missing:
            with output_errors(out):
                out.mkdir(parents=True, exist_ok=True)
            run.stop_signal.other_pace()
            stopped = lambda: run.stop_signal.after_step().stop
            extract(
                [works[block] for block in missing], [paths[block] for block in missing], world,
                overwrite=True, stopped=stopped,
            )  # fmt: skip
        self.teacher.network.cpu()  # its work is done
        for block, path in paths.items():
            file = read_features(path)
            assert file is not None, path
            self.files[block] = file

    def works(self, data: RunData) -> dict[int, Extraction]:
        """Return the extraction of each block."""
        teacher, options = self.teacher, data.options
        pretrained = Pretrained(teacher.network, teacher.input, teacher.record)
        return {
            block: Extraction(
                pretrained, data.train, block, teacher.size_px, data.batch_size,
                options.resolved_precision(data.world.device), whole=True,
                loader=loader_options(options),
            )
            for block in self.blocks
        }  # fmt: skip

    def missing(self, folder: Path, works: Mapping[int, Extraction]) -> list[int]:
        """Return the blocks whose files are not in a folder, are damaged, or older than their images.

        Raises:
            ValueError: A file is of something else.
        """
        blocks = list[int]()
        for block, work in works.items():
            path = self.path(folder, block)
            file = read_features(path)
            if file is None or file.features().dtype.name not in STORED:
                blocks.append(block)
                continue
            there, wanted = _keyed(file.record), _keyed(work.wanted())
            if differences := [
                f"another {words} ({_short(there.get(name))} there, {_short(wanted.get(name))} now)"
                for name, words in _KEY.items()
                if there.get(name) != wanted.get(name)
            ]:
                raise ValueError(
                    f"--teacher-features {path.parent}: {path.name} is of {', '.join(differences)}; give the "
                    "same, or another folder"
                )
            if there.get("files") != wanted.get("files"):
                blocks.append(block)
        return blocks

    def read(self, block: int) -> Tensor:
        """Return a block's features [N, D] on the host, of a file that `make` has found or made."""
        file = self.files[block]
        with operation(f"reading {file.path}"):
            return torch.from_numpy(np.array(file.features()))


def _keyed(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record with the fields of its input, whose own size does not count, beside the others."""
    input, backbone = record.get("input"), str(record.get("backbone"))
    fields = dict(input) if isinstance(input, dict) else {}
    name = PurePath(backbone).name if is_own(backbone) else backbone  # its folder may be another
    return {**fields, **record, "backbone": name}


def _short(value: object) -> str:
    text = ascii(str(value))[1:-1]
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
        device = next(head.parameters()).device
        self._begin_queue(stage, device)
        # Zeros serve a dry run, which stores nothing.
        width = self.teacher.channels[self.block - 1]
        self.features = torch.zeros(self.num_images, width, dtype=torch.float16, device=device)
        self.is_known = torch.ones(self.num_images, dtype=torch.bool, device=device)
        if self.block in self.store.files:
            self._take(self.store.read(self.block))

    def _take(self, features: Tensor) -> None:
        """Learn from these features, and begin the queue with some of them, in random order."""
        known = ~features[:, 0].isnan()  # images that could not be decoded have no feature
        self.is_known.copy_(known)
        for place in range(0, len(features), _ROWS_AT_A_TIME):
            part = slice(place, place + _ROWS_AT_A_TIME)
            # Of length 1 in float32, because half precision does not hold all lengths.
            self.features[part] = F.normalize(features[part].float()).nan_to_num(0.0)
        order = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))
        first = order[known[order]][: len(self.queue)].to(self.features.device)
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
    def cost_line(self, times: BlockTimes, stages: Sequence[Stage], data: RunData) -> str:
        store, num, blocks = self.store, data.train.num_samples, self.store.blocks
        if store.folder and not store.missing(store.folder, store.works(data)):
            return f"its features of {num:,} whole images are in {store.folder}"
        seconds = num * times.teacher_ms[blocks[-1] - 1] / (1000 * data.world.size)
        size = 2 * num * sum(self.teacher.channels[block - 1] for block in blocks)
        return (
            f"its features of {num:,} whole images are computed first, in about {clock(seconds)}, and kept: "
            f"{gigabytes(size)} in {store.folder or f'{FOLDER} of the run'}"
        )
