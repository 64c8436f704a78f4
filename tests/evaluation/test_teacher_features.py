"""A distillation from stored features: values, one pass, resume, several students, and what is refused."""

import errno
import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from typing_extensions import override

import fastpsl
from fastpsl.engine.experiment import Experiment, make_train_step
from fastpsl.engine.optim.optimisers import sgd
from fastpsl.engine.optim.schedules import cosine
from fastpsl.engine.options import PretrainOptions
from fastpsl.engine.plan import make_plan
from fastpsl.engine.trainer import pretrain
from fastpsl.evaluation.teacher_features import DistillStored, TeacherFeatures
from fastpsl.models.backbone import Backbone
from fastpsl.models.factory import make_backbone
from fastpsl.models.teacher import Teacher
from fastpsl.models.weights import Pretrained, sha256_of_tensors
from fastpsl.pipelines.datasets.open import open_data
from fastpsl.pipelines.embedded.draw_sample import sample_paths
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.views import Input, center_view
from tests.cli import Cli
from tests.engine.exact_signals import signal_at_question, signal_at_step
from tests.engine.steps import rank_of
from tests.engine.tiny import TinyNet, noise_batch, one_process, teacher_of, tiny_run
from tests.programs import SMALL_NET, digests, newest_checkpoint
from tests.tasks.test_distill import VALUES, by_loops, distilled, head_like
from tests.warm import results_of_ranks


class Pixels(Backbone):
    """A network whose only feature is the image itself."""

    name = "pixels"
    channels = (3 * 32 * 32,)
    block_names = ("pixels",)

    @override
    def blocks(self) -> list[nn.Module]:
        return [nn.PixelUnshuffle(32)]


def experiment_of(teacher: Teacher, plan: str = "end_to_end") -> Experiment:
    torch.manual_seed(0)
    backbone, stages = TinyNet(), make_plan(plan, (1, 1, 1), num_levels=1)
    store = TeacherFeatures(teacher, stages, backbone.num_blocks, None)
    task = DistillStored(teacher, backbone.num_blocks, size_px=32, store=store)
    return Experiment(task, backbone, stages, cosine(0.1), lambda named: sgd(named, momentum=0.0))


def fit(out: Path, experiment: Experiment, stop: Any = None, **options: Any) -> bool:
    with closing(tiny_run(out, **{"epochs": (1, 1, 1), "max_steps_per_stage": 4, **options})) as run:
        if stop is not None:
            stop(run)
        return pretrain(experiment, run)


def test_features_are_those_of_the_very_images(tmp_path: Path) -> None:
    """A mirrored or shifted image has others."""
    teacher = Teacher(Pretrained(Pixels(), Input(size_px=32), teacher_of(1, 32).record), 32)
    fit(tmp_path, experiment_of(teacher))
    rows = torch.from_numpy(np.load(tmp_path / "teacher-features" / "teacher-B1.npy"))
    view = center_view(Input(size_px=32), 32, whole=True)
    with (
        closing(open_data(sample_paths().train_32)) as data,
        Loader(data, [view], batch_size_per_rank=data.num_samples, train=False) as loader,
        closing(loader.epoch(0)) as batches,
    ):
        (images,) = next(batches).inputs([view], torch.float32)
    assert rows.dtype == torch.float16 and len(rows) == len(images)
    cosines = lambda other: F.cosine_similarity(teacher.features(other, 1), rows.float())
    assert cosines(images).min() > 0.999
    assert cosines(images.flip(3)).median() < 0.97 and cosines(images.roll(2, 3)).median() < 0.97


def stored_task(teacher: Teacher, rows: Tensor, queue_size: int) -> DistillStored:
    """Return a task of which the pass has made these features."""
    store: Any = TeacherFeatures(teacher, make_plan("end_to_end", (1,), num_levels=1), 5, None)
    store.files, store.read = {5: None}, lambda block, device: rows.clone()
    task = DistillStored(teacher, 5, size_px=32, store=store)
    task.num_images, task.queue_size = len(rows), queue_size
    return task


@pytest.mark.parametrize("queue_size", [6, 8])
def test_steps_are_those_of_a_plain_loop(queue_size: int) -> None:
    """With an image that does not count, and one that has no feature, in each step.

    Only seven images have a feature: the larger queue has a place left.
    """
    teacher, rows = teacher_of(1, 40), torch.randn(8, 16, generator=torch.Generator().manual_seed(3))
    rows = F.normalize(rows).half()
    rows[4] = torch.nan
    experiment = replace(experiment_of(teacher), task=stored_task(teacher, rows, queue_size))
    step = make_train_step(experiment, 0, PretrainOptions(epochs=(1,), precision="fp32"), one_process())
    assert len(step.views) == 1
    student, head = TinyNet(), head_like(step.module.head)
    student.load_state_dict(experiment.backbone.state_dict())
    optimiser = torch.optim.SGD([*student.parameters(), *head.parameters()], lr=0.05)
    student.train()
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0)).tolist()
    first = [rows[i].float() for i in order if i != 4][:queue_size]
    queue, place = dict(enumerate(first)), len(first) % queue_size
    for number in range(2):
        batch = noise_batch(step.views, 6, number)
        batch.indices[:] = torch.tensor([7, 0, 4, 2, 6, 3])
        batch.indices[number] = -1
        (own,) = batch.inputs(step.views, torch.float32)
        counted = [place for place, index in enumerate(batch.indices.tolist()) if index not in (-1, 4)]
        targets = rows[batch.indices[counted]].float()
        outputs = head(student(own).mean((2, 3)))[counted]
        loss = by_loops(outputs, targets, torch.stack([*queue.values()])).mean()
        metrics = step.step([batch], lr=0.05)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        value, count = metrics.values[metrics.names.index("loss")].tolist()
        assert count == 4 and value / count == pytest.approx(float(loss.detach()), rel=1e-4)
        for i, index in enumerate(batch.indices.tolist()):
            if i in counted:
                queue[(place + i) % queue_size] = rows[index].float()
        place = (place + 6) % queue_size
    for name, value in student.state_dict().items():
        assert torch.allclose(experiment.backbone.state_dict()[name], value, rtol=1e-3, atol=1e-5), name


@pytest.mark.parametrize("plan", ["psl", "blockwise"])
def test_a_pass_serves_its_blocks_and_a_stopped_run_equals_another(plan: str, tmp_path: Path) -> None:
    """It is stopped within the pass, after steps, and between stages."""
    make = lambda: experiment_of(teacher_of(1, 40), plan)
    last, experiment, seen = 4 if plan == "blockwise" else 12, make(), Counter[int]()
    task: Any = experiment.task.tasks[0][1] if plan == "blockwise" else experiment.task  # type: ignore[attr-defined]
    first = task.teacher.network.parts[0]
    first.register_forward_hook(lambda _, images, maps: seen.update({0: len(maps)}))
    assert fit(tmp_path / "whole", experiment)
    with closing(open_data(sample_paths().train_32)) as data:
        assert seen[0] - data.num_samples in range(96)  # a batch is filled up
    in_pass = lambda run: signal_at_question(run, 3)
    for stop in (in_pass, *(partial(signal_at_step, step=step) for step in (2, last - 2)), None):
        assert fit(tmp_path / "stopped", make(), stop) == (stop is None)
    whole, stopped = (tmp_path / each for each in ("whole", "stopped"))
    assert digests(newest_checkpoint(whole)) == digests(newest_checkpoint(stopped))
    names = [path.relative_to(whole) for path in whole.rglob("teacher-B*[0-9].npy")]
    assert len(names) == 3
    for name in names:
        one, other = (np.load(each / name) for each in (whole, stopped))
        assert np.array_equal(one, other) and np.isfinite(one).all()
        (stopped / name).unlink()
    assert fit(stopped, make()) and not [*stopped.rglob("teacher-B*[0-9].npy")]  # a finished run needs none


def of_ranks(folder: Path, rank: int, num_ranks: int) -> str:
    """Distil on several ranks, and return the digest of the features."""
    world = rank_of(rank, num_ranks)
    run = tiny_run(folder / f"{num_ranks}", world, epochs=(1,), max_steps_per_stage=1, plan="end_to_end")
    with closing(run):
        assert pretrain(experiment_of(teacher_of(1, 40)), run)
    return sha256((folder / f"{num_ranks}" / "teacher-features" / "teacher-B5.npy").read_bytes()).hexdigest()


def test_ranks_share_the_pass(tmp_path: Path) -> None:
    digest = of_ranks(tmp_path, 0, 1)
    (tmp_path / "ranks").mkdir()
    assert results_of_ranks(partial(of_ranks, tmp_path), 2, tmp_path / "ranks") == [digest, digest]


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Count the passes of teachers."""
    from fastpsl.evaluation import teacher_features

    made, extract = Counter[str](), teacher_features.extract

    def counted(works: Any, outs: Any, *rest: Any, **more: Any) -> Any:
        made.update(path.name for path in outs)
        return extract(works, outs, *rest, **more)

    monkeypatch.setattr(teacher_features, "extract", counted)
    yield made


def test_a_folder_serves_other_students_and_differences_are_named(
    tmp_path: Path, passes: Counter[str], capsys: pytest.CaptureFixture[str]
) -> None:
    shared, weights = tmp_path / "shared", tmp_path / "weights.pth"
    torch.save(make_backbone("resnet18").state_dict(), weights)
    given = {"teacher": weights, "teacher_backbone": "resnet18", "teacher_features": shared}
    distilled(tmp_path / "one", **given)
    distilled(tmp_path / "two", **given, backbone="resnet18", seed=3, size_px=48)
    assert passes == {"teacher-B5.npy": 1} and not (tmp_path / "one" / "teacher-features").exists()
    distilled(tmp_path / "psl", **given, plan="psl", epochs=(1, 1, 1))
    assert "kept: 0.11 MB" in capsys.readouterr().err  # of B3 and B4: 64 numbers each, of 431 images
    assert passes == {"teacher-B5.npy": 1, "teacher-B3.npy": 1, "teacher-B4.npy": 1}
    record = shared / "teacher-B3.json"
    record.write_text(record.read_text().replace('"B3"', '"B4"'))
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    np.save(theirs / "teacher-B5.npy", np.zeros((3, 2), np.float32))
    rows: list[tuple[str, dict[str, Any]]] = [
        ("another teacher (", {"teacher": SMALL_NET, "teacher_backbone": None}),
        ("another teacher_px", {"teacher_px": 48}),
        ("other images", {"data": sample_paths().test_32}),
        ("another block", {"plan": "psl", "epochs": (1, 1, 1)}),
        ("they are of whole images", {"teacher_sees": "crop"}),
        ("it is a file", {"teacher_features": weights}),
        ("nothing tells what these features are of", {"teacher_features": theirs}),
    ]
    for number, (words, options) in enumerate(rows):
        with pytest.raises(ValueError) as error:
            distilled(tmp_path / f"refused-{number}", **{**given, **options})
        assert words in str(error.value) and "\n" not in str(error.value), error.value
    assert np.load(theirs / "teacher-B5.npy").shape == (3, 2)


def test_damaged_files_and_those_of_touched_images_are_made_anew(
    tmp_path: Path, passes: Counter[str]
) -> None:
    path, images = tmp_path / "shared" / "teacher-B5.npy", tmp_path / "images"
    images.mkdir()
    for number in range(20):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(images / f"{number}.png")
    for number in range(3):
        distilled(tmp_path / f"{number}", teacher_features=path.parent, data=images, val="none", batch_size=4)
        assert passes["teacher-B5.npy"] == number + 1
        if number == 0:
            with path.open("r+b") as file:
                file.truncate(1000)
        if number == 1:
            np.save(path, np.load(path).astype(np.float32))
            record = path.with_suffix(".json")
            record.write_text(record.read_text().replace("float16", "float32"))
            os.utime(images / "3.png", (1.0, 1.0))
    rows = np.load(path)
    assert rows.dtype == np.float32
    rows[7, 3] = np.inf
    np.save(path, rows)
    with pytest.raises(ValueError, match="of 1 image are not finite, and its record tells 0; remove it"):
        distilled(tmp_path / "last", teacher_features=path.parent, data=images, val="none", batch_size=4)


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(ValueError, match=r"teacher-B5\.npy.*No space"):
            distilled(tmp_path / "run")
    assert distilled(tmp_path / "run").folder


def test_a_replay_reads_the_features_of_its_run_and_writes_none(tmp_path: Path, passes: Counter[str]) -> None:
    run = distilled(tmp_path / "run", max_steps_per_stage=2)
    stored = [path for path in tmp_path.rglob("teacher-B5*") if "labels" not in path.name]
    for gone in (False, True):
        for path in stored if gone else ():
            path.unlink()
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        for image in fastpsl.replay(run.folder, 2, backbone=SMALL_NET, teacher=SMALL_NET).images:
            assert image.loss is not None and len(image.draws) == 1
        assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        assert passes.total() == 1 + gone
    replayed = fastpsl.replay(run.folder, 2, backbone=SMALL_NET, teacher=SMALL_NET, most_steps=0)
    assert replayed.images and passes.total() == 2


def test_files_of_the_command_for_features_serve(tmp_path: Path, passes: Counter[str], cli: Cli) -> None:
    """In float32, too, with values that half precision does not hold."""
    weights, path = tmp_path / "weights.pth", tmp_path / "stored" / "teacher-B5.npy"
    torch.save(make_backbone("resnet18").state_dict(), weights)
    path.parent.mkdir()
    words = ["--backbone", "resnet18", "--whole", "--size-px", 32, "--dtype", "float32", "--out", path]
    for name in ("mean", "std"):
        words += [f"--input-{name}", *getattr(Input(), name)]
    outcome = cli("features", weights, "--data", VALUES["data"], "--input-channels", "RGB", *words)
    assert outcome.code == 0, outcome
    np.save(path, np.load(path) * np.float32(1e6))
    given: dict[str, Any] = {"teacher_features": path.parent, "val": "none"}
    run = distilled(tmp_path / "run", teacher=weights, teacher_backbone="resnet18", **given)
    assert not passes and np.isfinite(run.summaries[0]["loss_end"])
    with pytest.raises(ValueError, match=r"another network of the teacher \(resnet18 there, resnet34 now\)"):
        record = path.with_suffix(".json")
        other = make_backbone("resnet34")
        torch.save(other.state_dict(), weights)
        text = record.read_text()
        record.write_text(text.replace(json.loads(text)["weights"], sha256_of_tensors(other.state_dict())))
        distilled(tmp_path / "other", teacher=weights, teacher_backbone="resnet34", **given)


def test_before_the_pass_a_step_has_the_sizes_of_one_after_it() -> None:
    """As a dry run measures it."""
    experiment = experiment_of(teacher_of(1, 40))
    with closing(open_data(sample_paths().train_32)) as data:
        experiment.task.check_data(data, 8)
    step = make_train_step(experiment, 0, PretrainOptions(epochs=(1,), precision="fp32"), one_process())
    features: Tensor = experiment.task.features  # type: ignore[attr-defined]
    assert features.shape == (480, 16) and features.dtype == torch.float16
    values = step.step([noise_batch(step.views, 4)], lr=0.1).values
    assert torch.isfinite(values).all()
