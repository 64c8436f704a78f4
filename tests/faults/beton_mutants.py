"""Kinds of damage to a beton: each function changes the bytes of a sound one in place."""

import random
import struct
from typing import NamedTuple

import numpy as np

from fastpsl.pipelines.beton.shard import ALLOCATION, FIELD, HEADER, row_dtype

Bytes = bytearray
Random = random.Random

# Numbers at which 32-bit and 64-bit arithmetic overflows.
EXTREMES = [0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**62, 2**63 - 1, 2**63, 2**63 + 1, 2**64 - 1]
_ROW = row_dtype((2, 1))
_FIELDS = HEADER.itemsize
_SECTOR, _BLOCK = 512, 4096


class Layout(NamedTuple):
    """The offsets of the parts of a sound beton, in bytes."""

    num_samples: int
    table: int
    table_end: int
    data: int
    data_end: int  # here the allocation table begins
    allocations_end: int
    end: int

    @classmethod
    def of(cls, data: bytes | bytearray) -> "Layout":
        header = np.frombuffer(data[: HEADER.itemsize], HEADER)[0]
        num, alloc = int(header["num_samples"]), int(header["alloc_table_ptr"])
        table = HEADER.itemsize + int(header["num_fields"]) * FIELD.itemsize
        table_end = table + num * _ROW.itemsize
        rows = np.frombuffer(data[table:table_end], _ROW)
        first = int(rows["f0"]["data_ptr"].min())
        return cls(num, table, table_end, first, alloc, alloc + num * ALLOCATION.itemsize, len(data))


def _flip(data: Bytes, low: int, high: int, random: Random, num: int) -> None:
    for _ in range(num):
        data[random.randrange(low, high)] ^= 1 << random.randrange(8)


def _rows(data: Bytes, layout: Layout) -> np.ndarray:
    """Return the table's rows; writing to them changes `data`."""
    return np.frombuffer(memoryview(data)[layout.table : layout.table_end], _ROW)


def _allocations(data: Bytes, layout: Layout) -> np.ndarray:
    return np.frombuffer(memoryview(data)[layout.data_end : layout.allocations_end], ALLOCATION)


def header_bit(data: Bytes, layout: Layout, random: Random) -> None:
    _flip(data, 0, HEADER.itemsize, random, random.choice([1, 1, 2, 4]))


def header_field(data: Bytes, layout: Layout, random: Random) -> None:
    """Set a wrong count or pointer."""
    start, size = random.choice([(0, 2), (2, 2), (4, 4), (8, 8), (16, 8)])
    num, alloc = layout.num_samples, layout.data_end
    near = [
        num - 1,
        num + 1,
        num // 2,
        alloc - 24,
        alloc + 24,
        alloc - 1,
        layout.end,
        layout.end - 24,
        3,
        256,
    ]
    value = random.choice(EXTREMES + near) % (1 << 8 * size)
    data[start : start + size] = value.to_bytes(size, "little")


def descriptor_bit(data: Bytes, layout: Layout, random: Random) -> None:
    _flip(data, _FIELDS, layout.table, random, random.choice([1, 2, 8]))
    if random.random() < 0.5:
        data[_FIELDS + FIELD.itemsize * random.randrange(2)] = random.randrange(9)


def table_bit(data: Bytes, layout: Layout, random: Random) -> None:
    _flip(data, layout.table, layout.table_end, random, random.choice([1, 1, 3, 20]))


def label(data: Bytes, layout: Layout, random: Random) -> None:
    values = [-2, -1, 0, 1, 2, 3, 2**31 - 2, 2**31 - 1, 2**31, 2**63 - 1, -(2**63)]
    _rows(data, layout)["f1"][random.randrange(layout.num_samples)] = random.choice(values)


def mode(data: Bytes, layout: Layout, random: Random) -> None:
    _rows(data, layout)["f0"]["mode"][random.randrange(layout.num_samples)] = random.choice([0, 1, 2, 255])


def side(data: Bytes, layout: Layout, random: Random) -> None:
    """Change the width, the height or both of one sample."""
    row = _rows(data, layout)["f0"][random.randrange(layout.num_samples) :][:1]
    for name in random.choice([("width",), ("height",), ("width", "height")]):
        row[name] = random.choice([0, 1, 2, 65535, 32768, int(row[name][0]) + 1, int(row[name][0]) // 2])


def pointer(data: Bytes, layout: Layout, random: Random) -> None:
    rows = _rows(data, layout)["f0"]
    one, other = (random.randrange(layout.num_samples) for _ in range(2))
    near = [layout.data_end, layout.data_end - 1, layout.end, layout.table, int(rows["data_ptr"][other])]
    rows["data_ptr"][one] = np.uint64(random.choice(EXTREMES + near))


def allocation_bit(data: Bytes, layout: Layout, random: Random) -> None:
    _flip(data, layout.data_end, layout.allocations_end, random, random.choice([1, 1, 3, 20]))


def allocation_field(data: Bytes, layout: Layout, random: Random) -> None:
    table = _allocations(data, layout)
    one, other = (random.randrange(layout.num_samples) for _ in range(2))
    size = int(table["size"][one])
    near = [layout.data_end, size - 1, size + 1, 3, 4, int(table["ptr"][other])]
    table[random.choice(["sample_id", "ptr", "size", "size"])][one] = np.uint64(
        random.choice(EXTREMES + near)
    )


def allocation_order(data: Bytes, layout: Layout, random: Random) -> None:
    """Reorder the rows of the allocation table, or one of its columns."""
    table = _allocations(data, layout)
    name = random.choice([None, "size", "ptr", "sample_id"])
    if name is None:
        table[:] = table[np.random.default_rng(random.randrange(1 << 30)).permutation(len(table))]
    else:
        table[name] = table[name][::-1].copy()


def data_bit(data: Bytes, layout: Layout, random: Random) -> None:
    _flip(data, layout.data, layout.data_end, random, random.choice([1, 1, 10, 1000]))


def sample_head_bit(data: Bytes, layout: Layout, random: Random) -> None:
    """Flip bits in the first bytes of a sample, which are a JPEG's headers."""
    start = int(_rows(data, layout)["f0"]["data_ptr"][random.randrange(layout.num_samples)])
    _flip(data, start, min(start + 700, layout.data_end), random, random.choice([1, 2, 5]))


def anywhere_bit(data: Bytes, layout: Layout, random: Random) -> None:
    _flip(data, 0, layout.end, random, random.choice([1, 1, 8, 64]))


def tail_bit(data: Bytes, layout: Layout, random: Random) -> None:
    _flip(data, max(0, layout.end - 64), layout.end, random, random.choice([1, 2, 8]))


def truncate(data: Bytes, layout: Layout, random: Random) -> None:
    del data[random.randrange(layout.end) :]


def truncate_at_a_border(data: Bytes, layout: Layout, random: Random) -> None:
    borders = [
        0,
        HEADER.itemsize,
        layout.table,
        layout.table_end,
        layout.data,
        layout.data_end,
        layout.allocations_end,
    ]
    border = random.choice([*borders, layout.end - 24, layout.end]) + random.choice([-1, 0, 1])
    del data[max(0, border) :]


def grow(data: Bytes, layout: Layout, random: Random) -> None:
    ends = [
        bytes(1),
        bytes(24),
        bytes(_BLOCK),
        random.randbytes(24),
        random.randbytes(240),
        bytes(data[layout.data_end :]),
    ]
    data += random.choice(ends)


def zeros(data: Bytes, layout: Layout, random: Random) -> None:
    """Zero a page, a block or a run, as if it had never been written."""
    size = random.choice([_SECTOR, _BLOCK, 65536, 1 << 21, random.randrange(1, 5000)])
    start = random.choice(
        [0, random.randrange(layout.data, layout.end), layout.end - 1, random.randrange(layout.table_end)]
    )
    start -= start % _SECTOR if size % _SECTOR == 0 else 0
    data[start : start + size] = bytes(min(size, len(data) - start))


def swapped_blocks(data: Bytes, layout: Layout, random: Random) -> None:
    size = random.choice([_SECTOR, _BLOCK])
    one, other = (random.randrange(layout.data, layout.end - size) // _SECTOR * _SECTOR for _ in range(2))
    if abs(one - other) >= size:
        block = bytes(data[one : one + size])
        data[one : one + size] = data[other : other + size]
        data[other : other + size] = block


def noise(data: Bytes, layout: Layout, random: Random) -> None:
    """Write random bytes over a part of one of the file's regions."""
    regions = [
        (0, HEADER.itemsize), (_FIELDS, layout.table), (layout.table, layout.table_end),
        (layout.data, layout.data_end), (layout.data_end, layout.end),
    ]  # fmt: skip
    low, high = random.choice(regions)
    start = random.randrange(low, high)
    size = min(random.choice([2, 8, 64, 1024]), layout.end - start)
    data[start : start + size] = random.randbytes(size)


def copied_part(data: Bytes, layout: Layout, random: Random) -> None:
    """Copy one part of the file over another."""
    start, to, size = random.randrange(layout.end), random.randrange(layout.end), random.randrange(1, 20000)
    part = bytes(data[start : start + size])[: layout.end - to]
    data[to : to + len(part)] = part


def doubled_table(data: Bytes, layout: Layout, random: Random) -> None:
    """Repeat the first row of a table, or replace one table by the other."""
    table, allocations = _rows(data, layout), _allocations(data, layout)
    how = random.randrange(3)
    if how == 0:
        allocations[:] = allocations[0]
    elif how == 1:
        table[:] = table[0]
    else:
        part = bytes(data[layout.data_end : layout.allocations_end])[: layout.table_end - layout.table]
        data[layout.table : layout.table + len(part)] = part


def swapped_rows(data: Bytes, layout: Layout, random: Random) -> None:
    """Swap two samples in the table, with or without their labels, so that every row stays sound."""
    table = _rows(data, layout)
    one, other = random.sample(range(layout.num_samples), 2)
    part = random.choice([None, "f0", "f1"])
    column = table if part is None else table[part]
    column[[one, other]] = column[[other, one]].copy()


def agreed_size(data: Bytes, layout: Layout, random: Random) -> None:
    """Set a wrong size both in the table and in the JPEG's header."""
    row = _rows(data, layout)["f0"][random.randrange(layout.num_samples) :][:1]
    height, width = int(row["height"][0]), int(row["width"][0])
    sizes = [
        (65535, 65535),
        (1, 1),
        (65535, 1),
        (8, 65535),
        (20000, 20000),
        (height + 1, width),
        (2 * height, 2 * width),
    ]
    row["height"], row["width"] = random.choice(sizes)
    offset = int(row["data_ptr"][0]) + 2
    while (
        data[offset] == 0xFF and data[offset + 1] not in (0xC0, 0xC1, 0xC2) and offset + 4 < layout.data_end
    ):
        offset += 2 + int.from_bytes(data[offset + 2 : offset + 4], "big")
    if data[offset] == 0xFF:
        data[offset + 5 : offset + 9] = struct.pack(">HH", int(row["height"][0]), int(row["width"][0]))


def raw_for_jpeg(data: Bytes, layout: Layout, random: Random) -> None:
    """Declare a JPEG to be raw pixels of a size that fits, or does not."""
    index = random.randrange(layout.num_samples)
    row, allocation = _rows(data, layout)["f0"][index:][:1], _allocations(data, layout)[index:][:1]
    height, width = random.choice([(10, 10), (1, 1), (20, 5), (65535, 65535)])
    row["mode"], row["height"], row["width"] = 1, height, width
    allocation["size"] = height * width * 3


KINDS = (
    header_bit, header_field, descriptor_bit, table_bit, label, mode, side, pointer, allocation_bit,
    allocation_field,
    allocation_order, data_bit, sample_head_bit, anywhere_bit, tail_bit, truncate, truncate_at_a_border, grow,
    zeros,
    swapped_blocks, noise, copied_part, doubled_table, swapped_rows, agreed_size, raw_for_jpeg,
)  # fmt: skip
