"""Read-ahead: the calls of posix_fadvise, their time and their size, and that everything is given back."""

import itertools
import os
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastpsl.pipelines.beton.pages import Extents, pages_of
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.loader import readahead as readahead_module
from fastpsl.pipelines.loader.order import step_indices
from fastpsl.pipelines.loader.quasi_random import GROUP_PAGES, QuasiRandom, deal_pages
from fastpsl.pipelines.loader.readahead import Readahead, piece_bytes
from tests.pipelines.paged import SAMPLES_A_PAGE, page_of_each, write_paged

ASK, GIVE = os.POSIX_FADV_WILLNEED, os.POSIX_FADV_DONTNEED
LANES, UNDER_WAY = 4, 3
NUM = 60 * SAMPLES_A_PAGE + 2  # in two files, about 30 pages per lane


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Record (fd, offset, bytes, advice) of every posix_fadvise; tests add their own marks to the list."""
    log: list[Any] = []
    real = os.posix_fadvise

    def recorded(fd: int, offset: int, num_bytes: int, advice: int) -> None:
        log.append((fd, offset, num_bytes, advice))
        real(fd, offset, num_bytes, advice)

    monkeypatch.setattr(os, "posix_fadvise", recorded)
    return log


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Beton]:
    with Beton([write_paged(monkeypatch, tmp_path / f"{name}.beton", NUM) for name in "ab"]) as data:
        yield data


def advance(readahead: Readahead, step: int) -> None:
    """Advance the read-ahead and wait until its thread has made the calls."""
    readahead.advance(step)
    if readahead._workers is not None:
        finished = threading.Event()
        readahead._workers.submit(finished.set)
        assert finished.wait(240)


def run(
    data: Beton,
    calls: list[Any],
    share: int,
    first_step: int = 0,
    stop: int | None = None,
    rank: int = 0,
    world: int = 1,
) -> tuple[list[set[int]], list[set[int]], list[set[int]]]:
    """Return for each step the pages read at it, the pages held then, and the pages given back before it.

    The last element of the third list is the pages given back by `close`.
    """
    quasi = QuasiRandom(data, lanes=LANES, batch_size_per_rank=share * LANES // world, rank=rank, world=world)
    order, readahead = quasi.epoch(1, first_step, UNDER_WAY)
    assert isinstance(readahead, Readahead)
    pages = pages_of(data)
    page_of_sample = page_of_each(pages)
    page_at = {(fd, offset): i for i, (fd, offset) in enumerate(zip(*pages.extents[:2], strict=True))}
    read: list[set[int]] = [set() for _ in range(first_step)]
    for step in range(first_step, quasi.num_steps if stop is None else stop):
        advance(readahead, step)
        calls.append(step)
        indices = step_indices(order, step, share * LANES // world, rank, world)
        read.append(set(page_of_sample[indices].tolist()))
    readahead.close()
    held: set[int] = set()
    given_back: set[int] = set()
    held_at: list[set[int]] = [set() for _ in range(first_step)]
    given_at: list[set[int]] = [set() for _ in range(first_step)]
    for call in calls:
        if isinstance(call, int):
            held_at.append(held.copy())
            given_at.append(given_back)
            given_back = set()
            continue
        fd, offset, num_bytes, advice = call
        page = page_at[fd, offset]
        assert num_bytes == pages.extents.num_bytes[page]  # because these pages are smaller than a piece
        if advice == ASK:
            assert page not in held
            held.add(page)
        else:
            assert advice == GIVE
            held.remove(page)  # fails for a page that was not asked for, or is given back twice
            given_back.add(page)
    assert not held
    return read, held_at, [*given_at, given_back]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_what_is_read_was_asked_for_in_bounds_and_is_given_back(
    data: Beton, calls: list[Any], world: int
) -> None:
    all_read: set[int] = set()
    for rank in range(world):
        calls.clear()
        read, held, given_back = run(data, calls, share=1, rank=rank, world=world)
        rank_pages = set().union(*read)
        assert not rank_pages & all_read
        all_read |= rank_pages
        max_held = LANES // world * GROUP_PAGES * 2
        assert all(len(pages) <= max_held for pages in held)
        assert max(len(pages) for pages in held) > max_held / 2
        assert all(pages <= now for pages, now in zip(read, held, strict=True))
        # Pages are asked for early: a group's time ahead, 20 steps here, or 5 for the shortest first groups.
        assert all(pages <= held[max(0, step - 4)] for step, pages in enumerate(read))
        # Pages are given back soon after their last step, because a group's pages end at about the same time.
        given_before = {page: step for step, pages in enumerate(given_back) for page in pages}
        for step, pages in enumerate(read):
            for page in pages:
                assert given_before[page] >= min(step + UNDER_WAY, len(read))
        ends = [
            given_before[page] - max(step for step, pages in enumerate(read) if page in pages)
            for page in rank_pages
        ]
        assert np.median(ends) < 10
    assert len(all_read) > 0.9 * len(pages_of(data).extents.fd)


def test_large_batches_ask_for_what_they_need_and_no_more(data: Beton, calls: list[Any]) -> None:
    """A step uses over two groups of each lane, so there is no lead, but no page is asked for in vain."""
    read, held, _ = run(data, calls, share=50)
    assert len(read) == 3
    assert all(pages <= now for pages, now in zip(read, held, strict=True))
    assert all(
        len(now - set().union(*read[: step + 1])) <= LANES * GROUP_PAGES * 2 for step, now in enumerate(held)
    )


@pytest.mark.parametrize("first_step", [1, 37, 144, 149])
def test_entering_an_epoch_asks_for_the_groups_of_that_step(
    data: Beton, calls: list[Any], first_step: int
) -> None:
    whole_read, _, _ = run(data, calls, share=1)
    calls.clear()
    read, held, _ = run(data, calls, share=1, first_step=first_step)
    assert read[first_step:] == whole_read[first_step:]
    assert read[first_step] <= held[first_step]
    assert len(held[first_step]) <= LANES * GROUP_PAGES * 2
    requested = {call[:2] for call in calls if not isinstance(call, int) and call[3] == ASK}
    needed = set().union(*read)
    # The rest are pages of groups that are nearly over, or in which the epoch ends.
    assert len(needed) <= len(requested) <= len(needed) + 2 * LANES * GROUP_PAGES


def test_groups_past_the_end_of_the_epoch_are_not_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """41 equal pages in 4 lanes: one lane has one more page, sometimes as a group of its own."""
    num_left_out = 0
    with Beton(write_paged(monkeypatch, tmp_path / "c.beton", 41 * SAMPLES_A_PAGE)) as data:
        page_of_sample = page_of_each(pages_of(data))
        quasi = QuasiRandom(data, lanes=LANES, batch_size_per_rank=LANES)
        for epoch in range(20):
            groups = deal_pages(0, epoch, np.full(41, SAMPLES_A_PAGE), LANES)
            order, readahead = quasi.epoch(epoch, 0, UNDER_WAY)
            readahead.close()
            requested = set(quasi.page_steps(groups, 0, UNDER_WAY)[0].tolist())
            read = set(page_of_sample[order[:]].tolist())
            for start, stop in itertools.pairwise(groups.starts.tolist()):
                group = set(groups.pages[start:stop].tolist())
                assert requested & group == (group if read & group else set())
            num_left_out += 41 - len(requested)
    assert num_left_out


def test_an_epoch_left_early_gives_back_what_it_holds(data: Beton, calls: list[Any]) -> None:
    for stop in (0, 1, 9):  # `run` asserts that nothing stays held
        calls.clear()
        _, held, given_back = run(data, calls, share=1, stop=stop)
        assert len(held) == stop
        assert given_back[-1] == (held[-1] if stop else set())


def test_a_page_is_asked_for_in_pieces_that_the_kernel_takes(
    tmp_path: Path, calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readahead_module, "piece_bytes", lambda fd: 131_072)
    path = tmp_path / "data"
    path.write_bytes(bytes(700_000))
    fd = os.open(path, os.O_RDONLY)
    try:
        extents = Extents(
            np.array([fd] * 2, np.int32), np.array([4096, 524_288]), np.array([300_000, 131_072])
        )
        readahead = Readahead(extents, np.array([0, 2]), np.array([2, 4]))
        for step in range(6):
            advance(readahead, step)
        readahead.close()
        readahead.close()
    finally:
        os.close(fd)
    assert calls == [
        (fd, 4096, 131_072, ASK), (fd, 4096 + 131_072, 131_072, ASK), (fd, 4096 + 262_144, 37_856, ASK),
        (fd, 4096, 300_000, GIVE), (fd, 524_288, 131_072, ASK), (fd, 524_288, 131_072, GIVE),
    ]  # fmt: skip


def test_a_piece_is_as_long_as_the_disk_has_it(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"x")
    with path.open("rb") as file, Path("/dev/null").open("rb") as no_disk:
        assert piece_bytes(no_disk.fileno()) == 131_072
        num_bytes = piece_bytes(file.fileno())
        assert num_bytes >= 131_072 and num_bytes % 1024 == 0
        device = os.fstat(file.fileno()).st_dev
        folder = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
        if folder.exists():
            queues = [*folder.resolve().glob("queue/*"), *folder.resolve().parent.glob("queue/*")]
            sizes = [
                int(size.read_text()) for size in queues if size.name in ("read_ahead_kb", "max_sectors_kb")
            ]
            assert num_bytes == 1024 * max(sizes)


def test_nothing_to_ask_for_starts_no_thread(calls: list[Any]) -> None:
    none = np.array([], np.int64)
    readahead = Readahead(Extents(none, none, none), none, none)
    advance(readahead, 3)
    readahead.close()
    assert readahead._workers is None and not calls


def test_a_file_that_takes_no_hints_is_said_once(calls: list[Any]) -> None:
    reading, writing = os.pipe()
    try:
        extents = Extents(np.full(3, reading, np.int32), np.arange(3) * 4096, np.full(3, 4096))
        readahead = Readahead(extents, np.array([0, 0, 1]), np.array([5, 5, 5]))
        with pytest.warns(UserWarning, match="no read-ahead: posix_fadvise failed .Illegal seek") as warned:
            advance(readahead, 0)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            advance(readahead, 1)
            advance(readahead, 5)
            readahead.close()
        assert len(warned) == 1
        assert [call[3] for call in calls].count(ASK) == 1
    finally:
        os.close(reading)
        os.close(writing)
