"""A small learning problem for tests of the engine: five blocks of one convolution, on the 32-px sample."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typing_extensions import override

from fastpsl.engine.distributed import World
from fastpsl.engine.options import PretrainOptions
from fastpsl.engine.run import Run, RunData
from fastpsl.kernels.draws import Keys
from fastpsl.models.backbone import Backbone
from fastpsl.models.teacher import Teacher
from fastpsl.models.weights import Pretrained
from fastpsl.pipelines.embedded.draw_sample import sample_paths
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.views import Input, ViewSpec
from fastpsl.scripts import recipe_process
from fastpsl.scripts.recipe import Recipe


class TinyNet(Backbone):
    """A backbone of five conv-BatchNorm-ReLU blocks, with stride 2 in all but the last."""

    name = "tiny"
    channels = (8, 8, 12, 16, 16)
    block_names = ("conv1", "conv2", "conv3", "conv4", "conv5")

    def __init__(self) -> None:
        super().__init__()
        widths = (3, *self.channels)
        self.parts = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(widths[i], widths[i + 1], 3, stride=2 if i < 4 else 1, padding=1, bias=False),
                nn.BatchNorm2d(widths[i + 1]),
                nn.ReLU(inplace=True),
            )
            for i in range(5)
        )

    @override
    def blocks(self) -> list[nn.Module]:
        return list(self.parts)


def teacher_of(seed: int, size_px: int, input: Input | None = None) -> Teacher:
    """Return a teacher with random weights, whose BatchNorms have statistics of their own."""
    torch.manual_seed(seed)
    network = TinyNet()
    for _ in range(3):
        network(torch.randn(8, 3, 32, 32) + 0.3)
    record = {"path": "teacher", "sha256": "0" * 64, "backbone": "tiny"}
    return Teacher(Pretrained(network, input or Input(size_px=size_px), record), size_px)


def one_process(device: str = "cpu") -> World:
    return World(rank=0, size=1, local_rank=0, local_size=1, device=torch.device(device))


def tiny_run(out: Path, world: World | None = None, **options: Any) -> Run:
    """Build a run over the 32-px sample, on the CPU, in `out`; with one process unless `world` is given."""
    paths = sample_paths()
    values: dict[str, Any] = {
        "data": str(paths.train_32), "val": str(paths.test_32), "out": out, "batch_size": 32,
        "epochs": (2, 2, 2), "checkpoint_minutes": 0.0, "tensorboard": False, "workers": 1,
    }  # fmt: skip
    return Run("tiny", RunData(PretrainOptions(**{**values, **options}), world or one_process()))


@dataclass(frozen=True)
class TinyRecipe(Recipe[PretrainOptions]):
    """A recipe that takes its options from `options`, whatever the command line is."""

    @override
    def parse(self, *arguments: Any, **more: Any) -> PretrainOptions:
        return self.options()  # type: ignore[call-arg]


def tiny_recipe(make_options: Any, build: Any) -> TinyRecipe:
    return TinyRecipe("tiny", None, make_options, {}, {}, build)


@contextmanager
def runs_closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close the runs that `launch` opens within, because a failed recipe leaves that to its process's end."""
    opened: list[Run] = []

    def open_run(*arguments: Any, **options: Any) -> Run:
        opened.append(Run(*arguments, **options))
        return opened[-1]

    monkeypatch.setattr(recipe_process, "Run", open_run)
    try:
        yield
    finally:
        for run in opened:
            run.close()


def noise_batch(views: Sequence[ViewSpec], size: int, seed: int = 0) -> Batch:
    """Build a batch of noise as a loader would return it."""
    random = torch.Generator().manual_seed(seed)
    images, draws = [], []
    for number, view in enumerate(views):
        side = view.crop.size_px
        pixels = torch.randint(0, 256, (size, side, side, 3), dtype=torch.uint8, generator=random)
        images.append(pixels.permute(0, 3, 1, 2))
        drawn = view.draw(Keys(seed, 0, np.arange(size), number))
        draws.append(tuple({k: torch.from_numpy(v) for k, v in draw.items()} for draw in drawn))
    indices, labels = torch.arange(size), torch.zeros(size, dtype=torch.long)
    ops = [view.ops for view in views]
    return Batch(images=images, draws=draws, indices=indices, labels=labels, epoch=0, step=0, ops=ops)


def part_of(batch: Batch, number: int, num_parts: int) -> Batch:
    """Return the `number`-th of `num_parts` equal parts of a batch."""

    def cut(tensor: Tensor) -> Tensor:
        return tensor.chunk(num_parts)[number]

    draws = [tuple({k: cut(v) for k, v in draw.items()} for draw in draws) for draws in batch.draws]
    images, indices, labels = list(map(cut, batch.images)), cut(batch.indices), cut(batch.labels)
    return replace(batch, images=images, draws=draws, indices=indices, labels=labels)
