"""Packed coefficients of a JPEG, and the JPEG made of them again; decoders/coefficients.h has their layout.

The C library packs them, because libjpeg must read the JPEG, and decodes them for the `turbo` decoder. What
is here needs no compiler, and serves all others: they decode the JPEG.
"""

from functools import cache

import numpy as np

from fastpsl.pipelines.image.jpeg import HEADER_GOOD, jpeg_header, standard_codes
from fastpsl.pipelines.interface.dataset import BadImage

VERSION = 1
_ALIGNMENT = 16
PADDING = 2048  # more than an MCU takes, whose end is checked after it
_STREAMS = 6
_ROW = np.dtype([(name, "<u4") for name in ("masks", "values", "extras", "escapes", "wides")])
_JFIF = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"


class OtherVersion(BadImage):
    """An error of coefficients that are packed by another layout."""


def to_jpeg(sample: bytes, height: int, width: int) -> bytes:
    """Return the baseline JPEG of packed coefficients: with them, with their tables, and with their pixels.

    Raises BadImage where they are damaged or of another size, or OtherVersion.
    """
    # The size comes first, because that in a damaged header asks for any amount of memory.
    is_of_size = jpeg_header(sample, len(sample))[:3] == (HEADER_GOOD, height, width)
    if not is_of_size or (jpeg := _to_jpeg(sample, height, width)) is None:
        raise BadImage("packed coefficients that are damaged")
    return jpeg


def _to_jpeg(sample: bytes, height: int, width: int) -> bytes | None:
    segments = _segments(sample)
    if segments is None:
        return None
    kept, end, sampling = segments
    at = _aligned(end)
    if at + 8 > len(sample):
        return None
    version, num_rows = np.frombuffer(sample, "<u4", 2, at).tolist()
    if version != VERSION:
        raise OtherVersion(
            f"coefficients packed by version {version} of their layout, and this fastpsl reads {VERSION}; "
            "update it, or write the file again"
        )
    most = np.array(sampling).max(0)
    rows, columns = -(-height // (8 * most[0])), -(-width // (8 * most[1]))
    components = np.repeat(np.arange(len(sampling)), [down * across for down, across in sampling])
    at = _aligned(at + 8)
    after = at + (num_rows + 1) * _ROW.itemsize
    if num_rows != rows or after > len(sample):
        return None
    table = np.frombuffer(sample, _ROW, num_rows + 1, at)
    sizes = [int(rows * columns * len(components)), *(-(-int(table[-1][k]) // 2) for k in range(3))]
    sizes += [int(table[-1]["escapes"]), 2 * int(table[-1]["wides"])]
    starts = np.empty(_STREAMS, np.int64)
    for i, size in enumerate(sizes):
        starts[i] = _aligned(after)
        after = int(starts[i]) + size
    if after != len(sample):
        return None
    ends = np.stack([table[name] for name in _ROW.names or ()], 1).astype(np.int64)
    if (np.diff(ends, axis=0) < 0).any():
        return None
    blocks = np.zeros((sizes[0], 64), np.int16)
    from fastpsl.pipelines.image.coefficients_loops import encode, unpack  # imports numba

    if not unpack(np.frombuffer(sample + bytes(PADDING), np.uint8), starts, ends, components, blocks):
        return None
    # A value takes 31 bits at most, a block has three codes for zeros, and a byte may be stuffed.
    out = np.empty(16 * sizes[0] + 8 * int(ends[-1, 1]) + 64, np.uint8)
    num = encode(blocks, components, *_huffman_codes(), out)
    if num < 0:
        return None
    num_components = len(sampling)
    scan = bytes([num_components, *(byte for i in range(num_components) for byte in (i + 1, 17 * min(i, 1)))])
    start_of_scan = b"\xff\xda" + (len(scan) + 5).to_bytes(2, "big") + scan + b"\0\x3f\0"
    return b"".join([kept, standard_codes().tobytes()[2:], start_of_scan, out[:num].tobytes(), b"\xff\xd9"])


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT


def _segments(sample: bytes) -> tuple[bytes, int, list[tuple[int, int]]] | None:
    """Return a JPEG's start and the segments that it shares with a sample, and where the sample's end.

    The last are the (vertical, horizontal) sampling factors of its components. None is returned where a good
    header is followed by something else than a sample's tables.
    """
    kept, sampling, at, is_rgb = b"", list[tuple[int, int]](), 2, False
    while at + 4 <= len(sample) and sample[at] == 0xFF:
        marker, end = sample[at + 1], at + 2 + int.from_bytes(sample[at + 2 : at + 4], "big")
        if marker == 0xDA:
            num_blocks = sum(down * across for down, across in sampling)
            if len(sampling) not in (1, 3) or not len(sampling) <= num_blocks <= 10 or end > len(sample):
                return None
            return b"\xff\xd8" + (b"" if is_rgb else _JFIF) + kept, end, sampling
        is_rgb |= marker == 0xEE
        if marker in (0xC0, 0xC1):
            sampling = [(f & 15, f >> 4) for f in sample[at + 11 : end : 3]]
            if any(not (1 <= down <= 4 and 1 <= across <= 4) for down, across in sampling):
                return None
            if len(sampling) == 1:
                sampling = [(1, 1)]
        elif marker not in (0xEE, 0xDB, 0xC4):
            return None
        if marker != 0xC4:
            kept += sample[at:end]
        at = end
    return None


@cache
def _huffman_codes() -> tuple[np.ndarray, np.ndarray]:
    """Return T.81's standard codes and their lengths, int64 [2, 2, 256]: of luma and colours, DC and AC."""
    codes, lengths = np.zeros((2, 2, 256), np.int64), np.zeros((2, 2, 256), np.int64)
    data, at = standard_codes().tobytes(), 2
    while at < len(data):
        place, code, values = data[at + 4], 0, at + 21
        table = place & 15, place >> 4
        for length in range(1, 17):
            for _ in range(data[at + 4 + length]):
                codes[table][data[values]], lengths[table][data[values]] = code, length
                code, values = code + 1, values + 1
            code <<= 1
        at = values
    return codes, lengths
