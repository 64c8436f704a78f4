"""Probes of blocks by several heads: what they read and learn, their first weights, and few labels."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastpsl.engine.experiment import Experiment
from fastpsl.engine.optim.optimisers import sgd
from fastpsl.engine.optim.schedules import step_drops
from fastpsl.engine.plan import Stage
from fastpsl.engine.stage_blocks import StageBlocks
from fastpsl.engine.train_step import TrainStep
from fastpsl.evaluation.few_labels import first_of_each_class, repeated_order
from fastpsl.evaluation.linear import (
    BlockProbes,
    FewLabelBlockProbes,
    classifier,
    read_heads,
)
from fastpsl.models.factory import make_backbone
from fastpsl.pipelines.datasets.subset import Synthetic
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.views import Input, center_view, train_view
from tests.engine.steps import assert_alike, plain_sgd, rank_of
from tests.engine.tiny import TinyNet, noise_batch, part_of
from tests.evaluation.test_linear import batch_of, fit, module_of, unchanged
from tests.programs import digests, newest_checkpoint
from tests.warm import results_of_ranks

ALL = ("conv_B2", "fc1_B4", "fc2_B3", "fc3_B1")
INPUT = Input(size_px=32)


def block_probes(backbone: Any, names: tuple[str, ...], num_classes: int = 10, **more: Any) -> BlockProbes:
    task = (FewLabelBlockProbes if more else BlockProbes)(
        train_view=train_view(INPUT, 32, "padded"), val_view=center_view(INPUT, 32, whole=True),
        backbone=backbone, heads=read_heads(names, backbone), **more,
    )  # fmt: skip
    task.check_data(Synthetic(num_classes * 6, num_classes), 2)
    return task


def test_sizes_on_a_nin_of_four_blocks() -> None:
    """An image of 32 px has 12,288 features. A hidden layer has 20 units per class, at most 2,048."""
    backbone = make_backbone("nin4")
    with unchanged(backbone):
        head: Any = block_probes(backbone, ALL).head(1, 192)
    modules = head.classifiers.items()
    layers = {name: [tuple(p.shape) for p in module.parameters()] for name, module in modules}
    norm = [(192,), (192,)]
    one_by_one = (192, 192, 1, 1)
    assert layers["conv_B2"] == [
        (192, 192, 3, 3), *norm, one_by_one, *norm, one_by_one, *norm, (10, 192), (10,),
    ]  # fmt: skip
    assert layers["fc1_B4"] == [(10, 12_288), (10,)]
    assert layers["fc2_B3"] == [(200, 12_288), (200,), (200,), (10, 200), (10,)]
    hidden = [(200,), (200,)]
    assert layers["fc3_B1"] == [(200, 96 * 16 * 16), *hidden, (200, 200), *hidden, (10, 200), (10,)]
    assert backbone.training
    widths = [m.out_features for m in classifier("fc2", (8, 1, 1), 300) if isinstance(m, nn.Linear)]
    assert widths == [2048, 300]


def normalised(values: np.ndarray, norm: nn.Module, axis: int) -> np.ndarray:
    """Normalise by BatchNorm's running statistics along `axis`."""
    shape = [-1 if i == axis else 1 for i in range(values.ndim)]
    mean, var = (getattr(norm, name).numpy().reshape(shape) for name in ("running_mean", "running_var"))
    result: np.ndarray = (values - mean) / np.sqrt(var + 1e-5)
    if norm.weight is not None:
        scale, shift = (getattr(norm, name).detach().numpy().reshape(shape) for name in ("weight", "bias"))
        result = result * scale + shift
    return result


def unlike(module: nn.Module) -> None:
    """Set running statistics, scales and shifts to values that change the result, as after training."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            part.running_mean.normal_()  # type: ignore[union-attr]
            part.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
            if part.affine:
                nn.init.uniform_(part.weight, 0.5, 2)
                nn.init.normal_(part.bias)


def test_the_conv_head_is_a_nin_block_its_average_and_a_linear_layer() -> None:
    """Compare with plain loops: 3x3 with zeros around, 1x1, 1x1, with BatchNorm and ReLU; mean, product."""
    torch.manual_seed(0)
    head: Any = classifier("conv", (5, 4, 3), 7).double().eval()
    unlike(head)
    maps = torch.randn(2, 5, 4, 3, dtype=torch.float64)
    convs = [m for m in head.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in head.modules() if isinstance(m, nn.BatchNorm2d)]
    values = maps.numpy()
    for conv, norm in zip(convs, norms, strict=True):
        weight = conv.weight.detach().numpy()
        border = weight.shape[-1] // 2
        padded = np.pad(values, ((0, 0), (0, 0), (border, border), (border, border)))
        out = np.zeros((2, 192, 4, 3))
        for y, x in itertools.product(range(4), range(3)):
            window = padded[:, :, y : y + 2 * border + 1, x : x + 2 * border + 1]
            out[:, :, y, x] = np.tensordot(window, weight, ((1, 2, 3), (1, 2, 3)))
        values = np.maximum(normalised(out, norm, 1), 0)
    final = head[-1]
    expected = values.mean((2, 3)) @ final.weight.detach().numpy().T + final.bias.detach().numpy()
    np.testing.assert_allclose(head(maps).detach().numpy(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_fc_heads_read_every_feature(num_layers: int) -> None:
    """fc1 normalises each map first. A hidden layer has no bias and is followed by BatchNorm and ReLU."""
    torch.manual_seed(num_layers)
    head: Any = classifier(f"fc{num_layers}", (5, 4, 3), 7).double().eval()
    unlike(head)
    maps = torch.randn(3, 5, 4, 3, dtype=torch.float64)
    *hidden, final = [m for m in head if isinstance(m, nn.Linear)]
    norms = [m for m in head if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    values = maps.numpy()
    if num_layers == 1:
        assert not norms[0].affine and not hidden
        values = normalised(values, norms[0], 1)
    values = values.reshape(3, 60)
    for layer, norm in zip(hidden, norms, strict=False):
        assert layer.bias is None and layer.out_features == 140
        values = np.maximum(normalised(values @ layer.weight.detach().numpy().T, norm, 1), 0)
    assert len(hidden) == num_layers - 1 and len(norms) == max(1, num_layers - 1)
    expected = values @ final.weight.detach().numpy().T + final.bias.detach().numpy()
    np.testing.assert_allclose(head(maps).detach().numpy(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["conv", "fc1", "fc2", "fc3"])
def test_first_weights_are_rotnets(kind: str) -> None:
    torch.manual_seed(0)
    for part in classifier(kind, (64, 8, 8), 10).modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            weight = part.weight.detach()
            outputs = weight.shape[0] * weight[0, 0].numel()
            assert float(weight.std()) == pytest.approx((2 / outputs) ** 0.5, rel=0.05)
            assert part.bias is None or not part.bias.any()


@pytest.mark.parametrize("kind", ["conv", "fc1", "fc2", "fc3"])
@pytest.mark.parametrize(("num", "shape"), [(1, (3, 1, 1)), (0, (3, 2, 2)), (2, (3, 5, 7))])
def test_odd_maps_one_image_and_none(kind: str, num: int, shape: tuple[int, ...]) -> None:
    assert classifier(kind, shape, 4).eval()(torch.randn(num, *shape)).shape == (num, 4)


def test_each_head_reads_its_block_and_counts_once() -> None:
    """The loss is the sum of the heads' cross-entropies in float32, and a block runs once for all."""
    torch.manual_seed(0)
    backbone = TinyNet()
    names = ("conv_B2", "fc1_B2", "fc2_B4", "conv_B4")
    module = module_of(block_probes(backbone, names), Stage("blocks", 1, 5, 4, 1))
    blocks: Any = module.blocks
    head: Any = module.head
    calls: list[int] = []
    for number, block in enumerate(backbone.blocks(), 1):
        block.register_forward_hook(lambda m, args, out, number=number: calls.append(number))
    images, labels = torch.randn(6, 3, 32, 32), torch.arange(6)
    batch = batch_of(labels)
    batch.indices[4:] = -1
    loss, metrics = module([images], batch)
    assert calls == [1, 2, 3, 4]
    assert list(metrics) == ["loss", "top1_conv_B4"]
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in head.named_parameters()}
    assert all(p.grad is None for p in backbone.parameters())
    features = blocks.features(images)
    total = 0.0
    for name in names:
        logits = head.classifiers[name](features[int(name[-1]) - 1])
        cross_entropy = F.cross_entropy(logits[:4], labels[:4])
        head.zero_grad()
        cross_entropy.backward()
        for key, parameter in head.classifiers[name].named_parameters():
            torch.testing.assert_close(parameter.grad, gradients[f"classifiers.{name}.{key}"])
        total += float(cross_entropy.detach())
    assert float(loss.detach()) == pytest.approx(total, rel=1e-5)
    module.eval()
    with torch.autocast("cpu", torch.bfloat16):
        logits = head(blocks.features(images))
        loss, metrics = module([images], batch)
    assert {value.dtype for value in logits.values()} == {loss.dtype} == {torch.float32}
    assert list(metrics) == ["loss", *(f"top{k}_{name}" for name in names for k in (1, 5))]
    for name, cross_entropy in logits.items():
        right = int((cross_entropy[:4].argmax(1) == labels[:4]).sum())
        assert [float(v) for v in metrics[f"top1_{name}"]] == [right, 4]


def test_what_heads_cannot_be() -> None:
    backbone = make_backbone("nin4")
    for names, words in (
        ((), "without any.*fc3_B<k>"),
        (("conv_B7",), "conv_B7: nin4 has the blocks B1 to B4"),
        (("conv_B0",), "B1 to B4"),
        (("conv_B2", "fc4_B2"), "fc4_B2: unknown classifier; allowed are conv_B<k>"),
        (("conv_B22x",), "conv_B22x"),
        (("fc1_B2", "conv_B2", "fc1_B2"), "fc1_B2 2 times"),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            read_heads(names, backbone)
        assert "\n" not in str(caught.value)
    assert [head.block for head in read_heads(("fc2_B1", "conv_B4"), backbone)] == [1, 4]


def block_experiment(few: bool) -> Experiment:
    torch.manual_seed(3)
    backbone = TinyNet()
    more: dict[str, Any] = {"labels_per_class": 5, "seed": 0} if few else {}
    return Experiment(
        block_probes(backbone, ("conv_B2", "fc2_B3"), **more), backbone, (Stage("blocks", 1, 4, 3, 2),),
        step_drops(0.1, (2, 1)), lambda named: sgd(named, 0.9, 5e-4, nesterov=True, decay_biases=True),
    )  # fmt: skip


@pytest.mark.parametrize("few", [False, True])
def test_a_probe_leaves_the_backbone_and_goes_on_as_if_never_stopped(tmp_path: Path, few: bool) -> None:
    """The result is equal to the bit. With few labels, an epoch has as many steps and no other image."""
    indices: list[int] = []
    job = block_experiment(few)
    loss = job.task.loss

    def seeing(blocks: StageBlocks, head: nn.Module, inputs: Any, batch: Batch) -> Any:
        indices.extend(batch.indices.tolist() if head.training else ())
        return loss(blocks, head, inputs, batch)

    job.task.loss = seeing  # type: ignore[method-assign]
    labels, _ = fit(job, tmp_path / "whole")
    assert len(indices) == 2 * 480
    counts = np.bincount(indices, minlength=480)
    if few:
        chosen = np.sort(np.concatenate([np.flatnonzero(labels == c)[:5] for c in range(8)]))
        assert np.flatnonzero(counts).tolist() == chosen.tolist() and set(counts[chosen]) == {24}
    else:
        assert set(counts) == {2}
    fit(block_experiment(few), tmp_path / "stopped", stop_at=17)
    fit(block_experiment(few), tmp_path / "stopped")
    assert digests(newest_checkpoint(tmp_path / "whole")) == digests(newest_checkpoint(tmp_path / "stopped"))


@pytest.mark.parametrize(("num_chosen", "num"), [(7, 100), (100, 100), (3, 2), (1, 5), (80, 1000)])
def test_orders_of_few_labels(num_chosen: int, num: int) -> None:
    """In any prefix, the counts of two images differ by at most one. Epochs and seeds have other orders."""
    chosen = np.sort(np.random.default_rng(0).choice(5000, num_chosen, replace=False)).astype(np.int64)
    orders = [repeated_order(chosen, num, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0), (0, 0))]
    for order in orders:
        assert order.dtype == np.int64 and order.shape == (num,)
        for stop in {num, num // 2, min(num, num_chosen + 1)}:
            counts = np.bincount(np.searchsorted(chosen, order[:stop]), minlength=num_chosen)
            assert np.isin(order, chosen).all() and counts.max() - counts.min() <= 1
    assert (orders[0] == orders[3]).all()
    if num_chosen > 3:
        assert (orders[0] != orders[1]).any() and (orders[0] != orders[2]).any()
        passes = [tuple(orders[0][s : s + num_chosen]) for s in range(0, num - num_chosen, num_chosen)]
        assert len(set(passes)) == len(passes)  # each pass has another order


def test_a_task_of_few_labels_has_an_order_of_its_own_in_each_epoch() -> None:
    task = block_probes(TinyNet(), ("conv_B2",), labels_per_class=2, seed=3)
    assert isinstance(task, FewLabelBlockProbes) and len(task.chosen) == 20
    for epoch in range(3):
        assert task.epoch_order(epoch).tolist() == repeated_order(task.chosen, 60, 3, epoch).tolist()


def test_the_first_of_each_class() -> None:
    labels = np.array([2, 0, 1, 2, 1, 0, 2, 0, 1, 0], np.int32)
    assert first_of_each_class(labels, 3, 1).tolist() == [0, 1, 2]
    indices = first_of_each_class(labels, 3, 3)
    assert indices.dtype == np.int64 and indices.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    for num, classes, words in (
        (4, ["a", "b", "c"], "4: b has 3 images; give 3 or fewer"),
        (4, None, "class 1 has 3 images"),
        (0, None, "--labels-per-class 0: it must be 1 or more"),
    ):
        with pytest.raises(ValueError, match=words):
            first_of_each_class(labels, 3, num, classes)
    with pytest.raises(ValueError, match="class 3 has 0 images; give data without empty classes"):
        first_of_each_class(labels, 4, 1)


def weights_after_a_step(rank: int, world_size: int) -> dict[str, Tensor]:
    """Return the heads' weights after one step of rate 1, so the gradients, with running statistics."""
    torch.manual_seed(0)
    task = block_probes(TinyNet(), ("conv_B4", "fc1_B5", "fc3_B5"))
    module = module_of(task, Stage("blocks", 1, 6, 5, 1)).eval()
    optimiser, world = plain_sgd(module.learning_parameters()), rank_of(rank, world_size)
    train_step = TrainStep(module, optimiser, task.views(1), "fp32", world)
    batch = replace(noise_batch(task.views(1), 8), labels=torch.arange(8))
    train_step.step([part_of(batch, rank, world_size)], lr=1.0)
    return {name: p.detach().clone() for name, p in module.head.named_parameters()}


@pytest.mark.slow
def test_two_ranks_learn_as_one(tmp_path: Path) -> None:
    assert_alike(results_of_ranks(weights_after_a_step, 2, tmp_path), weights_after_a_step(0, 1))
