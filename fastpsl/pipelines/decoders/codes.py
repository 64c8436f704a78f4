"""The status codes of decoded samples, the same for every decoder, and their texts."""

import errno

import numpy as np

# Plain integers, because compiled code reads them.
READING = -1  # a thread reads the sample now; below it a code is READING - errno: the system's error
NOT_READ = READING - errno.EIO
GOOD = 0
SHORT_READ = 1
NOT_JPEG = 2
WRONG_SIZE = 3
WRONG_COMPONENTS = 4
CORRUPT = 5
BAD_BOX = 6
RAW_SIZE = 7
BAD_MODE = 8
CHANGED = 9
BAD_FILE = 10
OTHER_VERSION = 11

# The resampling, the fifth number of a box: AREA is the mean of the area under each pixel. The others are
# ISOTROPIC and DIAGONAL (kernels/isotropic.py: upright or turned by 45 degrees).
AREA = 0

REASONS: dict[int, str] = {
    SHORT_READ: "truncated read: the file ends before the sample does",
    NOT_JPEG: "not a JPEG",
    WRONG_SIZE: "the JPEG header's size is not the table's",
    WRONG_COMPONENTS: "a JPEG of neither 1 nor 3 components (CMYK is converted at writing)",
    CORRUPT: "libjpeg error or warning while decoding",
    BAD_BOX: "the crop lies outside of the image",
    RAW_SIZE: "raw pixels of another size than height x width x 3",
    BAD_MODE: "neither a JPEG, packed coefficients nor raw pixels by the table",
    CHANGED: "the file is not as it was when the folder was listed",
    BAD_FILE: "no image that can be read",
    OTHER_VERSION: "coefficients packed by another version of fastpsl; update it, or write the file again",
}


def check_request(
    boxes: list[np.ndarray], outs: list[np.ndarray], num: int, has_windows: bool = False
) -> None:
    """Assert the invariants of a decode call, which hold for any user data.

    With `has_windows`, isotropic views may have no images, because a device crops all of them.
    """
    assert len(boxes) == len(outs), (len(boxes), len(outs))
    for box, out in zip(boxes, outs, strict=True):
        assert box.shape == (num, 5) and box.dtype == np.int32, (box.shape, box.dtype)
        assert out.shape[0] == num or (has_windows and box[:, 4].all() and not len(out)), (out.shape, num)
        assert out.shape[3] == 3 and out.dtype == np.uint8, (out.shape, out.dtype)
        assert out.shape[1] == out.shape[2] and out.flags.c_contiguous, (out.shape, out.strides)
