"""A distillation that learns from stored features of the whole images, computed once.

Every crop of an image has the target that the whole image has. FKD (arXiv 2112.01528) and TinyViT (arXiv
2207.10666) store a teacher's outputs for each of the very crops: classes of ImageNet, of which a small crop
may show another one than the image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self, override

from fastpsl.console.progress import clock
from fastpsl.console.words import gigabytes, number_of
from fastpsl.engine.distributed import share
from fastpsl.engine.options import RunOptions, share_of
from fastpsl.engine.plan import Stage
from fastpsl.engine.run import Run, RunData
from fastpsl.engine.stage_blocks import StageBlocks
from fastpsl.evaluation.feature_file import FeatureFile, read_features, record_path
from fastpsl.evaluation.features import STORED, Extraction, extract, loader_options
from fastpsl.files.system_errors import output_errors
from fastpsl.models.names import is_own, without_folder
from fastpsl.models.teacher import Teacher
from fastpsl.models.weights import Pretrained
from fastpsl.pipelines.interface.dataset import Dataset
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.views import ViewSpec, center_view
from fastpsl.tasks.distill import BlockTimes, Distill

FOLDER = "teacher-features"
"""The folder of the features within that of a run."""
# The fields of a record that must be equal for stored features to be used, with words for a difference. The
# precision of their computation is none of them.
_KEY = {
    "weights": "another teacher", "backbone": "another network of the teacher",
    "channels": "other channels of the teacher", "mean": "another mean of the teacher",
    "std": "another std of the teacher", "size_px": "another --teacher-px", "block": "another block",
    "data": "other images", "shape": "another number of images and features",
    "whole": "another part of each image: fastpsl features --whole", "pool": "another pooling",
    "squashed": "another shape of each image",
}  # fmt: skip


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
        found: dict[int, str] | ValueError | None = None
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
            extract(
                [replace(works[block], dtype=dtype) for block, dtype in missing.items()],
                [paths[block] for block in missing], world, overwrite=True,
                stopped=lambda: run.stop_signal.after_step().stop,
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
                if_too_large=self._if_too_large(block, options),
            )
            for block in self.blocks
        }  # fmt: skip

    def _if_too_large(self, block: int, options: RunOptions) -> str:
        if is_own(self.teacher.record["path"]):
            return "divide them in your module"
        all_images = " and --val none" if share_of(options.val) else ""
        return (
            f"store them in an existing FOLDER by fastpsl features --whole --size-px {self.teacher.size_px} "
            f"--block B{block} --dtype float32 --out {self.path(Path('FOLDER'), block)}, then give "
            f"--teacher-features FOLDER{all_images}"
        )

    def missing(self, folder: Path, works: Mapping[int, Extraction]) -> dict[int, str]:
        """Return the dtype of the files that are not in a folder, are damaged, or older than their images.

        Raises:
            ValueError: A file has other features, or no record of its features.
        """
        dtypes = dict[int, str]()
        for block, work in works.items():
            path = self.path(folder, block)
            file = read_features(path)
            if file is None or (dtype := file.features().dtype.name) not in STORED:
                if folder == self.folder and path.exists() and not record_path(path).exists():
                    raise ValueError(
                        f"{path}: nothing tells what these features are of; put its record "
                        f"{path.stem}.json beside it, remove it, or give another --teacher-features"
                    )
                dtypes[block] = work.dtype
                continue
            there, wanted = _keyed(file.record), _keyed(work.wanted())
            if differences := [
                f"{words} ({_short(there.get(name))} there, {_short(wanted.get(name))} now)"
                for name, words in _KEY.items()
                if there.get(name) != wanted.get(name)
            ]:
                raise ValueError(
                    f"--teacher-features {path.parent}: {path.name} is of {', '.join(differences)}; give the "
                    "same, or another folder"
                )
            if there.get("files") != wanted.get("files"):
                dtypes[block] = dtype
        return dtypes

    def read(self, block: int, device: torch.device) -> Tensor:
        """Return a block's features of length 1, float16 [N, D], of a file that `make` has found or made.

        Images that could not be decoded have NaN.

        Raises:
            ValueError: The features of a decoded image are not finite.
        """
        file = self.files[block]
        features = file.of_length_1(np.arange(file.record["shape"][0]), device)
        if (num := int((~_are_finite(features)).sum())) != (num_bad := len(file.record["bad"])):
            raise ValueError(
                f"{file.path}: the features of {number_of(num, 'image')} are not finite, and its record "
                f"tells {num_bad}; remove it, and the same command makes it anew"
            )
        return features


def _are_finite(rows: Tensor) -> Tensor:
    """Return which rows [N, D] of length 1 are finite, bool [N]."""
    return rows.sum(1).isfinite()


def _keyed(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record with the fields of its "input" beside its own, which win where both have a name."""
    input = record.get("input")
    fields = dict(input) if isinstance(input, dict) else {}
    return {**fields, **record, "backbone": without_folder(str(record.get("backbone")))}


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
        self.store, self.why_uncapturable, self.pass_s = store, "", 0.0

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
        vars(self).pop("features", None)  # those of the stage before, which are as large
        self._begin_queue(stage, device)
        if self.block in self.store.files:
            self.features = self.store.read(self.block, device)
        else:  # a dry run stores nothing
            width = self.teacher.channels[self.block - 1]
            self.features = torch.zeros(self.num_images, width, dtype=torch.float16, device=device)
        self.is_known = _are_finite(self.features)  # images that could not be decoded have no feature
        self.features.nan_to_num_(0.0)
        if self.block in self.store.files:
            self._fill_queue()

    def _fill_queue(self) -> None:
        """Begin the queue with the features of some images, in random order."""
        order = torch.randperm(len(self.features), generator=torch.Generator().manual_seed(0))
        first = order[self.is_known.cpu()[order]][: len(self.queue)].to(self.features.device)
        self.queue[: len(first)] = F.normalize(self.features[first].float())
        self.filled[: len(first)] = 1.0
        self.slot.fill_(len(first) % len(self.queue))

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
        return center_view(self.teacher.input, self.teacher.size_px, True)

    @override
    def cost_line(self, times: BlockTimes, stages: Sequence[Stage], data: RunData) -> str:
        store, num = self.store, data.train.num_samples
        own = Path(data.options.out) / FOLDER if data.options.out else None
        folder = store.folder or own
        blocks = sorted(store.missing(folder, store.works(data))) if folder else store.blocks
        if folder and not blocks:
            file = read_features(store.path(folder, store.blocks[0]))
            bad = len(file.record["bad"]) if file else 0
            without = f", and {number_of(bad, 'image')} could not be decoded" if bad else ""
            return f"its features of {num:,} whole images are in {folder}{without}"
        self.pass_s = num * times.teacher_ms[blocks[-1] - 1] / (1000 * data.world.size)
        size = 2 * num * sum(self.teacher.channels[block - 1] for block in blocks)
        return (
            f"its features of {num:,} whole images are computed first, in about {clock(self.pass_s)} without "
            f"decoding, and kept: {gigabytes(size)} in {store.folder or f'{FOLDER} of the run'}"
        )

    @override
    def seconds_before(self) -> float:
        return self.pass_s
