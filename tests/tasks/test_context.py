"""Test the context task against plain loops over hidden pixels, and its training on validation images."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fastpsl.kernels.geometry import Flip, Hole
from fastpsl.kernels.normalise import normalise
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.tasks.sslpp.context import Context, ContextHead
from fastpsl.tasks.sslpp.sslpp import Proxy
from tests.engine.tiny import noise_batch
from tests.tasks.proxies import learned, means, val


def small_modules(task: Context) -> tuple[nn.Module, ContextHead]:
    torch.manual_seed(0)
    head = task.head(1, 7)
    assert isinstance(head, ContextHead)
    return nn.Sequential(nn.Conv2d(3, 7, 3, 4, 1, bias=False), nn.ReLU()), head


def hidden_values(task: Context, batch: Batch, number: int) -> Tensor:
    """Return a sample's hidden pixels, float32 [3, n, n], shifted and flipped as the network's input."""
    view, (first, last) = task.view(), (task.hidden.start, task.hidden.stop)
    moved, mirrored = (op for op in view.ops[:-1])
    image = batch.images[0][number][None]
    image = moved(image, {"shift": batch.draws[0][0]["shift"][number][None]})
    image = mirrored(image, {k: v[number][None] for k, v in batch.draws[0][1].items()})[0]
    values = torch.empty(3, last - first, last - first)
    for channel in range(3):
        for row in range(first, last):
            for column in range(first, last):
                values[channel, row - first, column - first] = (
                    float(image[channel, row, column]) / 255 * 2 - 1
                )
    return values


@pytest.mark.parametrize("size_px, share", [(32, 0.5), (17, 0.3)])
@pytest.mark.parametrize("indices", [[3, 0, 8, 5], [3, -1, 8, -1], [7]])
def test_loss_and_gradients_are_those_of_a_plain_loop(size_px: int, share: float, indices: list[int]) -> None:
    """Each image by itself. Samples of index -1 are left out, even if not finite; a batch may be one."""
    task = Context(share, size_px)
    blocks, head = small_modules(task)
    batch = noise_batch([task.view()], len(indices))
    batch.images[0][:, 0] //= 2  # so that the mean colour is not grey
    batch.indices = torch.tensor(indices)
    (inputs,) = batch.inputs([task.view()], torch.float32)
    features = blocks(inputs).detach()
    spoiled = features.clone()
    spoiled[batch.indices < 0] = math.inf
    head.eval()
    loss, metrics = task.features_loss(spoiled, head, batch)
    loss.backward()
    weight = head.decode[0].weight
    assert isinstance(weight, Tensor) and weight.grad is not None
    gradient = weight.grad.clone()
    head.zero_grad()

    good = [i for i, index in enumerate(indices) if index >= 0]
    answers = {i: head(features[i][None])[0][:, task.hidden, task.hidden] for i in good}
    targets = {i: hidden_values(task, batch, i) for i in good}
    losses = torch.stack([((answers[i] - targets[i]) ** 2).sum() / targets[i].numel() for i in good])
    colour = [float(torch.stack([targets[i][channel] for i in good]).mean()) for channel in range(3)]
    constants = [sum(float(((targets[i][c] - colour[c]) ** 2).mean()) for c in range(3)) / 3 for i in good]
    losses.mean().backward()
    torch.testing.assert_close(loss, losses.mean())
    if -1 not in indices:
        torch.testing.assert_close(gradient, weight.grad, atol=1e-6, rtol=1e-4)
    assert metrics["loss"][1] == metrics["loss_constant"][1] == len(good)
    torch.testing.assert_close(metrics["loss"][0], losses.sum().detach())
    torch.testing.assert_close(metrics["loss_constant"][0], torch.tensor(sum(constants)))
    head.train()
    assert list(task.features_loss(features, head, batch)[1]) == ["loss"]


@pytest.mark.parametrize("num", [0, 2])
def test_nothing_but_padding_is_a_loss_of_nought(num: int) -> None:
    task = Context(0.5, 32)
    blocks, head = small_modules(task)
    batch = noise_batch([task.view()], 2)
    batch.images[0], batch.indices = batch.images[0][:num], torch.full((num,), -1)
    batch.draws = [tuple({k: v[:num] for k, v in draw.items()} for draw in batch.draws[0])]
    (inputs,) = batch.inputs([task.view()], torch.float32)
    loss, metrics = task.features_loss(blocks(inputs), head.eval(), batch)
    assert loss == 0 and metrics["loss"] == metrics["loss_constant"] == (0, 0)
    loss.backward()


def test_the_loss_is_in_float32() -> None:
    task = Context(0.5, 32)
    blocks, head = small_modules(task)
    batch = noise_batch([task.view()], 4)
    (inputs,) = batch.inputs([task.view()], torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss, metrics = task.features_loss(blocks(inputs), head.eval(), batch)
    assert loss.dtype == torch.float32 and all(value.dtype == torch.float32 for value, _ in metrics.values())


@pytest.mark.parametrize("size_px", [32, 33, 64])
@pytest.mark.parametrize("map_px", [1, 2, 8, 11, 32])
def test_maps_of_any_size_become_the_image(size_px: int, map_px: int) -> None:
    head = ContextHead(5, size_px).eval()
    features = torch.randn(2, 5, map_px, map_px)
    layers = [type(layer).__name__ for layer in head.decode]
    assert layers == ["ConvTranspose2d", "BatchNorm2d", "ReLU", "ConvTranspose2d"]
    assert head.decode[:2](features).shape == (2, 64, 2 * map_px, 2 * map_px)
    decoded = head.decode(features)
    assert decoded.shape == (2, 3, 4 * map_px, 4 * map_px)
    if 4 * map_px != size_px:
        decoded = functional.interpolate(decoded, (size_px, size_px), mode="bilinear", align_corners=False)
    torch.testing.assert_close(head(features), decoded.tanh())


@pytest.mark.slow
def test_learned_it_beats_the_constant_on_validation_images() -> None:
    """It does so by looking: with the surroundings of another image it scores worse."""
    task = Context(0.5, 32)
    blocks, head = learned(task)
    inputs, batch = val(task)
    with torch.no_grad():
        features = blocks(inputs)
        metrics = means(task.features_loss(features, head, batch)[1])
        other = means(task.features_loss(features.roll(1, 0), head, batch)[1])
    assert metrics["loss"] < 0.75 * metrics["loss_constant"] < 0.75 * other["loss"]


def test_what_is_hidden_is_nowhere_in_the_input() -> None:
    """Other pixels in the hole change the target and not the input."""
    task = Context(0.5, 32)
    blocks, head = small_modules(task)
    batch = noise_batch([task.view()], 4)
    batch.draws[0][0]["shift"][:] = 4  # no shift, so that the hole is the middle of the stored images
    (inputs,) = batch.inputs([task.view()], torch.float32)
    loss, _ = task.features_loss(blocks(inputs), head, batch)
    batch.images[0][:, :, 8:24, 8:24] = 255 - batch.images[0][:, :, 8:24, 8:24]
    (same,) = batch.inputs([task.view()], torch.float32)
    assert torch.equal(same, inputs) and task.features_loss(blocks(same), head, batch)[0] != loss
    batch.images[0][:, :, 7] = 255 - batch.images[0][:, :, 7]
    assert not torch.equal(batch.inputs([task.view()], torch.float32)[0], inputs)


def test_it_is_ssl_pluspluss_proxy() -> None:
    """The hole has half of the side and the network's mean colour, so 0 once normalised.

    8 x 8 maps give 32 px.
    """
    task: Proxy = Context(0.5, 32)
    assert task.inputs_per_image(1) == 1
    view = task.view()
    assert [type(op).__name__ for op in view.ops] == ["Shift", "Flip", "Hole"]
    assert view.ops[-1] == Hole(0.5, view.mean)
    batch = noise_batch([view], 2)
    (inputs,) = batch.inputs([view], torch.float32)
    assert inputs[:, :, 8:24, 8:24].abs().max() < 0.01
    assert Context(0.5, 64, "random_resized").view().ops == (Flip(0.5), Hole(0.5, view.mean))
    for bad in (0, 1, -1, 0.01, 0.99):
        with pytest.raises(ValueError, match="a hole of .*; allowed"):
            Context(bad, 32)


def test_the_contact_sheet_shows_the_masked_images_and_the_whole() -> None:
    task = Context(0.5, 32)
    view = task.view()
    batch = noise_batch([view], 2)
    (inputs,) = batch.inputs([view], torch.float32)
    sheet = task.contact_sheet([inputs], batch)
    assert sheet.shape == (2, 3, 32, 65) and (sheet[..., 32] == 1).all()
    assert sheet.min() >= 0 and sheet.max() <= 1
    whole = view.before_last_op(batch.images[0], batch.draws[0]).float() / 255
    torch.testing.assert_close(sheet[..., 33:], whole)
    torch.testing.assert_close(
        normalise(sheet[..., :32], view.mean, view.std, torch.float32), inputs, atol=1e-4, rtol=0
    )
