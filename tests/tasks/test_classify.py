"""Test classification: loss and scores against plain torch, padding, a stage that learns and resumes."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastpsl.engine.experiment import Experiment
from fastpsl.engine.optim.schedules import step_drops
from fastpsl.engine.plan import Stage
from fastpsl.engine.stage_blocks import StageBlocks
from fastpsl.engine.train_step import StageModule
from fastpsl.pipelines.datasets.subset import Synthetic
from fastpsl.pipelines.embedded.draw_sample import sample_paths
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.views import Input, center_view, train_view
from fastpsl.tasks.classify import Classify
from tests.engine.exact_signals import train_until
from tests.engine.tiny import TinyNet, part_of, tiny_run
from tests.pipelines.written import write_labelled
from tests.programs import digests, newest_checkpoint

WHOLE = Stage("E", 1, 1, 5, 4)


def task_of(num_classes: int, **more: Any) -> Classify:
    input = Input(size_px=32)
    task = Classify(train_view(input, 32), center_view(input, 32), **more)
    task.check_data(Synthetic(2 * num_classes, num_classes), 2)
    return task


def module_of(task: Classify) -> StageModule:
    torch.manual_seed(0)
    return StageModule(StageBlocks(TinyNet(), WHOLE), task.head(1, 16), task)


def batch_of(labels: Tensor) -> Batch:
    return Batch([], [], torch.arange(len(labels)), labels, epoch=0, step=0)


def test_loss_and_scores_are_torchs() -> None:
    torch.manual_seed(1)
    task = task_of(9)
    module = module_of(task).eval()
    images, labels = torch.randn(90, 3, 32, 32), torch.arange(90) % 9
    logits = module.head(module.blocks(images).mean((2, 3), keepdim=True))
    loss, metrics = module([images], batch_of(labels))
    torch.testing.assert_close(loss, F.cross_entropy(logits, labels))
    torch.testing.assert_close(metrics["loss"][0], 90 * loss.detach())
    assert metrics["top1"][0] == (logits.argmax(1) == labels).sum()
    order = logits.argsort(1, descending=True)[:, :5].tolist()
    assert metrics["top5"][0] == sum(i % 9 in row for i, row in enumerate(order))
    assert metrics["top1"][0] < sum(i % 9 in row[:4] for i, row in enumerate(order)) < metrics["top5"][0] < 90
    assert all(num == 90 and total.dtype == torch.float32 for total, num in metrics.values())
    assert task.chance(1) == 1 / 9
    assert task.views(1) == (task.train_view,) and task.val_views(1) == (task.val_view,)


def test_padding_has_no_say() -> None:
    module = module_of(task_of(9))
    images, labels = torch.randn(6, 3, 32, 32), torch.tensor([3, 1, 4, 1, -1, 5])
    module.eval()  # because BatchNorm would see the padding
    padded = batch_of(labels)
    padded.indices[4:] = -1
    loss, metrics = module([images], padded)
    loss.backward()
    gradient = module.head[2].weight.grad.clone()  # type: ignore[index, union-attr]
    module.zero_grad()
    alone, of_four = module([images[:4]], part_of_four(batch_of(labels)))
    alone.backward()
    torch.testing.assert_close(loss, alone)
    torch.testing.assert_close(gradient, module.head[2].weight.grad)  # type: ignore[index, union-attr]
    for name, pair in of_four.items():
        torch.testing.assert_close(torch.stack(metrics[name]), torch.stack(pair))
    padded.indices[:] = -1
    loss, metrics = module([images], padded)
    assert loss == 0 and metrics["top1"][1] == 0


@pytest.mark.parametrize("num_valid", [0, 1, 4, 6])
def test_right_answers_of_padding_do_not_count(num_valid: int) -> None:
    module = module_of(task_of(9)).eval()
    images = torch.randn(6, 3, 32, 32)
    answers = module.head(module.blocks(images)).argmax(1)
    batch = batch_of(answers)
    batch.indices[num_valid:] = -1
    _, metrics = module([images], batch)
    assert [float(v) for v in metrics["top1"]] == [float(v) for v in metrics["top5"]] == [num_valid] * 2


def part_of_four(batch: Batch) -> Batch:
    return Batch([], [], batch.indices[:4], batch.labels[:4], epoch=0, step=0)


def test_top5_of_few_classes_is_left_out() -> None:
    for num_classes, names in ((2, ["loss", "top1"]), (5, ["loss", "top1"]), (6, ["loss", "top1", "top5"])):
        _, metrics = module_of(task_of(num_classes))(
            [torch.randn(2, 3, 32, 32)], batch_of(torch.zeros(2).long())
        )
        assert list(metrics) == names
    with pytest.raises(ValueError, match="classes in the training data: 1; a classifier needs two or more"):
        task_of(1)


def test_initial_weights_are_as_asked() -> None:
    torch.manual_seed(0)
    layer = task_of(100, head_std=0.01).head(1, 64)[2]  # type: ignore[index]
    assert float(layer.weight.detach().std()) == pytest.approx(0.01, rel=0.1) and not layer.bias.any()
    assert task_of(100).head(1, 64)[2].bias.any()  # type: ignore[index]


def test_two_ranks_have_the_gradients_of_one() -> None:
    """Parts are equal, so the mean of their gradients is that of the whole (BatchNorm in eval)."""
    module = module_of(task_of(9)).eval()
    images = torch.randn(8, 3, 32, 32)
    batch = Batch([images.byte()], [()], torch.arange(8), torch.arange(8), epoch=0, step=0)

    def gradient(images: Tensor, batch: Batch) -> Tensor:
        module.zero_grad()
        module([images], batch)[0].backward()
        return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])

    halves = [gradient(images.chunk(2)[i], part_of(batch, i, 2)) for i in range(2)]
    torch.testing.assert_close(sum(halves) / 2, gradient(images, batch), rtol=1e-4, atol=1e-6)


def fit(out: Path, steps: int | None = None, **options: Any) -> dict[str, Any]:
    run = tiny_run(out, max_steps_per_stage=steps, checkpoint_steps=1, keep_checkpoints=2, **options)
    torch.manual_seed(0)
    task = Classify(train_view(Input(size_px=32), 32), center_view(Input(size_px=32), 32))
    assert train_until(None, Experiment(task, TinyNet(), (WHOLE,), step_drops(0.1, (3, 1))), run)
    return run.position.summaries[0]


def test_it_learns_scores_the_middle_and_resumes(tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole")
    assert whole["loss_end"] < 0.9 * whole["loss_start"]
    assert whole["val"]["top1"] > 1.5 * whole["chance"] and whole["val"]["top5"] > whole["val"]["top1"]
    fit(tmp_path / "stopped", 17)
    max((tmp_path / "stopped" / "checkpoints").iterdir()).unlink()
    assert fit(tmp_path / "stopped")["val"] == whole["val"]
    assert digests(newest_checkpoint(tmp_path / "stopped")) == digests(newest_checkpoint(tmp_path / "whole"))
    assert (tmp_path / "whole" / "contact-sheet-G1.png").stat().st_size > 0


def test_validation_data_of_other_classes_is_refused(tmp_path: Path) -> None:
    with_more = write_labelled(tmp_path / "val.beton", range(17), [f"class {i}" for i in range(17)])
    with pytest.raises(ValueError, match=r"\(17 classes, .*train_32.beton 8; class 0 is 'class 0', "):
        fit(tmp_path / "out", 1, val=str(with_more), data=str(sample_paths().train_32))
