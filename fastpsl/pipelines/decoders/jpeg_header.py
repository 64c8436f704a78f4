"""The header of a JPEG, for plain Python and for numba, which compiles the function as it stands.

samples.c has the same checks.
"""

import numpy as np

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

    Args:
        buffer: The JPEG; in compiled code also an array of uint8.
        num_bytes: The JPEG's size. Nothing beyond is read.

    Returns:
        (status, height, width, num_components, is_progressive, precision_bits). All but the status are 0
        unless it is HEADER_GOOD.
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
