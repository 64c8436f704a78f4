"""A student learns a frozen teacher's features: values by loops, views of one place, stages, refusals."""

import gc
import json
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typing_extensions import override

import fastpsl
from fastpsl.engine.experiment import Experiment, make_train_step
from fastpsl.engine.optim.optimisers import sgd
from fastpsl.engine.optim.schedules import cosine
from fastpsl.engine.options import PretrainOptions
from fastpsl.engine.plan import make_plan
from fastpsl.models.backbone import Backbone
from fastpsl.models.factory import make_backbone
from fastpsl.models.teacher import Teacher, open_teacher
from fastpsl.models.weights import Pretrained
from fastpsl.pipelines.datasets.open import open_data
from fastpsl.pipelines.decoders.choose import open_decoder
from fastpsl.pipelines.embedded.draw_sample import sample_paths
from fastpsl.pipelines.interface.reading import Reading
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.loader.stages import LoaderSpec, plan
from fastpsl.pipelines.views import Input
from fastpsl.tasks.distill import Distill
from tests.engine.exact_signals import train_until
from tests.engine.tiny import TinyNet, noise_batch, one_process, teacher_of, tiny_run
from tests.programs import SMALL_NET, digests, newest_checkpoint

CPU = torch.device("cpu")
PLAIN = partial(sgd, momentum=0.0, weight_decay=0.0)


def experiment_of(teacher: Teacher, plan: str = "end_to_end", size_px: int = 32) -> Experiment:
    torch.manual_seed(0)
    backbone = TinyNet()
    task = Distill(teacher, backbone.num_blocks, size_px=size_px)
    return Experiment(task, backbone, make_plan(plan, (1, 1, 1), num_levels=1), cosine(0.1), PLAIN)


def by_loops(students: Tensor, targets: Tensor, queue: Tensor) -> Tensor:
    """Return SEED's loss of each pair of rows, of their similarities to the queue and to the target."""
    unit = lambda row: row / row.square().sum().sqrt().clamp(min=1e-12)
    losses = []
    for student, target in zip(students, targets, strict=True):
        others = [*map(unit, queue), unit(target)]
        theirs = torch.stack([(unit(target) * other).sum() for other in others]) / 0.01
        own = torch.stack([(unit(student) * other).sum() for other in others]) / 0.2
        expected = (theirs - theirs.max()).exp()
        log_sum = (own - own.max()).exp().sum().log() + own.max()
        losses.append(-(expected / expected.sum() * (own - log_sum)).sum())
    return torch.stack(losses)


def head_like(module: torch.nn.Module) -> torch.nn.Linear:
    """Return the linear layer of a head of 16 channels."""
    head = torch.nn.Linear(16, 16)
    head.load_state_dict({name.removeprefix("2."): value for name, value in module.state_dict().items()})
    return head


def test_steps_are_those_of_a_plain_loop() -> None:
    """Four steps, with a warm-up batch before them and an image that does not count in each.

    The queue has 14 places. It is filled after the second step, and then loses its oldest.
    """
    teacher = teacher_of(1, 40, Input(mean=(0.5,) * 3, std=(0.4,) * 3, size_px=40))
    experiment = experiment_of(teacher)
    experiment.task.queue_size = 14  # type: ignore[attr-defined]
    options = PretrainOptions(epochs=(1,), precision="fp32")
    step = make_train_step(experiment, 0, options, one_process())
    student, head = TinyNet(), head_like(step.module.head)
    student.load_state_dict(experiment.backbone.state_dict())
    optimiser = torch.optim.SGD([*student.parameters(), *head.parameters()], lr=0.05)
    student.train()
    queue, place = dict[int, Tensor](), 0
    for number in range(5):
        batch = noise_batch(step.views, 6, number)
        batch.indices[number] = -1
        own, theirs = batch.inputs(step.views, torch.float32)
        assert own.shape[-1] == 32 and theirs.shape[-1] == 40
        with torch.no_grad():
            targets = teacher.network(theirs).mean((2, 3))
        if number == 0:
            step.warm_up(experiment.task.warm_up, batch)
        else:
            metrics = step.step([batch], lr=0.05)
            losses = by_loops(head(student(own).mean((2, 3))), targets, torch.stack([*queue.values()]))
            loss = torch.stack([losses[i] for i in range(6) if i != number]).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            value, count = metrics.values[metrics.names.index("loss")].tolist()
            assert count == 5 and value / count == pytest.approx(float(loss.detach()), rel=1e-4)
        for i in range(6):
            if i != number:  # it leaves what is there, if anything is
                queue[place] = targets[i]
            place = (place + 1) % 14
    for name, value in student.state_dict().items():
        assert torch.allclose(experiment.backbone.state_dict()[name], value, rtol=1e-3, atol=1e-5), name


@pytest.mark.parametrize("decoder", ["turbo", "pillow", "ffcv"])
def test_the_teacher_sees_the_students_crop_and_flip(decoder: str) -> None:
    """At one size and with one mean, both views are equal; a view with draws of its own is not."""
    same = experiment_of(teacher_of(1, 32)).task.views(1)
    with closing(open_data(sample_paths().train)) as data:
        for views, is_equal in ((same, True), ((same[0], same[0]), False)):
            with Loader(data, views, batch_size_per_rank=16, decoder=decoder, num_threads=1) as loader:
                batch = next(loader.epoch(3))
            own, theirs = batch.inputs(views, torch.float32)
            assert torch.equal(own, theirs) == is_equal
            assert 0 < int(batch.draws[0][0]["flip"].sum()) < 16


def test_boxes_of_another_size_are_of_the_same_place() -> None:
    views = experiment_of(teacher_of(1, 96)).task.views(1)
    with closing(open_data(sample_paths().train)) as data:
        options: dict[str, Any] = {"num_threads": 1, "num_views": 2, "hw_decoder_load": None}
        decoder, _ = open_decoder("pillow", data, batch_size=4, device=CPU, **options)
        planned = plan(LoaderSpec(data, views, 5, decoder, "raise", CPU, None), 2, 0, np.arange(4))
    (own, theirs), (flips, their_flips) = planned.boxes, (draws[0]["flip"] for draws in planned.draws)
    assert np.array_equal(own, theirs) and np.array_equal(flips, their_flips)


def test_a_stage_resizes_the_students_view_alone_and_scales_both_crops() -> None:
    experiment = experiment_of(teacher_of(1, 96))
    stage = replace(experiment.stages[0], size_px=24, crop_scale=0.7)
    input = Input(mean=(0.1,) * 3, std=(0.3,) * 3)
    own, theirs = replace(experiment, input=input).views(stage)
    assert (own.crop.size_px, theirs.crop.size_px) == (24, 96)
    assert {view.crop.scale for view in (own, theirs)} == {(0.7, 1.0)}  # type: ignore[attr-defined]
    assert own.mean == input.mean and theirs.mean == Input().mean


def test_a_view_that_follows_none_is_refused() -> None:
    _, second = experiment_of(teacher_of(1, 32)).task.views(1)
    with closing(open_data(sample_paths().train)) as data:
        for views in ((second,), (second, second)):
            with pytest.raises(ValueError, match="follows"):
                Loader(data, views, batch_size_per_rank=4)


@pytest.mark.parametrize(
    ("name", "calls"), [("psl", [(3, 1), (4, 1), (5, 1)]), ("end_to_end", [(5, 1)]), ("blockwise", [(5, 1)])]
)
def test_a_stage_runs_the_teacher_up_to_its_block_once_and_changes_nothing_of_it(
    name: str, calls: Sequence[tuple[int, int]]
) -> None:
    teacher = teacher_of(1, 40)
    experiment = experiment_of(teacher, name)
    before = digests(teacher.network.state_dict())
    options = PretrainOptions(epochs=(1, 1, 1), plan=name, precision="fp32")  # type: ignore[arg-type]
    counts = Counter[int]()
    for number, block in enumerate(teacher.network.blocks(), 1):
        block.register_forward_hook(lambda *_, number=number: counts.update([number]))
    for stage, (last, times) in enumerate(calls):
        step = make_train_step(experiment, stage, options, one_process())
        step.warm_up(experiment.task.warm_up, noise_batch(step.views, 4))
        for number in range(2):
            counts.clear()
            step.step([noise_batch(step.views, 4, number)], lr=0.1)
            assert counts == dict.fromkeys(range(1, last + 1), times)
    assert digests(teacher.network.state_dict()) == before and not teacher.network.training
    assert all(weights.grad is None for weights in teacher.network.parameters())


def test_blocks_of_other_numbers_are_matched_by_depth() -> None:
    teacher = teacher_of(1, 32)
    assert [teacher.block_beside(block, 5) for block in range(1, 6)] == [1, 2, 3, 4, 5]
    assert [teacher.block_beside(block, 3) for block in range(1, 4)] == [2, 3, 5]
    assert [teacher.block_beside(block, 12) for block in (1, 6, 12)] == [1, 2, 5]


def test_features_of_a_deeper_block_go_on_from_those_before() -> None:
    teacher, images = teacher_of(1, 32), torch.randn(2, 3, 32, 32)
    outputs, maps = [], images
    for block in teacher.network.blocks():
        maps = block(maps)
        outputs.append(maps.mean((2, 3)))
    for number in (2, 2, 5):
        assert torch.equal(teacher.features(images, number), outputs[number - 1])
    assert not torch.equal(teacher.features(images + 1, 4), outputs[3])


def test_a_teacher_holds_no_maps_of_images_that_are_gone() -> None:
    teacher = teacher_of(1, 32)
    network: Any = teacher.network
    network.parts[0] = torch.nn.Identity()
    for _ in range(3):
        teacher.features(torch.randn(2, 3, 32, 32), 1)
    gc.collect()
    assert not len(teacher._known)


def test_the_cost_is_of_random_images_and_changes_none(tmp_path: Path) -> None:
    """Blocks that compute in place are timed on copies."""
    experiment = experiment_of(teacher_of(1, 40))
    network: Any = experiment.task.teacher.network  # type: ignore[attr-defined]
    network.parts[4] = torch.nn.Sequential(torch.nn.Sigmoid(), InPlace())
    run = tiny_run(tmp_path, epochs=(1,))
    try:
        first, second = experiment.task.lines_before(experiment.backbone, experiment.stages, run.data)
        network.parts[4] = Constant()
        with pytest.raises(ValueError, match="its features of 16 images are the same"):
            list(experiment.task.lines_before(experiment.backbone, experiment.stages, run.data))
    finally:
        run.close()
    assert "teacher" in first and "E " in second and experiment.backbone.training


class Constant(torch.nn.Module):
    """A layer that knows no images."""

    @override
    def forward(self, maps: Tensor) -> Tensor:
        return torch.ones_like(maps)


class InPlace(torch.nn.Module):
    """A layer whose repeated use overflows."""

    @override
    def forward(self, maps: Tensor) -> Tensor:
        return maps.mul_(30).exp_()


def test_validation_moves_no_queue_and_losses_are_those_of_images() -> None:
    experiment = experiment_of(teacher_of(1, 40))
    step = make_train_step(experiment, 0, PretrainOptions(epochs=(1,), precision="fp32"), one_process())
    task: Any = experiment.task
    step.warm_up(task.warm_up, noise_batch(step.views, 6))
    batch = noise_batch(step.views, 6, 1)
    before = task.queue.clone()
    step.module.eval()
    inputs = batch.inputs(step.views, torch.float32)
    with torch.no_grad():
        loss, _ = task.loss(step.module.blocks, step.module.head, inputs, batch)
        each = task.losses(step.module.blocks, step.module.head, inputs, batch)
        targets = task.teacher.network(inputs[1]).mean((2, 3))
        expected = by_loops(step.module.head(experiment.backbone(inputs[0])), targets, before[:6])
    assert torch.equal(task.queue, before) and not batch.extra
    assert torch.allclose(each, expected, rtol=1e-5) and float(loss) == pytest.approx(float(each.mean()))


def test_a_queue_smaller_than_a_batch_takes_the_last_of_it() -> None:
    experiment = experiment_of(teacher_of(1, 32))
    task: Any = experiment.task
    task.queue_size = 4
    step = make_train_step(experiment, 0, PretrainOptions(epochs=(1,), precision="fp32"), one_process())
    batch = noise_batch(step.views, 6)
    step.warm_up(task.warm_up, batch)
    targets = task.teacher.network(batch.inputs(step.views, torch.float32)[1]).mean((2, 3))
    assert torch.allclose(task.queue, torch.nn.functional.normalize(targets[2:]), atol=1e-6)


def test_data_that_are_read_otherwise_than_the_teachers_are_refused() -> None:
    teacher = teacher_of(1, 32)
    teacher.input = Input(reading=Reading((0.0, 4095.0)))
    with closing(open_data(sample_paths().train)) as data:
        with pytest.raises(ValueError, match="--range and --bands"):
            experiment_of(teacher).task.check_data(data, 8)
        teacher.input = Input()
        experiment_of(teacher).task.check_data(data, 8)


def fit(out: Path, plan: str, stop: int | None) -> bool:
    run = tiny_run(out, plan=plan, epochs=(1, 1, 1), max_steps_per_stage=8)
    return train_until(stop, experiment_of(teacher_of(1, 40), plan), run)


@pytest.mark.parametrize("plan", ["psl", "blockwise"])
def test_a_resumed_run_equals_one_never_stopped(plan: str, tmp_path: Path) -> None:
    last = 8 if plan == "blockwise" else 24
    for out, stops in (("whole", (None,)), ("stopped", (3, last - 3, None))):
        for stop in stops:
            assert fit(tmp_path / out, plan, stop) == (stop is None)
    whole, stopped = (newest_checkpoint(tmp_path / each) for each in ("whole", "stopped"))
    assert digests(whole) == digests(stopped)


VALUES: dict[str, Any] = {
    "data": sample_paths().train_32, "size_px": 32, "batch_size": 16, "workers": 1, "tensorboard": False,
    "teacher_px": 32, "max_steps_per_stage": 1, "backbone": SMALL_NET,
}  # fmt: skip


def distilled(out: Path, teacher: object = SMALL_NET, **options: Any) -> fastpsl.Trained:
    return fastpsl.pretrain("distill", out=out, teacher=str(teacher), **{**VALUES, **options})


def test_teachers_of_all_kinds_and_a_resume_by_another_path(tmp_path: Path) -> None:
    first = distilled(tmp_path / "first", SMALL_NET)
    second = distilled(tmp_path / "second", first.folder, teacher_backbone=SMALL_NET)
    weights = tmp_path / "weights.pth"
    torch.save(make_backbone("resnet18").state_dict(), weights)
    third = distilled(tmp_path / "third", weights, teacher_backbone="resnet18", teacher_px=64)
    kinds = [newest_checkpoint(run.folder)["science"] for run in (first, second, third)]
    pretrained = open_teacher(SMALL_NET)
    assert isinstance(pretrained.backbone, Backbone) and pretrained.input == Input()
    assert json.loads(json.dumps(pretrained.record))["sha256"]
    own = Path(SMALL_NET).name  # without the folder
    assert [each["teacher_backbone"] for each in kinds] == [own, own, "resnet18"]
    assert [each["teacher_input"]["size_px"] for each in kinds] == [32, 32, 64]
    moved = weights.rename(tmp_path / "moved.pth")
    again = {"teacher_backbone": "resnet18", "teacher_px": 64, "max_steps_per_stage": 2}
    distilled(tmp_path / "third", moved, **again)
    torch.save(make_backbone("resnet18").state_dict(), moved)
    with pytest.raises(ValueError, match="teacher"):
        distilled(tmp_path / "third", moved, **{**again, "max_steps_per_stage": 3})


def test_a_students_first_weights_do_not_depend_on_the_teacher(tmp_path: Path) -> None:
    frozen = {"lr": 1e-12, "weight_decay": 0.0}
    weights = tmp_path / "weights.pth"
    torch.save(make_backbone("resnet18").state_dict(), weights)
    runs = [
        distilled(tmp_path / "one", SMALL_NET, **frozen),
        distilled(tmp_path / "two", weights, teacher_backbone="resnet18", teacher_px=64, **frozen),
    ]
    one, two = (newest_checkpoint(run.folder)["backbone"] for run in runs)
    assert all(torch.allclose(one[name], two[name], atol=1e-6) for name in one if "num_batches" not in name)


def test_refusals(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(b"PK\x03\x04 no weights")
    plain = tmp_path / "plain.pth"
    torch.save(make_backbone("resnet18").state_dict(), plain)
    infinite = tmp_path / "infinite.py"
    infinite.write_text(
        "import torch\nfrom tests.engine.tiny import TinyNet\n"
        "class Net(TinyNet):\n"
        "    def blocks(self): return [*super().blocks()[:-1], torch.nn.Sequential(self.parts[-1], Inf())]\n"
        "class Inf(torch.nn.Module):\n"
        "    def forward(self, x): return x / (x.amax((1, 2, 3), keepdim=True) < 0.0) if len(x) > 3 else x\n"
    )
    rows: list[tuple[str, dict[str, Any]]] = [
        ("teacher: give", {"teacher": None}),
        ("missing.pth", {"teacher": tmp_path / "missing.pth"}),
        ("damaged.pth", {"teacher": damaged, "teacher_backbone": "resnet18"}),
        ("give teacher_backbone", {"teacher": plain}),
        ("alexnet", {"teacher": plain, "teacher_backbone": "alexnet"}),
        ("with teacher_backbone", {"teacher": SMALL_NET, "teacher_backbone": "resnet18"}),
        ("not finite", {"teacher": f"{infinite}:Net"}),
    ]
    for words, options in rows:
        teacher = options.pop("teacher")
        with pytest.raises(ValueError) as error:
            given = {} if teacher is None else {"teacher": str(teacher)}
            fastpsl.pretrain("distill", out=tmp_path / "run", **{**VALUES, **options, **given})
        assert words in str(error.value) and "\n" not in str(error.value), error.value


def test_a_size_that_the_teacher_cannot_read_is_refused() -> None:
    network = TinyNet()
    network.min_px = 33
    with pytest.raises(ValueError, match="--teacher-px 32.*33 px"):
        Teacher(Pretrained(network, Input(), {}), 32)


def test_a_size_that_patches_do_not_divide_is_refused() -> None:
    pytest.importorskip("timm")
    pretrained = Pretrained(make_backbone("timm/test_vit"), Input(), {})
    network: Any = pretrained.backbone
    side: int = network.network.patch_embed.patch_size[0]
    Teacher(pretrained, 4 * side)
    with pytest.raises(ValueError, match=f"--teacher-px {4 * side + 1}.*{4 * side} or {5 * side}"):
        Teacher(pretrained, 4 * side + 1)


def test_a_record_runs_no_teacher_of_a_file(tmp_path: Path) -> None:
    run = distilled(tmp_path / "run", SMALL_NET, teacher_sees="crop")
    values = {"config": run.folder, "backbone": SMALL_NET, "data": VALUES["data"]}
    with pytest.raises(ValueError, match="would run; give teacher"):
        fastpsl.pretrain("distill", out=tmp_path / "again", **values)
    with pytest.raises(ValueError, match="would run; give teacher"):
        fastpsl.replay(run.folder, 1, backbone=SMALL_NET)
    other = distilled(tmp_path / "other", run.folder, teacher_backbone=SMALL_NET)
    with pytest.raises(ValueError, match="would run; give teacher_backbone"):
        fastpsl.replay(other.folder, 1, backbone=SMALL_NET)
    assert fastpsl.replay(other.folder, 1, backbone=SMALL_NET, teacher_backbone=SMALL_NET).images
    fastpsl.pretrain("distill", out=tmp_path / "again", teacher=SMALL_NET, **values)
    for image in fastpsl.replay(run.folder, 1, backbone=SMALL_NET, teacher=SMALL_NET).images:
        own, theirs = image.draws
        assert own["crop"] == theirs["crop"] and own == theirs and image.loss is not None


def test_a_teacher_reads_its_own_channels(tmp_path: Path) -> None:
    """A teacher on L sees the lightness of the student's crop; one of an op from elsewhere is refused."""
    teacher = teacher_of(1, 32)
    network: Any = teacher.network
    network.parts[0][0] = torch.nn.Conv2d(1, 8, 3, stride=2, padding=1, bias=False)
    teacher.input = Input.usual("L", 32)
    own, theirs = experiment_of(teacher).task.views(1)
    assert own.input().channels == "RGB" and theirs.input().channels == "L" and theirs.follows == 0
    teacher.input = Input("my_ops.Edges", (0.5,), (0.5,), 32)
    with pytest.raises(ValueError, match="my_ops.Edges"):
        experiment_of(teacher)
