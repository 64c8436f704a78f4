"""Test segmentation: its crops, loss in plain loops, scores, two ranks, and interrupted predictions."""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from typing_extensions import override

from fastpsl.engine.dataset_pass import NAME, PART, EpochContext, PassStopped, read_predictions
from fastpsl.engine.distributed import World
from fastpsl.engine.experiment import Experiment, make_train_step, place_backbone
from fastpsl.engine.last_step import LastStep
from fastpsl.engine.options import RunOptions, TrainingOptions
from fastpsl.engine.plan import Stage
from fastpsl.engine.run import Run
from fastpsl.engine.train_step import TrainStep
from fastpsl.engine.trainer import StageTrainer, pretrain
from fastpsl.kernels.draws import Keys
from fastpsl.models.convolutional import AlexNet
from fastpsl.pipelines.datasets.voc.annotations import VOID, palette
from fastpsl.pipelines.datasets.voc.dataset import VOC
from fastpsl.pipelines.embedded.draw_voc import draw_voc
from fastpsl.pipelines.loader.annotated import AnnotatedBatch, read_image
from fastpsl.pipelines.views import Input
from fastpsl.plots.detections import Shown, draw_masks
from fastpsl.transfer.segmentation.fcn import FCN32s, network_of
from fastpsl.transfer.segmentation.task import ScaledCrop, Segmentation, confusion, mask_losses, mask_scores
from tests.collectives import FakeRanks
from tests.engine.exact_signals import signal_at_question
from tests.engine.steps import rank_of
from tests.engine.tiny import one_process
from tests.transfer.threads import one_thread
from tests.warm import results_of_ranks


def keys(index: int, epoch: int = 0) -> Keys:
    return Keys(3, epoch, np.array([index], np.int64))


def annotated(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return an image and its mask: red is the class, 1 left and 2 right; green rises downwards."""
    mask = torch.ones(height, width, dtype=torch.uint8)
    mask[:, width // 2 :] = 2
    shades = torch.arange(height) * 255 // height
    image = torch.stack([mask * 100, shades[:, None].repeat(1, width), mask * 0])
    return image.to(torch.uint8), mask


def test_crops_of_image_and_mask_are_the_same_place() -> None:
    crop = ScaledCrop(32, (0.5, 2.0), 0.75)
    flips, heights, firsts = [], [], []
    for index in range(200):
        image, mask = crop(*annotated(40, 60), keys(index))
        assert image.dtype == mask.dtype == torch.uint8 and image.shape[1:] == mask.shape
        assert mask.shape[0] <= 32 and mask.shape[1] <= 32
        near = (image[0].int() - mask.int() * 100).abs() < 30
        assert near.float().mean() > 0.9  # because bilinear and nearest differ along the middle
        if (mask == 1).any() and (mask == 2).any():
            flips.append(int(mask[0, 0]) == 2)
        heights.append(mask.shape[0])
        firsts.append(int(image[1, 0, 0]))
        again = crop(*annotated(40, 60), keys(index))
        assert torch.equal(again[0], image) and torch.equal(again[1], mask)
    assert 0.35 < np.mean(flips) < 0.65 and len(flips) > 150
    assert min(heights) in (16, 17) and max(heights) == 32  # half of the shorter side's 32, then cropped
    assert min(firsts) < 10 and max(firsts) > 120
    others = [crop(*annotated(40, 60), keys(index, epoch=1))[1].shape[0] for index in range(200)]
    assert others != heights


@pytest.mark.parametrize("side", [5, 8, 12, 30])
def test_a_resized_mask_has_the_classes_at_the_middles_of_its_pixels(side: int) -> None:
    mask = torch.arange(side * side, dtype=torch.uint8).view(side, side) % 200
    middles = [int((place + 0.5) * side / 12) for place in range(12)]
    expected = mask[middles][:, middles].tolist()
    mirrored = [row[::-1] for row in expected]
    crop, image = ScaledCrop(12, (1.0, 1.0), 1.0), mask[None].repeat(3, 1, 1)
    found = [crop(image, mask, keys(index))[1].tolist() for index in range(8)]
    assert expected in found and mirrored in found and all(one in (expected, mirrored) for one in found)


@pytest.mark.parametrize(("size", "wanted"), [((10, 100), (6, 16)), ((10, 40), (16, 16)), ((90, 9), (16, 6))])
def test_the_longer_side_is_at_most_four_times_the_crops(
    size: tuple[int, int], wanted: tuple[int, int]
) -> None:
    """With a crop of 16 px, 10 x 100 px become 6 x 64 and not 16 x 160."""
    crop = ScaledCrop(16, (1.0, 1.0), 1.0)
    assert [tuple(crop(*annotated(*size), keys(i))[1].shape) for i in range(4)] == [wanted] * 4


def test_a_crop_is_drawn_anew_ten_times_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has eleven places in all, which differ, and the last one is shown."""
    tried: list[Tensor] = []
    monkeypatch.setattr(ScaledCrop, "_is_mixed", lambda crop, mask: tried.append(mask.clone()))
    mask = torch.arange(200, dtype=torch.uint8).repeat(200, 1)
    _, shown = ScaledCrop(20, (10.0, 10.0), 0.75)(mask[None].repeat(3, 1, 1), mask, keys(0))
    assert len(tried) == 11 and len({int(each[0, 0]) for each in tried}) > 5
    assert torch.equal(shown, tried[-1]) or torch.equal(shown, tried[-1].flip(-1))


@pytest.mark.parametrize(
    ("numbers", "is_mixed"),
    [
        ([1] * 11 + [2] * 5, True),
        ([1] * 12 + [2] * 4, False),  # three quarters, and it must be less, as in mmsegmentation
        ([1] * 3 + [2] + [VOID] * 12, False),  # void does not count
        ([0] * 5 + [20] * 3 + [VOID] * 8, True),
        ([7] * 16, False),
        ([7] * 8 + [VOID] * 8, False),
        ([VOID] * 16, False),
    ],
)
def test_a_crop_needs_two_classes_and_less_than_the_largest_share(numbers: list[int], is_mixed: bool) -> None:
    mask = torch.tensor(numbers, dtype=torch.uint8).view(4, 4)
    assert ScaledCrop(4, (1.0, 1.0), 0.75)._is_mixed(mask) == is_mixed


LR = 0.5


def test_an_images_loss_is_the_mean_over_its_pixels_that_are_known() -> None:
    torch.manual_seed(0)
    scores, masks = torch.randn(3, 4, 5, 3), torch.randint(0, 4, (3, 5, 3))
    masks[0, :2], masks[1, 4, 2], masks[2] = VOID, VOID, VOID
    results = mask_losses(scores, masks)
    for i in range(2):
        losses = []
        for y, x in np.argwhere(masks[i].numpy() != VOID):
            at = scores[i, :, y, x].double()
            losses.append(float(at.exp().sum().log() - at[masks[i, y, x]]))
        assert float(results[i]) == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert float(results[2]) == 0.0
    assert mask_losses(scores[:0], masks[:0]).shape == (0,)


def batch_of(*sizes: tuple[int, int], seed: int = 0) -> AnnotatedBatch:
    random = torch.Generator().manual_seed(seed)
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=random) for size in sizes]
    masks = [torch.randint(0, 4, size, generator=random).to(torch.uint8) for size in sizes]
    return AnnotatedBatch(
        images=images, targets=[{"mask": mask} for mask in masks], indices=torch.arange(len(sizes)),
        labels=torch.full((len(sizes),), -1), epoch=0, step=0,
    )  # fmt: skip


def test_smaller_images_are_laid_at_the_left_top_with_void_beside_them() -> None:
    task = Segmentation(FCN32s(98, 191, 13.0, 8), Input())
    batch = batch_of((5, 9), (7, 4))
    images, masks = task._batch(batch)
    assert images.shape == (2, 3, 7, 9) and masks.shape == (2, 7, 9) and masks.dtype == torch.int64
    mean, std = (torch.tensor(values)[:, None, None] for values in (Input().mean, Input().std))
    for i, (height, width) in enumerate(((5, 9), (7, 4))):
        expected = (batch.images[i] / 255 - mean) / std
        assert torch.allclose(images[i, :, :height, :width], expected, atol=1e-5)
        assert torch.equal(masks[i, :height, :width], batch.targets[i]["mask"].long())
        outside = torch.ones(7, 9, dtype=torch.bool)
        outside[:height, :width] = False
        assert (masks[i][outside] == VOID).all() and not images[i][:, outside].any()
    crops = Segmentation(task.network, Input(), ScaledCrop(16, (1.0, 1.0), 1.0))
    assert crops._batch(batch)[0].shape == (2, 3, 16, 16)


def test_the_contact_sheet_has_the_masks_colours() -> None:
    batch = batch_of((6, 8))
    sheet = Segmentation(FCN32s(98, 191, 13.0, 8), Input()).contact_sheet((), batch)
    assert sheet.shape == (1, 3, 6, 8) and 0 <= float(sheet.min()) and float(sheet.max()) <= 1
    for y, x in np.ndindex(6, 8):
        pixel, number = batch.images[0][:, y, x].float() / 255, int(batch.targets[0]["mask"][y, x])
        colour = torch.tensor(palette()[number].tolist()) / 255
        expected = 0.5 * (pixel + colour) if number else pixel
        assert torch.allclose(sheet[0, :, y, x], expected, atol=1e-3)


@dataclass(frozen=True)
class TwoHeads:
    """A network with constant scores of two heads."""

    last_block: int = 5

    def head(self, num_classes: int) -> nn.Module:
        return nn.ParameterList([torch.zeros(num_classes), torch.arange(float(num_classes))])

    def scores(self, blocks: Any, head: nn.Module, images: Tensor) -> list[Tensor]:
        assert isinstance(head, nn.ParameterList)
        shape = (len(images), -1, *images.shape[-2:])
        return [one[None, :, None, None].expand(shape) for one in head]


def test_the_loss_adds_the_auxiliary_heads_share_and_counts_right_pixels() -> None:
    task = Segmentation(TwoHeads(), Input(), None, 0.4)
    task.num_classes = 4
    batch = batch_of((5, 9), (7, 4))
    head = task.head(1, 8)
    loss, metrics = task.loss(None, head, (), batch)  # type: ignore[arg-type]
    logs = torch.log_softmax(torch.arange(4.0), 0)
    second = sum(float(-logs[target["mask"].long()].mean()) for target in batch.targets)
    assert float(loss) == pytest.approx(math.log(4) + 0.4 * second / 2, rel=1e-5)
    total, num = metrics["loss"]
    assert float(total) == pytest.approx(2 * math.log(4)) and float(num) == 2
    right = sum(float((target["mask"] == 0).float().mean()) for target in batch.targets)
    assert float(metrics["pixels_right"][0]) == pytest.approx(right)
    plain = Segmentation(TwoHeads(), Input())
    assert float(plain.loss(None, head, (), batch)[0]) == pytest.approx(math.log(4), rel=1e-5)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Ramp(TwoHeads):
    """A network that finds class 1 right of a column of the image that it reads."""

    column: float = 0.0

    @override
    def scores(self, blocks: Any, head: nn.Module, images: Tensor) -> list[Tensor]:
        rise = torch.arange(images.shape[-1]) - self.column
        return [torch.stack([0 * rise, rise])[None, :, None].expand(-1, -1, images.shape[-2], -1)]


@pytest.mark.parametrize("column", [0.1, 0.8, 3.6, 5.2, 6.9])
def test_scores_stand_at_the_middles_of_the_pixels_that_were_read(column: float) -> None:
    """An image of 16 x 24 px is read at 8 x 12."""
    task = Segmentation(Ramp(column=column), Input(), ScaledCrop(8, (1.0, 1.0), 1.0))
    step: Any = SimpleNamespace(module=SimpleNamespace(blocks=None, head=None), autocast=nullcontext)
    places = np.clip((np.arange(24) + 0.5) / 2 - 0.5, 0, 11)
    found = task.found(torch.zeros(3, 16, 24, dtype=torch.uint8), step)
    assert found.tolist() == [(places > column).astype(int).tolist()] * 16


class Guessing(FCN32s):
    """An FCN-32s with a last layer that is not initialised with zeros."""

    @override
    def head(self, num_classes: int) -> nn.Module:
        head = super().head(num_classes)
        nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(1))  # type: ignore[arg-type]
        return head


def experiment_of(root: Path, lr: float) -> Experiment:
    torch.manual_seed(0)
    backbone = AlexNet(fc_width=8, dropout=0.0)
    found = network_of(backbone, auxiliary=False)
    assert isinstance(found, FCN32s)
    network = Guessing(found.border_px, found.side_px, found.first_px, found.width)

    def opened(options: RunOptions) -> tuple[VOC, VOC]:
        return VOC(root, ("2012_train",), "masks"), VOC(root, ("2012_val",), "masks")

    return Experiment(
        task=Segmentation(network, Input()), backbone=backbone, stages=(Stage("segmentation", 1, 1, 7, 1),),
        schedule=lambda moment: lr, open=opened, batchnorm="eval",
    )  # fmt: skip


@contextmanager
def run_of(
    root: Path, out: Path, world: World, lr: float = 0.0, **options: Any
) -> Iterator[tuple[Experiment, Run]]:
    experiment = experiment_of(root, lr)
    values = {"batch_size": 2, "workers": 1, "tensorboard": False, "checkpoint_minutes": 0.0} | options
    data = experiment.open_data(TrainingOptions(data=str(root), out=out, **values), world)
    run = Run("voc", data, experiment.science)
    yield experiment, run
    run.close()


def in_a_process(folder: Path, name: str, rank: int, size: int) -> None:
    """Train without learning, and for one step."""
    world, root = rank_of(rank, size), folder / "VOCdevkit"
    with run_of(root, folder / name, world) as (experiment, run):
        assert pretrain(experiment, run)
    with run_of(root, folder / f"{name}-step", world, LR, max_steps_per_stage=1) as (experiment, run):
        assert pretrain(experiment, run)


def found_in(folder: Path) -> dict[str, bytes]:
    paths = [folder / NAME, *sorted((folder / "masks").glob("*"))]
    return {path.name: path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the same trainings in two processes ("two", "two-step") and in one."""
    path = tmp_path_factory.mktemp("segmentation")
    draw_voc(path / "VOCdevkit", 2, 2, side_px=40, num_train_masks=4, num_test_masks=7)
    results_of_ranks(partial(in_a_process, path, "two"), 2, path)
    with one_thread():
        in_a_process(path, "one", 0, 1)
    return path


@pytest.mark.slow
def test_two_ranks_say_of_seven_images_what_one_says(folder: Path) -> None:
    """Compare confusions and masks byte by byte, each image once."""
    one_rank, both_ranks = found_in(folder / "one"), found_in(folder / "two")
    assert one_rank == both_ranks and len(one_rank) == 1 + 7 + 1
    predictions = read_predictions(folder / "two" / NAME)
    assert predictions["image"].tolist() == list(range(7))
    assert predictions["confusion"].shape == (7, 4, 4) and predictions["confusion"].dtype == np.int64
    assert not (folder / "two" / "predictions").exists()


def test_masks_are_what_was_found_at_the_images_own_size(folder: Path) -> None:
    predictions = read_predictions(folder / "one" / NAME)
    with VOC(folder / "VOCdevkit", ("2012_val",), "masks") as data:
        for index in range(7):
            truth = data.mask(index)
            with Image.open(folder / "one" / "masks" / f"{data.image_id(index)}.png") as image:
                assert image.mode == "P" and image.getpalette() == palette().ravel().tolist()
                mask = np.array(image)
            assert mask.shape == truth.shape
            expected = confusion(torch.from_numpy(mask), torch.from_numpy(truth), 4)
            assert (predictions["confusion"][index] == expected.numpy()).all()
            assert predictions["confusion"][index].sum() == (truth != VOID).sum()


def test_two_ranks_make_the_step_of_one(folder: Path) -> None:
    """Compare the weights after a step on two images of different sizes, whose losses are independent."""
    steps = []
    for name in ("one-step", "two-step"):
        (path,) = (folder / name / "checkpoints").glob("step-*.pt")
        state = torch.load(path, weights_only=True)
        steps.append(state["backbone"] | state["train_step"]["head"])
    torch.manual_seed(0)
    before = AlexNet(fc_width=8, dropout=0.0).state_dict()
    changed = 0
    for name, weights in steps[0].items():
        expected = steps[1][name]
        if name in before and before[name].is_floating_point() and "running" not in name:
            moved = (weights - before[name]).abs().max()
            changed += bool(moved > 0)
            # A tolerance, because convolutions read the padding of the smaller image in a batch of two.
            assert (weights - expected).abs().max() <= 0.05 * moved + 1e-6, name
        elif "running" in name:
            assert torch.equal(weights, before[name]), name  # because BatchNorm is in mode "eval"
    assert changed > 20


def test_predictions_go_on_where_they_were_and_old_masks_do_not_stay(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = draw_voc(tmp_path / "VOCdevkit", 2, 2, side_px=32, num_train_masks=2, num_test_masks=PART + 3)
    with run_of(root, tmp_path / "run", one_process()) as (experiment, run):
        experiment.check(run.data)
        place_backbone(experiment, run.options, run.world)
        train_step = make_train_step(experiment, 0, run.options, run.world)
        context, task = EpochContext(run, train_step, 0, False, 1), experiment.task
        assert isinstance(task, Segmentation)
        indices: list[int] = []
        found = task.found

        def counted(image: Tensor, train_step: TrainStep) -> Tensor:
            indices.append(1)
            return found(image, train_step)

        monkeypatch.setattr(task, "found", counted)
        signal_at_question(run, PART + 2)
        with pytest.raises(PassStopped):
            task.end_stage(context)
        assert len(indices) == PART + 2 and not (run.folder / NAME).exists()
        indices.clear()
        task.end_stage(context)
        assert len(indices) == 3
        whole = found_in(run.folder)
        assert len(whole) == 1 + 1 + PART + 3
        (run.folder / "masks" / "2008_999999.png").write_bytes(b"of other weights")
        with torch.no_grad():
            for weights in train_step.module.head.parameters():  # type: ignore[union-attr]
                weights.neg_()  # so that the least likely class becomes the most likely one
        task.end_stage(context)
        other_run = found_in(run.folder)
        assert other_run.keys() == whole.keys()
        assert other_run[NAME] != whole[NAME]


def test_training_mode_is_as_it_was_after_the_predictions(folder: Path, tmp_path: Path) -> None:
    with run_of(folder / "VOCdevkit", tmp_path, one_process()) as (experiment, run):
        experiment.check(run.data)
        place_backbone(experiment, run.options, run.world)
        stage_trainer = StageTrainer(experiment, run, None, LastStep(run))
        module = stage_trainer.train_step.module.train()
        modes = {name: part.training for name, part in module.named_modules()}
        experiment.task.end_stage(stage_trainer._context(1))
        assert modes == {name: part.training for name, part in module.named_modules()}
        assert modes["blocks"] and not modes["blocks.learning.0.1"]


def test_training_crops_are_draws_of_seed_epoch_and_image(tmp_path: Path) -> None:
    root = draw_voc(tmp_path / "VOCdevkit", 2, 2, side_px=40, num_train_masks=3, num_test_masks=2)
    crop = ScaledCrop(24, (0.5, 2.0), 0.75)
    task = Segmentation(TwoHeads(), Input(), crop)
    with VOC(root, ("2012_train",), "masks") as voc:
        options = SimpleNamespace(seed=3)
        data: Any = SimpleNamespace(train=voc, options=options, annotated_loader=lambda read: read)
        read: Any = task.train_loader(data)
        shown = []
        for index in range(3):
            for epoch in (0, 1, 5):
                image, target = read(index, epoch)
                mask = torch.from_numpy(voc.mask(index))
                expected = crop(read_image(voc, index), mask, keys(index, epoch))
                assert torch.equal(image, expected[0]) and torch.equal(target["mask"], expected[1])
                shown.append(image.numpy().tobytes())
        assert len(set(shown)) == len(shown)
        whole = Segmentation(TwoHeads(), Input()).train_loader(data)
        image, target = whole(1, 0)  # type: ignore[operator]  # the stand-in returns the reader itself
        assert torch.equal(image, read_image(voc, 1))
        assert torch.equal(target["mask"], torch.from_numpy(voc.mask(1)))


def test_long_images_are_read_within_four_times_the_crop() -> None:
    """With a crop of 16 px, 8 x 100 px are read at 5 x 64, and not at 16 x 200."""
    sizes: list[tuple[int, ...]] = []

    class Seen(TwoHeads):
        @override
        def scores(self, blocks: Any, head: nn.Module, images: Tensor) -> list[Tensor]:
            sizes.append(tuple(images.shape[-2:]))
            return [torch.zeros(1, 2, *images.shape[-2:])]

    task = Segmentation(Seen(), Input(), ScaledCrop(16, (1.0, 1.0), 1.0))
    step: Any = SimpleNamespace(module=SimpleNamespace(blocks=None, head=None), autocast=nullcontext)
    for height, width in ((8, 100), (8, 16)):
        assert task.found(torch.zeros(3, height, width, dtype=torch.uint8), step).shape == (height, width)
    assert sizes == [(5, 64), (16, 32)]


def test_predictions_of_another_input_or_crop_are_not_taken() -> None:
    """The description that stored predictions are compared with has the crop and the input."""
    given: list[dict[str, Any]] = []
    context: Any = SimpleNamespace(
        world=replace(one_process(), rank=1), train_step=None,
        run=SimpleNamespace(data=SimpleNamespace(val=VOC.__new__(VOC)), folder=Path("none")),
        val_science=lambda **more: more, predict=lambda images, science: given.append(science),
    )  # fmt: skip
    for crop, channels in ((None, "RGB"), (16, "RGB"), (32, "RGB"), (16, "L"), (16, "RGB")):
        chosen = None if crop is None else ScaledCrop(crop, (0.5, 2.0), 0.75)
        Segmentation(TwoHeads(), Input.usual(channels, 32), chosen).end_stage(context)
    assert given[1] == given[4] and len({repr(science) for science in given}) == 4


NAMES = ("background", "cat", "dog")


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        # Void does not count: background has 1 of 2, cat 2 of 3, and the dog was predicted on void alone.
        ([([0, 0, 1, 1, 255, 255], [0, 1, 1, 1, 0, 2])], (1 / 2, 2 / 3, None)),
        # Images count together: cat has 1 of 2 and 5 of 5, which is 6 of 7; background 1 of 2 and 0 of 0.
        ([([0, 0, 1], [0, 1, 1]), ([1] * 5, [1] * 5)], (1 / 2, 6 / 7, None)),
        ([([0, 0, 2, 2], [0, 0, 0, 0])], (1 / 2, None, 0)),  # a class that is never found
        ([([0, 0, 0, 0], [0, 0, 0, 2])], (3 / 4, None, 0)),  # one that is only predicted
        ([([0, 1, 1, 2], [1, 2, 0, 0])], (0, 0, 0)),
        ([([0, 1, 1, 2], [0, 1, 1, 2])], (1, 1, 1)),
        ([([255, 255], [0, 1])], (None, None, None)),
    ],
)
def test_scores_by_hand(
    images: list[tuple[list[int], list[int]]], expected: tuple[float | None, ...]
) -> None:
    """The images are (truth, prediction); the mean is over the classes that have a score."""
    counts = [confusion(torch.tensor([p]), torch.tensor([t]), len(NAMES)).numpy() for t, p in images]
    assert all(each.dtype == np.int64 for each in counts)
    scores = {f"IoU_{n}": 100 * iou for n, iou in zip(NAMES, expected, strict=True) if iou is not None}
    mean = sum(scores.values()) / max(1, len(scores))
    assert mask_scores(np.stack(counts), NAMES) == pytest.approx({"mIoU": mean} | scores)


def test_rows_are_the_truth_and_large_counts_are_exact_to_a_ten_thousandth() -> None:
    counts = confusion(torch.tensor([[2, 2, 0]]), torch.tensor([[1, 255, 0]], dtype=torch.uint8), 3)
    assert counts.tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]
    random = np.random.default_rng(0)
    total = random.integers(0, 10**8, (21, 21))
    names = tuple(str(n) for n in range(21))
    result = mask_scores(total[None], names)
    for n in range(21):
        union = total[n].sum() + total[:, n].sum() - total[n, n]
        assert result[f"IoU_{n}"] == pytest.approx(100 * total[n, n] / union, abs=1e-4)


def test_rank_0_scores_alone() -> None:
    """The others have left, so a call for them would never return."""
    counts = np.array([[[3, 1], [0, 2]]])
    with FakeRanks(2).rank(0) as (_, calls):
        assert mask_scores(counts, ("a", "b"))["IoU_a"] == pytest.approx(75.0)
    assert not calls


def test_the_sheet_shows_images_truth_and_prediction_in_vocs_colours(tmp_path: Path) -> None:
    truth, prediction = np.zeros((30, 40), np.uint8), np.full((30, 40), 2, np.uint8)
    truth[:, :20], truth[:, 20:22] = 1, 255
    pixels = np.full((30, 40, 3), (10, 200, 30), np.uint8)
    row = Shown(pixels, truth, prediction, "one")
    for num in (1, 3):
        path = draw_masks(tmp_path / "sheet.png", [row] * num, NAMES)
        with Image.open(path) as image:
            sheet = np.asarray(image.convert("RGB"))
        counts = {
            name: (sheet == colour).all(-1).sum()
            for name, colour in zip(
                ("cat", "dog", "void", "picture"), (*palette()[[1, 2, 255]], pixels[0, 0]), strict=True
            )
        }  # fmt: skip
        whole = 150 * 200
        for name, share in (("cat", 0.5), ("dog", 1.0), ("void", 0.05), ("picture", 1.0)):
            assert counts[name] == pytest.approx(num * share * whole, abs=400), (num, name)
