"""Loops over packed coefficients: their unpacking, and the coding of a JPEG's scan."""

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def _nibble(stream: np.ndarray, at: int) -> int:
    return (int(stream[at >> 1]) >> (4 * (at & 1))) & 15


@njit(cache=True, nogil=True)
def _wide(stream: np.ndarray, at: int) -> int:
    value = int(stream[2 * at]) | int(stream[2 * at + 1]) << 8
    return value - 65536 if value >= 32768 else value


@njit(cache=True, nogil=True)
def _signed(byte: int) -> int:
    return byte - 256 if byte >= 128 else byte


@njit(cache=True, nogil=True)
def unpack(
    data: np.ndarray, starts: np.ndarray, ends: np.ndarray, components: np.ndarray, blocks: np.ndarray
) -> bool:
    """Write coefficients in zigzag order to `blocks`, zeros of int16 [N, 64]; return whether all are good.

    `data` are the sample's bytes and PADDING more. `ends`, [rows + 1, 5], is its table, and `components` has
    a number for each block of an MCU.
    """
    heads, masks, values = data[starts[0] :], data[starts[1] :], data[starts[2] :]
    extras, escapes, wides = data[starts[3] :], data[starts[4] :], data[starts[5] :]
    num_rows, in_mcu = len(ends) - 1, len(components)
    in_row = len(blocks) // num_rows
    for row in range(num_rows):
        mask_at, value_at, extra_at, escape_at, wide_at = ends[row]
        dc = np.zeros(3, np.int64)
        for i in range(row * in_row, (row + 1) * in_row):
            block, component, head = blocks[i], components[i % in_mcu], int(heads[i])
            difference = _signed(head & 0xF0) >> 4
            if difference == -8:
                difference = _signed(int(escapes[escape_at]))
                escape_at += 1
                if difference == -128:
                    difference = _wide(wides, wide_at)
                    wide_at += 1
            dc[component] += difference
            block[0] = dc[component]
            num = 16 if head & 15 == 15 else head & 15
            for place in range(1, min(4 * num + 1, 64)):
                if not _nibble(masks, mask_at + ((place - 1) >> 2)) >> ((place - 1) & 3) & 1:
                    continue
                nibble = _nibble(values, value_at)
                value_at += 1
                if nibble == 0:
                    block[place] = _signed(int(escapes[escape_at]))
                    escape_at += 1
                elif nibble == 8:
                    block[place] = _wide(wides, wide_at)
                    wide_at += 1
                else:
                    size = nibble & 7
                    if size == 7:
                        size += _nibble(extras, extra_at)
                        extra_at += 1
                    block[place] = -size if nibble & 8 else size
            mask_at += num
            if (i + 1) % in_mcu == 0:
                end = ends[row + 1]
                is_last, at = i + 1 == (row + 1) * in_row, (mask_at, value_at, extra_at, escape_at, wide_at)
                for k in range(5):
                    if at[k] > end[k] or (is_last and at[k] < end[k]):
                        return False
    return True


@njit(cache=True, nogil=True)
def _put(out: np.ndarray, state: np.ndarray, code: int, length: int) -> None:
    """Write a code behind others. `state` has the bytes written, and the bits since and their number."""
    state[1], state[2] = state[1] << length | code, state[2] + length
    while state[2] >= 8:
        state[2] -= 8
        byte = state[1] >> state[2]
        state[1] &= (1 << state[2]) - 1
        out[state[0]] = byte
        state[0] += 1
        if byte == 0xFF:  # which is followed by 0 in a scan
            out[state[0]] = 0
            state[0] += 1


@njit(cache=True, nogil=True)
def encode(
    blocks: np.ndarray, components: np.ndarray, codes: np.ndarray, lengths: np.ndarray, out: np.ndarray
) -> int:
    """Write the scan (T.81, F.1.2) of blocks, int16 [N, 64]; return its bytes, -1 where one has no code."""
    state, last = np.zeros(3, np.int64), np.zeros(3, np.int64)
    for i in range(len(blocks)):
        block, component = blocks[i], components[i % len(components)]
        table, run = min(component, 1), 0
        for place in range(64):
            kind, value = 1 if place else 0, int(block[place])
            if not place:
                value, last[component] = value - last[component], value
            elif not value:
                run += 1
                continue
            while run > 15:
                _put(out, state, codes[table, 1, 0xF0], lengths[table, 1, 0xF0])
                run -= 16
            size, left = 0, abs(value)
            while left:
                size, left = size + 1, left >> 1
            if size > 15 or not lengths[table, kind, run << 4 | size]:
                return -1
            _put(out, state, codes[table, kind, run << 4 | size], lengths[table, kind, run << 4 | size])
            _put(out, state, value if value >= 0 else value + (1 << size) - 1, size)
            run = 0
        if run:
            _put(out, state, codes[table, 1, 0], lengths[table, 1, 0])
    _put(out, state, (1 << (-state[2] % 8)) - 1, -state[2] % 8)
    return int(state[0])
