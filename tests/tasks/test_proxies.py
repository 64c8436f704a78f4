"""The proxy tasks of SSL++ (context, rotation, AET): targets, losses, and what they learn."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fastpsl.engine.plan import Stage, make_plan
from fastpsl.engine.stage_blocks import Metrics, StageBlocks
from fastpsl.kernels.draws import Keys
from fastpsl.kernels.geometry import AllTurns, Flip, Hole, Kind, Shift, WarpPair
from fastpsl.kernels.normalise import normalise
from fastpsl.models.factory import OF_VECTORS, make_backbone
from fastpsl.models.names import BACKBONES
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.tasks.rotation import RotationHead
from fastpsl.tasks.sslpp.aet import AET, AETHead
from fastpsl.tasks.sslpp.colorization import Colorization
from fastpsl.tasks.sslpp.context import Context, ContextHead, FromVectors
from fastpsl.tasks.sslpp.rotnet import RotNet
from fastpsl.tasks.sslpp.sslpp import Proxy
from tests.engine.tiny import TinyNet, noise_batch


def small_modules(proxy: Proxy) -> tuple[StageBlocks, nn.Module]:
    """Build five small blocks of a stage, and the task's head."""
    torch.manual_seed(0)
    backbone = TinyNet()
    return StageBlocks(backbone, make_plan("end_to_end", (1,))[0]), proxy.head(1, backbone.channels[-1])


def means(metrics: Metrics) -> dict[str, float]:
    return {name: float(total / num) for name, (total, num) in metrics.items()}


def one_convolution(proxy: Proxy) -> tuple[nn.Module, Any]:
    """Build a convolution, and the task's head on its maps."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 7, 3, 4, 1, bias=False), nn.ReLU()), proxy.head(1, 7)


KINDS: tuple[Kind, ...] = ("projective", "affine")
every_kind = pytest.mark.parametrize("kind", KINDS)
every_proxy = pytest.mark.parametrize("proxy", [Context(0.5, 32), *(AET(kind, 32) for kind in KINDS)])


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
    blocks, head = one_convolution(task)
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


@every_proxy
@pytest.mark.parametrize("num", [0, 2])
def test_nothing_but_padding_is_a_loss_of_nought(proxy: Proxy, num: int) -> None:
    blocks, head = one_convolution(proxy)
    batch = noise_batch([proxy.view()], 2)
    batch.images[0], batch.indices = batch.images[0][:num], torch.full((num,), -1)
    batch.draws = [tuple({k: v[:num] for k, v in draw.items()} for draw in batch.draws[0])]
    (inputs,) = batch.inputs([proxy.view()], torch.float32)
    assert inputs.shape == (num * (1 + isinstance(proxy, AET)), 3, 32, 32)
    loss, metrics = proxy.features_loss(blocks(inputs), head.eval(), batch)
    assert loss == 0 and metrics["loss"] == metrics["loss_constant"] == (0, 0)
    loss.backward()


@every_proxy
def test_the_loss_is_in_float32(proxy: Proxy) -> None:
    blocks, head = one_convolution(proxy)
    batch = noise_batch([proxy.view()], 4)
    (inputs,) = batch.inputs([proxy.view()], torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss, metrics = proxy.features_loss(blocks(inputs), head.eval(), batch)
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


def test_what_is_hidden_is_nowhere_in_the_input() -> None:
    """Other pixels in the hole change the target and not the input."""
    task = Context(0.5, 32)
    blocks, head = one_convolution(task)
    batch = noise_batch([task.view()], 4)
    batch.draws[0][0]["shift"][:] = 4  # no shift, so that the hole is the middle of the stored images
    (inputs,) = batch.inputs([task.view()], torch.float32)
    loss, _ = task.features_loss(blocks(inputs), head, batch)
    batch.images[0][:, :, 8:24, 8:24] = 255 - batch.images[0][:, :, 8:24, 8:24]
    (same,) = batch.inputs([task.view()], torch.float32)
    assert torch.equal(same, inputs) and task.features_loss(blocks(same), head, batch)[0] != loss
    batch.images[0][:, :, 7] = 255 - batch.images[0][:, :, 7]
    assert not torch.equal(batch.inputs([task.view()], torch.float32)[0], inputs)


def test_context_is_ssl_pluspluss_proxy() -> None:
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
    shown = normalise(sheet[..., :32], view.mean, view.std, torch.float32)
    torch.testing.assert_close(shown, inputs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("side", [4, 7, 8, 15, 56, 64])
def test_sides_and_gradients(side: int) -> None:
    decoder = FromVectors(6, 3, side)
    vectors = torch.randn(2, 6, 1, 1, requires_grad=True)
    maps = decoder(vectors)
    assert maps.shape == (2, 3, side, side)
    assert decoder.decode(vectors).shape[-1] == next(power for power in (8, 16, 32, 64) if power >= side)
    whole = functional.interpolate(decoder.decode(vectors), (side, side), mode="bilinear")
    torch.testing.assert_close(maps, whole)
    maps.square().sum().backward()
    assert vectors.grad is not None and (vectors.grad != 0).all()


def test_of_224_px_there_are_six_doublings_and_halved_widths() -> None:
    decoder = FromVectors(4096, 3, 224)
    assert [type(part) for part in decoder.decode[1:4]] == [nn.BatchNorm2d, nn.ReLU, nn.ConvTranspose2d]
    layers = [part for part in decoder.decode if isinstance(part, nn.ConvTranspose2d)]
    widths = [(part.in_channels, part.out_channels) for part in layers]
    assert widths == [(4096, 512), (512, 256), (256, 128), (128, 64), (64, 64), (64, 64), (64, 3)]


@pytest.mark.parametrize("name", BACKBONES)
def test_which_backbones_end_in_vectors(name: str) -> None:
    backbone = make_backbone(name).eval()
    side = max(64, backbone.min_px)
    shape = backbone(torch.zeros(1, 3, side, side)).shape
    last_is_fc = backbone.block_names[-1] in ("fc7", "mlp")
    assert (name in OF_VECTORS) == last_is_fc
    assert not last_is_fc or shape[2:] == (1, 1)


def test_colorization_names_the_colours_of_a_quarter_of_the_side() -> None:
    task = Colorization(64, "random_resized", of_vectors=True)
    backbone = make_backbone("alexnet_rotnet", num_channels=1)
    stage = Stage("E", 1, 1, 7, 1)
    head = task.head(1, 4096)
    task.start_stage(stage, StageBlocks(backbone, stage), head)
    assert tuple(task.map_size) == (16, 16)
    assert head(torch.zeros(2, 4096, 1, 1)).shape == (2, 313, 16, 16)


def test_context_restores_images_in_their_own_size() -> None:
    head = Context(0.5, 64, "random_resized", of_vectors=True).head(1, 128)
    vectors = 100 * torch.randn(2, 128, 1, 1)
    images = head(vectors)
    assert images.shape == (2, 3, 64, 64)
    assert isinstance(head, nn.Sequential) and torch.equal(images, head[0](vectors).tanh())


def test_all_four_turns_of_each_image_and_their_labels() -> None:
    task = RotNet(32)
    _, head = small_modules(task)
    batch = noise_batch([task.view()], 3)
    (inputs,) = batch.inputs([task.view()], torch.float32)
    assert task.inputs_per_image(1) == 4 and inputs.shape == (12, 3, 32, 32)
    whole = inputs.unflatten(0, (3, 4))
    for turn in range(4):
        torch.testing.assert_close(whole[:, turn], torch.rot90(whole[:, 0], turn, (-2, -1)))
    # A head that reads the turn from the features names all of them.
    features = torch.nn.functional.one_hot(torch.arange(12) % 4, 16).float()[..., None, None]
    assert isinstance(head, RotationHead)
    with torch.no_grad():
        head.classify.weight.copy_(20 * torch.eye(4, 16))
        head.classify.bias.zero_()
    loss, metrics = task.features_loss(features, head.eval(), batch)
    assert loss.item() < 1e-6 and means(metrics)["accuracy"] == 1
    assert means(metrics)["loss_constant"] == pytest.approx(np.log(4)) and task.chance(1) == 0.25
    sheet, view = task.contact_sheet([inputs], batch), task.view()
    assert sheet.shape == (3, 3, 32, 4 * 33 - 1) and (sheet[..., 32::33] == 1).all()
    for turn in range(4):
        shown = sheet[..., 33 * turn : 33 * turn + 32]
        torch.testing.assert_close(shown, view.denormalise(whole[:, turn]))
    assert view.ops == (Shift(4), Flip(0.5), AllTurns(4))
    assert RotNet(64, "random_resized").view().ops == view.ops[1:]


def test_padding_counts_for_none_of_its_turns() -> None:
    """The loss is the mean over the four turns of the images that are there."""
    task = RotNet(32)
    _, head = small_modules(task)
    batch = noise_batch([task.view()], 3)
    features = torch.randn(12, 16, 2, 2, generator=torch.Generator().manual_seed(0))
    logits = head.eval()(features)
    turns = batch.draw(AllTurns)["turns"].flatten()
    of_each = torch.nn.functional.cross_entropy(logits, turns, reduction="none")
    right = (logits.argmax(1) == turns).float()
    batch.indices[1] = -1
    loss, metrics = task.features_loss(features, head, batch)
    kept = [0, 1, 2, 3, 8, 9, 10, 11]
    torch.testing.assert_close(loss, of_each[kept].mean())
    assert means(metrics)["accuracy"] == pytest.approx(float(right[kept].mean()))


@every_kind
@pytest.mark.parametrize("indices", [[3, 0, 8, 5], [3, -1, 8, -1], [7]])
def test_loss_and_gradients_are_those_of_a_plain_loop_of_aet(kind: Kind, indices: list[int]) -> None:
    """Each pair by itself. Samples of index -1 are left out, even if not finite, and a batch may be one."""
    task = AET(kind, size_px=17)
    blocks, head = one_convolution(task)
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


def test_aet_is_ssl_pluspluss_proxy_and_aets_task() -> None:
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
        target = batch.draws[0][-1]["target"][i]
        torch.testing.assert_close(torch.tensor(numbers).flatten(), target, atol=0.0501, rtol=0)
