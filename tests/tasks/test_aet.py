"""Test AET against plain loops over pairs, and its training on validation images."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from fastpsl.engine.stage_blocks import StageBlocks
from fastpsl.kernels.draws import Keys
from fastpsl.kernels.geometry import Flip, Kind, Shift, WarpPair
from fastpsl.kernels.normalise import normalise
from fastpsl.tasks.sslpp.aet import AET, AETHead
from fastpsl.tasks.sslpp.sslpp import Proxy
from tests.engine.tiny import noise_batch
from tests.tasks.proxies import learned, means, val

KINDS: tuple[Kind, ...] = ("projective", "affine")
every_kind = pytest.mark.parametrize("kind", KINDS)


def small_modules(task: AET) -> tuple[nn.Module, AETHead]:
    torch.manual_seed(0)
    head = task.head(1, 7)
    assert isinstance(head, AETHead)
    return nn.Sequential(nn.Conv2d(3, 7, 3, bias=False), nn.ReLU()), head


@every_kind
@pytest.mark.parametrize("indices", [[3, 0, 8, 5], [3, -1, 8, -1], [7]])
def test_loss_and_gradients_are_those_of_a_plain_loop(kind: Kind, indices: list[int]) -> None:
    """Each pair by itself. Samples of index -1 are left out, even if not finite, and a batch may be one."""
    task = AET(kind, size_px=17)
    blocks, head = small_modules(task)
    view = task.view()
    batch = noise_batch([view], len(indices))
    batch.indices = torch.tensor(indices)
    (inputs,) = batch.inputs([view], torch.float32)
    features = blocks(inputs)
    features.retain_grad()
    spoiled = features.clone()
    spoiled[(batch.indices < 0).repeat_interleave(2)] = math.inf
    head.eval()
    loss, metrics = task.features_loss(spoiled, head, batch)
    loss.backward()
    gradient = head.regress.weight.grad
    head.zero_grad()

    losses, constants = [], []
    for i, index in enumerate(indices):
        if index >= 0:
            target = batch.draws[0][-1]["target"][i]
            first, second = (blocks(inputs[2 * i + k][None])[0].mean((1, 2)) for k in (0, 1))
            answer = head.regress(torch.cat([first, second]))
            answer = torch.tanh(answer) if kind == "affine" else answer
            losses.append(sum((a - b) ** 2 for a, b in zip(answer, target, strict=True)) / len(target))
            of_mean = [float(a - b) ** 2 for a, b in zip(head.mean_target, target, strict=True)]
            constants.append(sum(of_mean) / len(of_mean))
    expected = sum(losses) / len(losses)
    assert isinstance(expected, torch.Tensor)
    expected.backward()
    torch.testing.assert_close(loss, expected)
    if -1 not in indices:
        torch.testing.assert_close(gradient, head.regress.weight.grad)
    assert metrics["loss"][1] == metrics["loss_constant"][1] == len(losses)
    torch.testing.assert_close(metrics["loss"][0], torch.stack(losses).sum().detach())
    torch.testing.assert_close(metrics["loss_constant"][0], torch.tensor(sum(constants)))
    head.train()
    assert list(task.features_loss(blocks(inputs), head, batch)[1]) == ["loss"]


@every_kind
@pytest.mark.parametrize("num", [0, 2])
def test_nothing_but_padding_is_a_loss_of_nought(kind: Kind, num: int) -> None:
    task = AET(kind, 32)
    blocks, head = small_modules(task)
    batch = noise_batch([task.view()], 2)
    batch.images[0], batch.indices = batch.images[0][:num], torch.full((num,), -1)
    batch.draws = [tuple({k: v[:num] for k, v in draw.items()} for draw in batch.draws[0])]
    (inputs,) = batch.inputs([task.view()], torch.float32)
    assert inputs.shape == (2 * num, 3, 32, 32)
    loss, metrics = task.features_loss(blocks(inputs), head.eval(), batch)
    assert loss == 0 and metrics["loss"] == metrics["loss_constant"] == (0, 0)
    loss.backward()


@every_kind
def test_the_loss_is_in_float32(kind: Kind) -> None:
    task = AET(kind, 32)
    blocks, head = small_modules(task)
    batch = noise_batch([task.view()], 4)
    (inputs,) = batch.inputs([task.view()], torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss, metrics = task.features_loss(blocks(inputs), head.eval(), batch)
    assert loss.dtype == torch.float32 and all(value.dtype == torch.float32 for value, _ in metrics.values())


@pytest.mark.slow
@every_kind
def test_learned_it_beats_the_constant_on_validation_images(kind: Kind) -> None:
    """It does so by 40 % or more. Pairs in the wrong order score worse, so the order matters."""
    task = AET(kind, 32)
    blocks, head = learned(task)
    inputs, batch = val(task)
    with torch.no_grad():
        metrics = means(task.features_loss(blocks(inputs), head, batch)[1])
        swapped = inputs.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
        wrong = means(task.features_loss(blocks(swapped), head, batch)[1])
    assert metrics["loss"] < 0.6 * metrics["loss_constant"] < 0.6 * wrong["loss"]
    targets = batch.draws[0][-1]["target"]
    # The mean of the 160 validation draws is near that of 10,000 draws.
    assert float((targets - targets.mean(0)).square().mean()) == pytest.approx(
        metrics["loss_constant"], rel=0.02
    )


def test_it_is_ssl_pluspluss_proxy_and_aets_task() -> None:
    """One pair per sample, after crop and flip; eight unbounded numbers or six in [-1, 1]."""
    task: Proxy = AET("projective", 32)
    assert task.inputs_per_image(1) == 1
    view = task.view()
    assert [type(op).__name__ for op in view.ops] == ["Shift", "Flip", "WarpPair"]
    assert view.ops[0] == Shift(4) and view.ops[-1] == WarpPair(32, "projective")
    assert AET("projective", 64, "random_resized").view().ops == (Flip(0.5), WarpPair(64))
    for kind, num in (("projective", 8), ("affine", 6)):
        head = AET(kind, 32).head(1, 192)  # type: ignore[arg-type]
        assert isinstance(head, AETHead) and head.regress.weight.shape == (num, 384)
        targets = WarpPair(32, kind).draw(Keys(0, 0, np.arange(10_000)))["target"]  # type: ignore[arg-type]
        np.testing.assert_allclose(head.mean_target, targets.mean(0), atol=1e-6)
        answers = head(1000 * torch.randn(8, 192, 2, 3))
        assert answers.shape == (4, num) and (answers.abs().max() <= 1) == (kind == "affine")
    with pytest.raises(ValueError, match="'similar' given; allowed are projective and affine"):
        AET("similar", 32)  # type: ignore[arg-type]


@every_kind
def test_the_contact_sheet_shows_pairs_and_the_captions_the_targets(kind: Kind) -> None:
    task = AET(kind, 32)
    batch = noise_batch([task.view()], 2)
    (inputs,) = batch.inputs([task.view()], torch.float32)
    sheet, captions = task.contact_sheet([inputs], batch), task.captions(batch)
    assert sheet.shape == (2, 3, 32, 65) and (sheet[..., 32] == 1).all()
    view = task.view()
    for i in range(2):
        for k, left in enumerate((0, 33)):
            image = normalise(sheet[i, None, :, :, left : left + 32], view.mean, view.std, torch.float32)
            torch.testing.assert_close(image[0], inputs[2 * i + k], atol=1e-4, rtol=0)
        numbers = [[float(value) for value in line.split()] for line in captions[i].split("\n")]
        assert len(numbers) == 2
        torch.testing.assert_close(
            torch.tensor(numbers).flatten(), batch.draws[0][-1]["target"][i], atol=0.0501, rtol=0
        )


def test_one_blocks_pass_over_both_images_is_what_the_trainer_makes() -> None:
    """The view's order is image-major: an image, then its copy."""
    task = AET("projective", 32)
    blocks, head = small_modules(task)
    assert not isinstance(blocks, StageBlocks)
    batch = noise_batch([task.view()], 3)
    (inputs,) = batch.inputs([task.view()], torch.float32)
    before = task.view().before_last_op(batch.images[0], batch.draws[0])
    view = task.view()
    torch.testing.assert_close(inputs[::2], normalise(before, view.mean, view.std, torch.float32))
    features = blocks(inputs)
    pairs = torch.cat([features[::2].mean((2, 3)), features[1::2].mean((2, 3))], 1)
    torch.testing.assert_close(head(features), head.regress(pairs))
