"""JPEG to RGB without libffcv: by torchvision, or by Pillow where torchvision has no decoder.

torchvision 0.29 has deprecated its decoders; they will be removed. Of a 400 x 533 photo: torchvision 0.50 ms, Pillow 0.72.
Both keep libjpeg's warnings to themselves, and refuse what is cut off.
"""

import functools
import io
import warnings
from collections.abc import Callable

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

_START_OF_SCAN, _END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"

Decode = Callable[[bytes], np.ndarray | None]


@functools.cache
def plain_decoder() -> Decode:
    """A JPEG's bytes to RGB, uint8 [H, W, 3], or None where libjpeg gives up; many threads may call it.

    Its header must have been checked: a damaged one asks for any amount of memory.
    """
    # Nothing that a user could do, and said at each call; for good, as a filter for a while is not safe in threads.
    warnings.filterwarnings("ignore", message="The image decoding and encoding capabilities of TorchVision")
    try:
        decode = _by_torchvision()
        sample = io.BytesIO()
        Image.new("RGB", (8, 8)).save(sample, "JPEG")
        return decode if decode(sample.getvalue()) is not None else by_pillow
    except (ImportError, AttributeError):  # torchvision without it, or built without libjpeg
        return by_pillow


def _by_torchvision() -> Decode:
    import torch  # late: where libffcv decodes, writing a beton needs no torch, whose import takes seconds
    from torchvision.io import ImageReadMode, decode_jpeg

    def by_torchvision(data: bytes) -> np.ndarray | None:
        try:
            planes = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
        except RuntimeError:
            return None
        return planes.permute(1, 2, 0).contiguous().numpy()

    return by_torchvision


def by_pillow(data: bytes) -> np.ndarray | None:
    """What `plain_decoder` gives where torchvision has no decoder."""
    if data.rfind(_END_OF_IMAGE) < data.rfind(
        _START_OF_SCAN
    ):  # Pillow may be content without; libjpeg is not
        return None
    try:
        with JpegImageFile(
            io.BytesIO(data)
        ) as image:  # not Image.open: that looks for more pictures in the file
            return np.asarray(image.convert("RGB"))
    except Exception:  # noqa: BLE001  Pillow's parsers raise nearly anything on nonsense
        return None
