"""Quasi-random order, for sets larger than the page cache: whole pages are read, and a batch still mixes hundreds.

Each epoch deals the pages to a fixed number of lanes. A lane opens its pages GROUP_PAGES at a time, in random order,
and goes through the samples of such a group in random order. Every global batch takes k samples of each lane, lane by
lane, so that a rank owns whole lanes (rank r those from r * lanes / world on) and `order.step_indices` serves as ever.

What a lane holds depends on (seed, epoch, lanes) alone, never on ranks, batch size or accumulation. An epoch ends with
the shortest lane; what others have more is dropped, something else each epoch.
"""

import heapq
from typing import NamedTuple, final

import numpy as np

from fastpsl.kernels.draws import Keys, Slot, words
from fastpsl.pipelines.beton.pages import pages_of
from fastpsl.pipelines.data.dataset import Dataset
from fastpsl.pipelines.loader.order import sort_keys
from fastpsl.pipelines.loader.readahead import Readahead

GROUP_PAGES = 4  # 64 lanes x 4 pages of 8 MiB: 2 GiB open, and as much asked for ahead
MAX_DROPPED = 0.1  # of an epoch's samples, because lanes are unequal; below 32 pages a lane it gets near


class Groups(NamedTuple):
    """An epoch's pages in the order of their opening, lane after lane."""

    pages: np.ndarray  # int64 [num_pages], group after group
    lane: np.ndarray  # int64 [num_groups], ascending
    starts: np.ndarray  # int64 [num_groups + 1]: group i is pages[starts[i] : starts[i + 1]]


def deal_pages(seed: int, epoch: int, page_sizes: np.ndarray, lanes: int) -> Groups:
    """The pages of an epoch, dealt to lanes. page_sizes: int64 [num_pages], samples, num_pages >= lanes.

    The largest page first, each to the lane with the fewest samples; draws decide between equals, so the lanes' sizes
    are the same numbers in every epoch, in another order. Then a lane's pages are shuffled and cut into groups.
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
    # The first group of a lane has 1 to GROUP_PAGES pages: lanes then do not all open one in the same steps.
    group = (place_in_lane + lane_of % GROUP_PAGES) // GROUP_PAGES
    starts = np.flatnonzero((np.diff(lane_of, prepend=-1) != 0) | (np.diff(group, prepend=-1) != 0))
    return Groups(pages, lane_of[starts], np.append(starts, len(pages)))


def samples_per_lane(page_sizes: np.ndarray, lanes: int) -> int:
    """Samples that every lane has, in every epoch of every seed."""
    if len(page_sizes) < lanes:
        return 0
    groups = deal_pages(0, 0, page_sizes, lanes)
    return int(_lane_starts(groups, _group_sizes(groups, page_sizes), lanes)[1].min())


def _group_sizes(groups: Groups, page_sizes: np.ndarray) -> np.ndarray:
    return np.add.reduceat(page_sizes[groups.pages], groups.starts[:-1])


def _lane_starts(groups: Groups, sizes: np.ndarray, lanes: int) -> tuple[np.ndarray, np.ndarray]:
    """int64 [lanes]: where a lane begins, lane after lane, and its length, in samples."""
    ends = np.cumsum(sizes)[np.searchsorted(groups.lane, np.arange(lanes), "right") - 1]
    return np.concatenate([[0], ends[:-1]]), np.diff(ends, prepend=0)


def quasi_random_order(
    seed: int,
    epoch: int,
    page_of_sample: np.ndarray,
    page_sizes: np.ndarray,
    groups: Groups,
    lanes: int,
    samples_a_step: int,
) -> np.ndarray:
    """The order of an epoch: int64 [num_steps * lanes * k], k = samples_a_step of each lane in each step.

    Position (step * lanes + lane) * k + i is the lane's sample number step * k + i. Within a group, samples are sorted
    (stably) by their `order.sort_keys`, whose lowest bits give way to the group's number.
    """
    group_of_page = np.empty(len(page_sizes), np.uint64)
    group_of_page[groups.pages] = np.repeat(np.arange(len(groups.lane)), np.diff(groups.starts))
    bits = np.uint64(max(1, len(groups.lane).bit_length()))
    keys = sort_keys(seed, epoch, len(page_of_sample))
    keys >>= bits
    keys |= (group_of_page << (np.uint64(64) - bits))[page_of_sample]
    by_lane = np.argsort(keys, kind="stable")
    del keys
    starts, lengths = _lane_starts(groups, _group_sizes(groups, page_sizes), lanes)
    num_steps = int(lengths.min()) // samples_a_step
    order = np.empty((num_steps, lanes, samples_a_step), np.int64)
    for lane, start in enumerate(starts.tolist()):
        kept = by_lane[start : start + num_steps * samples_a_step]
        order[:, lane] = kept.reshape(num_steps, samples_a_step)
    return order.reshape(-1)


@final
class QuasiRandom:
    """Quasi-random epochs of a beton for one of `world` ranks; batch_size is per rank.

    ValueError (one line, with what to choose) when the lanes, the ranks, the batch and the pages do not go together.
    """

    def __init__(
        self, data: Dataset, *, lanes: int, batch_size: int, seed: int = 0, rank: int = 0, world: int = 1
    ) -> None:
        pages = pages_of(data)
        self._data, self._extents = data, pages.extents
        self._page_sizes = np.bincount(pages.of_sample, minlength=len(pages.extents.fd))
        check_lanes(self._page_sizes, lanes, world * batch_size, world)
        self._lanes, self._seed, self._rank, self._world = lanes, seed, rank, world
        self._samples_a_step = world * batch_size // lanes
        self.num_steps = samples_per_lane(self._page_sizes, lanes) // self._samples_a_step

    def epoch(self, epoch: int, first_step: int, steps_under_way: int) -> tuple[np.ndarray, Readahead]:
        """The order of the whole epoch (for `order.step_indices`), and the read-ahead of this rank's lanes.

        Of the read-ahead call `advance(step)` before `step` is read, from first_step on, and `close()` at the end.
        steps_under_way: when `step` begins to be read, all up to step - steps_under_way have been.
        """
        groups = deal_pages(self._seed, epoch, self._page_sizes, self._lanes)
        order = quasi_random_order(
            self._seed, epoch, pages_of(self._data).of_sample, self._page_sizes, groups, self._lanes, self._samples_a_step
        )  # fmt: skip
        pages, ask_at, give_at = self.page_steps(groups, first_step, steps_under_way)
        return order, Readahead(self._extents.part(pages), ask_at, give_at)

    def page_steps(
        self, groups: Groups, first_step: int, steps_under_way: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """This rank's pages from first_step on, and the steps at which each is asked for and given back.

        A group is given back when its last step has been read. It is asked for when the last but one before it is
        given back, so a lane holds two groups; or when its own first step comes, if that is earlier.
        """
        sizes = _group_sizes(groups, self._page_sizes)
        begin = np.cumsum(sizes) - sizes - _lane_starts(groups, sizes, self._lanes)[0][groups.lane]
        first, last = begin // self._samples_a_step, (begin + sizes - 1) // self._samples_a_step
        give_at = last + steps_under_way
        ask_at = np.zeros_like(first)
        ask_at[2:] = np.where(groups.lane[2:] == groups.lane[:-2], np.minimum(give_at[:-2], first[2:]), 0)
        owned = groups.lane // (self._lanes // self._world) == self._rank
        kept = owned & (last >= first_step) & (first < self.num_steps)
        # In the order of need: what is asked for in one step is asked for in this order.
        of_page = np.repeat(np.arange(len(groups.lane)), np.diff(groups.starts))
        places = np.flatnonzero(kept[of_page])
        places = places[np.argsort(first[of_page[places]], kind="stable")]
        return groups.pages[places], ask_at[of_page[places]], give_at[of_page[places]]


def check_lanes(page_sizes: np.ndarray, lanes: int, global_batch: int, world: int) -> None:
    """ValueError where `lanes` do not go with the batch, the ranks or the pages."""
    if lanes < 1:
        raise ValueError(f"--lanes {lanes}: must be 1 or more")
    # Every one of these can be shared by the ranks and has a share in every batch.
    allowed = [number for number in range(world, global_batch + 1, world) if global_batch % number == 0]
    fewer = [number for number in allowed if number < lanes] or allowed[:1]
    if lanes % world:
        raise ValueError(
            f"--lanes {lanes} cannot be shared by {world} ranks; "
            f"choose --lanes {fewer[-1]}, a number of ranks that divides {lanes}, or --order random"
        )
    if global_batch % lanes:
        raise ValueError(
            f"a batch of {global_batch} (of all ranks, before it is accumulated) has no equal shares for --lanes {lanes}; "
            f"choose a multiple of {lanes}, --lanes {fewer[-1]}, or --order random"
        )
    num_pages, num_samples = len(page_sizes), int(page_sizes.sum())
    kept, enough = samples_per_lane(page_sizes, lanes) * lanes, (1 - MAX_DROPPED) * num_samples
    if kept < enough:
        why = (
            "too few"
            if num_pages < lanes
            else f"{1 - kept / num_samples:.0%} of the samples would be left out"
        )
        good = [number for number in fewer if samples_per_lane(page_sizes, number) * number >= enough]
        raise ValueError(
            f"{num_pages:,} pages of data cannot be dealt evenly to --lanes {lanes} ({why}); "
            f"choose {f'--lanes {good[-1]} or ' if good else ''}--order random"
        )
    if kept < global_batch:
        raise ValueError(
            f"{kept} samples in {lanes} lanes are fewer than a batch of {global_batch} over all ranks; "
            "choose a smaller batch"
        )
