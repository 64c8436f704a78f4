"""Test images are predicted in the precision of the steps, by every transfer task."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastpsl.engine.train_step import DTYPES, TrainStep
from fastpsl.pipelines.views import Input
from fastpsl.transfer.classification.task import MultiCropPredictor
from fastpsl.transfer.detection.detector import Detector
from fastpsl.transfer.detection.protocols import PROTOCOLS
from fastpsl.transfer.detection.task import Detection
from fastpsl.transfer.segmentation.task import Segmentation
from tests.engine.tiny import TinyNet, one_process

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
