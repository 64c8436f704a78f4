"""The trainer's calls of a task's optional methods."""

import re
import time
from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from typing_extensions import override

from fastpsl.console import progress
from fastpsl.engine import experiment as experiment_module
from fastpsl.engine.distributed import gathered
from fastpsl.engine.experiment import Experiment, make_train_step, place_backbone
from fastpsl.engine.optim.schedules import step_drops
from fastpsl.engine.options import PretrainOptions, TrainingOptions
from fastpsl.engine.plan import Stage, make_plan
from fastpsl.engine.stage_blocks import Metrics, StageBlocks
from fastpsl.engine.step_modes import OFF, StepChoice
from fastpsl.engine.task import Task
from fastpsl.engine.trainer import pretrain
from fastpsl.kernels.crops import ShorterSideCrop
from fastpsl.kernels.geometry import Flip
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.datasets.open import Classes
from fastpsl.pipelines.embedded.draw_sample import sample_paths
from fastpsl.pipelines.interface.dataset import Dataset, require_same_classes
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.views import ViewSpec
from fastpsl.plots.contact_sheet import NUM_IMAGES
from fastpsl.tasks.contrastive.simclr import SimCLR
from tests.engine.exact_signals import train_until
from tests.engine.tiny import TinyNet, one_process, tiny_run
from tests.programs import ROOT, epoch_records

NUM_WARM_UP = 20  # more than the 15 batches of an epoch


class Asking(Task):
    """A classifier whose samples count twice, with 20 warm-up batches and whole validation images."""

    num_levels = 3
    needs_labels = True

    def __init__(self) -> None:
        self.warmed: list[tuple[int, int, list[int]]] = []
        self.trained: list[tuple[int, int]] = []
        self.val_draws: list[int] = []
        self.sizes: list[int] = []

    @override
    def views(self, level: int) -> tuple[ViewSpec, ...]:
        return (ViewSpec(ShorterSideCrop(32, 24), ops=(Flip(),)),)

    @override
    def val_views(self, level: int) -> tuple[ViewSpec, ...]:
        return (ViewSpec(ShorterSideCrop(32, 32, where="center")),)

    @override
    def check_data(self, data: Dataset, batch_size: int) -> None:
        if batch_size == 64:
            raise ValueError(f"batch {batch_size} of {data.num_samples} will not do")

    @override
    def num_warm_up_batches(self, stage: Stage) -> int:
        return NUM_WARM_UP

    @override
    def warm_up(self, blocks: StageBlocks, head: nn.Module, inputs: Sequence[Tensor], batch: Batch) -> None:
        assert not torch.is_grad_enabled() and head.training and inputs[0].shape[-1] == 24
        self.warmed.append((batch.epoch, batch.step, batch.indices.tolist()))

    @override
    def head(self, level: int, channels: int) -> nn.Module:
        return nn.Linear(channels, 16)

    @override
    def batch_tensors(self, epoch: int, step: int, num_images: int) -> dict[str, Tensor]:
        return {"place": torch.tensor([epoch, step])}

    @override
    def loss(
        self, blocks: StageBlocks, head: nn.Module, inputs: Sequence[Tensor], batch: Batch
    ) -> tuple[Tensor, Metrics]:
        if head.training:
            epoch, step = batch.extra["place"].tolist()
            self.trained.append((epoch, step))
            self.sizes.append(len(batch.indices))
        else:
            self.val_draws.append(len(batch.draws[0]))
            assert inputs[0].shape[-1] == 32
        valid = (batch.indices >= 0).float()
        logits = head(blocks(inputs[0]).mean((2, 3)))
        losses = F.cross_entropy(logits, batch.labels.clamp(min=0), reduction="none")
        return (losses * valid).sum() / valid.sum(), {"loss": ((losses.detach() * valid).sum(), valid.sum())}


def experiment(task: Asking) -> Experiment:
    return Experiment(task, TinyNet(), make_plan("psl", (1, 1), num_levels=3), step_drops(0.05, (1,)))


def fit(out: Path, task: Asking, trained: Experiment | None = None, **options: Any) -> bool:
    """Train `task`, or another experiment with it."""
    run = tiny_run(out, **{"batch_size": 16, "epochs": (1, 1), **options})
    return train_until(None, trained or experiment(task), run)


def test_a_task_is_asked_for_all_it_wants(tmp_path: Path) -> None:
    task = Asking()
    assert fit(tmp_path, task)
    assert set(task.sizes) == {16}
    assert task.trained == [(epoch, step) for epoch in (0, 1) for step in range(30)]
    assert task.val_draws == [0] * 20  # 160 images, no flip, both stages
    assert len(task.warmed) == 2 * NUM_WARM_UP
    epochs = [epoch for epoch, _, _ in task.warmed]
    assert len(set(epochs)) == 2 and min(epochs) > 1  # one per stage, and no epoch of training
    first = [index for _, _, indices in task.warmed[:NUM_WARM_UP] for index in indices]
    assert len(set(first)) == 16 * NUM_WARM_UP  # no batch is repeated


def test_epochs_are_counted_over_all_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hooks around an epoch get its number in the run, and whether it is its stage's first.

    A hook follows each of the five steps of an epoch.
    """
    started, ordered, stepped = [], [], []
    monkeypatch.setattr(Asking, "after_step", lambda self, extras: stepped.append(len(self.trained)))
    monkeypatch.setattr(Asking, "num_warm_up_batches", lambda self, stage: 0)
    start = lambda self, context: started.append((context.epoch, context.first))
    monkeypatch.setattr(Asking, "start_epoch", start)
    monkeypatch.setattr(Asking, "epoch_order", lambda self, epoch: ordered.append(epoch))
    task, stages = Asking(), make_plan("psl", (2, 1, 2), num_levels=3)
    three = replace(experiment(task), stages=stages)
    assert fit(tmp_path, task, three, batch_size=96, epochs=(2, 1, 2))
    assert started == [(0, True), (1, False), (2, True), (3, True), (4, False)]
    assert ordered == [0, 1, 2, 3, 4] and stepped == list(range(1, 26))


def test_a_step_that_lasts_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = list[str | None]()
    monkeypatch.setattr(progress, "_heartbeat", voice := progress.Heartbeat())

    class Slow(Asking):
        @override
        def loss(self, *arguments: Any) -> tuple[Tensor, Metrics]:
            told.append(voice.line(time.monotonic() + 60.0 * (1 + len(told))))
            return super().loss(*arguments)

    assert fit(tmp_path, Slow(), max_steps_per_stage=3, val=None)
    assert len(told) == 6 and None not in told
    assert str(told[1]).startswith("S1: step 2 of 3: ") and "0:02:00" in str(told[1])
    assert str(told[5]).startswith("S2: step 3 of 3")


def test_warm_up_longer_than_an_epoch_goes_on_in_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Asking, "num_warm_up_batches", lambda self, stage: 35)
    task = Asking()
    assert fit(tmp_path, task, max_steps_per_stage=1)
    places = [(step, epoch - task.warmed[0][0]) for epoch, step, _ in task.warmed[:35]]
    assert places == [(step, 0) for step in range(30)] + [(step, 1) for step in range(5)]


def test_warm_up_and_contact_sheet_are_not_done_again_on_resume(tmp_path: Path) -> None:
    assert fit(tmp_path, Asking(), max_steps_per_stage=2)
    run = tiny_run(tmp_path, batch_size=16, epochs=(1, 1))
    run.position.summaries.pop()  # go on in the second stage, from its second step
    task = Shown()
    assert train_until(None, experiment(task), run)
    assert task.warmed == [] and task.drawn == [] and task.trained[0] == (1, 2)


def test_a_signal_during_warm_up_is_heard(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, batch_size=16, epochs=(1, 1))
    run.stop_signal.stop_requested = True
    task = Asking()
    assert not pretrain(experiment(task), run)
    run.close()
    assert len(task.warmed) == 1 and not task.trained
    task = Asking()
    assert fit(tmp_path, task)  # begins again
    assert len(task.warmed) == 2 * NUM_WARM_UP


def test_what_cannot_serve_is_refused_before_the_first_step(tmp_path: Path) -> None:
    task = Asking()
    with pytest.raises(ValueError, match="batch 64 of 480 will not do"):
        fit(tmp_path / "a", task, batch_size=64)
    with pytest.raises(ValueError, match="480 training images are fewer than one batch of 481"):
        fit(tmp_path / "b", task, batch_size=481)
    with pytest.raises(ValueError, match="multiple of 4"):
        fit(tmp_path / "c", task, batch_size=30, accumulate=4)
    assert not task.warmed and not task.trained


class _Classes:
    def __init__(self, names: list[str] | None, num: int):
        self.class_names, self.num_classes = names, num

    def labels(self) -> Tensor:
        return torch.arange(self.num_classes)


@pytest.mark.parametrize(
    ("train", "val", "difference"),
    [
        (["cat", "dog"], ["cat", "fox"], "2 classes, t s 2; class 1 is 'fox', in the training data 'dog'"),
        (["cat", "dog"], ["cat"], "1 classes, t s 2; class 1 is none, in the training data 'dog'"),
        (["cat"], ["cat", "dog"], "2 classes, t s 1; class 1 is 'dog', in the training data none"),
        (["cat", "dog"], ["dog", "cat"], "2 classes, t s 2; class 0 is 'dog', in the training data 'cat'"),
        (3, 5, "5 classes, t s 3"),
        (["cat", "dog"], 3, "3 classes, t s 2"),
        (1, ["cat", "dog"], "2 classes, t s 1"),
    ],
)
def test_validation_classes_must_be_the_training_datas(
    train: list[str] | int, val: list[str] | int, difference: str
) -> None:
    with pytest.raises(ValueError) as caught:
        require_same_classes(classes(train), classes(val), "t s", "v")
    assert str(caught.value) == (
        f"v: other classes than in training ({difference}); give validation images of the same ones, "
        "numbered by `fastpsl data write SRC OUT --classes 't s'`"
    )


def classes(names: list[str] | int) -> Classes:
    return Classes(None, names) if isinstance(names, int) else Classes(names, len(names))


def test_equal_classes_and_fewer_numbers_pass() -> None:
    require_same_classes(classes(["cat", "dog"]), classes(["cat", "dog"]))
    require_same_classes(classes(5), classes(3))
    require_same_classes(classes(["cat", "dog"]), classes(1))
    with Beton(sample_paths().train) as one, Beton(sample_paths().test) as other:
        require_same_classes(one, other)


def test_every_blocks_features_of_a_frozen_blocks() -> None:
    backbone = TinyNet().eval()
    stage = Stage("probe", 1, 6, 5, 1)
    blocks = StageBlocks(backbone, stage)
    assert not any(p.requires_grad for p in blocks.parameters())
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    images = torch.randn(2, 3, 32, 32)
    outputs = blocks.features(images)
    assert [o.shape[1] for o in outputs] == list(backbone.channels)
    for block, output in zip(backbone.blocks(), outputs, strict=True):
        images = block(images)
        assert torch.equal(images, output) and not output.requires_grad
    assert all(torch.equal(before[name], value) for name, value in backbone.state_dict().items())
    assert str(stage) == "probe: the head learns on B1-B5, frozen, 1 epoch"
    assert str(replace(stage, first_learning=2)).startswith("probe: level G1, learns B2-B5")


def test_one_process_gathers_its_own() -> None:
    tensor = torch.randn(3, 2, requires_grad=True)
    assert torch.equal(gathered(tensor), tensor) and not gathered(tensor).requires_grad


class Shown(Asking):
    """A task that also draws a contact sheet with captions."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[Batch] = []

    @override
    def contact_sheet(self, inputs: Sequence[Tensor], batch: Batch) -> Tensor:
        assert len(inputs[0]) == len(batch.indices)
        self.drawn.append(batch)
        return torch.zeros(len(inputs[0]), 3, 24, 24)

    @override
    def captions(self, batch: Batch) -> list[str]:
        self.drawn.append(batch)
        return [""] * len(batch.indices)


def test_only_what_is_shown_of_a_stages_first_epoch_is_augmented_for_its_sheet(tmp_path: Path) -> None:
    task = Shown()
    shown = replace(experiment(task), stages=make_plan("psl", (3, 2, 1)))
    assert fit(tmp_path, task, shown, max_steps_per_stage=1, batch_size=48)
    assert [batch.epoch for batch in task.drawn[::2]] == [0, 3, 5]  # the first of each stage
    # A batch has 24 samples, because each counts twice.
    assert [len(batch.indices) for batch in task.drawn] == [NUM_IMAGES] * 6
    assert all(tensor.device.type == "cpu" for batch in task.drawn for tensor in batch.tensors())


def test_the_page_names_every_hook_and_nothing_else() -> None:
    page = (ROOT / "docs" / "how_to" / "add_a_task.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`(\w+)[`(]", row.split("|")[1])}
    assert named == {name for name in vars(Task) if not name.startswith("_")}


def test_figures_are_logged_with_the_steps_and_epochs_they_belong_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stages of two and one epochs of five steps, of which the first is cut short after eight steps."""
    monkeypatch.setattr(Asking, "num_warm_up_batches", lambda self, stage: 0)
    monkeypatch.setattr(Asking, "start_epoch", lambda self, context: {"began": context.epoch})
    monkeypatch.setattr(Asking, "end_epoch", lambda self: {"ended": len(self.trained)})
    task = Asking()
    two = replace(experiment(task), stages=make_plan("psl", (2, 1), num_levels=3))
    assert fit(tmp_path, task, two, batch_size=96, max_steps_per_stage=8)
    names = ("run_step", "epoch", "stage", "began", "ended")
    assert [tuple(map(row.get, names)) for row in epoch_records(tmp_path)] == [
        (1, 0, "S1", 0, None), (5, 1, "S1", None, 5),
        (6, 1, "S1", 1, None), (8, 1.6, "S1", None, 8),
        (9, 2, "S2", 2, None), (13, 3, "S2", None, 13),
    ]  # fmt: skip


def test_inputs_are_told_of_the_stages_that_make_several_of_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Asking, "inputs_per_image", lambda self, level: {1: 1, 2: 2, 3: 4}[level])
    three = replace(experiment(Asking()), stages=make_plan("psl", (1, 1, 1)), science={"labels": "abc"})
    assert three.inputs_per_image() == {"S2": 2, "S3": 4}
    assert replace(three, stages=three.stages[:1]).inputs_per_image() == {}


def test_blocks_that_cannot_be_folded_are_refused_before_the_first_step(tmp_path: Path) -> None:
    """In the second stage, the first block is frozen. Its BatchNorm follows no convolution."""
    refused = replace(experiment(Asking()), stages=make_plan("psl", (1, 1, 1)))
    refused.backbone.blocks()[0][0] = nn.Identity()  # type: ignore[index, operator]
    with closing(tiny_run(tmp_path, batch_size=16, fold_frozen="on")) as run:
        with pytest.raises(ValueError, match="fold"):
            refused.check(run.data)
        replace(refused, stages=refused.stages[:1]).check(run.data)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_frozen_batchnorms_normalise_as_asked(mode: Any) -> None:
    """Any recipe's, because the engine reads the option."""
    options = PretrainOptions(batch_size=16, frozen_batchnorm=mode)
    staged = replace(experiment(Asking()), stages=make_plan("psl", (1, 1, 1)))
    blocks = make_train_step(staged, 1, options, one_process()).module.blocks.train()
    assert [part.training for part in blocks.frozen] == [mode == "train"]


def test_batchnorms_of_backbone_and_head_are_synchronised_if_asked() -> None:
    for is_asked in (False, True):
        options = TrainingOptions(batch_size=16, sync_batchnorm=is_asked)
        simclr: Any = SimCLR(16, size_px=32, temperature=0.1, embedding_width=4)
        two = experiment(simclr)
        place_backbone(two, options, one_process())
        module = make_train_step(two, 1, options, one_process()).module
        kinds = [
            {type(part) for part in side.modules() if isinstance(part, _BatchNorm)}
            for side in (module.blocks, module.head)
        ]
        assert kinds == ([{nn.SyncBatchNorm}] * 2 if is_asked else [{nn.BatchNorm2d}, {nn.BatchNorm1d}])


def test_a_steps_mode_is_chosen_for_the_largest_view_and_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []
    views = tuple(ViewSpec(ShorterSideCrop(40, size)) for size in (24, 32, 16))
    monkeypatch.setattr(Asking, "views", lambda self, level: views)

    def choose(*given: object, **more: object) -> StepChoice:
        asked.append((*given, more))
        return OFF

    monkeypatch.setattr(experiment_module, "choose_step", choose)
    options, two = TrainingOptions(precision="bf16", compile="on", sync_batchnorm=True), experiment(Asking())
    world = replace(one_process(), rank=1, size=4)
    assert two.choose_step(two.stages[1], options, world)[0] == OFF
    more = {"captured": False, "sync_batchnorm": True}
    assert asked == [("on", two.backbone, two.stages[1], world.device, "bf16", 32, more)]


@pytest.mark.parametrize("which", ["views", "val_views", "pass_views"])
def test_each_view_is_large_enough_for_the_backbone_and_fits_into_the_smallest_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    """A crop's pixel is at most two of an image's. The images have 32 px, and the other views fit."""
    two = experiment(Asking())
    monkeypatch.setattr(TinyNet, "min_px", 24)
    with closing(tiny_run(tmp_path, batch_size=16)) as run:
        for shorter_px, size_px, refusal in (
            (32, 24, None), (32, 23, "23"),
            (64 * 24, 24, None), (64 * 24 + 1, 24, "32 x 32 px .* allowed are sides of 33"),
        ):  # fmt: skip
            view = ViewSpec(ShorterSideCrop(shorter_px, size_px))
            monkeypatch.setattr(Asking, which, lambda self, level, view=view: (view,))
            with pytest.raises(ValueError, match=refusal) if refusal else nullcontext():
                two.check(run.data)
