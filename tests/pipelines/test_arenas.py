"""Memory of batches: nobody gets what another still holds, and none is made anew that is there."""

from fastpsl.pipelines.decoders.arenas import Arenas


def test_memory_is_used_again_when_its_last_holder_lets_it_go() -> None:
    arenas = Arenas()
    first, second = arenas.take(1000), arenas.take(10)
    places = [arena.memory.ctypes.data for arena in (first, second)]
    assert places[0] != places[1] and len(first.memory) >= 1000
    holder = [first]
    del first
    third = arenas.take(10)  # the first is still held
    assert third.memory.ctypes.data not in places
    holder.clear()
    assert arenas.take(1000).memory.ctypes.data == places[0]
    larger = arenas.take(5000)  # too small: replaced
    assert len(larger.memory) >= 5000
    del second, third, larger
    sizes = [len(arenas.take(1).memory) for _ in range(3)]
    assert max(sizes) >= 5000 and len(arenas._free) == 3
