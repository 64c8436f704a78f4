"""Arenas: memory in use is never handed out, and free memory is used again."""

import threading

import numpy as np
import pytest
import torch

from fastpsl.pipelines.decoders import memory
from fastpsl.pipelines.decoders.memory import Arenas


def test_memory_is_used_again_when_its_last_holder_lets_it_go() -> None:
    arenas = Arenas()
    first, second = arenas.take(1000), arenas.take(10)
    places = [arena.memory.ctypes.data for arena in (first, second)]
    assert places[0] != places[1] and len(first.memory) >= 1000
    holder = [first]
    del first
    third = arenas.take(10)  # while `holder` keeps the first one
    assert third.memory.ctypes.data not in places
    holder.clear()
    assert arenas.take(1000).memory.ctypes.data == places[0]
    larger = arenas.take(5000)  # replaces memory that is too small
    assert len(larger.memory) >= 5000
    del second, third, larger
    sizes = [len(arenas.take(1).memory) for _ in range(3)]
    assert max(sizes) >= 5000 and len(arenas._free) == 3


def test_arrays_and_tensors_keep_their_arena_and_a_pool_keeps_no_more_than_its_limit() -> None:
    arenas = Arenas(limit=2)
    array = np.asarray(arenas.take(1000))
    part = torch.from_numpy(array).view(10, -1)[3, 5:7]
    part.fill_(7)
    place, inside = array.ctypes.data, part.data_ptr()
    del array
    assert arenas.take(1000).memory.ctypes.data != place and part.tolist() == [7, 7]
    assert inside - place == 3 * (1250 // 10) + 5
    del part
    assert arenas.take(1000).memory.ctypes.data == place
    held = [arenas.take(10) for _ in range(5)]
    held.clear()
    assert len(arenas._free) == 2


def test_pinned_memory_is_torchs_and_lives_as_long_as_its_array(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory is not really pinned, because that needs a GPU."""
    calls, empty = [], torch.empty

    def pageable(num: int, *, dtype: torch.dtype, pin_memory: bool) -> torch.Tensor:
        calls.append((num, pin_memory))
        return empty(num, dtype=dtype)

    monkeypatch.setattr(torch, "empty", pageable)
    arenas = Arenas(pinned=True)
    arena = arenas.take(1000)
    assert calls == [(1250, True)] and arena.is_pinned and isinstance(arena.memory.base, torch.Tensor)
    assert arena.memory.ctypes.data == arena.memory.base.data_ptr()
    del arena
    assert arenas.take(1250).is_pinned and len(calls) == 1
    assert not Arenas().take(1000).is_pinned and len(calls) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is pinned memory")
def test_without_pinned_memory_arenas_are_not_pinned_and_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "_has_warned", threading.Event())
    arenas = Arenas(pinned=True)
    with pytest.warns(UserWarning, match=r"^no 2,621,440 bytes of pinned host memory \(") as caught:
        held = [arenas.take(2 << 20), arenas.take(2 << 20)]
    assert len(caught) == 1 and "\n" not in str(caught[0].message)
    assert not any(arena.is_pinned for arena in held)
    assert [len(arena.memory) >= 2 << 20 for arena in held] == [True, True]
