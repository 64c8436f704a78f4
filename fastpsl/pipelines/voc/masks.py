"""Class masks of PASCAL VOC (palette PNGs) and of SBD (MATLAB files): uint8 [h, w], 0 background, 255 void.

benchmark_RELEASE/dataset/{img/*.jpg,cls/*.mat,train.txt,val.txt}    SBD, Hariharan et al. (2011)
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from fastpsl.pipelines.voc.matlab import read_mat

VOID = 255


def palette() -> np.ndarray:
    """Return VOC's colours of the class numbers, uint8 [256, 3].

    Bits 0, 1 and 2 of a number are the highest bits of red, green and blue. The next three bits are the
    second highest, and so on.
    """
    colours = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        shifted = np.arange(256) >> (3 * bit)
        for channel in range(3):
            colours[:, channel] |= (((shifted >> channel) & 1) << (7 - bit)).astype(np.uint8)
    return colours


def mask_png(mask: np.ndarray) -> bytes:
    """Return a mask, uint8 [h, w], as a PNG in VOC's palette."""
    image, data = Image.fromarray(mask, "P"), io.BytesIO()
    image.putpalette(palette().tobytes())
    image.save(data, format="PNG")
    return data.getvalue()


def read_mask(path: Path, data: bytes, num_classes: int, size: tuple[int, int]) -> np.ndarray:
    """Return the class numbers of a mask file, uint8 [h, w].

    Args:
        path: The file, for messages; .mat is SBD's format.
        data: Its contents.
        num_classes: The number of classes without the background.
        size: (height, width) of the image in px.

    Raises:
        ValueError: The file cannot be read, is no palette PNG, has another size, or has a number of no class.
    """
    mask = _sbd(path, data) if path.suffix == ".mat" else _png(path, data)
    if mask.shape != size:
        raise ValueError(
            f"{path}: has {mask.shape[1]} x {mask.shape[0]} px, "
            f"and the image {size[1]} x {size[0]} (upright); give the mask of this image"
        )
    numbers = np.flatnonzero(np.bincount(mask.ravel(), minlength=256))
    unknown = numbers[(numbers > num_classes) & (numbers != VOID)]
    if len(unknown):
        raise ValueError(
            f"{path}: holds the number {unknown[0]}, which is no class; "
            f"allowed are 0 (background), 1 to {num_classes} and {VOID} (void)"
        )
    return mask


def _png(path: Path, data: bytes) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if image.mode not in ("P", "L"):
                raise ValueError(
                    f"{path}: is a PNG of kind {image.mode}; "
                    f"give one with a palette, whose indices are the classes' numbers"
                )
            return np.array(image)
    # Pillow raises SyntaxError for a broken PNG.
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: cannot be read as a PNG ({error}); extract it again") from None


def _sbd(path: Path, data: bytes) -> np.ndarray:
    try:
        arrays = read_mat(data, ("GTcls",))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    try:
        mask = arrays["GTcls"]["Segmentation"][0, 0]
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(
            f"{path}: no GTcls.Segmentation is in it ({' '.join(str(error).split())}); extract it again"
        ) from None
    mask = np.asarray(mask)
    if mask.ndim != 2 or mask.dtype != np.uint8:
        raise ValueError(
            f"{path}: GTcls.Segmentation is {mask.dtype} {list(mask.shape)}; SBD's are uint8 [h, w]"
        )
    return mask
