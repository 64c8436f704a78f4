"""Test SimCLR's levels, head, metrics and contact sheet; the loss is tested in test_nt_xent.py."""

import math
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from fastpsl.engine.optim.optimisers import lars
from fastpsl.engine.plan import Stage
from fastpsl.engine.stage_blocks import StageBlocks
from fastpsl.kernels.filters import Sobel
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.tasks.contrastive.simclr import ProjectionHead, SimCLR
from tests.engine.steps import make_step
from tests.engine.tiny import TinyNet, noise_batch, one_process

BATCH = 6


def small_task() -> SimCLR:
    return SimCLR(BATCH, size_px=32, temperature=0.1, embedding_width=4)


def stage(level: int) -> Stage:
    return Stage("S", level, first_learning=1, last_block=3, epochs=1)


class Given(nn.Module):
    """A head that returns given embeddings."""

    def __init__(self, embeddings: Tensor):
        super().__init__()
        self.embeddings = embeddings

    @override
    def forward(self, features: Tensor) -> Tensor:
        assert len(features) == len(self.embeddings)
        return self.embeddings


def measured(
    task: SimCLR, embeddings: Tensor, batch: Batch
) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
    inputs = batch.inputs(task.views(1), torch.float32)
    return task.loss(StageBlocks(TinyNet(), stage(1)), Given(embeddings), inputs, batch)


def test_the_probability_of_sobel_is_0_to_1() -> None:
    always = SimCLR(256, size_px=224, temperature=0.1, embedding_width=128, sobel_p=1.0)
    assert always.views(3)[0].ops[4] == Sobel(1.0)
    for wrong in (1.5, -0.1):
        with pytest.raises(ValueError, match=rf"--sobel-p {wrong}: it is a probability, 0 to 1"):
            SimCLR(256, size_px=224, temperature=0.1, embedding_width=128, sobel_p=wrong).views(3)


def test_loss_and_accuracy_are_over_valid_pairs_of_both_views() -> None:
    """Six pairs are on the axes, the last two of them padding. One view of sample 1 is more like sample 2."""
    first = torch.eye(BATCH)
    second = first.clone()
    second[1] = first[2] + 0.1 * first[1]
    batch = noise_batch(small_task().views(1), BATCH)
    batch.indices[4:] = -1
    task = small_task()
    loss, metrics = measured(task, torch.cat([first, second]), batch)
    valid = [*range(4), *range(BATCH, BATCH + 4)]
    z = F.normalize(torch.cat([first, second])[valid])
    logits = (z @ z.T / 0.1).fill_diagonal_(-math.inf)
    pairs = (torch.arange(8) + 4) % 8
    expected = F.cross_entropy(logits, pairs)
    right = int((logits.argmax(1) == pairs).sum())
    assert torch.allclose(loss, expected) and right == 7
    assert [float(v) for v in metrics["accuracy"]] == [right, 8]
    assert metrics["loss"][1] == 8 and torch.allclose(metrics["loss"][0], 8 * expected)


def test_chance_is_that_of_naming_one_of_all_others() -> None:
    """Embeddings of noise are right as often, in 300 batches, within four standard errors."""
    task, batch = small_task(), noise_batch(small_task().views(1), BATCH)
    assert task.chance(1) == 1 / 11
    torch.manual_seed(0)
    right = sum(float(measured(task, torch.randn(2 * BATCH, 8), batch)[1]["accuracy"][0]) for _ in range(300))
    share, anchors = right / (300 * 12), 300 * 12
    assert abs(share - 1 / 11) < 4 * math.sqrt((1 / 11) * (10 / 11) / (anchors / 2))


def test_both_views_pass_the_network_as_one_batch() -> None:
    """BatchNorm sees them together, and updates its statistics once."""
    task, net = small_task(), TinyNet()
    batch = noise_batch(task.views(1), BATCH)
    blocks = StageBlocks(net, stage(1))
    head = task.head(1, TinyNet.channels[2])
    task.loss(blocks, head, batch.inputs(task.views(1), torch.float32), batch)
    assert [int(part[1].num_batches_tracked) for part in net.parts] == [1, 1, 1, 0, 0]  # type: ignore[arg-type, index]


def test_head_is_two_layers_of_its_input_s_width_with_batchnorm() -> None:
    head = small_task().head(1, 12)
    assert isinstance(head, ProjectionHead)
    assert head(torch.randn(5, 12, 3, 3)).shape == (5, 4)
    shapes = {name: (tuple(p.shape), p.requires_grad) for name, p in head.named_parameters()}
    assert shapes == {
        "layers.0.weight": ((12, 12), True), "layers.1.weight": ((12,), True), "layers.1.bias": ((12,), True),
        "layers.3.weight": ((4, 12), True), "layers.4.weight": ((4,), True), "layers.4.bias": ((4,), False),
    }  # fmt: skip
    assert not head.state_dict()["layers.4.bias"].any()


@pytest.mark.parametrize("level", [1, 2, 3])
def test_contact_sheet_and_captions_show_what_the_network_gets(level: int) -> None:
    task = small_task()
    views = task.views(level)
    batch = noise_batch(views, BATCH)
    inputs = batch.inputs(views, torch.float32)
    sheet = task.contact_sheet(inputs, batch)
    assert sheet.shape == (BATCH, 3, 32, 32 + 4 + 32) and (sheet[..., 32:36] == 1).all()
    for left, number in ((0, 0), (36, 1)):
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (views[number].mean, views[number].std))
        assert torch.allclose((sheet[..., left : left + 32] - mean) / std, inputs[number], atol=1e-5)
    assert not torch.equal(inputs[0], inputs[1])
    captions = task.captions(batch)
    for number in (0, 1):
        for sample, caption in enumerate(captions):
            words = caption.split("\n")[number].split(", ")
            draws = [{k: v[sample] for k, v in draw.items()} for draw in batch.draws[number]]
            assert ("flip" in words) == bool(draws[0]["flip"])
            if level >= 2:
                assert ("colour" in words) == bool(draws[1]["apply"])
                assert ("grey" in words) == bool(draws[2]["apply"])
            if level == 3:
                assert (f"blur {draws[3]['sigma']:.1f}" in words) == bool(draws[3]["apply"])
                assert ("Sobel" in words) == bool(draws[4]["apply"])
            assert words != [""]


def test_a_part_of_the_batch_is_never_trained_on() -> None:
    """Gradient accumulation would do so, without the other parts' negatives."""
    task = small_task()
    batch = noise_batch(task.views(1), BATCH // 2)
    with pytest.raises(AssertionError, match="part of the batch"):
        measured(task, torch.randn(BATCH, 4), batch)


def losses(precision: str, device: str, num_steps: int) -> Sequence[float]:
    torch.manual_seed(0)
    task, place = small_task(), one_process(device)
    train_step = make_step(stage(2), task, precision=precision, world=place, optimiser=lars)
    batch = noise_batch(task.views(2), BATCH)
    if device == "cuda":
        batch = batch.to(place.device)
    measures = []
    for step in range(num_steps):
        if step == 1 and device == "cuda":  # the first step allocates buffers
            torch.cuda.set_sync_debug_mode("error")
        measures.append(train_step.step([batch], lr=10.0).values[0])
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("default")
    assert train_step.num_skipped == 0 or precision == "fp16"
    return [float(total / count) for total, count in measures]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_loss_of_a_batch_falls_by_lars(precision: str) -> None:
    values = losses(precision, "cpu", 20)
    assert values[-1] < 0.7 * values[0]


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_ten_steps_on_a_gpu_without_a_hidden_sync(precision: str) -> None:
    try:
        values = losses(precision, "cuda", 11)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(map(math.isfinite, values)) and values[-1] < values[0]
