"""The quasi-random order: pages to lanes, lanes to batches, the same for any ranks and accumulation."""

import os
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.pipelines.beton.pages import pages_of
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.beton.shard import FIELD, HEADER, IMAGE_TYPE, INT_TYPE, row_dtype
from fastpsl.pipelines.datasets.subset import Synthetic
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.loader.order import epoch_order, sort_keys, step_indices
from fastpsl.pipelines.loader.quasi_random import (
    GROUP_PAGES,
    Groups,
    QuasiRandom,
    QuasiRandomOrder,
    deal_pages,
    samples_per_lane,
)
from fastpsl.pipelines.views import ViewSpec
from tests.pipelines.decoding import batches_of, loader_of
from tests.pipelines.paged import PAGE_BYTES, SAMPLES_A_PAGE, page_of_each, pages_with, write_paged
from tests.pipelines.photos import DECODERS
from tests.pipelines.readers import refused
from tests.pipelines.threads import loader_threads

LANES, SHARE = 4, 3
GLOBAL_BATCH = LANES * SHARE
# Samples per page: about equal, with the short last pages of two shards and one long page.
MIXED = np.array(
    [13, 12, 14, 13, 11, 13, 12, 13, 3, 13, 12, 14, 15, 13, 12, 13, 13, 14, 40, 12, 12, 13, 1, 12, 13]
)
SETS = {
    "mixed": MIXED,
    "equal": np.full(22, 9),
    "one a page": np.ones(50, int),
    "a page a lane": np.full(LANES, 30),
}
BY_SET = pytest.mark.parametrize("page_sizes", SETS.values(), ids=SETS.keys())
NO_SHARES = "a batch of 12 (of all ranks, before it is accumulated) has no equal shares for --lanes"
UNEVEN = "24 pages of data cannot be dealt evenly to --lanes"
GOLDEN = [
    [2, 14, 13, 12, 3, 16, 11, 15, 7, 10, 4, 8, 5, 9, 6, 18, 20, 0, 17, 19],
    [11, 20, 10, 15, 2, 3, 9, 4, 8, 5, 19, 16, 13, 12, 7, 6, 17, 14, 1, 18],
]


def make(
    page_sizes: np.ndarray, seed: int = 5, epoch: int = 0, share: int = SHARE, lanes: int = LANES
) -> tuple[np.ndarray, Groups, np.ndarray]:
    """Return an order, its groups and each sample's page, with samples scattered as by several writers."""
    page_of_sample = np.repeat(np.arange(len(page_sizes), dtype=np.int32), page_sizes)
    page_of_sample = np.random.default_rng(0).permutation(page_of_sample)
    groups = deal_pages(seed, epoch, page_sizes, lanes)
    pages = pages_with(page_of_sample, len(page_sizes))
    order = QuasiRandomOrder(seed, epoch, pages, groups, lanes, share)[:]
    return order, groups, page_of_sample


def lanes_of_pages(groups: Groups) -> dict[int, int]:
    lane_of = {}
    for number, lane in enumerate(groups.lane):
        for page in groups.pages[groups.starts[number] : groups.starts[number + 1]]:
            assert page not in lane_of
            lane_of[int(page)] = int(lane)
    return lane_of


def by_lane(order: np.ndarray, share: int = SHARE, lanes: int = LANES) -> np.ndarray:
    """Return the samples of each lane in an epoch, in order: [lanes, samples]."""
    return order.reshape(-1, lanes, share).transpose(1, 0, 2).reshape(lanes, -1)


@BY_SET
def test_the_order_is_what_plain_loops_make_of_the_groups(page_sizes: np.ndarray) -> None:
    order, groups, page_of_sample = make(page_sizes)
    bits = len(groups.lane).bit_length()
    keys = sort_keys(5, 0, len(page_of_sample)) >> np.uint64(bits)
    lanes: list[list[int]] = [[] for _ in range(LANES)]
    for number, lane in enumerate(groups.lane):
        pages = groups.pages[groups.starts[number] : groups.starts[number + 1]]
        members = [i for i, page in enumerate(page_of_sample) if page in pages]
        lanes[lane] += sorted(members, key=lambda i: int(keys[i]))
    num_steps = min(len(lane) for lane in lanes) // SHARE
    expected = [lane[step * SHARE : (step + 1) * SHARE] for step in range(num_steps) for lane in lanes]
    assert order.dtype == np.int64
    assert order.tolist() == [i for part in expected for i in part]


@BY_SET
def test_each_page_is_dealt_once_and_the_lanes_are_as_equal_as_the_greedy_rule_makes_them(
    page_sizes: np.ndarray,
) -> None:
    lane_of = lanes_of_pages(deal_pages(5, 3, page_sizes, LANES))
    assert sorted(lane_of) == list(range(len(page_sizes)))
    expected = [0] * LANES
    for size in sorted(page_sizes.tolist(), reverse=True):
        expected[expected.index(min(expected))] += size
    loads = Counter({lane: 0 for lane in range(LANES)})
    for page, lane in lane_of.items():
        loads[lane] += int(page_sizes[page])
    assert sorted(loads.values()) == sorted(expected)
    assert samples_per_lane(page_sizes, LANES) == min(expected)


@BY_SET
def test_each_sample_at_most_once_and_the_rest_differs_by_epoch(page_sizes: np.ndarray) -> None:
    num = int(page_sizes.sum())
    num_used = samples_per_lane(page_sizes, LANES) // SHARE * GLOBAL_BATCH
    left_out = []
    for epoch in range(6):
        order, _, _ = make(page_sizes, epoch=epoch)
        assert len(order) == len(set(order.tolist())) == num_used  # all epochs have the same length
        assert 0 <= order.min() and order.max() < num
        left_out.append(frozenset(range(num)) - set(order.tolist()))
    if num_used < num:
        assert len(set(left_out)) == len(left_out)


@BY_SET
def test_every_batch_has_equal_shares_of_all_lanes_for_any_number_of_ranks(page_sizes: np.ndarray) -> None:
    order, groups, page_of_sample = make(page_sizes)
    lane_of = lanes_of_pages(groups)
    owners: dict[int, dict[int, set[int]]] = {}
    for world in (1, 2, 4):
        readers = owners.setdefault(world, {})
        for step in range(len(order) // GLOBAL_BATCH):
            parts = [step_indices(order, step, GLOBAL_BATCH // world, rank, world) for rank in range(world)]
            whole = order[step * GLOBAL_BATCH : (step + 1) * GLOBAL_BATCH]
            assert np.concatenate(parts).tolist() == whole.tolist()
            shares = Counter(lane_of[int(page)] for page in page_of_sample[whole])
            assert shares == {lane: SHARE for lane in range(LANES)}
            for rank, part in enumerate(parts):
                for page in page_of_sample[part].tolist():
                    readers.setdefault(page, set()).add(rank)
        assert all(len(ranks) == 1 for ranks in readers.values())  # only one rank reads a page
        assert set().union(*readers.values()) == set(range(world))


@BY_SET
@pytest.mark.parametrize("lanes", [2, 4])
def test_a_lane_has_few_pages_open(page_sizes: np.ndarray, lanes: int) -> None:
    order, _, page_of_sample = make(page_sizes, lanes=lanes)
    max_open = 0
    for samples in by_lane(order, lanes=lanes):
        pages = page_of_sample[samples]
        places = {page: np.flatnonzero(pages == page) for page in np.unique(pages)}
        open_pages = np.zeros(len(pages), int)
        for page_places in places.values():
            open_pages[page_places[0] : page_places[-1] + 1] += 1
        max_open = max(max_open, int(open_pages.max()))
    assert 1 <= max_open <= GROUP_PAGES
    assert max_open > 1 or len(page_sizes) == lanes or page_sizes.max() == 1


def test_accumulated_parts_make_up_the_same_batches() -> None:
    whole, _, _ = make(MIXED, share=6)
    for parts in (2, 3, 6):
        small, _, _ = make(MIXED, share=6 // parts)
        for step in range(len(whole) // (6 * LANES)):
            batch = slice(step * 6 * LANES, (step + 1) * 6 * LANES)
            assert set(whole[batch]) == set(small[batch])


def test_an_order_repeats_by_seed_and_differs_by_epoch() -> None:
    first = make(MIXED)[0]
    assert (first == make(MIXED)[0]).all()
    for seed, epoch in ((5, 1), (6, 0), (2**40 + 5, 0)):
        assert (first == make(MIXED, seed, epoch)[0]).mean() < 0.1


def test_the_order_never_changes_between_versions() -> None:
    # Resuming relies on these values. They come from version 0.1.0 when the format was fixed.
    sizes = np.array([2, 1, 2, 2, 1, 2, 2, 2, 1, 2, 2, 2])
    pages = pages_with(np.repeat(np.arange(len(sizes)), sizes), len(sizes))
    for (seed, epoch), expected in zip(((0, 0), (2**40 + 7, 3)), GOLDEN, strict=True):
        groups = deal_pages(seed, epoch, sizes, 2)
        assert QuasiRandomOrder(seed, epoch, pages, groups, 2, 5)[:].tolist() == expected


def test_every_page_is_equally_likely_in_every_lane_and_every_sample_at_every_step() -> None:
    sizes = np.array([6, 5, 5, 5, 5, 5, 5, 4, 4, 4, 4, 4])
    num, num_epochs, lanes = int(sizes.sum()), 600, 3
    in_lane = np.zeros((len(sizes), lanes), int)
    steps = np.full((num_epochs, num), np.nan)
    for epoch in range(num_epochs):
        order, groups, _ = make(sizes, 1, epoch, 2, lanes)
        for page, lane in lanes_of_pages(groups).items():
            in_lane[page, lane] += 1
        steps[epoch, order] = np.arange(len(order)) // (2 * lanes)
    # 600 draws of one in three: a mean of 200 with a standard deviation of 11.5.
    assert np.abs(in_lane - num_epochs / lanes).max() < 4.5 * 11.5
    # Steps 0 to 7 (or dropped at the end): a mean of about 3.5 over 600, with a standard deviation of 0.1.
    assert np.abs(np.nanmean(steps, 0) - np.nanmean(steps)).max() < 0.45
    used_share = (~np.isnan(steps)).mean(0)
    assert used_share.min() > 0.8


def test_pages_are_opened_in_an_order_of_their_own_each_epoch() -> None:
    sizes, num_epochs = np.full(12, 5), 400
    before = np.zeros((12, 12), int)
    for epoch in range(num_epochs):
        place = np.argsort(deal_pages(2, epoch, sizes, 1).pages)
        before += place[:, None] < place
    # Half of 400, with a standard deviation of 10.
    assert np.abs(before[~np.eye(12, dtype=bool)] - num_epochs / 2).max() < 4.5 * 10


@BY_SET
@pytest.mark.parametrize("share", [1, 3, 7])
def test_any_step_of_any_rank_is_as_in_the_whole_order(page_sizes: np.ndarray, share: int) -> None:
    page_of_sample = np.repeat(np.arange(len(page_sizes)), page_sizes)
    arguments = pages_with(page_of_sample, len(page_sizes)), deal_pages(5, 1, page_sizes, LANES), LANES, share
    whole = QuasiRandomOrder(5, 1, *arguments)[:]
    assert len(QuasiRandomOrder(5, 1, *arguments)) == len(whole)
    num_steps = len(whole) // (LANES * share)
    for world in (1, 2, 4):
        size = LANES * share // world
        for rank in range(world):
            order = QuasiRandomOrder(5, 1, *arguments)
            for step in (0, num_steps // 2, num_steps - 1, 0):  # back, too
                expected = whole[(step * world + rank) * size :][:size]
                assert step_indices(order, step, size, rank, world).tolist() == expected.tolist()
    assert QuasiRandomOrder(5, 1, *arguments)[len(whole) :].tolist() == []


@pytest.mark.parametrize("world", [64, 256])
def test_many_ranks_see_each_sample_once_and_share_no_page(world: int) -> None:
    lanes, share, sizes = 256, 2, np.full(256 * 5, 12)
    page_of_sample = np.repeat(np.arange(len(sizes)), sizes)
    pages, groups = pages_with(page_of_sample, len(sizes)), deal_pages(0, 3, sizes, lanes)
    whole = QuasiRandomOrder(0, 3, pages, groups, lanes, share)[:]
    assert sorted(whole.tolist()) == list(range(len(page_of_sample)))
    size, reader_of_page = lanes * share // world, np.full(len(sizes), -1)
    for rank in range(world):
        order = QuasiRandomOrder(0, 3, pages, groups, lanes, share)
        steps = range(len(order) // (lanes * share))
        seen = np.concatenate([step_indices(order, step, size, rank, world) for step in steps])
        assert seen.tolist() == whole.reshape(-1, world, size)[:, rank].flatten().tolist()
        read = np.unique(page_of_sample[seen])
        assert (reader_of_page[read] == -1).all()
        reader_of_page[read] = rank
    assert (np.bincount(reader_of_page, minlength=world) == 5 * lanes // world).all()


def test_a_batch_mixes_many_pages_and_parts_neighbours() -> None:
    """64 lanes of 13 pages with 40 samples each, in batches of 256, against random and sequential order."""
    lanes, share, sizes = 64, 4, np.full(64 * 13, 40)
    num, batch = int(sizes.sum()), lanes * share
    page_of_sample = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    groups = deal_pages(0, 0, sizes, lanes)
    order = QuasiRandomOrder(0, 0, pages_with(page_of_sample, len(sizes)), groups, lanes, share)[:]

    def neighbours_together(order: np.ndarray) -> float:
        step_of = np.full(num, -1)
        step_of[order] = np.arange(len(order)) // batch
        return float((step_of[:-1] == step_of[1:]).mean())

    assert neighbours_together(np.arange(num)) > 0.99
    assert neighbours_together(epoch_order(0, 0, num)) < 0.02
    # A step takes 4 of the 160 samples of a group: 3 in 159 (groups are smaller at the ends of lanes).
    assert 0.01 < neighbours_together(order) < 0.045
    pages = [len(np.unique(page_of_sample[part])) for part in order.reshape(-1, batch)]
    # 4 draws from 4 pages hit 2.73 of them on average: 175 in 64 lanes.
    assert min(pages) > 100 and 140 < np.mean(pages) < 190


def test_pages_are_those_of_the_pointers_in_all_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [
        write_paged(monkeypatch, tmp_path / "a.beton", 23),
        write_paged(monkeypatch, tmp_path / "b.beton", 31, (16, 9, 20)),
        write_paged(
            monkeypatch, tmp_path / "c.beton", 1, (40,)
        ),  # larger than a page: the page grows to 8 KiB
    ]
    with Beton(paths) as data:
        pages = pages_of(data)
        assert pages.samples is None
        page_of_sample = page_of_each(pages)
        rows = data.rows(np.arange(data.num_samples))
        page_at: dict[tuple[int, int], int] = {}
        for i in range(data.num_samples):
            page_bytes = 2 * PAGE_BYTES if i == 54 else PAGE_BYTES
            place = (int(rows.fd[i]), int(rows.offset[i]) // page_bytes)
            assert page_of_sample[i] == page_at.setdefault(place, len(page_at))
            extent = pages.extents.part(np.array([page_of_sample[i]]))
            assert extent.fd[0] == rows.fd[i] and extent.offset[0] == place[1] * page_bytes
            assert extent.offset[0] <= rows.offset[i]
            assert rows.offset[i] + rows.num_bytes[i] <= extent.offset[0] + extent.num_bytes[0]
            assert extent.num_bytes[0] <= page_bytes
            shard = data.shards[(i > 22) + (i > 53)]
            assert extent.offset[0] + extent.num_bytes[0] <= shard.alloc  # where the data end
        assert len(page_at) == len(pages.extents.fd) == len(set(page_of_sample.tolist()))
        assert pages.sizes().tolist() == np.bincount(page_of_sample).tolist()
        assert len(page_at) > 5 + 31 // SAMPLES_A_PAGE


def test_pages_of_a_file_whose_samples_are_scattered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files by ffcv's writer with several processes are so; the second of three files is in order."""
    paths = [write_paged(monkeypatch, tmp_path / f"{i}.beton", 23 + i) for i in range(3)]
    for number in (0, 2):
        start, row_bytes = HEADER.itemsize + 2 * FIELD.itemsize, row_dtype((IMAGE_TYPE, INT_TYPE)).itemsize
        content = bytearray(paths[number].read_bytes())
        end = start + (23 + number) * row_bytes
        rows = np.frombuffer(content[start:end], f"V{row_bytes}")
        content[start:end] = np.random.default_rng(number).permutation(rows).tobytes()
        paths[number].write_bytes(content)
    with Beton(paths) as data:
        pages = pages_of(data)
        rows_of_data = data.rows(np.arange(data.num_samples))
        by_place: dict[tuple[int, int], list[int]] = {}
        for i, (fd, offset) in enumerate(zip(rows_of_data.fd, rows_of_data.offset, strict=True)):
            by_place.setdefault((int(fd), int(offset) // PAGE_BYTES), []).append(i)
        assert pages.samples is not None and pages.samples.dtype == np.int32
        places = zip(pages.extents.fd.tolist(), (pages.extents.offset // PAGE_BYTES).tolist(), strict=True)
        for page, place in enumerate(places):
            assert pages.samples_of(page).tolist() == by_place.pop(place)
        assert not by_place


def test_epochs_of_a_beton_are_those_of_its_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [write_paged(monkeypatch, tmp_path / f"{i}.beton", 60 + i, (16, 15)) for i in range(2)]
    with Beton(paths) as data:
        pages = pages_of(data)
        sizes = pages.sizes()
        for world in (1, 2, 4):
            orders = []
            for rank in range(world):
                quasi = QuasiRandom(
                    data, lanes=LANES, batch_size_per_rank=8 // world, seed=3, rank=rank, world=world
                )
                order, readahead = quasi.epoch(2, 0, 3)
                readahead.close()
                assert quasi.num_steps * 8 == len(order)
                orders.append(order[:].tolist())
            expected = QuasiRandomOrder(3, 2, pages, deal_pages(3, 2, sizes, LANES), LANES, 2)
            assert orders == [expected[:].tolist()] * world


@pytest.mark.parametrize(
    ("lanes", "batch_size", "world", "message"),
    [
        (0, 4, 1, "--lanes 0: it must be 1 or more"),
        (4, 4, 3,
         "--lanes 4 cannot be shared by 3 ranks; choose --lanes 3, a number of ranks that divides 4"),
        (2, 3, 4, "--lanes 2 cannot be shared by 4 ranks; choose --lanes 4"),
        (8, 12, 1, f"{NO_SHARES} 8; choose a multiple of 8, --lanes 6"),
        (16, 24, 2, f"{UNEVEN} 16 (33% of the samples would be left out); choose --lanes 12 or"),
        (64, 64, 1, f"{UNEVEN} 64 (too few); choose --lanes 8 or --order random"),
        (64, 32, 32, f"{UNEVEN} 64 (too few); choose --order random"),
        (2, 122, 1,
         "120 samples in 2 lanes are fewer than a batch of 122 over all ranks; choose a smaller batch"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_one_line_that_says_what_to_choose(
    lanes: int, batch_size: int, world: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_paged(monkeypatch, tmp_path / "a.beton", 24 * SAMPLES_A_PAGE)
    with Beton(path) as data, refused(message):
        QuasiRandom(data, lanes=lanes, batch_size_per_rank=batch_size, world=world)


def test_the_lanes_that_a_refusal_names_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Beton(write_paged(monkeypatch, tmp_path / "a.beton", 24 * SAMPLES_A_PAGE)) as data:
        for lanes, batch_size, world in ((4, 12, 1), (6, 12, 1), (12, 24, 2), (8, 64, 1)):
            assert QuasiRandom(data, lanes=lanes, batch_size_per_rank=batch_size, world=world).num_steps > 0


def test_data_without_pages_is_refused() -> None:
    part = SimpleNamespace(kind="beton")  # as a Subset says
    with pytest.raises(ValueError, match="subset data lies in no pages; .* choose --order random"):
        QuasiRandom(part, lanes=2, batch_size_per_rank=4)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="synthetic data lies in no pages"):
        Loader(Synthetic(1000), [VIEW], batch_size_per_rank=64, order="quasi_random")


def test_a_header_with_impossible_pages_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_paged(monkeypatch, tmp_path / "a.beton", 60)
    with Beton(path) as data:
        data.shards[0].page_size = 0
        with pytest.raises(ValueError, match="a.beton: says that its pages have 0 bytes, .*; write it again"):
            pages_of(data)
        data.shards[0].page_size, data.shards[0].alloc = PAGE_BYTES, 1 << 40
        with pytest.raises(ValueError, match="a.beton: says that it has 268,435,456 pages for .*; write it"):
            pages_of(data)


def test_a_file_that_shrinks_is_an_error_not_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_paged(monkeypatch, tmp_path / "a.beton", 60)
    with Beton(path) as data:
        quasi = QuasiRandom(data, lanes=2, batch_size_per_rank=4)
        with path.open("r+b") as file:
            file.truncate(100)
        order, readahead = quasi.epoch(0, 0, 3)
        readahead.close()
        with pytest.raises(ValueError, match="a.beton: was truncated while it was in use"):
            data.rows(order[:4])


NUM, FEW_LANES, SMALL_BATCH = 403, 4, 16
VIEW = ViewSpec(RandomResizedCrop(12))


@pytest.fixture(scope="module")
def beton(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        return write_paged(patch, tmp_path_factory.mktemp("paged") / "paged.beton", NUM)


def epoch(data: Beton, number: int = 0, first_step: int = 0, **options: Any) -> list[Batch]:
    own: dict[str, Any] = {"batch_size": SMALL_BATCH, "lanes": FEW_LANES, "decoder": "resident"}
    own["order"] = "quasi_random"
    return batches_of(data, [VIEW], epoch=number, step=first_step, **(own | options))


def indices(batches: list[Batch]) -> list[list[int]]:
    return [batch.indices.tolist() for batch in batches]


@pytest.mark.parametrize("decoder", [*DECODERS, "resident"])
def test_a_step_is_the_same_set_with_the_same_images_on_any_number_of_ranks(
    beton: Path, decoder: str
) -> None:
    with Beton(beton) as data:
        alone = epoch(data, 2, decoder=decoder)
        all_indices = torch.cat([batch.indices for batch in alone])
        assert len(all_indices.unique()) == len(all_indices) > 0.9 * NUM
        assert all(torch.equal(batch.indices, batch.labels) for batch in alone)
        for world in (2, 4):
            size = SMALL_BATCH // world
            ranks = [
                epoch(data, 2, decoder=decoder, world=world, rank=rank, batch_size=size)
                for rank in range(world)
            ]
            assert all(len(rank) == len(alone) for rank in ranks)
            for whole, *parts in zip(alone, *ranks, strict=True):
                together = torch.cat([part.indices for part in parts])
                assert together.tolist() == whole.indices.tolist()
                assert torch.equal(torch.cat([part.images[0] for part in parts]), whole.images[0])


def test_epochs_differ_repeat_and_can_be_entered_anywhere(beton: Path) -> None:
    with Beton(beton) as data:
        whole = epoch(data, 1)
        assert indices(whole) == indices(epoch(data, 1))
        assert indices(whole) != indices(epoch(data, 2)) != indices(epoch(data, 1, seed=1))
        tail = epoch(data, 1, first_step=7)
        assert [batch.step for batch in tail] == list(range(7, len(whole)))
        assert indices(tail) == indices(whole[7:])
        val = epoch(data, train=False)  # in order, for any order of training
        assert [i for batch in indices(val) for i in batch if i >= 0] == list(range(NUM))


def test_leaving_early_leaves_nothing(beton: Path) -> None:
    files = len(os.listdir("/proc/self/fd"))
    with loader_of(beton, [VIEW], 16, order="quasi_random", lanes=FEW_LANES) as loader:
        batches = loader.epoch(0)
        next(batches)
        batches.close()
        assert len(list(loader.epoch(0))) == loader.num_steps
    assert loader_threads() == [] and len(os.listdir("/proc/self/fd")) == files


@pytest.mark.parametrize(("decoder", "reads"), [("pillow", True), ("resident", False)])
def test_only_what_will_be_read_is_asked_for(
    beton: Path, decoder: str, reads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    advise = os.posix_fadvise

    def recorded(fd: int, offset: int, length: int, advice: int) -> None:
        calls.append(offset)
        advise(fd, offset, length, advice)

    monkeypatch.setattr(os, "posix_fadvise", recorded)
    with Beton(beton) as data:
        epoch(data, decoder=decoder)
    assert bool(calls) == reads


def test_an_order_of_ones_own_is_refused(beton: Path) -> None:
    with (
        loader_of(beton, [VIEW], 16, order="quasi_random", lanes=FEW_LANES) as loader,
        pytest.raises(ValueError, match="exclude each other; choose order random"),
    ):
        loader.epoch(0, 0, np.arange(NUM))
