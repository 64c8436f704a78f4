"""Size, crop scale and batch of a stage's own: views, steps, rates, resume and ranks."""

import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from fastpsl.engine.experiment import Experiment
from fastpsl.engine.online_probe import look_view
from fastpsl.engine.optim.schedules import Moment, cosine
from fastpsl.engine.options import PretrainOptions
from fastpsl.engine.stage_blocks import Metrics, StageBlocks
from fastpsl.engine.trainer import pretrain
from fastpsl.kernels.crops import RandomResizedCrop, ShorterSideCrop
from fastpsl.kernels.draws import Keys
from fastpsl.kernels.filters import GaussianBlur
from fastpsl.kernels.geometry import Shift
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.views import Input, ViewSpec, center_view, train_view
from fastpsl.scripts.command_line import parse
from fastpsl.tasks.contrastive.moco import MoCo
from fastpsl.tasks.contrastive.simclr import SimCLR, simclr_blur
from fastpsl.tasks.rotation import Rotation
from tests.engine.exact_signals import train_until
from tests.engine.steps import assert_alike, rank_of
from tests.engine.tiny import TinyNet, tiny_run
from tests.programs import newest_checkpoint, records
from tests.recipes.in_process import built, same_run
from tests.warm import results_of_ranks

SIZES, BATCHES = (16, 24, 32), (96, 48, 24)


class Looking(SimCLR):
    """A SimCLR that notes each training batch, and compares its loss with plain loops."""

    def __init__(self) -> None:
        super().__init__(min(BATCHES), size_px=SIZES[-1], temperature=0.2, embedding_width=4)
        self.seen = list[tuple[int, int]]()

    @override
    def loss(
        self, blocks: StageBlocks, head: nn.Module, inputs: Sequence[Tensor], batch: Batch
    ) -> tuple[Tensor, Metrics]:
        loss, metrics = super().loss(blocks, head, inputs, batch)
        if head.training and (len(batch.indices), inputs[0].shape[-1]) not in self.seen:
            self.seen.append((len(batch.indices), inputs[0].shape[-1]))
            with torch.no_grad():  # batch statistics are those of the same images
                rows = F.normalize(head(blocks(torch.cat(list(inputs))))).double()
            num, total = len(rows) // 2, 0.0
            for i in range(2 * num):
                others = [math.exp(float(rows[i] @ rows[j]) / 0.2) for j in range(2 * num) if j != i]
                total -= float(rows[i] @ rows[(i + num) % (2 * num)]) / 0.2 - math.log(sum(others))
            assert float(loss.detach()) == pytest.approx(total / (2 * num), rel=1e-4)
        return loss, metrics


def experiment_of(task: Any, options: PretrainOptions, **values: Any) -> Experiment:
    stages = options.stages(task.num_levels, 5)
    return Experiment(task, TinyNet(), stages, cosine(0.1), **values)


def staged(**values: Any) -> PretrainOptions:
    return SizedOptions(**{"epochs": (2, 2, 2), "size_px": SIZES, "batch_size": BATCHES, **values})


class SizedOptions(PretrainOptions):
    """The shared options, with the size that recipes add."""

    size_px: Any

    def __init__(self, size_px: Any = None, **values: Any):
        super().__init__(**values)
        object.__setattr__(self, "size_px", size_px)


def test_each_stage_has_its_own_images_batch_and_negatives(tmp_path: Path) -> None:
    task = Looking()
    with closing(tiny_run(tmp_path, batch_size=BATCHES, probe_every=0)) as run:
        assert pretrain(experiment_of(task, staged()), run)
    assert task.seen == list(zip(BATCHES, SIZES, strict=True))
    summaries = newest_checkpoint(tmp_path)["position"]["summaries"]
    assert [each["num_steps"] for each in summaries] == [2 * (480 // size) for size in BATCHES]
    assert [each["chance"] for each in summaries] == [1 / (2 * size - 1) for size in BATCHES]
    rows = records(tmp_path / "metrics.jsonl")
    # One cosine over all six epochs, whatever number of steps they have.
    starts = [next(row["lr"] for row in rows if row["stage"] == name) for name in ("S1", "S2", "S3")]
    assert starts == pytest.approx([0.05 * (1 + math.cos(math.pi * share)) for share in (0, 1 / 3, 2 / 3)])
    assert newest_checkpoint(tmp_path)["input"]["size_px"] == SIZES[-1]


@pytest.mark.parametrize("size_px", [32, 64, 96, 112, 128, 160, 192])
def test_a_stage_s_views_are_those_of_the_method_at_its_size(size_px: int) -> None:
    """That is: the plain crop of this size, and a blur by a tenth of the side."""
    whole, small = (SimCLR(8, size_px=size, temperature=0.1, embedding_width=4) for size in (224, size_px))
    experiment = experiment_of(whole, staged(size_px=(size_px, size_px, 224), batch_size=8))
    for stage in experiment.stages[:2]:
        assert experiment.views(stage) == experiment.val_views(stage) == small.views(stage.level)
    assert experiment.views(experiment.stages[2]) == whole.views(3)
    blur = replace(whole.views(3)[0], crop=RandomResizedCrop(224)).resized(size_px / 224).ops[3]
    assert blur == simclr_blur(size_px)


def test_pixels_are_those_of_a_plain_crop(tmp_path: Path) -> None:
    experiment = experiment_of(SimCLR(8, size_px=32, temperature=0.1, embedding_width=4), staged(
        size_px=SIZES, crop_scale=(0.3,), batch_size=8
    ))  # fmt: skip
    with closing(tiny_run(tmp_path, batch_size=8)) as run:
        for stage, size_px in zip(experiment.stages, SIZES, strict=True):
            plain = ViewSpec(RandomResizedCrop(size_px, scale=(0.3, 1.0)))
            batches = []
            for view in (experiment.views(stage)[0], plain):
                with Loader(run.data.train, [view], batch_size_per_rank=8, num_threads=1) as loader:
                    batches.append(next(loader.epoch(3)))
            assert torch.equal(batches[0].images[0], batches[1].images[0])
            assert batches[0].images[0].shape == (8, 3, size_px, size_px)


def test_lengths_follow_the_side_and_shares_stay() -> None:
    assert center_view(Input(), 224).resized(0.5).crop == ShorterSideCrop(128, 112, "center")
    padded = train_view(Input(size_px=32), 32, "padded").resized(2)
    assert padded.crop == ShorterSideCrop(64, 64, "center") and padded.ops[0] == Shift(8)
    rotation = Rotation(shorter_px=256, size_px=224)
    assert rotation.views(2)[0].resized(0.5) == Rotation(shorter_px=128, size_px=112).views(2)[0]
    assert rotation.views(3)[0].resized(0.5) == Rotation(shorter_px=128, size_px=112).views(3)[0]
    assert ViewSpec(RandomResizedCrop(50), (GaussianBlur(5),)).resized(0.1).ops == (GaussianBlur(1),)


def test_another_stage_s_crops_have_other_scales_of_the_same_places(tmp_path: Path) -> None:
    """The upper end stays, and so do the draws: a scale of 1 is the whole of a square image."""
    experiment = experiment_of(SimCLR(8, size_px=32, temperature=0.1, embedding_width=4), staged(
        size_px=None, crop_scale=(0.08, 0.5, 1.0), batch_size=8
    ))  # fmt: skip
    keys, sides = Keys(1, 0, np.arange(200)), np.full(200, 100, np.int32)
    areas = []
    for stage in experiment.stages:
        boxes = experiment.views(stage)[0].crop.boxes(keys, sides, sides)
        areas.append(boxes[:, 2].astype(float) * boxes[:, 3] / 1e4)
    assert areas[0].min() < 0.2 and areas[1].min() == pytest.approx(0.5, abs=0.03) and areas[2].min() > 0.97
    assert experiment.views(experiment.stages[0]) == experiment.task.views(1)


def test_all_stages_are_looked_at_in_the_last_one_s_size() -> None:
    experiment = experiment_of(SimCLR(8, size_px=32, temperature=0.1, embedding_width=4), staged())
    views = {look_view(experiment, stage).crop.size_px for stage in experiment.stages}
    assert views == {SIZES[-1]}
    assert experiment.input_record(experiment.stages[0])["size_px"] == SIZES[0]


def test_killed_in_the_second_stage_and_resumed_equals_never_stopped(tmp_path: Path) -> None:
    """Each stage's batches fill MoCo's queue. The stop is within the second stage's second epoch."""

    def fit(out: Path, stop_at: int | None = None) -> bool:
        torch.manual_seed(0)
        task = MoCo(
            seed=0, batch_size=24, queue_size=96, momentum=0.9, temperature=0.2, key_group=4, width=4,
            size_px=SIZES[-1],
        )  # fmt: skip
        run = tiny_run(out, batch_size=BATCHES, probe_every=0)
        return train_until(stop_at, experiment_of(task, staged()), run)

    whole, out = tmp_path / "whole", tmp_path / "stopped"
    assert fit(whole)
    assert not fit(out, stop_at=10 + 10 + 4)
    assert newest_checkpoint(out)["position"]["stage"] == 1
    assert fit(out)
    same_run(whole, out, "metrics.jsonl")
    assert len(records(out / "metrics.jsonl")) == 10 + 20 + 40


def weights(folder: Path, rank: int, world_size: int) -> dict[str, Tensor]:
    """Return the blocks after two steps of each stage; BatchNorm in eval mode, so that ranks are alike."""
    task = SimCLR(min(BATCHES), size_px=SIZES[-1], temperature=0.2, embedding_width=4)
    task.head = lambda level, channels: nn.Sequential(  # type: ignore[method-assign]
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 4)
    )
    torch.manual_seed(0)
    out = folder / str(world_size)
    options = {"batch_size": BATCHES, "probe_every": 0, "max_steps_per_stage": 2, "val": "none"}
    with closing(tiny_run(out, rank_of(rank, world_size), **options)) as run:
        assert pretrain(experiment_of(task, staged(), batchnorm="eval"), run)
        assert run.data.batch_size == BATCHES[-1] // world_size
        summaries = run.position.summaries
    assert [each["chance"] for each in summaries] == [1 / (2 * size - 1) for size in BATCHES]
    return dict(newest_checkpoint(out)["backbone"])


def test_two_ranks_share_each_stage_s_batch_and_learn_as_one(tmp_path: Path) -> None:
    ranks = results_of_ranks(partial(weights, tmp_path), 2, tmp_path)
    assert_alike(ranks, weights(tmp_path, 0, 1), rtol=1e-4)


def test_a_rate_that_scales_with_the_batch_is_each_stage_s() -> None:
    values: dict[str, Any] = {"plan": "psl", "epochs": (3, 3, 3), "lr": 0.1, "intervals": (1,)}
    _, experiment = built("supervised", batch_size=(512, 256, 96), size_px=(112, 160, 224), **values)
    rates = [experiment.schedule(Moment(0, 9, 3 * i, 3, 9, i)) for i in range(3)]
    assert rates == [0.1 * size / 256 for size in (512, 256, 96)]
    views = [(*experiment.views(s), *experiment.val_views(s)) for s in experiment.stages]
    sizes = [[view.crop.size_px for view in of_stage] for of_stage in views]
    assert sizes == [[112, 112], [160, 160], [224, 224]]


def test_words_of_a_command_are_one_value_or_several() -> None:
    assert parse(PretrainOptions, ["--batch-size", "64"]).batch_size == 64
    assert parse(PretrainOptions, ["--batch-size", "64", "32"]).batch_size == (64, 32)
    assert parse(PretrainOptions, []).batch_size == 256
    for words, text in (("--batch-size", "without a value"), ("--batch-size 9 0", "--batch-size 9 0")):
        with pytest.raises(ValueError, match=text):
            parse(PretrainOptions, words.split())


def test_one_value_leaves_the_stages_as_they_are() -> None:
    options = staged(size_px=32, batch_size=8)
    assert all(
        stage.size_px is stage.batch_size is stage.crop_scale is None for stage in options.stages(3, 5)
    )
    assert staged(size_px=(16,), plan="end_to_end", batch_size=8).stages(3, 5)[0].size_px == 16
