"""Test the label store: the next labels are the latest written, by position, for any number of ranks.

Results are compared with plain loops over positions to the bit, in one process and in two and three over
Gloo.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from fastpsl.engine.distributed import gathered, leave_world
from fastpsl.kernels.empty_classes import split_empty
from fastpsl.models.checkpoint import CheckpointManager, read_checkpoint
from fastpsl.pipelines.loader.order import balanced_order, step_indices
from fastpsl.tasks.pseudo_labels.store import EpochOfLabels, LabelStore
from tests.warm import on_ranks

CPU = torch.device("cpu")
NUM, CLASSES, GLOBAL_BATCH, SEED = 200, 7, 12, 3
# Steps of each epoch. The last batch of the first epoch is padded, the other epochs are cut short.
NUM_STEPS = (17, 9, 13)
SAVED_AT = (1, 5)  # epoch, number of steps
DAMAGED = 4


def logits_of(epoch: int, step: int) -> Tensor:
    """Return logits [GLOBAL_BATCH, CLASSES] by position, some of which are not finite.

    One class is big, so that other images are drawn often, and two are empty.
    """
    generator = torch.Generator().manual_seed(100 * epoch + step)
    logits = torch.randn(GLOBAL_BATCH, CLASSES, generator=generator)
    logits += torch.tensor([2, 0, 0, 0, 0, -9, -9])
    bad = torch.rand(GLOBAL_BATCH, generator=generator) < 0.25
    logits[bad, 3] = torch.tensor([float("nan"), float("inf"), -float("inf")])[step % 3]
    return logits


def first_labels() -> np.ndarray:
    return (CLASSES * np.random.default_rng(0).random(NUM) ** 4).astype(np.int32)


def indices_of(order: np.ndarray, step: int, rank: int, world: int) -> Tensor:
    """Return the order's indices; images repeat within a batch and later, and one can never be decoded."""
    all_indices = step_indices(order, step, GLOBAL_BATCH, 0, 1).copy()
    all_indices[all_indices == DAMAGED] = -1
    batch = GLOBAL_BATCH // world
    return torch.from_numpy(all_indices[rank * batch : (rank + 1) * batch])


def run_on(
    store: LabelStore,
    rank: int,
    world: int,
    start: tuple[int, int] = (0, 0),
    at: Callable[[int, int], object] = lambda epoch, step: None,
) -> list[EpochOfLabels]:
    """Run all epochs from (epoch, step), calling `at` between steps."""
    figures = []
    batch = GLOBAL_BATCH // world
    for epoch in range(start[0], len(NUM_STEPS)):
        order = store.order(epoch)
        for step in range(start[1] if epoch == start[0] else 0, NUM_STEPS[epoch]):
            at(epoch, step)
            logits = logits_of(epoch, step)[rank * batch : (rank + 1) * batch]
            store.write(indices_of(order, step, rank, world), logits)
        figures.append(store.end_epoch(epoch + 1))
    return figures


def in_plain_loops() -> tuple[list[list[int]], list[dict[str, int]]]:
    """Compute labels and figures of each epoch."""
    current, num_split = split_empty(first_labels(), CLASSES, SEED, 0)
    labels, figures = [current.tolist()], []
    for epoch, num_steps in enumerate(NUM_STEPS):
        order = balanced_order(current, SEED, epoch)
        written: dict[int, int] = {}  # -1 if the latest draw made none
        indices: list[int] = []
        num_not_finite = 0
        for step in range(num_steps):
            for index, row in zip(
                indices_of(order, step, 0, 1).tolist(), logits_of(epoch, step).tolist(), strict=True
            ):
                if index >= 0:
                    indices.append(index)
                    finite = all(np.isfinite(row))
                    num_not_finite += not finite
                    written[index] = row.index(max(row)) if finite else -1
        written = {index: label for index, label in written.items() if label >= 0}
        new_labels = np.array([written.get(i, label) for i, label in enumerate(current.tolist())])
        current, num_split = split_empty(new_labels, CLASSES, SEED, epoch + 1)
        labels.append(current.tolist())
        figures.append({
            "num_written": len(written), "num_not_drawn": NUM - len(set(indices)),
            "num_repeated": len(indices) - len(set(indices)),
            "num_not_finite": num_not_finite, "num_split": num_split,
        })  # fmt: skip
    return labels, figures


def new_store() -> LabelStore:
    store = LabelStore(NUM, CLASSES, CPU, SEED)
    store.set(first_labels(), 0)
    return store


def check(store: LabelStore, epochs: list[EpochOfLabels]) -> None:
    """Compare the last epochs of a run with the plain loops."""
    labels, figures = in_plain_loops()
    assert store.current.dtype == torch.int32 and store.current.tolist() == labels[-1]
    for epoch, expected, previous in zip(
        epochs, figures[-len(epochs) :], labels[-len(epochs) - 1 : -1], strict=True
    ):
        assert {name: getattr(epoch, name) for name in expected} == expected
        assert epoch.previous.dtype == np.int32 and epoch.previous.tolist() == previous


def plain(store: LabelStore, figures: list[EpochOfLabels]) -> dict[str, Any]:
    """Convert to plain values, so that another process can read them."""
    epochs = [
        {**vars(each), **{name: torch.from_numpy(getattr(each, name)) for name in ("made", "previous")}}
        for each in figures
    ]
    return {"current": store.current, "figures": epochs}


def check_saved(path: Path) -> None:
    saved = torch.load(path)
    store = new_store()
    store.current = saved["current"]
    check(
        store,
        [
            EpochOfLabels(**{**each, **{name: each[name].numpy() for name in ("made", "previous")}})
            for each in saved["figures"]
        ],
    )


def in_a_process(rank: int, folder: str) -> None:
    """Run a process that joins a world of two and then one of three."""
    torch.set_num_threads(1)
    for world in (2, 3):
        if rank < world:
            in_a_world(rank, world, folder)


def in_a_world(rank: int, world: int, folder: str) -> None:
    """Run with saved states, without them, and from the states of other worlds."""
    method = f"file://{folder}/rendezvous-{world}"
    dist.init_process_group("gloo", init_method=method, rank=rank, world_size=world)
    store = new_store()

    def save(epoch: int, step: int) -> None:
        if (epoch, step) == SAVED_AT:
            state = store.state_dict()
            if rank == 0:
                torch.save(state, f"{folder}/state-{world}.pt")

    figures = run_on(store, rank, world, at=save)
    assert (gathered(store.current[None]) == store.current).all()
    torch.save(plain(store, figures), f"{folder}/whole-{world}-{rank}.pt")
    never_saved = new_store()
    figures = run_on(never_saved, rank, world)
    torch.save(plain(never_saved, figures), f"{folder}/never_saved-{world}-{rank}.pt")
    for other in (1, 2):
        moved = LabelStore(NUM, CLASSES, CPU, SEED)
        moved.load_state_dict(torch.load(f"{folder}/state-{other}.pt"))
        figures = run_on(moved, rank, world, SAVED_AT)
        torch.save(plain(moved, figures), f"{folder}/from_{other}-{world}-{rank}.pt")
    leave_world()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the results of two and three processes, with runs from the other world's state."""
    path = tmp_path_factory.mktemp("label_store")
    store = new_store()

    def save(epoch: int, step: int) -> None:
        if (epoch, step) == SAVED_AT:
            torch.save(store.state_dict(), path / "state-1.pt")

    run_on(store, 0, 1, at=save)
    on_ranks(in_a_process, (str(path),), 3)
    return path


@pytest.mark.parametrize("save_at", [None, *((0, step) for step in (0, 1, 9, 16)), (1, 0), (2, 12)])
def test_one_rank_does_what_plain_loops_do(save_at: tuple[int, int] | None) -> None:
    """Saving a state changes nothing."""
    store = new_store()
    check(store, run_on(store, 0, 1, at=lambda *now: store.state_dict() if now == save_at else None))
    _, figures = in_plain_loops()
    for name in ("num_not_drawn", "num_repeated", "num_not_finite", "num_split"):
        assert sum(each[name] for each in figures), f"no {name}: the test lacks it"


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("run", ["whole", "never_saved", "from_1", "from_2"])
def test_labels_are_the_same_on_every_rank_of_any_world(run: str, world: int, folder: Path) -> None:
    for rank in range(world):
        check_saved(folder / f"{run}-{world}-{rank}.pt")


@pytest.mark.parametrize("saved_by", [1, 2, 3])
def test_one_rank_goes_on_where_others_were(saved_by: int, folder: Path) -> None:
    store = LabelStore(NUM, CLASSES, CPU, SEED)
    store.load_state_dict(torch.load(folder / f"state-{saved_by}.pt"))
    check(store, run_on(store, 0, 1, SAVED_AT))


def test_states_of_all_worlds_are_equal(folder: Path) -> None:
    one, two, three = (torch.load(folder / f"state-{world}.pt") for world in (1, 2, 3))
    for name, value in one.items():
        for other in (two, three):
            assert torch.equal(value, other[name]) if isinstance(value, Tensor) else value == other[name], (
                name
            )
    assert one["current"].dtype == torch.int32 and one["written"].max() >= 0


def test_a_state_fits_into_a_checkpoint(tmp_path: Path) -> None:
    store = new_store()
    order = torch.from_numpy(store.order(0))
    store.write(order[:5], torch.eye(7)[:5])
    path = CheckpointManager(tmp_path).save(1, {"task": store.state_dict()})
    store.write(order[5:10], torch.eye(7)[2:])
    store.end_epoch(1)
    again = new_store()
    again.load_state_dict(read_checkpoint(path)["task"])
    again.order(0)
    ended = again.end_epoch(1)
    latest = {int(index): label for label, index in enumerate(order[:5])}
    assert {index: int(ended.made[index]) for index in latest} == latest


def rows(*classes: int) -> Tensor:
    """Return logits [B, 3] with these classes as arg max."""
    return torch.eye(3)[list(classes)]


def small_store() -> LabelStore:
    """Return a store of six images and three classes at the beginning of an epoch of this order."""
    store = LabelStore(6, 3, CPU, 0)
    store.set(np.array([0, 1, 2, 0, 1, 2]), 0)
    return store


def test_the_last_row_of_an_image_counts_and_makes_no_label_where_it_is_not_finite() -> None:
    store = small_store()
    store.write(torch.tensor([0, 0, 3, 0]), rows(1, 2, 1, 0))
    store.write(torch.tensor([-1, 3, 3, 5]), torch.cat([rows(0, 2), rows(0, 0) * float("inf")]))
    ended = store.end_epoch(1)
    assert ended.made.tolist() == store.current.tolist() == [0, 1, 2, 0, 1, 2]
    assert (ended.num_written, ended.num_not_drawn, ended.num_repeated, ended.num_not_finite) == (1, 3, 4, 2)
    assert ended.num_split == 0 and ended.previous.tolist() == [0, 1, 2, 0, 1, 2]


def test_an_epoch_without_a_step_keeps_its_labels() -> None:
    store = small_store()
    ended = store.end_epoch(1)
    assert store.current.tolist() == [0, 1, 2, 0, 1, 2] and ended.num_not_drawn == 6
    assert ended.num_written == ended.num_repeated == ended.num_not_finite == 0


def test_what_was_written_counts_for_one_epoch() -> None:
    store = small_store()
    store.write(torch.tensor([0]), rows(2))
    assert store.end_epoch(1).num_written == 1 and store.current[0] == 2
    assert store.end_epoch(2).num_written == 0
    order = torch.from_numpy(store.order(3))
    store.write(order[:3], rows(1, 1, 1))  # the batch length may change between epochs
    store.set(np.array([2, 1, 0, 0, 0, 0]), 3)  # what was written is forgotten
    assert store.end_epoch(4).num_written == 0 and store.current.tolist() == [2, 1, 0, 0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_of_equal_logits_the_first_counts(dtype: torch.dtype) -> None:
    store = small_store()
    logits = torch.tensor([[1, 5, 5], [7, 7, 7], [0, 0, 1]], dtype=dtype, requires_grad=True)
    store.write(torch.tensor([3, 4, 5]), logits)
    store.end_epoch(1)
    assert store.current.tolist() == [0, 1, 2, 1, 0, 2]


def test_labels_that_are_set_have_no_empty_class() -> None:
    store = LabelStore(100, 8, CPU, 5)
    assert store.num_split == 0 and (store.current == -1).all()
    store.set(np.full(100, 6), 2)
    expected, num = split_empty(np.full(100, 6), 8, 5, 2)
    assert store.current.tolist() == expected.tolist() and store.num_split == num == 7
    again = LabelStore(100, 8, CPU, 5)
    again.load_state_dict(store.state_dict())
    assert again.num_split == 7 and (again.order(3) == balanced_order(expected, 5, 3)).all()
    with pytest.raises(ValueError, match="5 images cannot fill 8 classes; give --num-clusters 5"):
        LabelStore(5, 8, CPU, 0).set(np.zeros(5, np.int32), 0)


def test_labels_of_a_batch() -> None:
    labels = small_store().labels_of(torch.tensor([5, -1, 1, 5]))
    assert labels.dtype == torch.int64 and labels.tolist() == [2, 0, 1, 2]
    assert small_store().labels_of(torch.zeros(0, dtype=torch.long)).tolist() == []


def test_our_own_mistakes_are_found() -> None:
    store = small_store()
    store.write(torch.tensor([0, 1]), rows(0, 1))
    with pytest.raises(AssertionError):
        store.write(torch.tensor([0, 1]), torch.zeros(2, 4))
    with pytest.raises(AssertionError):
        store.set(np.zeros(5, np.int32), 0)
    with pytest.raises(AssertionError):
        LabelStore(7, 3, CPU, 0).load_state_dict(store.state_dict())
    with pytest.raises(AssertionError, match="labels are missing"):
        LabelStore(6, 3, CPU, 0).order(0)


@pytest.mark.gpu
def test_on_a_gpu_no_step_waits_for_the_device() -> None:
    device = torch.device("cuda", 0)
    store, alone = LabelStore(NUM, CLASSES, device, SEED), new_store()
    store.set(first_labels(), 0)
    order = store.order(0)
    assert np.array_equal(order, alone.order(0))
    batches = [(indices_of(order, step, 0, 1), logits_of(0, step)) for step in range(5)]
    on_device = [[part.to(device) for part in batch] for batch in batches]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        all_labels = []
        for indices, logits in on_device:
            all_labels.append(store.labels_of(indices))
            store.write(indices, logits)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for (indices, logits), labels in zip(batches, all_labels, strict=True):
        assert torch.equal(labels.cpu(), alone.labels_of(indices))
        alone.write(indices, logits)
    store.end_epoch(1)
    alone.end_epoch(1)
    assert store.current.is_cuda and torch.equal(store.current.cpu(), alone.current)
