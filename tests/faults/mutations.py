"""The one generator of damage: cuts, flipped bits, overwritten bytes, numbers and values, moved parts.

Half of it is at a file's head and tail, where headers, tables and directories are.
"""

import re
from random import Random

# Numbers at which 32-bit and 64-bit arithmetic overflows.
EXTREMES = (0, 1, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
_TABLE_BYTES, _DATA_BYTES = 700, 1 << 15
_VALUE = re.compile(rb'"[^"\n]{0,99}"|-?\d[\d.]*|true|false|null')
_VALUES = (
    b"-1", b"1.5", b"1e999", b"NaN", b"99999999999999999999", b"4294967295", b"null", b"true", b"[]", b"[[]]",
    b"{}", b'""', b'"x"', b'"\\ud800"', b'"../../etc/passwd"', b"0", b"[" * 9999, b'{"a":' * 9999,
    b"9" * 5000, b'"\x1b[2J"', b"\xff",
)  # fmt: skip


def mutated(data: bytes, random: Random) -> bytes:
    """Return damaged bytes, mostly by one change."""
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 9))):
        random.choices(_CHANGES, _WEIGHTS)[0](changed, random)
    return bytes(changed)


def _place(data: bytearray, random: Random) -> int:
    start, end = 0, max(len(data), 1)
    match random.randrange(4):
        case 0:
            end = min(end, _TABLE_BYTES)
        case 1:
            start = max(0, end - _TABLE_BYTES)
        case 2:  # of a dataset file, whose first pages have holes
            start = max(0, end - _DATA_BYTES)
    return random.randrange(start, end)


def _cut(data: bytearray, random: Random) -> None:
    del data[_place(data, random) :]


def _flip(data: bytearray, random: Random) -> None:
    for _ in range(random.choice((1, 1, 1, 3, 30)) if data else 0):
        data[_place(data, random)] ^= 1 << random.randrange(8)


def _overwrite(data: bytearray, random: Random) -> None:
    at, size = _place(data, random), random.choice((1, 8, 64, 512))
    data[at : at + size] = random.choice((bytes(size), b"\xff" * size, random.randbytes(size)))[
        : len(data) - at
    ]


def _number(data: bytearray, random: Random) -> None:
    """Overwrite what may be a length, an offset or a size by another one."""
    size = random.choice((1, 2, 4, 8))
    at = _place(data, random) // size * size
    number = random.choice((*EXTREMES, len(data), len(data) - 1, len(data) + 1, random.randrange(1 << 16)))
    part = (number % (1 << 8 * size)).to_bytes(size, random.choice(("little", "big")))
    data[at : at + size] = part[: len(data) - at]


def _value(data: bytearray, random: Random) -> None:
    """Replace a value of JSON, or a number of another text."""
    if found := list(_VALUE.finditer(data, endpos=1 << 16)):
        data[slice(*random.choice(found).span())] = random.choice(_VALUES)


def _insert(data: bytearray, random: Random) -> None:
    at = _place(data, random)
    data[at:at] = random.choice((bytes(8), b"\n", b'"', random.randbytes(30), data[-_TABLE_BYTES:]))


def _move(data: bytearray, random: Random) -> None:
    """Copy a part over another one, or swap both, as blocks of a disk or rows of a table."""
    size = random.choice((4, 8, 24, 32, 512))
    one, other = (_place(data, random) // size * size for _ in range(2))
    kept = data[other : other + size]
    data[other : other + size] = data[one : one + len(kept)]
    if random.random() < 0.5:
        data[one : one + size] = kept


_CHANGES = (_cut, _flip, _overwrite, _number, _value, _insert, _move)
_WEIGHTS = (3, 4, 2, 3, 3, 1, 2)
