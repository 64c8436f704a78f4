"""MoCo: queue, loss, momentum encoder and its BatchNorm over shuffled groups, compared with plain loops."""

import copy
import io
import itertools
import math
from collections import deque
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from typing_extensions import override

from fastpsl.engine.distributed import World
from fastpsl.engine.experiment import Experiment
from fastpsl.engine.optim.optimisers import sgd
from fastpsl.engine.optim.schedules import cosine
from fastpsl.engine.plan import make_plan
from fastpsl.engine.stage_blocks import StageBlocks
from fastpsl.engine.train_step import TrainStep
from fastpsl.engine.trainer import pretrain
from fastpsl.kernels.draws import Keys, Slot, words
from fastpsl.models.backbone import Backbone
from fastpsl.models.resnet import ResNet
from fastpsl.models.revnet import RevNet
from fastpsl.pipelines.datasets.subset import Synthetic
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.tasks.contrastive.moco import (
    KeyEncoder,
    MoCo,
    encode_shuffled,
    redistributed,
    shuffled_order,
    substitutes,
)
from fastpsl.tasks.contrastive.simclr import drawn, side_by_side
from tests.engine.exact_signals import signal_at_question
from tests.engine.steps import assert_alike, make_step, plain_sgd, rank_of, snapshot
from tests.engine.tiny import TinyNet, noise_batch, one_process, part_of, tiny_run
from tests.programs import digests, newest_checkpoint
from tests.warm import results_of_ranks

QUEUE, BATCH, GROUP = 24, 8, 2
STAGES = make_plan("psl", (1, 1, 1))


def make_task(batch_size: int = BATCH, **values: Any) -> MoCo:
    small: dict[str, Any] = {
        "queue_size": QUEUE, "momentum": 0.9, "temperature": 0.2, "key_group": GROUP, "width": 6,
        "size_px": 32,
    }  # fmt: skip
    return MoCo(seed=3, batch_size=batch_size, **{**small, **values})


def make_train_step(
    task: MoCo, stage: int = 1, world: World | None = None, precision: str = "fp32"
) -> TrainStep:
    torch.manual_seed(0)
    return make_step(STAGES[stage], task, views=task.views(3), precision=precision, world=world)


def batch_of(task: MoCo, number: int, size: int = BATCH) -> Batch:
    batch = noise_batch(task.views(3), size, seed=number)
    batch.step = number
    return batch


def filled(stage: int = 1, precision: str = "fp32", **values: Any) -> tuple[MoCo, TrainStep]:
    """Return a task with these values and its train step, after the warm-up."""
    task = make_task(**values)
    train_step = make_train_step(task, stage, precision=precision)
    for number in range(task.num_warm_up_batches(STAGES[1])):
        train_step.warm_up(task.warm_up, batch_of(task, 100 + number, task.batch_size))
    return task, train_step


def keys_by_hand(encoder: KeyEncoder, task: MoCo, batch: Batch) -> Tensor:
    """Compute keys group by group in the drawn order; of two in a group, the valid one replaces the other."""
    images = batch.inputs(task.views(3), torch.float32)[1]
    keys = torch.zeros(len(images), task.width)
    order = shuffled_order(task.seed, batch.epoch, batch.step, len(images)).tolist()
    for start in range(0, len(order), GROUP):
        group = order[start : start + GROUP]
        valid = [place for place in group if batch.indices[place] >= 0]
        shown = group if len(valid) == GROUP else valid * GROUP
        for place, key in zip(group, encoder(images[shown], GROUP), strict=True):
            keys[place] = key
    return keys


def test_the_loss_is_that_of_plain_loops() -> None:
    task, train_step = filled()
    module, batch = train_step.module, batch_of(task, 0)
    batch.indices[5] = -1
    inputs = batch.inputs(task.views(3), torch.float32)
    keys = keys_by_hand(task.key_encoder, task, batch)
    module.eval()
    with torch.no_grad():
        loss, metrics = module(inputs, train_step.prepared(batch))
    queries = module.head(module.blocks(inputs[0])).tolist()
    total, right = 0.0, 0
    for i in range(BATCH):
        if i == 5:
            continue
        length = math.sqrt(sum(x * x for x in queries[i]))
        query = [x / length for x in queries[i]]
        scores = [sum(a * b for a, b in zip(query, keys[i].tolist(), strict=True)) / 0.2]
        scores += [sum(a * b for a, b in zip(query, key, strict=True)) / 0.2 for key in task.queue.tolist()]
        total += math.log(sum(math.exp(s) for s in scores)) - scores[0]
        right += max(scores) == scores[0]
    assert float(loss) == pytest.approx(total / 7, rel=1e-5)
    assert float(metrics["loss"][0]) == pytest.approx(total, rel=1e-5)
    assert (float(metrics["accuracy"][0]), float(metrics["accuracy"][1])) == (right, 7)


def test_an_image_that_could_not_be_decoded_is_not_counted_as_right() -> None:
    """The queue holds the opposite of all keys, so that every query has its own key before it."""
    task, train_step = filled()
    batch = batch_of(task, 0)
    batch.indices[5] = -1
    inputs = batch.inputs(task.views(3), torch.float32)
    train_step.module.eval()
    with torch.no_grad():
        queries = F.normalize(train_step.module.head(train_step.module.blocks(inputs[0])))
        task.queue.copy_(-F.normalize(queries.mean(0), dim=0).expand_as(task.queue))
        _, metrics = train_step.module(inputs, train_step.prepared(batch))
    assert [float(value) for value in metrics["accuracy"]] == [7, 7]


def test_the_queue_is_a_deque_of_all_accumulated_keys() -> None:
    """Two batches of 4 make a step of 8. Three steps fill a queue of 24, then two more follow."""
    task = make_task(batch_size=4)
    train_step = make_train_step(task)
    plain: deque[list[float]] = deque(maxlen=QUEUE)
    negatives, loss = list[Tensor](), task.loss

    def noted(*arguments: Any) -> Any:
        negatives.append(task.queue.clone())
        return loss(*arguments)

    task.loss = noted  # type: ignore[method-assign,assignment]
    assert task.num_warm_up_batches(STAGES[1]) == 6
    for number in range(6):
        batch = batch_of(task, 100 + number, 4)
        plain.extend(keys_by_hand(task.key_encoder, task, batch).tolist())
        train_step.warm_up(task.warm_up, batch)
    for step in range(5):
        batches = [batch_of(task, 2 * step + half, 4) for half in (0, 1)]
        expected = [keys_by_hand(task.key_encoder, task, batch) for batch in batches]
        negatives.clear()
        train_step.step(batches, 0.1, 2)
        assert torch.equal(*negatives)  # all batches of a step have the same ones
        plain.extend(torch.cat(expected).tolist())
        oldest_first = task.queue.roll(-int(task.slot), 0)
        assert torch.allclose(oldest_first, torch.tensor(list(plain)), atol=1e-6)


def test_the_momentum_copy_follows_once_a_step() -> None:
    task, train_step = filled(batch_size=4)
    encoder = task.key_encoder
    key_parameters = [*encoder.learning.parameters(), *encoder.head.parameters()]
    query_parameters = [*train_step.module.blocks.learning.parameters(), *train_step.module.head.parameters()]
    for step in range(2):
        before = [p.clone() for p in key_parameters]
        train_step.step([batch_of(task, 2 * step + half, 4) for half in (0, 1)], 0.1, 2)
        for old, now, query in zip(before, key_parameters, query_parameters, strict=True):
            assert torch.allclose(now, 0.9 * old + 0.1 * query, atol=1e-6)
            assert not torch.equal(now, old)


def test_validation_passes_change_nothing() -> None:
    task, train_step = filled()
    before = task.state_dict()
    queue, weights = before["queue"].clone(), {n: v.clone() for n, v in before["key_encoder"]["head"].items()}
    padded = batch_of(task, 1)
    padded.indices[3:] = -1
    padded.images[1][3:] = 0
    scores = train_step.evaluate([batch_of(task, 0), padded], task.views(3), lambda: False)
    assert scores is not None and 0 <= scores["accuracy"] <= 1
    assert torch.equal(task.queue, queue) and task.slot == 0
    assert all(torch.equal(weights[n], v) for n, v in task.key_encoder.head.state_dict().items())


def test_a_skipped_sample_leaves_the_key_of_a_real_one() -> None:
    task, train_step = filled()
    batch = batch_of(task, 0)
    batch.indices[2] = -1
    expected = keys_by_hand(task.key_encoder, task, batch)
    train_step.step([batch], lr=0.1)
    assert torch.allclose(task.queue[: len(expected)], expected, atol=1e-6)


def test_half_precision_is_the_encoders_alone() -> None:
    task, train_step = filled(precision="bf16", queue_size=BATCH)
    train_step.step([batch_of(task, 0)], lr=0.1)
    assert task.queue.dtype == torch.float32
    # So they are not rounded to bfloat16.
    assert torch.allclose(task.queue.norm(dim=1), torch.ones(BATCH), atol=1e-6)


def test_an_empty_queue_is_never_used() -> None:
    task = make_task()
    train_step = make_train_step(task)
    train_step.warm_up(task.warm_up, batch_of(task, 0))
    with pytest.raises(AssertionError, match="not filled"):
        train_step.step([batch_of(task, 1)], lr=0.1)


def test_a_stage_starts_with_equal_encoders_and_an_empty_queue() -> None:
    task, train_step = filled(stage=0)
    train_step.step([batch_of(task, 0)], lr=0.5)
    train_step.step([batch_of(task, 1)], lr=0.5)
    assert task.slot == 2 * BATCH and task.queue.any()
    blocks = StageBlocks(TinyNet(), STAGES[1])
    head = task.head(2, 16)
    task.start_stage(STAGES[1], blocks, head)
    assert task.num_filled == task.slot == 0 and not task.queue.any()
    query_parameters = [*blocks.learning.parameters(), *head.parameters()]
    key_parameters = [*task.key_encoder.learning.parameters(), *task.key_encoder.head.parameters()]
    assert all(
        torch.equal(a, b) and a is not b for a, b in zip(key_parameters, query_parameters, strict=True)
    )
    assert [tuple(p.shape) for p in head.parameters()] == [(16, 16), (16,), (6, 16), (6,)]
    features, images = torch.randn(2, 16, 3, 3), batch_of(task, 2)
    first, last = (layer for layer in head.modules() if isinstance(layer, nn.Linear))
    torch.testing.assert_close(head(features), last(first(features.mean((2, 3))).relu()))
    inputs = images.inputs(task.views(3), torch.float32)
    assert torch.equal(task.contact_sheet(inputs, images), side_by_side(inputs, task.views(3)))
    assert task.captions(images) == drawn(images, task.views(3)[0])


def test_state_goes_on_where_it_was() -> None:
    """Two steps, a save and two more equal the two from the loaded state."""
    task, train_step = filled()

    def two_steps(task: MoCo, train_step: TrainStep, first: int) -> None:
        for number in (first, first + 1):
            train_step.step([batch_of(task, number)], lr=0.1)

    two_steps(task, train_step, 0)
    saved = [train_step.module.blocks.state_dict(), train_step.state_dict(), task.state_dict()]
    torch.save(saved, buffer := io.BytesIO())
    buffer.seek(0)
    two_steps(task, train_step, 2)
    blocks, state, of_task = torch.load(buffer, weights_only=True)
    again = make_task()
    resumed = make_train_step(again)
    resumed.module.blocks.load_state_dict(blocks)
    resumed.load_state_dict(state)
    again.load_state_dict(of_task)
    two_steps(again, resumed, 2)
    assert torch.equal(again.queue, task.queue) and again.slot == task.slot == 8
    assert task.queue.dtype == torch.float32
    for value, expected in zip(
        again.key_encoder.learning.parameters(), task.key_encoder.learning.parameters(), strict=True
    ):
        assert torch.equal(value, expected)


def test_stopped_anywhere_and_resumed_equals_never_stopped(tmp_path: Path) -> None:
    """A stage checks for a stop after 2 warm-up batches, 2 steps and 5 validation batches."""

    def fit(out: Path, stop_at: int | None = None) -> bool:
        torch.manual_seed(0)
        task = MoCo(
            seed=0, batch_size=32, queue_size=64, momentum=0.9, temperature=0.2, key_group=8, width=4,
            size_px=16,
        )  # fmt: skip
        with closing(tiny_run(out, max_steps_per_stage=2)) as run:
            signal_at_question(run, stop_at)
            return pretrain(Experiment(task, TinyNet(), make_plan("psl", (2, 2, 2)), cosine(0.1)), run)

    assert fit(tmp_path / "whole")
    whole = newest_checkpoint(tmp_path / "whole")
    assert whole["task"]["num_filled"] == 64 and whole["task"]["next_slot"] == 0
    for stop_at in (1, 3, 11, 12):  # in the first warm-up, after a step, at the end, after the second warm-up
        out = tmp_path / str(stop_at)
        assert not fit(out, stop_at), stop_at
        assert fit(out)
        assert digests(newest_checkpoint(out)) == digests(whole), stop_at


def test_the_limits_themselves_are_possible() -> None:
    make_task().check_data(Synthetic(100), BATCH)
    make_task(momentum=1.0).check_data(Synthetic(QUEUE), BATCH)
    assert make_task(queue_size=65_536).chance(3) == 1 / 65_537


def after_steps(rank: int, world_size: int) -> dict[str, Tensor]:
    """Return weights, queue and key encoder after two steps of rate 1 without momentum; BatchNorm in eval."""
    task, world = make_task(), rank_of(rank, world_size)
    torch.manual_seed(0)
    train_step = make_step(STAGES[1], task, views=task.views(3), world=world, optimiser=plain_sgd)
    module = train_step.module.eval()
    module.head.training = True  # so that keys are kept
    task.start_stage(STAGES[1], module.blocks, module.head)  # whose copy is in eval mode, too
    for number in range(task.num_warm_up_batches(STAGES[1])):
        train_step.warm_up(task.warm_up, part_of(batch_of(task, 100 + number), rank, world_size))
    for number in range(2):
        batch = part_of(batch_of(task, number), rank, world_size)
        if number == 1 and rank == 0:
            batch.indices[1] = -1  # ranks may skip different numbers of samples
        train_step.step([batch], lr=1.0)
    state = {name: p.detach().clone() for name, p in module.named_parameters()}
    keys = {f"key.{n}": p.clone() for n, p in task.key_encoder.learning.named_parameters()}
    return state | keys | {"queue": task.queue}


def test_two_ranks_hold_equal_keys_and_learn_as_one(tmp_path: Path) -> None:
    """The tolerance is 1e-5 of the largest value, because float32 sums have another order."""
    assert_alike(results_of_ranks(after_steps, 2, tmp_path), after_steps(0, 1))


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_ten_steps_without_a_hidden_sync(precision: str) -> None:
    device = torch.device("cuda", 0)
    task = MoCo(
        seed=0, batch_size=16, queue_size=64, momentum=0.999, temperature=0.2, key_group=4, width=128,
        size_px=64,
    )  # fmt: skip
    backbone = ResNet("resnet18").to(memory_format=torch.channels_last)
    train_step = make_step(STAGES[1], task, backbone, views=task.views(3), precision=precision,
                           world=one_process("cuda"), optimiser=partial(sgd, decay_biases=True))  # fmt: skip
    with Loader(Synthetic(2000), task.views(3), batch_size_per_rank=16, device=device) as loader:
        batches = loader.epoch(0)
        for _ in range(task.num_warm_up_batches(STAGES[1])):
            train_step.warm_up(task.warm_up, next(batches))
        train_step.step([next(batches)], 0.01)  # the first step allocates buffers
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(10):
                train_step.step([next(batches)], 0.01)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        batches.close()
    assert task.queue.isfinite().all() and task.slot == 16 * 15 % 64


def query(
    frozen_batchnorm: str = "eval", sync: bool = False, reversible: bool = False, batchnorm: Any = "train"
) -> tuple[nn.Module, StageBlocks, nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    backbone: Backbone = TinyNet()
    if reversible:
        backbone = RevNet(channels=(8, 8, 12, 16, 16), units=(1, 2, 2, 2), widths=(4, 4, 4, 4))
    if sync:
        backbone = nn.SyncBatchNorm.convert_sync_batchnorm(backbone)
    blocks = StageBlocks(backbone, make_plan("psl", (1, 1, 1))[1], frozen_batchnorm, batchnorm)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
    return backbone, blocks, head, torch.randn(8, 3, 32, 32)


@pytest.mark.parametrize(
    ("frozen_batchnorm", "reversible"), [("eval", False), ("train", False), ("eval", True)]
)
def test_keys_are_normalised_by_their_own_images_and_move_nothing(
    frozen_batchnorm: str, reversible: bool
) -> None:
    backbone, blocks, head, images = query(frozen_batchnorm, reversible=reversible)
    encoder = KeyEncoder(blocks, head, 0.9)
    before = snapshot(backbone)
    keys = encoder(images, 8)
    blocks.eval(), head.eval()  # keys are the same in validation passes
    again = encoder(images, 8)
    blocks.train(), head.train()
    assert all(torch.equal(before[name], value) for name, value in backbone.state_dict().items())
    assert not keys.requires_grad and torch.equal(keys, again)
    assert torch.allclose(keys.norm(dim=1), torch.ones(8))
    expected = nn.functional.normalize(head(blocks(images)))  # train mode uses these images' statistics
    assert torch.allclose(keys, expected, atol=1e-6)
    assert not torch.allclose(keys[:4], encoder(images[:4], 4), atol=1e-3)


def test_keys_of_blocks_that_keep_their_statistics_do_too() -> None:
    _, blocks, head, images = query(batchnorm="eval")
    keys = KeyEncoder(blocks, head, 0.9)(images, 2)
    assert torch.allclose(keys, nn.functional.normalize(head(blocks(images))), atol=1e-6)


@pytest.mark.parametrize("frozen_batchnorm", ["eval", "train"])
def test_each_group_is_normalised_by_itself(frozen_batchnorm: str) -> None:
    _, blocks, head, images = query(frozen_batchnorm)
    encoder = KeyEncoder(blocks, head, 0.9)
    whole = encoder(images, 4)
    parts = [encoder(group, 4) for group in images.split(4)]
    assert torch.allclose(whole, torch.cat(parts), atol=1e-6)
    assert not torch.allclose(whole, encoder(images, 8), atol=1e-3)


class Casts(TorchDispatchMode):
    """A dispatch mode that counts weights cast to bfloat16."""

    num = 0

    @override
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        is_cast = function._schema.name == "aten::_to_copy" and (kwargs or {}).get("dtype") == torch.bfloat16
        self.num += is_cast and isinstance(args[0], nn.Parameter)
        return function(*args, **(kwargs or {}))


def test_weights_are_cast_once_a_step_under_autocast() -> None:
    """The values are those of autocast's own casts in each call."""
    _, blocks, head, images = query()
    encoder, plain = KeyEncoder(blocks, head, 0.5), KeyEncoder(blocks, head, 0.5)
    plain._as_run = lambda device_type: (plain.learning, plain.head)  # type: ignore[method-assign]
    with torch.autocast("cpu", torch.bfloat16):
        for step in range(2):
            assert torch.equal(encoder(images, 2), plain(images, 2)), step
            for p in [*blocks.learning.parameters(), *head.parameters()]:
                p.data.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(step)))
            encoder.follow()
            plain.follow()
        encoder.load_state_dict(plain.state_dict())
        assert torch.equal(encoder(images, 2), plain(images, 2))
        with Casts() as encoder_casts:
            encoder(images, 2)
        with Casts() as autocasts:
            plain(images, 2)
    # The frozen block is cast once for all groups; autocast would cast the other weights in each group.
    assert (encoder_casts.num, autocasts.num) == (1, 1 + 4 * 5)


def test_synchronised_batchnorm_is_by_the_group_in_the_copy() -> None:
    """In train mode, torch's SyncBatchNorm would join the groups of all ranks, and refuse CPU tensors."""
    _, blocks, head, images = query()
    expected = KeyEncoder(blocks, head, 0.9)(images, 8)
    _, blocks, head, images = query(sync=True)
    assert isinstance(blocks.learning[0][1], nn.SyncBatchNorm)  # type: ignore[index]
    encoder = KeyEncoder(blocks, head, 0.9)
    assert torch.equal(encoder(images, 8), expected)
    assert not any(part.training for part in [*encoder.learning.modules(), *encoder.head.modules()])


def test_it_follows_by_the_momentum_formula() -> None:
    _, blocks, head, _ = query()
    encoder = KeyEncoder(blocks, head, 0.75)
    query_parameters = [*blocks.learning.parameters(), *head.parameters()]
    key_parameters = [*encoder.learning.parameters(), *encoder.head.parameters()]
    assert len(key_parameters) == 11 and not any(p.requires_grad for p in key_parameters)
    expected = [p.detach().clone() for p in query_parameters]
    for step in range(3):
        for p in query_parameters:
            p.data.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(step)))
        encoder.follow()
        expected = [0.75 * k + 0.25 * q.detach() for k, q in zip(expected, query_parameters, strict=True)]
        for parameter, value in zip(key_parameters, expected, strict=True):
            assert torch.allclose(parameter, value, atol=1e-6)


def test_frozen_blocks_are_shared_and_only_the_rest_is_saved() -> None:
    _, blocks, head, images = query()
    encoder = KeyEncoder(blocks, head, 0.5)
    assert encoder.frozen is blocks.frozen
    assert not any("running" in name for part in encoder.state_dict().values() for name in part)
    state = copy.deepcopy(encoder.state_dict())
    keys = encoder(images, 8)
    for p in [*blocks.learning.parameters(), *head.parameters()]:
        p.data.add_(1.0)
    encoder.follow()
    assert not torch.allclose(encoder(images, 8), keys, atol=1e-3)
    encoder.load_state_dict(state)
    assert torch.equal(encoder(images, 8), keys)


def by_group_mean(images: Tensor, group_size: int) -> Tensor:
    """Encode to width 1 by the group: brightness minus the group's mean."""
    brightness = images.mean((1, 2, 3)).view(-1, group_size)
    return (brightness - brightness.mean(1, keepdim=True)).view(-1, 1)


def test_an_order_is_a_permutation_of_its_own_seed_epoch_and_step() -> None:
    places = itertools.product((0, 1), (0, 1), (0, 1, 2))
    orders = [shuffled_order(*place, 64) for place in places]
    for order in orders:
        assert order.dtype == np.int64 and sorted(order) == list(range(64))
    assert len({tuple(order) for order in orders}) == len(orders)
    words_of_step_2 = words(Keys(1, 1, np.arange(128, 192)), Slot.TASK, 2).tolist()
    assert orders[-1].tolist() == sorted(range(64), key=words_of_step_2.__getitem__)


def test_groups_mix_all_ranks_and_change_each_step() -> None:
    """512 images are in groups of 32; 1 in 16 images lands in the group of its own part of the batch."""
    places = np.empty((40, 512), np.int64)
    for step in range(40):
        places[step, shuffled_order(3, 5, step, 512)] = np.arange(512)
    groups = places // 32
    own_part = np.arange(512) // 32  # the rank of the image among 16, and its query's group
    assert 0.05 < np.mean(groups == own_part) < 0.075  # 1/16
    for image in (0, 1, 511):
        assert len(set(groups[:, image].tolist())) > 10
    together = np.mean(groups[:, :31] == groups[:, 1:32])  # neighbours of one rank
    assert 0.04 < together < 0.085


def test_keys_are_those_of_a_plain_loop_over_groups() -> None:
    images = torch.randn(12, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    order = shuffled_order(0, 2, 7, 12)
    keys = encode_shuffled(
        by_group_mean, images, torch.ones(12, dtype=torch.bool), torch.from_numpy(order), 4
    )
    for start in (0, 4, 8):
        group = order[start : start + 4].tolist()
        mean = sum(images[i].mean() for i in group) / 4
        for i in group:
            assert keys[i, 0] == pytest.approx(float(images[i].mean() - mean), abs=1e-6)


def test_what_is_not_valid_is_replaced_before_it_meets_others() -> None:
    """Images of NaN would make every key of their groups NaN."""
    images = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    valid = torch.tensor([True, False, True, True, False, False, True, True])
    images[~valid] = float("nan")
    order = shuffled_order(0, 0, 0, 8)
    keys = encode_shuffled(by_group_mean, images, valid, torch.from_numpy(order), 4)
    filled = images.clone()
    for group in order.reshape(2, 4).tolist():
        members = [i for i in group if valid[i]]
        for number, i in enumerate(group):  # member p takes number p, modulo their number, of the valid ones
            filled[i] = images[i] if valid[i] else images[members[number % len(members)]]
    assert torch.equal(keys, encode_shuffled(by_group_mean, filled, valid | True, torch.from_numpy(order), 4))
    assert keys.isfinite().all()


@pytest.mark.parametrize("size", [1, 2, 9])
def test_substitutes_are_valid_places_of_the_group(size: int) -> None:
    valid = torch.tensor([[bool(number >> i & 1) for i in range(size)] for number in range(2**size)])
    for group, found in zip(valid.tolist(), substitutes(valid).tolist(), strict=True):
        places = [i for i in range(size) if group[i]] or [0]
        assert found == [i if group[i] else places[i % len(places)] for i in range(size)]


def test_ranks_send_each_other_what_each_encodes(tmp_path: Path) -> None:
    order = shuffled_order(5, 0, 0, 24)
    rows = torch.arange(24 * 6.0).view(24, 3, 2)
    assert torch.equal(redistributed(rows, order), rows[order])
    assert torch.equal(torch.cat(results_of_ranks(part_in_order, 2, tmp_path)), rows[order])


def part_in_order(rank: int, world: int) -> Tensor:
    """Return a rank's part of the rows of the test above."""
    size = 24 // world
    rows = torch.arange(24 * 6.0).view(24, 3, 2)[rank * size : (rank + 1) * size]
    return redistributed(rows.transpose(1, 2), shuffled_order(5, 0, 0, 24)).transpose(1, 2)


def keys_of(rank: int, world: int) -> Tensor:
    """Return the keys of 24 images that a rank computes from its part of them."""
    size = 24 // world
    images = torch.randn(24, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    share = images[rank * size : (rank + 1) * size].contiguous(memory_format=torch.channels_last)
    valid = torch.arange(24) % 5 != 0
    order = shuffled_order(5, 0, 0, 24)
    return encode_shuffled(by_group_mean, share, valid, torch.from_numpy(order), 4, order)


def test_ranks_encode_together_what_one_does(tmp_path: Path) -> None:
    keys = keys_of(0, 1)
    assert all(torch.equal(each, keys) for each in results_of_ranks(keys_of, 2, tmp_path))


def test_a_group_that_does_not_divide_the_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="--key-group 5 does not divide the 12 images"):
        encode_shuffled(by_group_mean, torch.zeros(12, 3, 4, 4), torch.ones(12) > 0, torch.arange(12), 5)
