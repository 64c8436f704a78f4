"""The structure of a JPEG by its bytes: sizes in the header, scans, tables, and whether it is a plain one.

samples.c has the same checks.

libjpeg keeps an image's tables for the next one, so a decoder that is used for many images must know that
each brings its own. turbo.c begins each image anew, and libjpeg itself counts the scans for it.

`decode_plainly` is for images that our C library leaves out. torchcodec is faster, but would be one more
package for a fallback. Pillow hides libjpeg's warnings and refuses truncated files.
"""

import functools
import io
import re
from collections.abc import Callable

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from fastpsl.pipelines.image.host_settings import decoding

# The status of `jpeg_header`.
HEADER_GOOD, HEADER_NOT_JPEG, HEADER_BROKEN, HEADER_UNSUPPORTED = 0, 1, 2, 3
HEADER_REASONS = {
    HEADER_GOOD: "good",
    HEADER_NOT_JPEG: "not a JPEG",
    HEADER_BROKEN: "broken JPEG header",
    HEADER_UNSUPPORTED: "JPEG of a kind that is not decoded (lossless, hierarchical or arithmetic)",
}


def jpeg_header(buffer: "bytes | np.ndarray", num_bytes: int) -> tuple[int, int, int, int, int, int]:
    """Parse a JPEG to its frame header (ITU-T T.81, Annex B); unlike libjpeg, refuse bytes between segments.

    Returned are status, height, width, num_components, is_progressive and precision_bits. All but the status
    are 0 unless it is HEADER_GOOD. Nothing beyond `num_bytes` is read.
    """
    if num_bytes < 4 or buffer[0] != 0xFF or buffer[1] != 0xD8:
        return HEADER_NOT_JPEG, 0, 0, 0, 0, 0
    at = 2
    while at + 4 <= num_bytes:
        if buffer[at] != 0xFF:
            return HEADER_BROKEN, 0, 0, 0, 0, 0
        marker = buffer[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker == 0x01 or 0xD0 <= marker <= 0xDA or marker == 0:  # restart, start or end before any frame
            return HEADER_BROKEN, 0, 0, 0, 0, 0
        length = 256 * buffer[at + 2] + buffer[at + 3]  # of int64 in compiled code, as all sums below
        if length < 2 or at + 2 + length > num_bytes:
            return HEADER_BROKEN, 0, 0, 0, 0, 0
        if 0xC0 <= marker <= 0xCF and marker != 0xC4 and marker != 0xC8 and marker != 0xCC:
            if marker > 0xC2:
                return HEADER_UNSUPPORTED, 0, 0, 0, 0, 0
            if length < 8:
                return HEADER_BROKEN, 0, 0, 0, 0, 0
            precision = 0 + buffer[at + 4]
            height = 256 * buffer[at + 5] + buffer[at + 6]
            width = 256 * buffer[at + 7] + buffer[at + 8]
            components = 0 + buffer[at + 9]
            if height == 0 or width == 0 or length != 8 + 3 * components:
                return HEADER_BROKEN, 0, 0, 0, 0, 0
            return HEADER_GOOD, height, width, components, 1 if marker == 0xC2 else 0, precision
        at += 2 + length
    return HEADER_BROKEN, 0, 0, 0, 0, 0


# The status of `jpeg_scans`.
SCANS_GOOD, SCANS_STANDARD_CODES, SCANS_NO_TABLES, SCANS_TOO_MANY = 0, 1, 2, 3
MAX_SCANS = 500  # turbo.c has the same
SCAN_REASONS = {
    SCANS_NO_TABLES: "a JPEG without tables of its own, which it needs to be decoded",
    SCANS_TOO_MANY: f"a JPEG of more than {MAX_SCANS} scans",
}


def scans_by(find_segment: Callable[..., int]) -> Callable[..., int]:
    """Return `jpeg_scans` for buffers in which `find_segment(buffer, at, num_bytes)` finds the next marker.

    The next marker begins a segment or is the end; its place is -1 where there is none. Fill bytes and
    restarts are passed over.
    """

    def scans(buffer: "bytes | np.ndarray", num_bytes: int) -> int:
        quantisation = huffman = components = num_components = seen = num_scans = 0
        is_progressive = is_arithmetic = is_standard = False
        at = 2
        while at + 4 <= num_bytes:
            at = find_segment(buffer, at, num_bytes)
            if at < 0 or at + 4 > num_bytes:
                break
            marker = int(buffer[at + 1])
            length = 256 * int(buffer[at + 2]) + int(buffer[at + 3])
            end = at + 2 + length
            if marker == 0xD9 or length < 2 or end > num_bytes:
                break
            table = at + 4
            if marker == 0xDB:
                while table < end:
                    quantisation |= 1 << (int(buffer[table]) & 15)
                    table += 129 if buffer[table] >= 16 else 65
            elif marker == 0xC4:
                while table + 17 <= end:
                    huffman |= 1 << (int(buffer[table]) & 31)  # those of AC from bit 16 on
                    num_values = 0
                    for bits in range(1, 17):
                        num_values += int(buffer[table + bits])
                    table += 17 + num_values
            elif 0xC0 <= marker <= 0xCF and marker != 0xC8 and marker != 0xCC:
                num_components = int(buffer[at + 9]) if length >= 8 else 0
                components = at + 10
                if num_components < 1 or num_components > 4 or length != 8 + 3 * num_components or num_scans:
                    break
                is_progressive, is_arithmetic = (marker & 3) == 2, marker > 0xC8
            elif marker == 0xDA:
                num = int(buffer[at + 4])
                if length != 6 + 2 * num or num_components == 0:
                    break
                num_scans += 1
                if num_scans > MAX_SCANS:
                    return SCANS_TOO_MANY
                begins_with_dc, is_refinement = buffer[end - 3] == 0, buffer[end - 1] >= 16
                for i in range(num):
                    name, tables = int(buffer[at + 5 + 2 * i]), int(buffer[at + 6 + 2 * i])
                    for k in range(num_components):
                        is_new = buffer[components + 3 * k] == name and not (seen >> k) & 1
                        if is_new and not (quantisation >> (int(buffer[components + 3 * k + 2]) & 15)) & 1:
                            return SCANS_NO_TABLES
                        seen |= is_new << k
                    needs_dc = not is_arithmetic and (
                        not is_progressive or (begins_with_dc and not is_refinement)
                    )
                    needs_ac = not is_arithmetic and not (is_progressive and begins_with_dc)
                    lacks_dc = needs_dc and not (huffman >> (tables >> 4)) & 1
                    lacks_ac = needs_ac and not (huffman >> (16 + (tables & 15))) & 1
                    if lacks_dc or lacks_ac:
                        if is_progressive or (lacks_dc and tables >= 32) or (lacks_ac and (tables & 15) > 1):
                            return SCANS_NO_TABLES
                        is_standard = True
                if not is_progressive and num_scans == 1 and num == num_components:
                    break  # the only one
            at = end
        return SCANS_STANDARD_CODES if is_standard else SCANS_GOOD

    return scans


# After 0xFF, a scan has 0. No segment follows 1 and 0xD0 to 0xD8, and another 0xFF makes it a fill byte.
_SEGMENT = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")


def _find_segment(jpeg: bytes, at: int, num_bytes: int) -> int:
    found = _SEGMENT.search(jpeg, at, num_bytes)
    return found.start() if found else -1


_scans = scans_by(_find_segment)


def jpeg_scans(jpeg: bytes) -> int:
    """Check a JPEG's scans (ITU-T T.81, Annex B): whether markers are in place. libjpeg judges the rest."""
    return _scans(jpeg, len(jpeg))


@functools.cache
def standard_codes() -> np.ndarray:
    """Return a JPEG's first two bytes and the Huffman tables of T.81, K.3, as uint8.

    They are those that libjpeg writes by default.
    """
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    first, *segments = file.getvalue().split(b"\xff\xc4")
    tables = [b"\xff\xc4" + segment[: int.from_bytes(segment[:2], "big")] for segment in segments]
    return np.frombuffer(first[:2] + b"".join(tables), np.uint8)


_START_OF_SCAN, _END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"


def decode_plainly(data: bytes) -> np.ndarray | None:
    """Return a JPEG as RGB, uint8 [H, W, 3], or None where libjpeg gives up.

    The header must have been checked, because a damaged one can ask for any amount of memory.
    """
    # Pillow may accept a file without an end marker; libjpeg warns.
    if data.rfind(_END_OF_IMAGE) < data.rfind(_START_OF_SCAN) or jpeg_scans(data) in SCAN_REASONS:
        return None
    try:
        # Image.open would look for further images in the file.
        with decoding(), JpegImageFile(io.BytesIO(data)) as image:
            return np.array(image.convert("RGB"))
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001  Pillow's parsers raise nearly anything on damaged files
        return None
