"""Eight and 64 ranks as threads of one process: they hold equal things, those that one rank would hold."""

import copy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastpsl.engine.distributed import gather_objects, on_any_rank, sum_over_ranks
from fastpsl.engine.options import PretrainOptions
from fastpsl.engine.plan import make_plan
from fastpsl.engine.resume import find_checkpoint, open_folder
from fastpsl.engine.stage_blocks import StageBlocks
from fastpsl.models.checkpoint import CheckpointManager
from fastpsl.pipelines.loader.order import PADDING, step_indices
from fastpsl.tasks.contrastive.moco import MoCo
from fastpsl.tasks.contrastive.nt_xent import nt_xent
from fastpsl.tasks.pseudo_labels.k_means import k_means
from fastpsl.tasks.pseudo_labels.store import LabelStore
from tests.engine.steps import rank_of
from tests.engine.tiny import TinyNet, noise_batch, part_of
from tests.slow import slow
from tests.threaded_world import results_of_threads

WORLDS = pytest.mark.parametrize("num_ranks", [8, 64])
NUM, CLASSES, GLOBAL_BATCH = 1000, 7, 128
CPU = torch.device("cpu")


def share(tensor: Tensor, rank: int, num_ranks: int) -> Tensor:
    return tensor.chunk(num_ranks)[rank]


def loss_and_gradients(rank: int, num_ranks: int) -> tuple[float, float, Tensor, Tensor]:
    """Return a rank's NT-Xent of its part of 128 samples, its correct anchors, and its gradients."""
    random = torch.Generator().manual_seed(0)
    views = [torch.randn(GLOBAL_BATCH, 16, generator=random) for _ in range(2)]
    valid = torch.rand(GLOBAL_BATCH, generator=random) < 0.9
    first, second = (share(view, rank, num_ranks).clone().requires_grad_() for view in views)
    result = nt_xent(first, second, share(valid, rank, num_ranks), 0.2)
    result.loss.backward()
    assert first.grad is not None and second.grad is not None
    return float(result.loss.detach()), float(result.num_correct), first.grad, second.grad


@WORLDS
def test_nt_xent_of_many_ranks_is_that_of_one_on_the_union(num_ranks: int) -> None:
    """The mean over the ranks, as DDP takes it; the tolerance is that of float32 sums in another order."""
    loss, correct, *gradients = loss_and_gradients(0, 1)
    losses, corrects, *parts = zip(*results_of_threads(loss_and_gradients, num_ranks), strict=True)
    assert np.mean(losses) == pytest.approx(loss, rel=1e-5) and sum(corrects) == correct
    for expected, of_ranks in zip(gradients, parts, strict=True):
        whole = torch.cat(of_ranks) / num_ranks
        assert torch.allclose(whole, expected, atol=1e-5 * float(expected.abs().max()))


def moco() -> MoCo:
    return MoCo(
        seed=3, batch_size=GLOBAL_BATCH, queue_size=2 * GLOBAL_BATCH, momentum=0.9, temperature=0.2,
        key_group=2, width=6, size_px=16,
    )  # fmt: skip


def queue_after_steps(
    backbone: TinyNet, head: nn.Module, rank: int, num_ranks: int
) -> tuple[Tensor, int, float]:
    """Return MoCo's queue after a warm-up and a step with a skipped sample, its place, and the step's loss.

    Ranks get copies of one network, because torch's random numbers are those of all threads.
    """
    stage = make_plan("psl", (1, 1, 1))[1]
    task = moco()
    head, blocks = copy.deepcopy(head).eval(), StageBlocks(copy.deepcopy(backbone), stage).eval()
    task.start_stage(stage, blocks, head)
    head.training = True  # so that keys are kept
    for number in range(3):
        batch = noise_batch(task.views(3), GLOBAL_BATCH, seed=number)
        batch.indices[5] = PADDING
        batch = part_of(batch, rank, num_ranks)
        batch.step = number
        inputs = batch.inputs(task.views(3), torch.float32)
        batch = batch.with_extra(0, task.batch_tensors(batch.epoch, number, GLOBAL_BATCH))
        if number < 2:
            task.warm_up(blocks, head, inputs, batch)
    with torch.no_grad():
        loss, _ = task.loss(blocks, head, inputs, batch)
    task.after_step([batch.extra])
    return task.queue, int(task.slot), float(loss)


@pytest.mark.parametrize("num_ranks", [8, slow(64)])
def test_the_queue_is_the_same_on_all_ranks(num_ranks: int) -> None:
    of_rank = partial(queue_after_steps, TinyNet(), moco().head(3, 16))
    queue, place, loss = of_rank(0, 1)
    queues, places, losses = zip(*results_of_threads(of_rank, num_ranks), strict=True)
    assert all(torch.equal(each, queues[0]) for each in queues) and set(places) == {place}
    assert torch.allclose(queues[0], queue, atol=1e-5)
    assert np.mean(losses) == pytest.approx(loss, rel=1e-5)


def labels_after_epochs(rank: int, num_ranks: int) -> tuple[list[Tensor], list[tuple[int, int, int, int]]]:
    """Return the labels and counts of two epochs; small classes are drawn again and again."""
    store = LabelStore(NUM, CLASSES, CPU, seed=3)
    store.set((CLASSES * np.random.default_rng(0).random(NUM) ** 4).astype(np.int32), 0)
    labels, counts = [], []
    for epoch in range(2):
        order = store.order(epoch)
        for step in range(NUM // GLOBAL_BATCH):
            random = torch.Generator().manual_seed(100 * epoch + step)
            logits = torch.randn(GLOBAL_BATCH, CLASSES, generator=random)
            logits[torch.rand(GLOBAL_BATCH, generator=random) < 0.1] = torch.nan
            indices = step_indices(order, step, GLOBAL_BATCH // num_ranks, rank, num_ranks)
            store.write(torch.from_numpy(indices), share(logits, rank, num_ranks))
        if epoch:  # labels can be saved at any step
            assert len(store.state_dict()["written"]) == NUM
        ended = store.end_epoch(epoch + 1)
        labels.append(store.current)
        counts.append((ended.num_written, ended.num_repeated, ended.num_not_finite, ended.num_split))
    return labels, counts


@WORLDS
def test_the_label_store_is_that_of_one_rank(num_ranks: int) -> None:
    labels, counts = labels_after_epochs(0, 1)
    for of_rank, counts_of_rank in results_of_threads(labels_after_epochs, num_ranks):
        assert counts_of_rank == counts
        assert all(torch.equal(a, b) for a, b in zip(of_rank, labels, strict=True))


def clusters(rank: int, num_ranks: int) -> tuple[Tensor, Tensor]:
    """Return the labels of a rank's rows, and the centroids."""
    rows = torch.nn.functional.normalize(torch.randn(256, 4, generator=torch.Generator().manual_seed(1)))
    own = share(rows, rank, num_ranks)
    labels, centroids, _ = k_means(own, rows[:5].clone(), 3, rank_of(rank, num_ranks))
    return labels, centroids


@WORLDS
def test_k_means_of_many_ranks_is_that_of_one(num_ranks: int) -> None:
    labels, centroids = clusters(0, 1)
    parts, all_centroids = zip(*results_of_threads(clusters, num_ranks), strict=True)
    assert torch.equal(torch.cat(parts), labels)
    assert all(torch.equal(each, centroids) for each in all_centroids)


def resumed(folder: Path, rank: int, num_ranks: int) -> tuple[str, str | None, int, list[Any], bool]:
    """Return what a rank resumes: its folder, the checkpoint and its step; and what ranks tell each other."""
    world, options = rank_of(rank, num_ranks), PretrainOptions(out=folder)
    with open_folder("tiny", options, world) as chosen:
        checkpoint, state, _ = find_checkpoint(options, world, chosen, {"lr": 1}, {"workers": 2})
        assert state is not None
        total = sum_over_ranks(world, torch.ones(1))
        assert int(total) == num_ranks
        texts = gather_objects(world, f"rank {rank}" if rank in (1, 5) else None)
        return str(chosen), checkpoint, state["position"]["run_step"], texts, on_any_rank(world, rank == 5)


@WORLDS
def test_all_ranks_resume_the_checkpoint_that_rank_0_finds(num_ranks: int, tmp_path: Path) -> None:
    checkpoints = CheckpointManager(tmp_path / "checkpoints")
    position = {"stage": 0, "step": 7, "run_step": 7, "first_epoch": 0, "seconds": 1.0, "summaries": []}
    parts: dict[str, Any] = {
        "backbone": {}, "train_step": {}, "task": {}, "choices": {}, "position": position,
    }  # fmt: skip
    checkpoints.save(7, {"science": {"lr": 1}, "machine": {"workers": 1}, **parts})
    path = checkpoints.paths()[0]
    results = results_of_threads(partial(resumed, tmp_path), num_ranks)
    texts = [f"rank {rank}" if rank in (1, 5) else None for rank in range(num_ranks)]
    assert results == [(str(tmp_path), str(path), 7, texts, True)] * num_ranks


def test_the_error_of_a_rank_ends_the_others_and_is_raised() -> None:
    def fail(rank: int, num_ranks: int) -> None:
        if rank == 5:
            raise KeyError("of rank 5")
        dist.all_reduce(torch.zeros(1))

    with pytest.raises(KeyError, match="of rank 5"):
        results_of_threads(fail, 8)
    assert not dist.is_initialized()
