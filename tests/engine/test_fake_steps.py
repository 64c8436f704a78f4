"""Whole steps of all recipes on fake CUDA: one device per operation, no read of a value, no blocking copy.

Steps that are captured and replayed are functions of tensors: they have the same operations, sizes, numbers
and tensors, change no Python value, and what they write is restored if they are skipped. Two cases are tested
elsewhere or not at all: compiled steps in test_cuda.py, and detection, where torchvision indexes proposals
with booleans.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException
from typing_extensions import override

from bench.recipe_stages import recipe_options, stage_experiment
from fastpsl.engine import step_modes
from fastpsl.engine.dataset_pass import EpochContext
from fastpsl.engine.distributed import Decision, World
from fastpsl.engine.experiment import Experiment, make_train_step, place_backbone
from fastpsl.engine.gpu import AsyncCopy
from fastpsl.engine.options import TrainingOptions
from fastpsl.engine.run import Run, RunData
from fastpsl.engine.train_step import DTYPES, TrainStep
from fastpsl.evaluation import features
from fastpsl.evaluation.features import Extraction
from fastpsl.kernels.lab import ab_bins
from fastpsl.models.factory import make_backbone
from fastpsl.models.fold_batchnorm import ConvReLU
from fastpsl.models.weights import Pretrained
from fastpsl.pipelines.datasets.subset import Synthetic
from fastpsl.pipelines.interface.dataset import Dataset
from fastpsl.pipelines.loader.annotated import AnnotatedBatch
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.views import Input, ViewSpec
from fastpsl.tasks.pseudo_labels.deepcluster import without_last_relu
from fastpsl.tasks.pseudo_labels.iic import HEAD_EPOCHS
from fastpsl.tasks.pseudo_labels.pseudo_classify import gathered_labels
from fastpsl.tasks.sslpp.colorization import NUM_BINS, Colorization
from tests.engine.tiny import noise_batch, tiny_run
from tests.fake_cuda import DEVICE, FakeCuda, fake_cuda
from tests.host_waits import Seen
from tests.slow import slow
from tests.step_recorder import Recorder, Step, differences, not_restored, plain_capture, record_steps

WORLD = World(0, 1, 0, 1, DEVICE)
NUM_SAMPLES = 96


def recipe_train_step(
    recipe: str, stage: str, **values: Any
) -> tuple[Experiment, int, TrainingOptions, TrainStep]:
    """Build a recipe's stage with its sample's values, overridden by `values`, within `fake_cuda`."""
    values = {"batch_size": 32, "compile": "off", **values}
    options = recipe_options(recipe, is_sample=True, device="cuda", **values)
    experiment, number = stage_experiment(recipe, stage, options, WORLD)
    return experiment, number, options, train_step_of(experiment, number, options, Synthetic(NUM_SAMPLES))


def train_step_of(experiment: Experiment, number: int, options: TrainingOptions, data: Dataset) -> TrainStep:
    experiment.task.check_data(data, options.batch_of(experiment.stages[number]))
    return make_train_step(experiment, number, options, WORLD)


# The first step is launched. The others are replays: one to compare with, the next one, one after a
# validation batch, and one of another epoch.
NUM_STEPS = 5


def some_steps(
    cuda: FakeCuda, experiment: Experiment, number: int, options: TrainingOptions, train_step: TrainStep,
    other_epoch: int = sum(HEAD_EPOCHS),
) -> tuple[Seen, list[Step]]:  # fmt: skip
    """Make a stage's warm-up, `NUM_STEPS` steps and a validation batch.

    Return the host's waits and launches of kernels, and a record of each replay.
    """
    task, stage = experiment.task, experiment.stages[number]
    size = options.rank_batch(1, options.batch_of(stage))
    val = experiment.val_views(stage)
    val_batch = noise_batch(val, size).to(cuda.device)
    with_gradient: list[bool] = []
    train_step.optimiser.register_step_pre_hook(
        lambda *_: with_gradient.extend(
            p.grad is not None for _, p in train_step.module.learning_parameters() if p.requires_grad
        )
    )

    def batches(step: int) -> list[Batch]:
        made = []
        for part in range(options.accumulate):
            batch = noise_batch(train_step.views, size, step * options.accumulate + part)
            batch.indices = torch.randint(0, NUM_SAMPLES, (size,))
            batch.labels, batch.step = batch.indices % 5, step
            batch.epoch = other_epoch if step == NUM_STEPS - 1 else 0
            made.append(batch.to(cuda.device))
        return made

    recorder = Recorder()
    with pytest.MonkeyPatch.context() as patch, cuda.watched() as seen:
        patch.setattr(step_modes, "capture", plain_capture)
        check = cuda.launched

        def launched(*arguments: Any, **more: Any) -> None:
            check(*arguments, **more)
            recorder.launched(*arguments, **more)

        patch.setattr(cuda, "launched", launched)
        for _ in range(task.num_warm_up_batches(stage) or 0):
            train_step.warm_up(task.warm_up, batches(0)[0])
        if train_step._graphs:
            train_step._graphs.num_launched = 1
        for step in range(NUM_STEPS):
            if step == 1:
                steps = record_steps(train_step, recorder)
            if step == NUM_STEPS - 2 and val:
                train_step.module.eval()
                with torch.no_grad():
                    train_step._forward(train_step.prepared(val_batch).of_step(), val)
                train_step.module.train()
            train_step.step(batches(step), 0.1 * step, options.accumulate)
    assert with_gradient and all(with_gradient)
    assert not not_restored(train_step, recorder, steps[-1])
    return seen, steps


Row = tuple[str, str, str, str, dict[str, Any]]
"""Recipe, stage, precision, augmentation, and options besides the sample's."""

# Each recipe in each stage, precision and augmentation, but not in all combinations: autocast and the scaler
# do not depend on the stage, and the augmentation only affects the network's input.
SMALL = {"backbone": "resnet18"}
PLANNED: list[Row] = [
    (recipe, *words.split(), SMALL)  # type: ignore[misc]
    for recipe in ("jigsaw", "rotation", "simclr", "moco")
    for words in ("S1 fp16 fused", "S2 bf16 kornia", "S3 fp32 fused", "E fp16 kornia", "B fp16 fused")
]
SSLPP = [f"sslpp_{proxy}" for proxy in ("rotation", "aet", "context", "colorization")]
END_TO_END: list[Row] = [
    (recipe, "E", precision, augment, {})
    for recipe in ("uic", "deepcluster", "sslpp_iic", "supervised", *SSLPP)
    for precision, augment in (("fp16", "fused"), ("bf16", "kornia"), ("fp32", "fused"))
]
# Other options, and the papers' networks, once each.
COUPLED = {"pseudo_labels": "coupled"}
LIVE = {"teacher": "resnet34", "teacher_sees": "crop"}
PER_STAGE = {"size_px": (32, 48, 64), "batch_size": (16, 32, 64), "crop_scale": (0.2, 0.3, 0.4)}
OTHERS: list[Row] = [
    ("jigsaw", "S2", "fp16", "fused", {"accumulate": 2, "frozen_batchnorm": "train"}),
    ("rotation", "S1", "fp16", "fused", {"backbone": "resnet50", "compile": "fused"}),
    ("jigsaw", "S3", "fp16", "fused", SMALL | {"fold_frozen": "on", "compile": "fused"}),
    ("rotation", "S1", "fp16", "fused", SMALL | {"rotations_per_image": "one"}),
    ("rotation", "S2", "fp16", "fused", {"rotations_per_image": "one"}),
    ("rotation", "E", "fp16", "kornia", SMALL | {"rotations_per_image": "one", "accumulate": 2}),
    ("simclr", "S2", "fp16", "fused", {"backbone": "resnet50", "frozen_batchnorm": "train"}),
    ("simclr", "S3", "fp16", "kornia", SMALL | {"fold_frozen": "on"}),
    ("moco", "S3", "fp16", "fused", SMALL | {"frozen_batchnorm": "train", "accumulate": 2}),
    ("moco", "B", "fp16", "kornia", SMALL | {"accumulate": 2, "levels": (3,)}),
    ("uic", "B", "fp16", "fused", {"epochs": (1, 1, 1)}),
    ("moco", "S2", "fp16", "fused", SMALL | PER_STAGE),
    ("uic_r50", "E", "fp16", "fused", {}),
    ("uic", "E", "fp16", "fused", {"backbone": "resnet18_cifar", "augment": "strong"}),
    ("uic", "E", "fp16", "kornia", {"backbone": "vgg16", "label_view": "center", "augment": "strong"}),
    ("deepcluster", "E", "fp16", "fused", {"input_channels": "RGB"}),
    ("sslpp_iic", "E", "fp16", "kornia", {"num_heads": 2, "augment": "grey"}),
    ("sslpp_aet", "E", "fp16", "fused", COUPLED | {"transform": "affine"}),
    ("sslpp_rotation", "E", "fp16", "kornia", COUPLED | {"proxy": False, "crop": "random_resized"}),
    ("sslpp_context", "E", "fp16", "kornia", COUPLED | {"backbone": "alexnet", "size_px": 64}),
    ("supervised", "E", "fp16", "fused", {"crop": "padded", "backbone": "alexnet_rotnet"}),
    ("distill", "S2", "fp16", "fused", LIVE | {"plan": "psl", "epochs": (1, 1, 1)}),
    ("distill", "B", "bf16", "kornia", LIVE | {"epochs": (1, 1, 1)}),
    ("distill", "B", "fp16", "fused", {"teacher": "resnet34", "epochs": (1, 1, 1)}),
]  # fmt: skip


@pytest.fixture(scope="module")
def bins_of_colours() -> None:
    """Count the colour bins outside fake mode, once per process, because the count depends on values."""
    ab_bins()


@pytest.fixture
def random_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the teachers of distillations by networks with random weights, of which there is no digest."""

    def make(name: str, *_: object) -> Pretrained:
        return Pretrained(
            make_backbone(name), Input(size_px=48), dict.fromkeys(("sha256", "backbone", "input"), "")
        )

    monkeypatch.setattr("fastpsl.models.open_teacher", make)


@pytest.fixture
def counted_colours() -> Iterator[None]:
    """Replace Colorization's colour weights, which it reads from values before a stage's first step."""

    def take_prior(task: Colorization) -> None:
        task.weights = torch.empty(NUM_BINS, device=DEVICE)
        task.log_constant = torch.empty(NUM_BINS, device=DEVICE)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Colorization, "_take_prior", take_prior)
        yield


def name_of(row: Row) -> str:
    *words, options = row
    return "-".join([*words, *map(str, options.values())])


# `make test` runs each recipe once, SimCLR with folded blocks; `make test-nightly` the others.
QUICK = (
    [row for row in PLANNED if row[1] == "S2" and row[0] != "simclr"]
    + END_TO_END[::3]
    + [row for row in OTHERS if row[4].keys() & {"fold_frozen", "crop_scale"} or row[0] == "distill"]
)
ROWS = [
    pytest.param(row, id=name_of(row), marks=() if row in QUICK else pytest.mark.nightly)
    for row in PLANNED + END_TO_END + OTHERS
]


def check_function_of_tensors(steps: Sequence[Step]) -> None:
    """Compare a replay with the next one, one after a validation batch, and one of another epoch."""
    for step in steps:
        assert not differences(steps[0], step)


@pytest.mark.usefixtures("bins_of_colours", "counted_colours", "random_teacher")
@pytest.mark.parametrize("row", ROWS)
def test_a_step_never_waits_for_the_device(row: Row) -> None:
    recipe, stage, precision, augment, values = row
    with fake_cuda() as cuda:
        parts = recipe_train_step(recipe, stage, precision=precision, augment_backend=augment, **values)
        record, steps = some_steps(cuda, *parts)
    assert not record.waits, record.waits
    check_function_of_tensors(steps)
    train_step = parts[-1]
    frozen = nn.ModuleList(train_step.module.blocks.frozen_as_run).modules()
    folded = [part.by_cudnn for part in frozen if isinstance(part, ConvReLU)]
    assert all(folded) and bool(folded) == (train_step.fold_choice.mode == "on")
    assert train_step.augment.path == augment and bool(record.kernels) == (augment == "fused")
    assert train_step.dtype == DTYPES[precision]


@pytest.mark.usefixtures("bins_of_colours", "counted_colours")
@pytest.mark.parametrize(
    ("name", "values"),
    [("test_vit", {}), slow("vit_tiny_patch16_dinov3_qkvb", {}), slow("resnet18", {"compile": "fused"})],
)
def test_nor_one_of_timms_networks(name: str, values: dict[str, Any]) -> None:
    backbone = make_backbone(f"timm/{name}")
    with fake_cuda() as cuda:
        experiment, _, options, _ = recipe_train_step("rotation", "E", precision="fp16", **SMALL | values)
        stages = (replace(experiment.stages[0], last_block=backbone.num_blocks),)
        experiment = replace(experiment, backbone=backbone, stages=stages)
        place_backbone(experiment, options, WORLD)
        train_step = train_step_of(experiment, 0, options, Synthetic(NUM_SAMPLES))
        record, steps = some_steps(cuda, experiment, 0, options, train_step)
    assert not record.waits, record.waits
    check_function_of_tensors(steps)


@pytest.mark.usefixtures("bins_of_colours", "counted_colours")
def test_nor_one_of_iics_second_head() -> None:
    with fake_cuda() as cuda:
        parts = recipe_train_step("sslpp_iic", "E", precision="fp16", augment_backend="fused", num_heads=2)
        parts[0].task.first_epoch = -HEAD_EPOCHS[0]  # type: ignore[attr-defined]
        assert parts[0].task.variant(0) == 1  # type: ignore[attr-defined]
        record, steps = some_steps(cuda, *parts)
    assert not record.waits, record.waits
    check_function_of_tensors(steps)


@pytest.mark.usefixtures("bins_of_colours", "counted_colours")
@pytest.mark.parametrize(
    ("recipe", "values"),
    [
        ("linear_probe", {"augment_backend": "fused"}),
        slow("linear_probe", {"augment_backend": "kornia", "protocol": "uic", "backbone": "alexnet"}),
        ("block_probe", {"augment_backend": "kornia", "backbone": "nin4"}),
        ("semi_supervised", {"augment_backend": "fused", "precision": "bf16"}),
        slow("voc_classification", {"augment_backend": "fused", "size_px": 64}),
    ],
)
def test_nor_one_of_an_evaluation(recipe: str, values: dict[str, Any]) -> None:
    """The evaluated weights are random."""
    module = import_module(f"recipes.{recipe}")
    usual = module.SAMPLE | {"backbone": "resnet18", "batch_size": 16, "precision": "fp16"}
    options = module.RECIPE.with_paper(**usual | values, random_weights=True, device="cuda")
    experiment = module.build(options)
    data = module.open_voc(options)[0] if recipe.startswith("voc") else Synthetic(NUM_SAMPLES, 10)
    with fake_cuda() as cuda:
        place_backbone(experiment, options, WORLD)
        train_step = train_step_of(experiment, 0, options, data)
        record, steps = some_steps(cuda, experiment, 0, options, train_step)
    assert not record.waits, record.waits
    check_function_of_tensors(steps)
    assert train_step.augment.path == options.augment_backend


@pytest.mark.usefixtures("bins_of_colours", "counted_colours")
@pytest.mark.parametrize("protocol", ["sslpp", slow("mmseg")])
def test_nor_one_of_segmentation(protocol: str) -> None:
    """Covers whole images, and crops with an auxiliary head."""
    module: Any = import_module("recipes.voc_segmentation")
    options = module.RECIPE.with_paper(
        protocol=protocol, batch_size=2, size_px=64, precision="fp16", backbone="resnet18",
        random_weights=True, device="cuda", batchnorm="train",
    )  # fmt: skip
    experiment = module.build(options)
    data, _ = module.open_voc(options)
    with fake_cuda() as cuda:
        place_backbone(experiment, options, WORLD)
        train_step = train_step_of(experiment, 0, options, data)
        sizes = [(64, 64)] * 2 if protocol == "mmseg" else [(70, 64), (64, 96)]
        whole = torch.arange(2, device=cuda.device)
        batch = AnnotatedBatch(
            images=[torch.empty(3, *size, dtype=torch.uint8, device=cuda.device) for size in sizes],
            targets=[{"mask": torch.empty(size, dtype=torch.uint8, device=cuda.device)} for size in sizes],
            indices=whole, labels=whole, epoch=0, step=0,
        )  # fmt: skip
        with cuda.watched() as record:
            train_step.step([batch], lr=0.1)  # type: ignore[list-item]
            train_step.module.eval()
            with torch.no_grad():
                train_step._forward(batch, ())  # type: ignore[arg-type]
    assert not record.waits, record.waits


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
