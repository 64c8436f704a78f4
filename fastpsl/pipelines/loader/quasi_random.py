"""The quasi-random order, for data sets larger than the page cache.

Whole pages of a file are read, and a batch still mixes the samples of hundreds of pages.

Each epoch deals the pages to a fixed number of lanes. A lane opens its pages in random order, GROUP_PAGES
at a time, and visits the samples of such a group in random order. Every global batch takes k samples of
each lane, lane by lane. So a rank owns whole lanes (from lane r * lanes / world) and `order.step_indices`
applies.

The content of a lane depends on (seed, epoch, lanes) alone, never on ranks, batch size or accumulation. An
epoch ends with the shortest lane. The surplus of the other lanes is dropped, and it differs between epochs.

With read-ahead (`posix_fadvise`), a data set larger than memory does not evict other files from the page
cache. The advice is a hint only: samples are read correctly without it.
"""

import heapq
from typing import NamedTuple, final

import numpy as np

from fastpsl.kernels.draws import Keys, Slot, words
from fastpsl.pipelines.beton.pages import Pages, pages_of
from fastpsl.pipelines.beton.remote import FetchAhead, remote_pages, require_room
from fastpsl.pipelines.interface.dataset import Dataset
from fastpsl.pipelines.loader.order import Order, keys_of
from fastpsl.pipelines.loader.readahead import Readahead

# 64 lanes x 4 pages of 8 MiB: 2 GiB open, and as much read ahead. More would mix a lane better and take as
# much more memory (not measured).
GROUP_PAGES = 4
MAX_DROPPED = 0.1  # share of an epoch's samples; unequal lanes come near it below 32 pages per lane


class Groups(NamedTuple):
    """An epoch's pages in the order in which they are opened, lane after lane."""

    pages: np.ndarray  # int64 [num_pages], group after group
    lane: np.ndarray  # the lane of each group, int64 [num_groups], ascending
    starts: np.ndarray  # int64 [num_groups + 1]: group i is pages[starts[i] : starts[i + 1]]


def deal_pages(seed: int, epoch: int, page_sizes: np.ndarray, lanes: int) -> Groups:
    """Deal the pages of an epoch to lanes.

    The largest page comes first, and each goes to the lane with the fewest samples. Draws break ties, so the
    lanes' sizes are the same numbers in every epoch, in another order. Then a lane's pages are shuffled and
    cut into groups. `page_sizes` are samples per page, int64 [num_pages], with at least as many pages as
    lanes.
    """
    deal, tie, place, lane_tie = words(Keys(seed, epoch, np.arange(len(page_sizes))), Slot.PAGES, 4).T
    heap = [(0, word, lane) for lane, word in enumerate(lane_tie[:lanes].tolist())]
    heapq.heapify(heap)
    lane_of = np.empty(len(page_sizes), np.int64)
    largest_first = np.lexsort((deal, -page_sizes))
    for page, size, word in zip(
        *(column.tolist() for column in (largest_first, page_sizes[largest_first], tie[largest_first])),
        strict=True,
    ):
        load, _, lane = heap[0]
        lane_of[page] = lane
        heapq.heapreplace(heap, (load + size, word, lane))
    pages = np.lexsort((place, lane_of))
    lane_of = lane_of[pages]
    place_in_lane = np.arange(len(pages)) - np.searchsorted(lane_of, lane_of)
    # A lane's first group has 1 to GROUP_PAGES pages, so that lanes do not all open groups at the same steps.
    group = (place_in_lane + lane_of % GROUP_PAGES) // GROUP_PAGES
    starts = np.flatnonzero((np.diff(lane_of, prepend=-1) != 0) | (np.diff(group, prepend=-1) != 0))
    return Groups(pages, lane_of[starts], np.append(starts, len(pages)))


def samples_per_lane(page_sizes: np.ndarray, lanes: int) -> int:
    """Return the size of the shortest lane, in samples; it is the same for every seed and epoch."""
    if len(page_sizes) < lanes:
        return 0
    groups = deal_pages(0, 0, page_sizes, lanes)
    return int(_lane_starts(groups, _group_sizes(groups, page_sizes), lanes)[1].min())


def _group_sizes(groups: Groups, page_sizes: np.ndarray) -> np.ndarray:
    return np.add.reduceat(page_sizes[groups.pages], groups.starts[:-1])


def _lane_starts(groups: Groups, sizes: np.ndarray, lanes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return where each lane begins, lane after lane, and its length, in samples: int64 [lanes] each."""
    ends = np.cumsum(sizes)[np.searchsorted(groups.lane, np.arange(lanes), "right") - 1]
    return np.concatenate([[0], ends[:-1]]), np.diff(ends, prepend=0)


@final
class QuasiRandomOrder:
    """The quasi-random order of an epoch, an `order.Order` that sorts a group when a step first reads it.

    With k = samples_a_step, position (step * lanes + lane) * k + i is sample step * k + i of the lane. Within
    a group, samples are sorted (stably) by the high bits of their `order.keys_of`.
    """

    def __init__(
        self, seed: int, epoch: int, pages: Pages, groups: Groups, lanes: int, samples_a_step: int
    ) -> None:
        self._seed, self._epoch, self._pages, self._groups = seed, epoch, pages, groups
        self._lanes, self._samples_a_step = lanes, samples_a_step
        self._bits = np.uint64(max(1, len(groups.lane).bit_length()))
        sizes = _group_sizes(groups, pages.sizes())
        self._group_starts = np.cumsum(sizes) - sizes
        self._lane_starts, lengths = _lane_starts(groups, sizes, lanes)
        self._num = int(lengths.min()) // samples_a_step * samples_a_step * lanes
        self._open: dict[int, tuple[int, np.ndarray]] = {}  # lane → its last group, and that one's samples

    def __len__(self) -> int:
        return self._num

    def __getitem__(self, positions: slice) -> np.ndarray:
        step, rest = np.divmod(np.arange(*positions.indices(self._num)), self._lanes * self._samples_a_step)
        lane, i = np.divmod(rest, self._samples_a_step)
        places = self._lane_starts[lane] + step * self._samples_a_step + i
        group_of_place = np.searchsorted(self._group_starts, places, "right") - 1
        out = np.empty(len(places), np.int64)
        for group in np.unique(group_of_place).tolist():
            here = group_of_place == group
            out[here] = self._samples(group)[places[here] - self._group_starts[group]]
        return out

    def _samples(self, group: int) -> np.ndarray:
        """Return the samples of a group in their order."""
        lane = int(self._groups.lane[group])
        if self._open.get(lane, (-1,))[0] != group:
            pages = self._groups.pages[self._groups.starts[group] : self._groups.starts[group + 1]]
            samples = np.sort(np.concatenate([self._pages.samples_of(page) for page in pages.tolist()]))
            # Without the low bits, whose place a group's number had when all groups were sorted at once. With
            # them, runs of earlier versions would go on in another order.
            keys = keys_of(self._seed, self._epoch, samples) >> self._bits
            self._open[lane] = group, samples[np.argsort(keys, kind="stable")]
        return self._open[lane][1]


@final
class QuasiRandom:
    """The quasi-random epochs of a dataset file, for one rank."""

    def __init__(
        self,
        data: Dataset,
        *,
        lanes: int,
        batch_size_per_rank: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._pages = pages_of(data)
        self._page_sizes = self._pages.sizes()
        num_used = check_lanes(self._page_sizes, lanes, world * batch_size_per_rank, world)
        self._lanes, self._seed, self._rank, self._world = lanes, seed, rank, world
        self._samples_a_step = world * batch_size_per_rank // lanes
        self._remote = remote_pages(data)
        if self._remote is not None:
            # A lane that turns to its next group has two of them open.
            open_pages = min(lanes // world * 2 * GROUP_PAGES, len(self._page_sizes))
            needed = open_pages * int(self._pages.extents.num_bytes.max())
            fewer = "fewer --lanes, or " if lanes > world else ""
            require_room(self._remote, "quasi_random", needed, fewer)
        self.num_steps = num_used // lanes // self._samples_a_step

    def epoch(
        self, epoch: int, first_step: int, steps_under_way: int
    ) -> tuple[Order, Readahead | FetchAhead]:
        """Return the order of the whole epoch, and the read-ahead of this rank's lanes.

        The caller calls the read-ahead's `advance(step)` before it reads a step, and `close()` at the end.
        """
        groups = deal_pages(self._seed, epoch, self._page_sizes, self._lanes)
        order = QuasiRandomOrder(self._seed, epoch, self._pages, groups, self._lanes, self._samples_a_step)
        pages, ask_at, give_at = self.page_steps(groups, first_step, steps_under_way)
        if self._remote is not None:
            return order, FetchAhead(self._remote, pages, give_at)
        return order, Readahead(self._pages.extents.part(pages), ask_at, give_at)

    def page_steps(
        self, groups: Groups, first_step: int, steps_under_way: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return this rank's pages from `first_step` on, and when each is asked for and given back.

        A group is given back when its last step has been read. It is asked for when the group two before it
        is given back, so a lane holds two groups. If its own first step is earlier, it is asked for then.
        """
        sizes = _group_sizes(groups, self._page_sizes)
        starts = np.cumsum(sizes) - sizes - _lane_starts(groups, sizes, self._lanes)[0][groups.lane]
        first, last = starts // self._samples_a_step, (starts + sizes - 1) // self._samples_a_step
        give_at = last + steps_under_way
        ask_at = np.zeros_like(first)
        ask_at[2:] = np.where(groups.lane[2:] == groups.lane[:-2], np.minimum(give_at[:-2], first[2:]), 0)
        is_owned = groups.lane // (self._lanes // self._world) == self._rank
        is_needed = is_owned & (last >= first_step) & (first < self.num_steps)
        # Sorted by first use, because `Readahead` keeps this order among the pages of one step.
        group_of_page = np.repeat(np.arange(len(groups.lane)), np.diff(groups.starts))
        places = np.flatnonzero(is_needed[group_of_page])
        places = places[np.argsort(first[group_of_page[places]], kind="stable")]
        return groups.pages[places], ask_at[group_of_page[places]], give_at[group_of_page[places]]


def check_lanes(page_sizes: np.ndarray, lanes: int, global_batch: int, world: int) -> int:
    """Check that lanes fit batch, ranks and pages of so many samples; return the samples of all lanes."""
    if lanes < 1:
        raise ValueError(f"--lanes {lanes}: it must be 1 or more")
    # The numbers of lanes that the ranks can share and that divide a batch.
    allowed = [number for number in range(world, global_batch + 1, world) if global_batch % number == 0]
    fewer = [number for number in allowed if number < lanes] or allowed[:1]
    if lanes % world:
        raise ValueError(
            f"--lanes {lanes} cannot be shared by {world} ranks; "
            f"choose --lanes {fewer[-1]}, a number of ranks that divides {lanes}, or --order random"
        )
    if global_batch % lanes:
        raise ValueError(
            f"a batch of {global_batch} (of all ranks, before it is accumulated) has no equal shares for "
            f"--lanes {lanes}; choose a multiple of {lanes}, --lanes {fewer[-1]}, or --order random"
        )
    num_pages, num_samples = len(page_sizes), int(page_sizes.sum())
    num_used, min_used = samples_per_lane(page_sizes, lanes) * lanes, (1 - MAX_DROPPED) * num_samples
    if num_used < min_used:
        problem = (
            "too few"
            if num_pages < lanes
            else f"{1 - num_used / num_samples:.0%} of the samples would be left out"
        )
        suitable = [number for number in fewer if samples_per_lane(page_sizes, number) * number >= min_used]
        raise ValueError(
            f"{num_pages:,} pages of data cannot be dealt evenly to --lanes {lanes} ({problem}); "
            f"choose {f'--lanes {suitable[-1]} or ' if suitable else ''}--order random"
        )
    if num_used < global_batch:
        raise ValueError(
            f"{num_used} samples in {lanes} lanes are fewer than a batch of {global_batch} over all ranks; "
            "choose a smaller batch"
        )
    return num_used
