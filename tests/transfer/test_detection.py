"""Test the detection task: its images, draws and predictions, two ranks, interruptions and precision."""

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from fastpsl.engine import dataset_pass
from fastpsl.engine.dataset_pass import EpochContext, PassStopped
from fastpsl.engine.distributed import World
from fastpsl.engine.options import TrainingOptions
from fastpsl.engine.train_step import DTYPES, TrainStep
from fastpsl.kernels.draws import Keys
from fastpsl.pipelines.datasets.voc.dataset import VOC
from fastpsl.pipelines.embedded.draw_voc import draw_voc
from fastpsl.pipelines.loader.annotated import AnnotatedBatch, read_image
from fastpsl.pipelines.views import CHANNELS, Input, center_view
from fastpsl.transfer.classification.task import MultiCropPredictor
from fastpsl.transfer.detection.detector import Detector
from fastpsl.transfer.detection.protocols import PROTOCOLS, DetectionProtocol
from fastpsl.transfer.detection.task import Detection, mirrored, scaled
from fastpsl.transfer.image_input import normalised, padded, resized, resized_sides
from fastpsl.transfer.segmentation.task import Segmentation
from tests.engine.steps import make_step, plain_sgd, rank_of
from tests.engine.tiny import TinyNet, one_process
from tests.transfer.threads import one_thread
from tests.warm import results_of_ranks

SMALL = replace(PROTOCOLS["small"], short_side=(48, 64), num_rois=8)
NUM_TEST = 7


@pytest.fixture(scope="module")
def devkit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_voc(tmp_path_factory.mktemp("voc") / "VOCdevkit", 8, NUM_TEST, side_px=64)


def opened(root: Path, protocol: DetectionProtocol = SMALL, seed: int = 3, **values: Any) -> Detection:
    torch.manual_seed(0)
    task = Detection(protocol, TinyNet(), Input(), seed, **values)
    if "" not in values.get("proposals", ()):
        task.open(root, TrainingOptions())
    else:  # because this process writes them
        task.train = task.test = VOC(root, ("2007_test",), "boxes")
    return task


def train_step_of(task: Detection, world: World, lr: float = 0.0) -> TrainStep:
    """Return what experiment.make_train_step makes, with the same weights every time."""
    torch.manual_seed(1)
    batchnorm, optimiser = task.protocol.batchnorm, plain_sgd
    return make_step(task.stage(), task, task.backbone, world=world, optimiser=optimiser, batchnorm=batchnorm)


def batch_of(task: Detection, indices: list[int], epoch: int = 0) -> AnnotatedBatch:
    images, targets = zip(*(task.read(index, epoch) for index in indices), strict=True)
    numbers = torch.tensor(indices)
    return AnnotatedBatch(list(images), list(targets), numbers, -torch.ones_like(numbers), epoch, 0)


# Images


@pytest.mark.parametrize(
    ("sides", "short", "longest", "wanted"),
    [((375, 500), 800, 1333, (800, 1067)), ((500, 375), 480, 1333, (640, 480)),
     ((100, 400), 600, 1000, (250, 1000)), ((7, 3), 3, 9, (7, 3)),
     ((500, 333), 600, 1333, (901, 600)), ((333, 500), 600, 1333, (600, 901))],
)  # fmt: skip
def test_sides_are_detectron2s(
    sides: tuple[int, int], short: int, longest: int, wanted: tuple[int, int]
) -> None:
    assert resized_sides(*sides, short, longest) == wanted


@pytest.mark.parametrize("sides", [(20, 33), (61, 40), (33, 20)])
def test_images_are_resized_as_by_pil(sides: tuple[int, int]) -> None:
    """Bilinearly, and smoothed where they shrink; single values may round in another way."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 66, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(pixels).resize(sides[::-1], Image.Resampling.BILINEAR)).astype(int)
    found = resized(torch.from_numpy(pixels).permute(2, 0, 1), sides)
    assert found.dtype == torch.uint8
    assert np.abs(found.permute(1, 2, 0).int().numpy() - expected).max() <= 1


@pytest.mark.parametrize("channels", CHANNELS)
def test_whole_images_are_seen_as_crops_are(channels: str) -> None:
    """Compare with the evaluation's view of the same pixels, before padding."""
    input = Input.usual(channels, 32)
    image = torch.randint(0, 256, (3, 21, 34), dtype=torch.uint8)
    view = center_view(input, 32)
    drawn = view.draw(Keys(0, 0, np.zeros(1, np.int64)))
    draws = [{k: torch.from_numpy(v) for k, v in d.items()} for d in drawn]
    result = normalised(image, input)
    assert result.shape == (input.num_channels, 21, 34) and result.dtype == torch.float32
    assert torch.equal(result, view.apply(image[None], draws, torch.float32)[0])


def test_padding_is_zeros_at_multiples_of_32() -> None:
    images = [torch.ones(2, 30, 40), torch.ones(2, 33, 8)]
    batch = padded(images)
    assert batch.shape == (2, 2, 64, 64) and batch.is_contiguous(memory_format=torch.channels_last)
    assert float(batch.sum()) == 2 * (30 * 40 + 33 * 8) and bool((batch[0, :, :30, :40] == 1).all())
    batch = padded(images, margin_px=8)
    assert batch.shape == (2, 2, 64, 64) and float(batch[0, :, 8:38, 8:48].sum()) == 2 * 30 * 40
    assert padded([torch.ones(1, 50, 17)], margin_px=8).shape == (1, 1, 96, 64)


def test_a_read_is_a_pure_function_of_seed_epoch_and_image(devkit: Path) -> None:
    task, again, other_epoch = opened(devkit), opened(devkit), opened(devkit, seed=4)
    kinds, changed = set(), False
    for index, epoch in itertools.product(range(8), range(4)):
        image, target = task.read(index, epoch)
        twice, twice_target = again.read(index, epoch)
        assert torch.equal(image, twice) and torch.equal(target["boxes"], twice_target["boxes"])
        changed |= not torch.equal(target["boxes"], other_epoch.read(index, epoch)[1]["boxes"])
        original, objects = read_image(task.train, index), task.train.objects(index)
        sides = (image.shape[1], image.shape[2])
        plain = scaled(torch.from_numpy(objects.boxes), (original.shape[1], original.shape[2]), sides)
        is_flipped = not torch.allclose(target["boxes"], plain)
        expected = resized(original.flip(-1) if is_flipped else original, sides)
        assert torch.equal(image, expected)
        assert torch.allclose(target["boxes"], mirrored(plain, sides[1]) if is_flipped else plain, atol=1e-3)
        assert torch.equal(target["labels"], torch.from_numpy(objects.labels + 1))
        kinds.add((is_flipped, min(sides)))
    assert changed and kinds == {(flipped, px) for flipped in (False, True) for px in SMALL.short_side}


def test_a_mirrored_box_holds_the_mirrored_pixels() -> None:
    image = torch.zeros(5, 9)
    image[1:3, 2:6] = 1
    ((x1, y1, x2, y2),) = mirrored(torch.tensor([[2.0, 1, 6, 3]]), 9).int().tolist()
    assert float(image.flip(-1)[y1:y2, x1:x2].sum()) == float(image.sum()) == (x2 - x1) * (y2 - y1)


@pytest.mark.parametrize("with_difficult", [True, False])
def test_difficult_objects_are_learned_where_the_protocol_has_them(
    devkit: Path, with_difficult: bool
) -> None:
    task = opened(devkit, replace(SMALL, with_difficult=with_difficult))
    difficult = task.train._objects[0].difficult  # type: ignore[index]
    difficult[:] = [True] + [False] * (len(difficult) - 1)
    boxes = task.read(0, 0)[1]["boxes"]
    assert boxes.shape == (len(difficult) - (not with_difficult), 4)


def test_published_proposals_move_with_the_image(devkit: Path) -> None:
    files = [str(devkit / "proposals" / f"voc_2007_{split}.mat") for split in ("trainval", "test")]
    task = opened(devkit, replace(SMALL, boxes_from="published"), proposals=files)
    assert task.train_proposals is not None
    # The objects' boxes serve as proposals, so both must be at the same place.
    task.train_proposals.boxes = lambda index: task.train.objects(index).boxes  # type: ignore[method-assign]
    for index, epoch in itertools.product(range(4), range(3)):
        target = task.read(index, epoch)[1]
        assert torch.equal(target["proposals"], target["boxes"])


def test_a_contact_sheet_shows_boxes_and_classes(devkit: Path) -> None:
    task = opened(devkit)
    batch = batch_of(task, [0, 1, 2])
    sheet, captions = task.contact_sheet([], batch), task.captions(batch)
    assert sheet.shape[:2] == (3, 3) and 0 <= float(sheet.min()) and float(sheet.max()) <= 1
    x1, y1, x2, y2 = batch.targets[0]["boxes"][0].int().tolist()
    edge = sheet[0, :, y1 + 1 : y2 - 1, min(x1, x2 - 1)]
    assert bool((edge.mean(1) - torch.tensor([0, 1.0, 0])).abs().max() < 0.35), edge.mean(1)  # lime
    names = np.array(task.train.class_names)
    assert captions[0] == ", ".join(names[np.unique(task.train.objects(0).labels)])


def test_large_images_are_averaged_on_a_contact_sheet(devkit: Path) -> None:
    """One pixel black and one white are grey at half the size, away from the box."""
    task = opened(devkit)
    batch = batch_of(task, [0])
    squares = 255 * ((torch.arange(640)[:, None] + torch.arange(480)) % 2)
    batch.images = [squares.to(torch.uint8).expand(3, 640, 480)]
    batch.targets[0]["boxes"] = torch.tensor([[2.0, 2.0, 20.0, 20.0]])
    (image,) = task.contact_sheet([], batch)
    assert image.shape == (3, 320, 240)
    assert float((image[:, 20:] - 0.5).abs().max()) < 0.01


# Errors


def test_decoders_of_squares_are_refused(devkit: Path) -> None:
    task = Detection(SMALL, TinyNet(), Input(), 0)
    with pytest.raises(ValueError, match="--decoder turbo: .* auto or pillow"):
        task.open(devkit, TrainingOptions(data="a", decoder="turbo"))


def test_proposals_belong_to_fast_r_cnn_alone() -> None:
    with pytest.raises(ValueError, match="--proposals: this protocol learns its own"):
        Detection(SMALL, TinyNet(), Input(), 0, ["a.mat"])
    for paths in ([], ["a.mat"]):
        with pytest.raises(ValueError, match=r"--proposals: .* 2007_trainval 2007_test"):
            Detection(PROTOCOLS["fast_rcnn"], TinyNet(), Input(), 0, paths)


# Predictions


class FakeRun:
    """A stand-in for the run that `end_stage` reads; it stops after `stop_after` images."""

    def __init__(self, folder: Path, world: World, val_data: VOC, stop_after: int = 999):
        self.world, self.data = world, SimpleNamespace(val=val_data)
        self.folder, self.science, self.num, self.stop_after = folder, {"a": 1}, 0, stop_after
        self.reporter = SimpleNamespace(off_the_clock=contextlib.nullcontext, screen=None)
        self.stop_signal = self

    def after_step(self) -> Any:
        self.num += 1
        return SimpleNamespace(stop=self.num >= self.stop_after)

    def other_pace(self) -> None: ...


def detect(root: Path, folder: Path, world: World, stop_after: int = 999) -> None:
    """Run end_stage of a detector with many detections, in parts of 2 images; two ranks both have some."""
    dataset_pass.PART = 2
    folder.mkdir(exist_ok=True)
    task = opened(root)
    train_step = train_step_of(task, world)
    torch.manual_seed(2)
    nn.init.normal_(train_step.module.head.roi_heads.box_predictor.cls_score.weight, std=3.0)  # type: ignore[union-attr, arg-type]
    for norm in (part for part in train_step.module.modules() if isinstance(part, nn.BatchNorm2d)):
        # Each rank has its own running statistics, and those of rank 0 count.
        norm.running_mean += 0.1 * world.rank  # type: ignore[assignment, operator]
    run = FakeRun(folder, world, task.test, stop_after)
    task.end_stage(EpochContext(run, train_step, 0, False, 0))  # type: ignore[arg-type]


@pytest.mark.parametrize("short_side", [(32, 48), (48, 40, 32), (100,)])
def test_images_of_the_test_have_the_largest_size_and_boxes_are_the_originals(
    devkit: Path, short_side: tuple[int, ...]
) -> None:
    """The detector finds the whole of what it sees, as class 2 of its own count from 1."""
    task, seen = opened(devkit, replace(SMALL, short_side=short_side)), []

    def detections(image: Tensor, proposals: Tensor | None) -> dict[str, Tensor]:
        seen.append(tuple(image.shape[1:]))
        box = torch.tensor([[0.0, 0.0, image.shape[2], image.shape[1]]])
        return {"boxes": box, "labels": torch.tensor([2]), "scores": torch.tensor([0.5])}

    detector: Any = SimpleNamespace(detections=detections)
    for index in range(NUM_TEST):
        height, width = read_image(task.test, index).shape[1:]
        found = task.detected(detector, index, torch.device("cpu"))
        assert seen[-1] == resized_sides(height, width, max(short_side), SMALL.max_long_px)
        assert min(seen[-1]) == max(short_side)
        np.testing.assert_allclose(found["boxes"], [[0, 0, width, height]], rtol=1e-6)
        assert (found["labels"].tolist(), found["scores"].tolist()) == ([1], [0.5])


def test_published_proposals_of_the_test_are_those_of_the_resized_image(devkit: Path) -> None:
    """The detector takes each for an object: its boxes are then the file's, in px of the original image."""
    files = [str(devkit / "proposals" / f"voc_2007_{split}.mat") for split in ("trainval", "test")]
    task, seen = opened(devkit, replace(SMALL, boxes_from="published"), proposals=files), []

    def detections(image: Tensor, proposals: Tensor) -> dict[str, Tensor]:
        seen.append((image.shape[1:], proposals))
        ones = torch.ones(len(proposals))
        return {"boxes": proposals, "labels": ones, "scores": ones}

    detector: Any = SimpleNamespace(detections=detections)
    assert task.test_proposals is not None
    for index in range(NUM_TEST):
        found = task.detected(detector, index, torch.device("cpu"))["boxes"]
        original = task.test_proposals.boxes(index)
        (height, width), (sides, proposals) = read_image(task.test, index).shape[1:], seen[-1]
        scale = np.array([sides[1] / width, sides[0] / height] * 2)
        assert len(original) and scale.max() != 1
        np.testing.assert_allclose(proposals.numpy(), original * scale, rtol=1e-5)
        np.testing.assert_allclose(found, original, rtol=1e-5)


def in_a_process(root: Path, folder: Path, rank: int, size: int) -> list[dict[str, Tensor]]:
    world = rank_of(rank, size)
    detect(root, folder / "two", world)
    return [learned(root, world), learned_together(root, world)]


def learned(root: Path, world: World) -> dict[str, Tensor]:
    """Return the weights after two steps on images of different sizes and object counts, half per rank."""
    task = opened(root, replace(SMALL, batchnorm="fixed"))
    train_step = train_step_of(task, world)
    for step in range(2):
        torch.manual_seed(step * 10 + world.rank)
        indices = [0, 1, 2, 3][world.rank :: world.size]
        train_step.step([batch_of(task, indices, step)], lr=0.01)  # type: ignore[list-item]
    return {name: value.detach().clone() for name, value in train_step.module.named_parameters()}


def learned_together(root: Path, world: World) -> dict[str, Tensor]:
    """Return the weights after a step in which ranks have canvases of one size and as many boxes."""
    fast = replace(SMALL, batchnorm="fixed", extra_norm=False, boxes_from="published", num_rois=99)
    task = opened(root, fast, proposals=["", ""])
    train_step, random = train_step_of(task, world), torch.Generator().manual_seed(0)
    images, targets = [], []
    for height, width in ((40, 64), (64, 37), (64, 64), (33, 50)):
        images.append(torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=random))
        corners = torch.rand(8, 2, generator=random) * 16
        boxes = torch.cat([corners, corners + 4 + 12 * torch.rand(8, 2, generator=random)], 1)
        labels = torch.randint(1, 4, (2,), generator=random)
        targets.append({"boxes": boxes[:2], "labels": labels, "proposals": boxes[2:]})
    rows = slice(world.rank, None, world.size)
    indices = torch.arange(4)[rows]
    batch = AnnotatedBatch(images[rows], targets[rows], indices, -torch.ones_like(indices), 0, 0)
    train_step.step([batch], lr=1.0)  # type: ignore[list-item]
    return {name: value.detach().clone() for name, value in train_step.module.named_parameters()}


@pytest.fixture(scope="module")
def two_ranks(devkit: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Any, Any]:
    """Return both ranks' predictions, and the weights that each has learned in two ways."""
    folder = tmp_path_factory.mktemp("ranks")
    learned, together = zip(*results_of_ranks(partial(in_a_process, devkit, folder), 2, folder), strict=True)
    return (folder / "two" / dataset_pass.NAME).read_bytes(), learned, together


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(dataset_pass, "PART", 2)  # restored at the end
    with one_thread():
        yield


def test_two_ranks_predict_byte_for_byte_as_one(
    devkit: Path, two_ranks: tuple[bytes, Any, Any], tmp_path: Path, small_parts: None
) -> None:
    detect(devkit, tmp_path / "one", one_process())
    assert (tmp_path / "one" / dataset_pass.NAME).read_bytes() == two_ranks[0]
    stored = dataset_pass.read_predictions(tmp_path / "one" / dataset_pass.NAME)
    assert {name: (value.dtype, value.shape[1:]) for name, value in stored.items()} == {
        "image": (np.int64, ()), "boxes": (np.float32, (4,)), "scores": (np.float32, ()),
        "labels": (np.int64, ()),
    }  # fmt: skip
    assert set(stored["image"]) == set(range(NUM_TEST)) and (np.diff(stored["image"]) >= 0).all()
    assert len(stored["image"]) > 3 * NUM_TEST and set(stored["labels"]) <= {0, 1, 2}
    data = VOC(devkit, ("2007_test",), "boxes")
    for image, box in zip(stored["image"], stored["boxes"], strict=True):
        height, width = read_image(data, int(image)).shape[1:]
        assert (box[:2] < box[2:]).all() and box.min() >= 0
        assert box[2] <= width + 1e-3 and box[3] <= height + 1e-3


@pytest.mark.parametrize("stop_after", [1, 4, 6])
def test_an_interrupted_pass_goes_on_to_the_same_bytes(
    devkit: Path, two_ranks: tuple[bytes, Any, Any], tmp_path: Path, small_parts: None, stop_after: int
) -> None:
    with pytest.raises(PassStopped):
        detect(devkit, tmp_path, one_process(), stop_after)
    assert not (tmp_path / dataset_pass.NAME).exists()
    assert len(list((tmp_path / "predictions").glob("*.npz"))) == (stop_after - 1) // 2
    detect(devkit, tmp_path, one_process())
    assert (tmp_path / dataset_pass.NAME).read_bytes() == two_ranks[0]


# Two ranks learn


def test_two_ranks_learn_the_same_weights(two_ranks: tuple[bytes, Any, Any], devkit: Path) -> None:
    first, second = two_ranks[1]
    before = dict(train_step_of(opened(devkit), one_process()).module.named_parameters())
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
        # Fixed BatchNorms do not change.
        if not ("parts" in name or "blocks" in name) or value.ndim > 1:
            assert not torch.equal(value, before[name]), name


def test_two_ranks_learn_as_one_where_the_loss_is_a_mean_of_equals(
    two_ranks: tuple[bytes, Any, Any], devkit: Path
) -> None:
    first, second = two_ranks[2]
    alone = learned_together(devkit, one_process())
    before = dict(train_step_of(opened(devkit), one_process()).module.named_parameters())
    for name, value in alone.items():
        assert torch.equal(first[name], second[name]), name
        assert torch.allclose(first[name], value, atol=1e-5 * float(value.abs().max() + 1)), name
    moved = [name for name, value in alone.items() if value.ndim > 1 and not torch.equal(value, before[name])]
    assert any(name.startswith("blocks.learning.0") for name in moved)
    assert any("bbox_pred" in name for name in moved)


def test_the_loss_is_the_sum_of_the_detectors_and_reported_per_image(devkit: Path) -> None:
    task = opened(devkit)
    detector = train_step_of(task, one_process()).module.head
    parts = {"loss_classifier": torch.tensor(1.5), "loss_box_reg": torch.tensor(0.25)}
    detector.losses = lambda images, targets, proposals: parts  # type: ignore[assignment]
    loss, metrics = task.loss(None, detector, (), batch_of(task, [0, 1, 2]))  # type: ignore[arg-type]
    assert float(loss) == 1.75
    assert {name: (float(total), float(num)) for name, (total, num) in metrics.items()} == {
        "loss": (5.25, 3), "loss_classifier": (4.5, 3), "loss_box_reg": (0.75, 3),
    }  # fmt: skip


def test_predictions_of_another_run_are_not_taken(devkit: Path) -> None:
    given: list[dict[str, Any]] = []
    for seed in (0, 1, 0):
        context: Any = SimpleNamespace(
            head=Detector.__new__(Detector),
            run=SimpleNamespace(science={"seed": seed}),
            val_science=lambda **more: more,
            predict=lambda images, science: given.append(science),
        )
        opened(devkit).end_stage(context)
    assert given[0] == given[2] != given[1]


WEIGHTS = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
IMAGE = torch.zeros(3, 8, 8, dtype=torch.uint8)


@pytest.fixture(params=["fp32", "bf16"])
def step(request: pytest.FixtureRequest) -> Any:
    """Return a step of a precision, without a network."""
    step = TrainStep.__new__(TrainStep)
    step.world, step.dtype, step.module = one_process(), DTYPES[request.param], SimpleNamespace()  # type: ignore[assignment]
    return step


def computed(seen: list[torch.dtype]) -> Tensor:
    """Note the dtype of a product of matrices, as a network computes it here."""
    seen.append((WEIGHTS @ WEIGHTS).dtype)
    return torch.zeros(1, 2, 8, 8)


def test_detections(step: TrainStep, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[torch.dtype]()
    task = Detection(PROTOCOLS["small"], TinyNet(), Input(), 0)
    monkeypatch.setattr(task, "detected", lambda *_: {"scores": computed(seen)})
    context: Any = SimpleNamespace(
        head=Detector.__new__(Detector), run=SimpleNamespace(science={}), train_step=step,
        world=one_process(), val_science=lambda **more: more,
        predict=lambda predict_images, science: list(predict_images(range(2))),
    )  # fmt: skip
    task.end_stage(context)
    assert seen == [step.dtype] * 2


def test_masks(step: TrainStep) -> None:
    seen = list[torch.dtype]()
    step.module.blocks = step.module.head = None  # type: ignore[assignment]
    network: Any = SimpleNamespace(scores=lambda blocks, head, images: (computed(seen),))
    assert Segmentation(network, Input()).found(IMAGE, step).shape == (8, 8)
    assert seen == [step.dtype]


def test_sums_of_crops(step: TrainStep) -> None:
    seen, shown = list[torch.dtype](), list[torch.dtype]()
    step.module.blocks, step.module.head = lambda crops: computed(seen), lambda maps: maps[:, :, 0, 0]  # type: ignore[assignment, method-assign]

    def inputs(batch: Any, views: Any, dtype: torch.dtype) -> list[Tensor]:
        shown.append(dtype)
        return [torch.zeros(1, 3, 8, 8, dtype=dtype)]

    predictor = MultiCropPredictor.__new__(MultiCropPredictor)
    predictor.run = SimpleNamespace(world=one_process(), reporter=SimpleNamespace(watched=iter))  # type: ignore[assignment]
    predictor.loader = SimpleNamespace(
        views=(), epoch=lambda *_: [SimpleNamespace(indices=torch.tensor([5]))]
    )  # type: ignore[assignment, misc]
    predictor.augment, predictor.train_step = SimpleNamespace(inputs=inputs), step  # type: ignore[assignment]
    predictor._batches, predictor._next_step = None, 0
    (scores,) = predictor.predict_images(range(1))
    assert scores["scores"].dtype == np.float32 and seen == shown == [step.dtype]
