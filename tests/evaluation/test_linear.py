"""Test linear probes: widths, pools, a classifier per block, frozen features, crops."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastpsl.engine.experiment import Experiment
from fastpsl.engine.optim.schedules import step_drops
from fastpsl.engine.plan import Stage
from fastpsl.engine.stage_blocks import StageBlocks
from fastpsl.engine.train_step import StageModule
from fastpsl.engine.trainer import pretrain
from fastpsl.evaluation.linear import (
    LinearProbes,
    ProbeHead,
    Probes,
    best_block_lines,
    log_mean_softmax,
    probe_sgd,
)
from fastpsl.evaluation.protocols import PROTOCOLS, WHOLE, Pool, pooled
from fastpsl.models.backbone import Backbone
from fastpsl.models.factory import make_backbone
from fastpsl.pipelines.datasets.subset import Synthetic
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.views import Input, center_view, ten_crop_views, train_view
from tests.engine.exact_signals import signal_at_step
from tests.engine.tiny import TinyNet, tiny_run
from tests.programs import digests, newest_checkpoint, records
from tests.slow import slow

PROBE = Stage("linear", 1, 6, 5, 1)
VISSL: dict[str, Any] = {"pools": PROTOCOLS["vissl"].pools, "batchnorm": "affine"}
BLOCKS = ("B1", "B2", "B3", "B4", "B5")


def probes(backbone: Backbone, num_classes: int, size_px: int = 32, **more: Any) -> LinearProbes:
    input = Input(size_px=size_px)
    views = train_view(input, size_px), center_view(input, size_px)
    task = LinearProbes(*views, backbone=backbone, **(VISSL | more))
    task.check_data(Synthetic(num_classes * 2, num_classes), 2)
    return task


def batch_of(labels: Tensor) -> Batch:
    return Batch([], [], torch.arange(len(labels)), labels, epoch=0, step=0)


def module_of(task: Probes, stage: Stage = PROBE) -> StageModule:
    return StageModule(StageBlocks(task.backbone, stage), task.head(1, 16), task)


@contextmanager
def unchanged(backbone: Backbone) -> Iterator[None]:
    """Check that weights and running statistics stay as they are."""
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    assert any("running_mean" in name for name in before)
    yield
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


# Features of each block at 224 px in the protocols' sources; fc6 and fc7 are not pooled.
NETS = [
    ("vissl", "resnet50", (9216, 9216, 8192, 9216, 8192), True),
    slow("uic", "alexnet", (9600, 9216, 9600, 9600, 9216), None),
    ("deepcluster", "alexnet", (9600, 9216, 9600, 9600, 9216), None),
    slow("rotnet", "alexnet_rotnet", (9216, 9408, 9600, 9216, 9216), False),
    ("sslpp", "alexnet_rotnet", (9216, 9408, 9600, 9216, 9216), False),
    slow("sslpp", "alexnet", (96 * 144, 256 * 49, 384 * 25, 384 * 36, 256 * 36), False),
    ("vissl", "alexnet", (96 * 144, 256 * 36, 384 * 16, 384 * 9, 256 * 4), True),
]


@pytest.mark.usefixtures("published_widths")
@pytest.mark.parametrize(("protocol", "name", "widths", "affine"), NETS)
def test_widths_are_the_protocols(
    protocol: str, name: str, widths: tuple[int, ...], affine: bool | None
) -> None:
    """The widths are those of a real forward pass at 224 px; BatchNorm is affine, plain or absent."""
    backbone, chosen = make_backbone(name), PROTOCOLS[protocol]
    with unchanged(backbone):
        task = probes(backbone, 4, 224, pools=chosen.pools, batchnorm=chosen.batchnorm)
        head: Any = task.head(1, 4096)
    assert backbone.training
    whole = (4096, 4096, 4096) if name != "resnet50" else (2048,)
    names = [*(f"B{i}" for i in range(1, 5 + len(whole))), "final"]
    assert head.widths == dict(zip(names, (*widths, *whole), strict=True))
    assert {name: c.linear.in_features for name, c in head.classifiers.items()} == head.widths
    norms: list[Any] = [getattr(c, "norm", None) for c in head.classifiers.values()]
    if affine is None:
        assert norms == [None] * 8
    else:
        assert [norm.num_features for norm in norms] == [*backbone.channels, whole[-1]]
        assert {norm.affine for norm in norms} == {affine} and all(norm.track_running_stats for norm in norms)


@pytest.mark.parametrize("name", ["resnet50_mlp", "vgg16"])
def test_every_protocol_takes_backbones_of_six_and_seven_blocks(name: str) -> None:
    backbone = make_backbone(name)
    for chosen in PROTOCOLS.values():
        head: Any = probes(backbone, 2, 64, pools=chosen.pools, batchnorm=chosen.batchnorm).head(1, 1)
        expected = {"final": backbone.channels[-1]}
        if chosen.pools:
            assert tuple(head.widths)[:5] == BLOCKS
            expected |= {f"B{i}": width for i, width in enumerate(backbone.channels, 1) if i > 5}
        assert {name: width for name, width in head.widths.items() if name not in BLOCKS} == expected


# VISSL's and DeepCluster's values: protocol, block, side of the map, kernel, stride, padding, grid.
WINDOWS = [
    ("vissl", 1, 112, 10, 10, 4, 12), ("vissl", 2, 56, 16, 8, 0, 6), ("vissl", 3, 28, 13, 5, 0, 4),
    ("vissl", 4, 14, 8, 3, 0, 3), ("vissl", 5, 7, 6, 1, 0, 2),
    ("deepcluster", 1, 55, 6, 6, 3, 10), ("deepcluster", 2, 27, 4, 4, 0, 6),
    ("deepcluster", 3, 13, 3, 3, 1, 5), ("deepcluster", 4, 13, 3, 3, 1, 5),
    ("deepcluster", 5, 13, 2, 2, 0, 6),
]  # fmt: skip


@pytest.mark.parametrize(("protocol", "block", "side", "kernel", "stride", "padding", "grid"), WINDOWS)
def test_a_pool_is_the_mean_of_its_windows(
    protocol: str, block: int, side: int, kernel: int, stride: int, padding: int, grid: int
) -> None:
    """Compare with sums by hand; zeros of the padding count, as in torch's AvgPool2d."""
    pool = PROTOCOLS[protocol].pools[block - 1]
    assert pool.grid == grid
    features = torch.randn(2, 3, side, side, dtype=torch.float64)
    padded = F.pad(features, (padding,) * 4)
    starts = [i * stride for i in range(grid)]
    expected = torch.stack([torch.stack([
        padded[:, :, y : y + kernel, x : x + kernel].sum((2, 3)) / kernel**2 for x in starts
    ], -1) for y in starts], -2)  # fmt: skip
    torch.testing.assert_close(pooled(features, pool), expected)


@pytest.mark.parametrize("protocol", ["uic", "rotnet", "sslpp"])
@pytest.mark.parametrize("side", [55, 27, 13, 112, 7])
def test_a_max_pool_is_the_greatest_of_adaptive_windows(protocol: str, side: int) -> None:
    """Cell i of n has the rows floor(i s / n) to ceil((i + 1) s / n), so the whole map is read."""
    features = torch.randn(2, 3, side, side)
    grids = (10, 6, 5, 5, 6) if protocol == "uic" else (12, 7, 5, 6, 6)
    for pool, grid in zip(PROTOCOLS[protocol].pools, grids, strict=True):
        n = min(grid, side)
        cells = [slice(i * side // n, -(-(i + 1) * side // n)) for i in range(n)]
        expected = torch.stack(
            [torch.stack([features[:, :, y, x].amax((2, 3)) for x in cells], -1) for y in cells], -2
        )
        assert torch.equal(pooled(features, pool), expected)


def test_other_maps_are_pooled_to_the_same_grid_or_left() -> None:
    features, vissl = torch.randn(2, 3, 48, 48), PROTOCOLS["vissl"].pools
    means = features.unflatten(3, (12, 4)).unflatten(2, (12, 4)).mean((3, 5))
    torch.testing.assert_close(pooled(features, vissl[0]), means)
    small = torch.randn(2, 3, 3, 3)
    for pool in (vissl[2], *PROTOCOLS["uic"].pools, *PROTOCOLS["deepcluster"].pools):
        assert torch.equal(pooled(small, pool), small)
    assert pooled(torch.randn(2, 3, 14, 14), vissl[4]).shape[-1] == 2  # and not 3, the grid of VISSL's B4
    assert pooled(torch.randn(2, 3, 55, 48), PROTOCOLS["deepcluster"].pools[0]).shape[-2:] == (10, 10)
    torch.testing.assert_close(pooled(features, WHOLE)[..., 0, 0], features.mean((2, 3)))


def test_protocols_for_other_data_are_vissls_but_for_their_epochs() -> None:
    """VISSL has drops after 4, 8 and 12 epochs for Places205, and after 24, 48 and 72 for iNaturalist."""
    for name, epochs, drops in (("vissl_places205", 14, (4, 8, 12)), ("vissl_inat18", 84, (24, 48, 72))):
        protocol = PROTOCOLS[name]
        assert (protocol.epochs, sum(protocol.intervals)) == (epochs, epochs)
        assert tuple(np.cumsum(protocol.intervals)[:-1]) == drops
        assert replace(protocol, epochs=28, intervals=(8, 8, 8, 4)) == PROTOCOLS["vissl"]


def test_the_best_block_is_that_of_the_highest_top1() -> None:
    numbers = {"top1_B1": 10.94, "top5_B1": 99.0, "top1_B2": 50.06, "top1_B3": 50.05, "top1_final": 80.0}
    assert best_block_lines(numbers, 900) == ["best of 3 blocks: B2, validation top-1 50.1 %"]
    assert best_block_lines({"top1_final": 80.0, "top5_final": 90.0}, 900) == []


@pytest.mark.parametrize(("kind", "words"), [("", ""), ("conv_", " by conv")])
def test_a_better_block_than_the_last_is_named_with_what_takes_it(kind: str, words: str) -> None:
    """Two standard errors of 40 % of 900 images are 200 sqrt(0.4 * 0.6 / 900) = 3.27 points."""
    numbers = {"B2": 43.2, "B3": 42.0, "B10": 40.0}
    named = {f"top1_{kind}{block}": value for block, value in numbers.items()} | {"top1_fc1_B3": 90.0}
    within = f"best of 3 blocks{words}: B2, validation top-1 43.2 %"
    assert best_block_lines(named, 900) == [within]
    (line,) = best_block_lines(named | {f"top1_{kind}B2": 43.3}, 900)
    assert line == (
        f"best of 3 blocks{words}: B2 (43.3 %), 3.3 points above the last, B10: give --block B2 to fastpsl "
        "retrieve, tsne, features and eval knn"
    )


def test_each_classifier_reads_its_own_block() -> None:
    """Weights are 1 and blocks constant, so a logit is the constant times the number of features."""
    head = ProbeHead([(2, 8, 8)] * 7, 3, VISSL["pools"], batchnorm=None)
    for parameter in head.parameters():
        torch.nn.init.ones_(parameter) if parameter.ndim > 1 else torch.nn.init.zeros_(parameter)
    constants = (1.0, 10.0, 100.0, 1000.0, 10000.0, 2.0, 3.0)
    logits = head([torch.full((1, 2, 8, 8), constant) for constant in constants])
    names = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "final")
    assert tuple(logits) == names
    # 8 x 8 in VISSL's grids 12, 6, 4, 3, 2; blocks without a pool are averaged
    assert list(head.widths.values()) == [2 * 8**2, 2 * 6**2, 2 * 4**2, 2 * 3**2, 2 * 2**2, 2, 2, 2]
    for name, constant in zip(names, (*constants, constants[-1]), strict=True):
        assert torch.allclose(logits[name], torch.full((1, 3), constant * head.widths[name])), name


def test_each_head_learns_as_if_it_were_alone() -> None:
    """A head's gradients are those of its own cross-entropy; B2's loss gives the others none."""
    torch.manual_seed(0)
    module = module_of(probes(TinyNet(), 3))
    images, labels = torch.randn(6, 3, 32, 32), torch.tensor([0, 1, 2, 2, 1, 0])
    loss, _ = module([images], batch_of(labels))
    loss.backward()
    head: Any = module.head
    gradients = {name: parameter.grad.clone() for name, parameter in head.named_parameters()}
    logits = head(module.blocks.features(images))
    for name, head_logits in logits.items():
        head.zero_grad()
        F.cross_entropy(head_logits, labels).backward(retain_graph=True)
        for key, parameter in head.named_parameters():
            if f".{name}." in key:
                torch.testing.assert_close(parameter.grad, gradients[key])
            else:
                assert parameter.grad is None or not parameter.grad.any()
    torch.testing.assert_close(
        loss, torch.stack([F.cross_entropy(head_logits, labels) for head_logits in logits.values()]).sum()
    )


def test_heads_are_float32_under_autocast() -> None:
    backbone, dtypes, features = TinyNet(), list[torch.dtype](), list[torch.dtype]()
    module = module_of(probes(backbone, 7))
    for part in module.head.classifiers.values():  # type: ignore[operator, union-attr]
        part.linear.register_forward_hook(lambda m, args, out: dtypes.extend([args[0].dtype, out.dtype]))
    backbone.parts[0].register_forward_hook(lambda m, args, out: features.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = module([torch.randn(4, 3, 32, 32)], batch_of(torch.tensor([0, 1, 2, 3])))
    assert set(dtypes) == {torch.float32} and loss.dtype == torch.float32
    assert features == [torch.bfloat16]


def test_metrics_are_few_while_training_and_all_in_validation() -> None:
    module = module_of(probes(TinyNet(), 7))
    batch = batch_of(torch.arange(6))
    batch.indices[4:] = -1  # padding, which is ignored whatever its label
    images = torch.randn(6, 3, 32, 32)
    _, training = module([images], batch)
    assert list(training) == ["loss", "top1_final"]
    module.eval()
    loss, val = module([images], batch)
    names = [f"top{k}_{b}" for b in ("B1", "B2", "B3", "B4", "B5", "final") for k in (1, 5)]
    assert list(val) == ["loss", *names]
    for name, logits in module.head(module.blocks.features(images)).items():  # type: ignore[operator]
        places = logits.argsort(1, descending=True)[:4].tolist()
        top5 = sum(label in row[:5] for label, row in enumerate(places))
        assert [float(v) for v in val[f"top5_{name}"]] == [top5, 4]
        assert float(val[f"top1_{name}"][0]) == sum(label == row[0] for label, row in enumerate(places))
    torch.testing.assert_close(loss, module([images[:4]], batch_of(torch.arange(4)))[0])
    few = module_of(probes(TinyNet(), 5)).eval()
    assert not [name for name in few([images], batch_of(torch.zeros(6).long()))[1] if "top5" in name]


def test_mocos_protocol_is_one_linear_layer_on_the_final_features() -> None:
    backbone = TinyNet()
    task = probes(backbone, 50, pools=(), batchnorm=None, head_std=0.01)
    head = task.head(1, 16)
    assert isinstance(head, ProbeHead) and head.widths == {"final": 16}
    weight, bias = head.parameters()
    assert weight.shape == (50, 16) and not bias.any()
    assert float(weight.detach().std()) == pytest.approx(0.01, rel=0.1)
    features = StageBlocks(backbone, PROBE).eval().features(torch.randn(3, 3, 32, 32))
    expected = features[-1].mean((2, 3)) @ weight.T
    torch.testing.assert_close(head(features)["final"], expected)


def test_decay_leaves_batchnorm_alone() -> None:
    module = module_of(probes(TinyNet(), 3))
    names = {id(parameter): name for name, parameter in module.learning_parameters()}
    decayed, rest = probe_sgd(module.learning_parameters(), 0.9, 5e-4, nesterov=True).param_groups
    assert decayed["weight_decay"] == 5e-4 and rest["weight_decay"] == 0 and decayed["nesterov"]
    assert {names[id(p)].rsplit(".", 2)[1] for p in decayed["params"]} == {"linear"}
    assert {names[id(p)].rsplit(".", 2)[1] for p in rest["params"]} == {"norm"}
    assert len(decayed["params"]) == len(rest["params"]) == 12


def experiment() -> Experiment:
    torch.manual_seed(3)
    backbone = TinyNet()
    return Experiment(
        probes(backbone, 16), backbone, (Stage("linear", 1, 6, 5, 3),), step_drops(0.05, (2, 1)),
        lambda named: probe_sgd(named, 0.9, 5e-4, True),
    )  # fmt: skip


def fit(job: Experiment, out: Path, stop_at: int | None = None) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the training labels and, of a training that was not stopped, the scores."""
    run = tiny_run(out, log_steps=1)
    signal_at_step(run, stop_at)
    with unchanged(job.backbone):
        assert pretrain(job, run) == (not stop_at)
    labels = run.data.train.labels()
    run.close()
    return labels, {} if stop_at else run.position.summaries[0]["val"]


def test_a_probe_leaves_the_backbone_and_learns_and_resumes(tmp_path: Path) -> None:
    _, val = fit(experiment(), tmp_path / "whole")
    losses = [row["loss"] for row in records(tmp_path / "whole/metrics.jsonl")]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) and val["top5_B1"] > val["top1_B1"]
    fit(experiment(), tmp_path / "stopped", stop_at=19)
    assert fit(experiment(), tmp_path / "stopped")[1] == val
    assert digests(newest_checkpoint(tmp_path / "whole")) == digests(newest_checkpoint(tmp_path / "stopped"))


def test_a_backbone_of_fewer_blocks_is_refused_where_there_are_pools() -> None:
    shapes = [(4, 8, 8)] * 4
    with pytest.raises(ValueError, match="4 blocks.*--protocol moco"):
        ProbeHead(shapes, 3, **VISSL)
    assert ProbeHead(shapes, 3, (), "affine").widths == {"final": 4}
    widths = {f"B{i}": 16 for i in range(1, 5)} | {"final": 4}
    assert ProbeHead(shapes, 3, [Pool(2)] * 4, "affine").widths == widths


def test_images_too_small_for_the_backbone_are_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="62 px: this backbone reads 63 px"):
        probes(make_backbone("alexnet"), 3, 62).head(1, 4096)


def test_crops_of_an_image_are_one_answer_the_mean_of_their_softmaxes() -> None:
    logits = [torch.randn(5, 7) * 3 for _ in range(10)]
    expected = torch.stack([crop.softmax(1) for crop in logits]).mean(0)
    torch.testing.assert_close(log_mean_softmax(logits).exp(), expected)
    assert log_mean_softmax(logits[:1]) is logits[0]
    huge = [torch.tensor([[1e4, 0.0]]), torch.tensor([[0.0, 1e4]])]
    torch.testing.assert_close(log_mean_softmax(huge).exp(), torch.tensor([[0.5, 0.5]]))


def test_validation_scores_are_those_of_ten_crops() -> None:
    """top-1 and loss are those of each block's mean probability, in plain numpy; training uses one crop."""
    torch.manual_seed(1)
    backbone, input = TinyNet(), Input(size_px=32)
    middle, *more = ten_crop_views(input, 32)
    task = LinearProbes(train_view(input, 32), middle, backbone=backbone, more_crops=tuple(more), **VISSL)
    task.check_data(Synthetic(14, 7), 2)
    assert task.val_views(1) == (middle, *more) and len(more) == 9 and len(task.views(1)) == 1
    module = module_of(task).eval()
    images, batch = [torch.randn(6, 3, 32, 32) for _ in range(10)], batch_of(torch.arange(6))
    batch.indices[5:] = -1
    loss, metrics = module(images, batch)
    crops = [module.head(module.blocks.features(crop)) for crop in images]  # type: ignore[operator]
    total = 0.0
    for name in crops[0]:
        mean = np.mean([crop[name].softmax(1).detach().numpy() for crop in crops], 0)[:5]
        total += float(-np.log(mean[np.arange(5), np.arange(5)]).mean())
        assert [float(v) for v in metrics[f"top1_{name}"]] == [int((mean.argmax(1) == np.arange(5)).sum()), 5]
        right = sum(k in row.argsort()[-5:] for k, row in enumerate(mean))
        assert [float(v) for v in metrics[f"top5_{name}"]] == [right, 5]
    assert float(loss.detach()) == pytest.approx(total, rel=1e-5)
    assert [float(v) for v in metrics["loss"]] == pytest.approx([5 * total, 5], rel=1e-5)
    # Ten equal crops give the result of one.
    torch.testing.assert_close(module(images[:1] * 10, batch)[0], module(images[:1], batch)[0])


def test_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match="classes in the training data: 1;"):
        probes(TinyNet(), 2).check_data(Synthetic(4, 1), 2)
