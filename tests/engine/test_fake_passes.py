"""Passes and feature extraction on fake CUDA: no batch waits for the one before."""

from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException
from typing_extensions import override

from bench.recipe_stages import recipe_options
from fastpsl.engine.dataset_pass import EpochContext
from fastpsl.engine.distributed import Decision, World
from fastpsl.engine.gpu import AsyncCopy
from fastpsl.engine.run import Run, RunData
from fastpsl.evaluation import features
from fastpsl.evaluation.features import Extraction
from fastpsl.pipelines.datasets.subset import Synthetic
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.views import ViewSpec
from fastpsl.tasks.pseudo_labels.deepcluster import without_last_relu
from fastpsl.tasks.pseudo_labels.pseudo_classify import gathered_labels
from tests.engine.fake_steps import WORLD, recipe_train_step
from tests.engine.tiny import noise_batch, tiny_run
from tests.fake_cuda import DEVICE, fake_cuda

NUM_BATCHES = 3


class FakeBatches(AbstractContextManager):  # type: ignore[type-arg]
    """A substitute for a loader, because a loader's threads do not support fake tensors."""

    num_steps = NUM_BATCHES

    def __init__(self, views: list[ViewSpec]):
        self.views = views
        self.batch = noise_batch(views, 8).to(DEVICE)

    @override
    def __exit__(self, *_: object) -> None:
        pass

    def epoch(self, epoch: int, start_step: int = 0) -> Generator[Batch, None, None]:
        yield from [self.batch] * NUM_BATCHES


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    run = tiny_run(tmp_path)
    run.world = WORLD
    monkeypatch.setattr(RunData, "loader", lambda run_data, data, views, train: FakeBatches(views))
    # Its flags are in a CPU tensor, which must not be fake.
    monkeypatch.setattr(run.stop_signal, "after_step", lambda: Decision(stop=False, checkpoint=False))
    yield run
    run.close()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("recipe", "values"),
    [
        ("uic", {"label_view": "center"}),
        ("deepcluster", {}),
        ("sslpp_rotation", {"pseudo_labels": "coupled"}),
        ("sslpp_iic", {}),
    ],
)
def test_a_pass_never_waits_but_to_end(recipe: str, values: dict[str, Any], training: bool, run: Run) -> None:
    """Results travel to the host while the next batch is launched."""
    with fake_cuda() as cuda:
        experiment, _, _, train_step = recipe_train_step(recipe, "E", precision="fp16", **values)
        context = EpochContext(run, train_step, epoch=0, first=True, draws_epoch=7)
        (view,) = experiment.task.pass_views(1)  # type: ignore[attr-defined]
        with cuda.watched() as record, without_last_relu(train_step.module.blocks):
            outputs = context.forward_dataset(
                view, lambda maps: maps.float().mean((2, 3)).half(), training=training
            )
            # In training, the pass looks for padding in the last batch.
            for _ in range(NUM_BATCHES - 1 if training else NUM_BATCHES):
                indices, rows = next(outputs)
                assert AsyncCopy(rows).values().shape == rows.shape
                assert AsyncCopy(indices).values().dtype == torch.int64
            assert isinstance(outputs, Generator)
            outputs.close()
    assert not record.waits, record.waits


def test_labels_of_a_pass_are_looked_at_once(run: Run) -> None:
    """At its end, the pass checks for non-finite outputs."""
    with fake_cuda() as cuda:
        experiment, _, _, train_step = recipe_train_step("uic", "E", precision="fp16", label_view="center")
        context = EpochContext(run, train_step, epoch=0, first=True, draws_epoch=7)
        (view,) = experiment.task.pass_views(1)  # type: ignore[attr-defined]
        with cuda.watched() as record, pytest.raises(DataDependentOutputException):
            gathered_labels(context, context.forward_dataset(view, context.head))
    (wait,) = record.waits
    assert "num_bad = int(" in wait


def test_features_never_wait_for_the_batch_under_way() -> None:
    options = recipe_options(
        "linear_probe", is_sample=True, batch_size=8, device="cuda", random_weights=True, backbone="resnet18"
    )
    weights = options.pretrained()  # type: ignore[attr-defined]
    world = World(0, 1, 0, 1, torch.device("cpu"))  # its device decides the features' precision
    works = Extraction.for_blocks(options, weights, Synthetic(64), ("B2", "final"), world, "float16")  # type: ignore[arg-type]
    with fake_cuda() as cuda:
        loader: Any = FakeBatches([works[0].view])
        with cuda.watched() as record:
            launched = features._launched(works, loader, 0, cuda.device)
            next(launched)  # the network goes to the device
            record.waits.clear()
            rest = list(launched)
    assert not record.waits, record.waits
    assert len(rest) == NUM_BATCHES - 1 and [each.values().shape for each in rest[0][0]] == [(8, 64), (8, 64)]
