"""Test colorization against plain loops over positions, with grey images, two ranks and training."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from skimage.color import rgb2lab
from torch import Tensor, nn
from typing_extensions import override

from fastpsl.engine.experiment import Experiment
from fastpsl.engine.optim.optimisers import adam
from fastpsl.engine.optim.schedules import step_drops
from fastpsl.engine.plan import make_plan
from fastpsl.engine.stage_blocks import StageBlocks
from fastpsl.engine.train_step import StageModule, TrainStep
from fastpsl.kernels.lab import Lightness, ab_bins, lightness
from fastpsl.models.backbone import Backbone
from fastpsl.models.convolutional import convolutions
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.views import Input, train_view
from fastpsl.tasks.sslpp.colorization import Colorization
from fastpsl.tasks.sslpp.sslpp import SSLPlusPlus
from tests.engine.exact_signals import train_until
from tests.engine.steps import plain_sgd, rank_of
from tests.engine.tiny import noise_batch, part_of, tiny_run
from tests.pipelines.photos import RAW, write
from tests.programs import epoch_records, newest_checkpoint
from tests.recipes.in_process import same_run
from tests.warm import results_of_ranks

SIZE, MAP = 16, 4
(STAGE,) = make_plan("end_to_end", (1,), num_levels=1, num_blocks=2)


class SmallNIN(Backbone):
    """A network of two blocks on the lightness, which quarter the side together."""

    name, channels, block_names = "small_nin", (24, 48), ("block1", "block2")

    def __init__(self) -> None:
        super().__init__()
        first = convolutions(1, ((5, 24), (1, 24)), nn.MaxPool2d(3, stride=2, padding=1))
        second = convolutions(24, ((5, 48), (1, 48)), nn.AvgPool2d(3, stride=2, padding=1))
        self.layers = nn.ModuleList([first, second])

    @override
    def blocks(self) -> list[nn.Module]:
        return list(self.layers)


class FakeData:
    num_samples = 40

    def labels(self) -> np.ndarray:
        return np.full(self.num_samples, -1)


def smooth_batch(
    task: Colorization, size: int, seed: int = 0, grey: Sequence[int] = (), broad: Tensor | None = None
) -> Batch:
    """Return a batch of images with broad areas of colour; those in `grey` have none."""
    batch = noise_batch([task.view()], size, seed)
    if broad is None:
        broad = torch.rand(size, 3, 3, 3, generator=torch.Generator().manual_seed(seed))
    broad[list(grey)] = broad[list(grey), :1]
    side = task.view().crop.size_px
    images = nn.functional.interpolate(broad, (side, side), mode="bilinear")
    batch.images = [(255 * images).to(torch.uint8)]
    return batch


def ready(batches: Sequence[Batch]) -> tuple[Colorization, StageBlocks, nn.Module]:
    """Return a task after its warm-up on `batches`, the parts of all ranks."""
    torch.manual_seed(0)
    task = Colorization(SIZE)
    blocks, head = StageBlocks(SmallNIN(), STAGE), task.head(1, 48)
    task.check_data(FakeData(), 40 // len(batches))  # type: ignore[arg-type]
    task.start_stage(STAGE, blocks, head)
    assert task.num_warm_up_batches(STAGE) == len(batches)
    for batch in batches:
        task.warm_up(blocks, head, [], batch)
    return task, blocks, head


def by_loops(task: Colorization, batch: Batch) -> tuple[np.ndarray, np.ndarray, list[bool]]:
    """Compute the targets by loops over cells.

    Returns soft targets float64 [B, h, w, 313], nearest bins [B, h, w], and which images have colours.
    """
    images = batch.images[0].float().numpy() / 255
    bins, num = ab_bins().astype(np.float64), len(images)
    pixels = SIZE // MAP
    targets, nearest, coloured = np.zeros((num, MAP, MAP, 313)), np.zeros((num, MAP, MAP), int), []
    for b in range(num):
        padded = np.zeros((3, SIZE + 4, SIZE + 4))
        padded[:, 2:-2, 2:-2] = images[b]
        shift, flip = batch.draws[0][0]["shift"][b].tolist(), bool(batch.draws[0][1]["flip"][b])
        shifted = padded[:, shift[0] : shift[0] + SIZE, shift[1] : shift[1] + SIZE]
        ab = rgb2lab((shifted[:, :, ::-1] if flip else shifted).transpose(1, 2, 0))[..., 1:]
        coloured.append(bool((np.abs(ab) > 5).any()))
        for i in range(MAP):
            for j in range(MAP):
                cell = ab[i * pixels : (i + 1) * pixels, j * pixels : (j + 1) * pixels].mean((0, 1))
                squares = ((bins - cell) ** 2).sum(1)
                order = np.argsort(squares, kind="stable")[:10]
                values = np.exp(-squares[order] / 50)
                targets[b, i, j, order] = values / values.sum()
                nearest[b, i, j] = order[0]
    return targets, nearest, coloured


def weights_by_loops(nearest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the bins' weights and the best constant answer from the nearest bins of all positions."""
    bins = ab_bins().astype(np.float64)
    frequency = np.bincount(nearest.ravel(), minlength=313) / nearest.size
    smooth = np.zeros((313, 313))
    for k in range(313):
        squares = ((bins - bins[k]) ** 2).sum(1)
        order = np.argsort(squares, kind="stable")[:10]
        smooth[k, order] = np.exp(-squares[order] / 50) / np.exp(-squares[order] / 50).sum()
    prior = frequency @ smooth
    weights = 1 / (0.5 * prior + 0.5 / 313)
    weights = weights / (prior * weights).sum()
    constant = frequency * weights @ smooth
    return weights, constant / constant.sum()


@pytest.mark.parametrize("crop", ["padded", "random_resized"])
def test_the_network_sees_lightness_alone(crop: Any) -> None:
    task = Colorization(SIZE, crop)
    view = task.view()
    assert type(view.ops[-1]) is Lightness and view.input() == Input.usual("L", SIZE)
    batch = noise_batch([view], 3)
    (inputs,) = batch.inputs([view], torch.float32)
    assert inputs.shape == (3, 1, SIZE, SIZE)
    images = task._coloured_images(batch)  # shifted and flipped as the network's input
    assert torch.allclose((lightness(images) - 0.5) / 0.25, inputs, atol=1e-6)


def test_targets_equal_the_loop() -> None:
    task, _, _ = ready([smooth_batch(Colorization(SIZE), 40)])
    batch = smooth_batch(task, 6, seed=1, grey=[2])
    indices, shares, coloured = task._target(batch)
    targets, nearest, has_colours = by_loops(task, batch)
    assert coloured.tolist() == has_colours and has_colours.count(False) == 1
    dense = torch.zeros(6, MAP, MAP, 313).scatter_(3, indices, shares)
    # because scikit-image's matrix has other digits
    assert np.abs(dense.numpy() - targets).max() < 0.01
    assert (indices[..., 0].numpy() == nearest).mean() > 0.97


def test_weights_equal_the_loop_and_unseen_bins_have_one() -> None:
    batch = smooth_batch(Colorization(SIZE), 40)
    task, _, _ = ready([batch])
    nearest = task._target(batch)[0][..., 0]
    assert task.counts.tolist() == np.bincount(nearest.flatten(), minlength=313).tolist()
    weights, constant = weights_by_loops(nearest.numpy())
    assert (task.counts == 0).sum() > 100
    # The tenth neighbour of a bin is one of four at a distance of 20.
    assert np.allclose(task.weights, weights, rtol=2e-3)
    assert np.allclose(task.log_constant.exp(), constant, rtol=2e-3, atol=1e-5)
    assert task.weights.isfinite().all() and task.weights.max() / task.weights.min() > 5
    assert task.chance(1) == pytest.approx(task.counts.max().item() / (40 * MAP**2))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("indices", [[3, 0, 8, 5], [3, -1, 8, -1], [7], [-1]])
def test_the_loss_equals_the_loop(indices: list[int], training: bool) -> None:
    task, _, head = ready([smooth_batch(Colorization(SIZE), 40)])
    batch = smooth_batch(task, len(indices), seed=2, grey=[2] if len(indices) > 2 else [])
    batch.indices = torch.tensor(indices)
    head.train(training)
    features = torch.randn(len(indices), 48, MAP, MAP)
    loss, metrics = task.features_loss(features, head, batch)

    nearest, shares, coloured = task._target(batch)
    log_p = head(features).detach().log_softmax(1)
    weights, constant = task.weights.tolist(), task.log_constant.tolist()
    total, of_constant, right, num = 0.0, 0.0, 0, 0
    for b, index in enumerate(indices):
        if index < 0 or not coloured[b]:
            continue
        num += 1
        for i in range(MAP):
            for j in range(MAP):
                bins, parts = nearest[b, i, j].tolist(), shares[b, i, j].tolist()
                each = weights[bins[0]] / MAP**2
                total -= each * sum(s * float(log_p[b, k, i, j]) for k, s in zip(bins, parts, strict=True))
                of_constant -= each * sum(s * constant[k] for k, s in zip(bins, parts, strict=True))
                right += int(log_p[b, :, i, j].argmax()) == bins[0]
    num_valid = sum(index >= 0 for index in indices)
    assert float(loss.detach()) == pytest.approx(total / max(num_valid, 1), rel=1e-5)
    assert [float(v) for v in metrics["loss"]] == pytest.approx([total, num], rel=1e-5)
    assert [float(v) for v in metrics["accuracy"]] == pytest.approx([right / MAP**2, num])
    if training:
        assert "loss_constant" not in metrics
    else:
        assert float(metrics["loss_constant"][0]) == pytest.approx(of_constant, rel=1e-5)


def test_a_fixed_example_keeps_its_value() -> None:
    broad = (torch.arange(44 * 27) * 0.618034 % 1).view(44, 3, 3, 3)  # the same for any seed
    task, _, head = ready([smooth_batch(Colorization(SIZE), 40, broad=broad[:40])])
    nn.init.zeros_(head.weight)  # type: ignore[arg-type]
    nn.init.zeros_(head.bias)  # type: ignore[arg-type]
    batch = smooth_batch(task, 4, broad=broad[40:])
    loss, _ = task.features_loss(torch.zeros(4, 48, MAP, MAP), head, batch)
    value = float(loss.detach())
    weights = task.weights[task._target(batch)[0][..., 0]]
    assert value / math.log(313) == pytest.approx(weights.mean().item(), rel=1e-5)
    assert value == pytest.approx(3.5225, rel=1e-3)


def test_the_constant_answer_is_nearly_the_best() -> None:
    """Gradient descent finds no better constant. The prior, which ignores the weights, is worse."""
    batch = smooth_batch(Colorization(SIZE), 40)
    task, _, _ = ready([batch])
    indices, shares, _ = task._target(batch)
    weights = task.weights[indices[..., 0]]
    dense = torch.zeros(40, MAP, MAP, 313).scatter_(3, indices, shares)

    def cost(share: Tensor) -> float:
        return float(-((dense * share.clamp(min=1e-6).log()).sum(3) * weights).mean())

    best = (dense * weights[..., None]).sum((0, 1, 2))
    constant_cost = cost(task.log_constant.exp())
    least = cost(best / best.sum())
    assert least <= constant_cost < 1.01 * least < cost(dense.mean((0, 1, 2)))


def test_grey_images_teach_nothing_and_are_counted() -> None:
    task, blocks, head = ready([smooth_batch(Colorization(SIZE), 40)])
    batch = smooth_batch(task, 5, seed=3, grey=range(5))
    batch.indices[4] = -1
    features = torch.randn(5, 48, MAP, MAP, requires_grad=True)
    loss, metrics = task.features_loss(features, head, batch)
    loss.backward()
    assert float(loss.detach()) == 0 and features.grad is not None and not features.grad.any()
    assert all(p.grad is not None and not p.grad.any() for p in head.parameters())
    assert [float(v) for v in metrics["accuracy"]] == [0, 0]
    assert task.captions(batch) == ["grey"] * 5
    head.eval()
    task.features_loss(features, head, batch)  # validation images are not counted
    head.train()
    some = smooth_batch(task, 5, seed=3, grey=[1, 3])
    task.features_loss(features, head, some)
    assert task.captions(some) == ["", "grey", "", "grey", ""]
    assert task.end_epoch() == {"num_grey": 6.0} and task.end_epoch() == {"num_grey": 0.0}
    task.features_loss(features, head, some)
    assert task.num_grey == 2 and task.counts.any()
    task.start_stage(STAGE, blocks, head)
    assert not task.num_grey and not task.counts.any()


def test_one_coloured_pixel_makes_an_image_coloured() -> None:
    task, _, _ = ready([smooth_batch(Colorization(SIZE), 40)])
    batch = smooth_batch(task, 3, grey=range(3))
    batch.images[0][1, :, 8, 8] = torch.tensor([200, 0, 0], dtype=torch.uint8)
    batch.images[0][2, :, 8, 8] = torch.tensor([128, 124, 128], dtype=torch.uint8)  # a 2.1, b -1.6
    assert task._target(batch)[2].tolist() == [False, True, False]


def test_grey_data_are_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="are grey, .* above 5: Colorization needs coloured ones") as error:
        ready([smooth_batch(Colorization(SIZE), 40, grey=range(40))])
    assert "\n" not in str(error.value)


def test_padding_and_grey_images_are_no_part_of_the_prior() -> None:
    batch = smooth_batch(Colorization(SIZE), 40, grey=range(10, 20))
    batch.indices[:5] = -1
    task, _, _ = ready([batch])
    nearest = task._target(batch)[0][..., 0]
    counted = torch.cat([nearest[5:10], nearest[20:]]).flatten()
    assert task.counts.tolist() == np.bincount(counted, minlength=313).tolist()


def test_how_many_batches_are_looked_at() -> None:
    task, data = Colorization(SIZE), FakeData()
    for num, batch_size, wanted in ((40, 16, 3), (40, 40, 1), (10**6, 128, 391), (50_000, 128, 391)):
        data.num_samples = num
        task.check_data(data, batch_size)  # type: ignore[arg-type]
        assert task.num_warm_up_batches(STAGE) == wanted


def test_the_size_of_the_map_is_found_without_moving_statistics() -> None:
    torch.manual_seed(0)
    task, blocks = Colorization(36), StageBlocks(SmallNIN(), STAGE)
    before = {name: value.clone() for name, value in blocks.state_dict().items()}
    task.start_stage(STAGE, blocks, task.head(1, 48))
    assert tuple(task.map_size) == (9, 9) and blocks.training and blocks.learning.training
    assert all(torch.equal(before[name], value) for name, value in blocks.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_has_finite_gradients_and_nearly_the_same_loss(dtype: torch.dtype) -> None:
    task, blocks, head = ready([smooth_batch(Colorization(SIZE), 40)])
    batch = smooth_batch(task, 6, seed=4, grey=[1])
    (inputs,) = batch.inputs([task.view()], torch.float32)
    wanted, _ = task.features_loss(blocks(inputs), head, batch)
    with torch.autocast("cpu", dtype=dtype):
        loss, _ = task.features_loss(blocks(inputs), head, batch)
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=0.02)
    loss.backward()
    for parameter in (*blocks.parameters(), *head.parameters()):
        assert parameter.grad is not None and parameter.grad.isfinite().all()


def test_an_empty_batch() -> None:
    task, _, head = ready([smooth_batch(Colorization(SIZE), 40)])
    empty = part_of(smooth_batch(task, 1), 0, 1)
    empty.images, empty.indices = [empty.images[0][:0]], empty.indices[:0]
    empty.draws = [tuple({k: v[:0] for k, v in draw.items()} for draw in empty.draws[0])]
    loss, metrics = task.features_loss(torch.zeros(0, 48, MAP, MAP), head, empty)
    assert float(loss.detach()) == 0 and float(metrics["loss"][1]) == 0


def test_the_contact_sheet_shows_lightness_beside_the_colours() -> None:
    task, _, _ = ready([smooth_batch(Colorization(SIZE), 40)])
    batch = smooth_batch(task, 3)
    sheet = task.contact_sheet(batch.inputs([task.view()], torch.float32), batch)
    assert sheet.shape == (3, 3, SIZE, 2 * SIZE + 4) and (sheet[..., SIZE:-SIZE] == 1).all()
    left, right = sheet[..., :SIZE], sheet[..., -SIZE:]
    assert torch.allclose(left, lightness(right).expand(-1, 3, -1, -1), atol=1e-5)
    assert torch.equal(right, task._coloured_images(batch))


def one_step(rank: int, world_size: int) -> dict[str, Any]:
    """Return a rank's counts and the weights after one step of rate 1.

    Half of the grey images are on one rank.
    """
    whole = smooth_batch(Colorization(SIZE), 40, grey=range(7))
    task, blocks, head = ready([part_of(whole, rank, world_size)])
    sslpp = SSLPlusPlus(task, train_view(Input(), SIZE, "padded"), weight=1.0)
    module = StageModule(blocks, nn.ModuleDict({"proxy": head}), sslpp)
    module.eval()
    module.head.train()
    optimiser, world = plain_sgd(module.learning_parameters()), rank_of(rank, world_size)
    train_step = TrainStep(module, optimiser, [task.view()], "fp32", world)
    train_step.step([part_of(smooth_batch(task, 8, seed=5, grey=[0, 1, 5]), rank, world_size)], lr=1.0)
    state = task.state_dict()
    other, _, _ = ready([whole if world_size == 1 else part_of(whole, rank, world_size)])
    other.load_state_dict(state)
    assert torch.equal(other.weights, task.weights) and torch.equal(other.log_constant, task.log_constant)
    return {
        "counts": state["counts"],
        "num_grey": torch.tensor(state["num_grey"]),
        "of_the_epoch": torch.tensor(task.end_epoch()["num_grey"]),
        "after_a_resume": torch.tensor(other.end_epoch()["num_grey"]),
        **{name: p.detach() for name, p in module.named_parameters()},
    }


def test_two_ranks_count_and_learn_as_one(tmp_path: Path) -> None:
    alone = one_step(0, 1)
    assert int(alone["num_grey"]) == 3 and int(alone["counts"].sum()) == 33 * MAP**2
    for rank, result in enumerate(results_of_ranks(one_step, 2, tmp_path)):
        for name, value in alone.items():
            assert torch.allclose(result[name], value, atol=1e-5 * float(value.abs().max() + 1)), (rank, name)


@pytest.fixture(scope="module")
def some_grey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a beton of 96 small images, a third of them grey."""
    random = np.random.default_rng(0)
    samples = []
    for i in range(96):
        image = np.broadcast_to(random.integers(0, 256, (1, 1, 3), np.uint8), (SIZE, SIZE, 3)).copy()
        image[4:12, 4:12] = random.integers(0, 256, 3)
        if i % 3 == 0:
            image[:] = image[..., :1]
        samples.append((image.tobytes(), SIZE, SIZE, RAW))
    return write(tmp_path_factory.mktemp("grey") / "some.beton", samples)


def fit(out: Path, stop_at: int | None = None, size_px: int = 32, lr: float = 0.01, **options: Any) -> bool:
    torch.manual_seed(0)
    task = SSLPlusPlus(Colorization(size_px), train_view(Input(), size_px, "padded"), weight=1.0)
    epochs = options.pop("epochs", 2)
    run = tiny_run(out, epochs=(epochs,), plan="end_to_end", **options)
    stages = make_plan("end_to_end", (epochs,), num_levels=1, num_blocks=2)
    experiment = Experiment(task, SmallNIN(), stages, step_drops(lr, (epochs,)), adam)
    return train_until(stop_at, experiment, run)


def test_resumed_in_mid_epoch_equals_never_stopped(some_grey: Path, tmp_path: Path) -> None:
    """An epoch has 6 steps and 32 grey images. The warm-up is not repeated."""
    values: dict[str, Any] = {"data": str(some_grey), "val": None, "batch_size": 16, "size_px": SIZE}
    assert fit(tmp_path / "whole", **values)
    assert not fit(tmp_path / "parts", stop_at=4, **values)
    assert newest_checkpoint(tmp_path / "parts")["task"]["proxy"]["num_grey"] > 0
    assert fit(tmp_path / "parts", **values)
    same_run(tmp_path / "whole", tmp_path / "parts", "metrics.jsonl")
    for folder in ("whole", "parts"):
        assert [record["num_grey"] for record in epoch_records(tmp_path / folder)] == [32, 32]


@pytest.mark.slow
def test_a_small_network_beats_the_constant_answer_on_validation_images(
    tmp_path: Path, landscapes: tuple[Path, Path]
) -> None:
    train, val = map(str, landscapes)
    assert fit(tmp_path, epochs=4, data=train, val=val)
    (summary,) = newest_checkpoint(tmp_path)["position"]["summaries"]
    metrics = summary["val"]
    assert metrics["loss"] < 0.92 * metrics["loss_constant"]
    assert metrics["accuracy"] > summary["chance"] > 1 / 313
