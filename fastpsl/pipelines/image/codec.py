"""A decoder and encoder of whole JPEGs for plain Python, by our C library."""

import ctypes

import numpy as np

from fastpsl.pipelines.image.coefficients import PADDING
from fastpsl.pipelines.image.libturbo import Handle, library, why_missing

_MAX_KEPT_BYTES = 3 << 23  # larger buffers are freed after each image


class Codec:
    """A decoder and encoder of whole images for plain Python; every call releases the GIL.

    Use one per thread: the next call of the same method overwrites the result. (Fresh arrays of this size are
    mapped and cleared page by page each time, which takes 0.1 to 1 ms per image.)
    """

    def __init__(self) -> None:
        self._library, self._handle = library(), Handle()
        self._buffers: dict[str, np.ndarray] = {}

    def _buffer(self, use: str, num_bytes: int) -> np.ndarray:
        if num_bytes > _MAX_KEPT_BYTES:
            return np.empty(num_bytes, np.uint8)
        buffer = self._buffers.get(use)
        if buffer is None or len(buffer) < num_bytes:
            buffer = self._buffers[use] = np.empty(num_bytes, np.uint8)
        return buffer[:num_bytes]

    def decode(
        self, jpeg: bytes, height: int, width: int, denominator: int = 1, *, to_shrink: bool = False
    ) -> tuple[np.ndarray, bool]:
        """Decode to RGB at 1 / 1, 2, 4 or 8. At full size the pixels are Pillow's, bit for bit.

        Returned are uint8 [h, w, 3], with sides rounded up, and whether libjpeg had neither error nor
        warning. An image `to_shrink` will be halved at least, so its colours need no interpolation.
        """
        rows, columns = -(-height // denominator), -(-width // denominator)
        out = self._buffer("decode", rows * columns * 3)
        status = self._decode(jpeg, height, width, denominator, not to_shrink, (0, 0, rows, columns), out)
        return out.reshape(rows, columns, 3), status == 0

    def decodes_cleanly(self, jpeg: bytes, height: int, width: int) -> bool:
        """Return whether `decode` has neither error nor warning, at half its price.

        All errors and warnings come from the entropy decoder, so the other steps are left out but for the
        last row.
        """
        out = self._buffer("check", 3 * width)
        return self._decode(jpeg, height, width, 1, True, (height - 1, 0, 1, width), out) == 0

    def unpacks_cleanly(self, sample: bytes, height: int, width: int) -> bool:
        """Return whether packed coefficients are those of an image of that size."""
        out = self._buffer("decode", height * width * 3)
        return self._decode(sample, height, width, 1, True, (0, 0, height, width), out, is_packed=True) == 0

    def _decode(
        self, jpeg: bytes, height: int, width: int, denominator: int, is_smooth: bool,
        region: tuple[int, int, int, int], out: np.ndarray, is_packed: bool = False,
    ) -> int:  # fmt: skip
        wanted, placed = np.array(region, np.int64), np.empty(4, np.int64)
        padded = jpeg + bytes(PADDING) if is_packed else jpeg
        status: int = self._library.fastpsl_turbo_decode(
            self._handle.address, padded, len(jpeg), height, width, denominator, is_smooth, is_packed,
            wanted.ctypes.data, out.ctypes.data, placed.ctypes.data,
        )  # fmt: skip
        return status

    def encode(self, image: np.ndarray, quality: int) -> bytes | None:
        """Encode contiguous uint8 [H, W, 3] as a baseline JPEG, 4:2:0, with the accurate DCT, as Pillow does.

        None is returned if libjpeg fails, as for a side longer than 65,500 px.
        """
        assert image.dtype == np.uint8 and image.flags.c_contiguous and image.size
        rows, columns = image.shape[:2]
        out = self._buffer("encode", _encoded_bytes(rows, columns))
        num_bytes: int = self._library.fastpsl_turbo_encode(
            self._handle.address, image.ctypes.data, rows, columns, quality, out.ctypes.data, len(out)
        )
        return out[:num_bytes].tobytes() if num_bytes else None

    def shrink_jpeg(
        self, jpeg: bytes, height: int, width: int, quality: int, denominator: int = 1
    ) -> bytes | None:
        """Shrink a JPEG of luma and colours to one like those of `encode`, by exact means over areas.

        Colours that are stored at half the size are neither enlarged nor converted, so this is faster than
        `decode`, `shrink` and `encode`, and loses less.
        """
        out = self._buffer("encode", _encoded_bytes(height, width))
        num_bytes: int = self._library.fastpsl_turbo_shrink(
            self._handle.address, jpeg, len(jpeg), denominator, height, width, quality, out.ctypes.data,
            len(out),
        )  # fmt: skip
        return out[:num_bytes].tobytes() if num_bytes else None

    def pack(self, jpeg: bytes) -> bytes | None:
        """Pack a JPEG's coefficients (decoders/coefficients.h).

        None is returned where libjpeg finds an error or warns, or where they cannot be packed: CMYK, 12 bits,
        values that no baseline JPEG has, progressive JPEGs without all of their scans.
        """
        out = ctypes.c_void_p()
        num_bytes: int = self._library.fastpsl_coefficients_pack(
            self._handle.address, jpeg, len(jpeg), ctypes.byref(out)
        )
        return ctypes.string_at(out.value, num_bytes) if num_bytes and out.value else None


def _encoded_bytes(height: int, width: int) -> int:
    """Return the most bytes of a JPEG that `Codec` makes."""
    return 3 * (height + 16) * (width + 16) + 2048


def shrink(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Shrink a whole image, uint8 [H, W, 3], by exact means over areas, without holding the GIL.

    An image that has that size is returned itself.
    """
    assert image.dtype == np.uint8 and 0 < height <= image.shape[0] and 0 < width <= image.shape[1]
    rows, columns = image.shape[:2]
    if (rows, columns) == (height, width):
        return image
    out = np.empty((height, width, 3), np.uint8)
    if why_missing():
        from fastpsl.pipelines.image.area import area_resize  # imports numba

        # Contiguous and writable, so that numba compiles a single variant.
        pixels = np.require(image, requirements=("C", "W")).reshape(-1)
        area_resize(pixels, rows, columns, 0.0, 0.0, float(rows), float(columns), out)
        return out
    image = np.ascontiguousarray(image)
    box = (0.0, 0.0, float(rows), float(columns))
    status = library().fastpsl_area_resize(
        image.ctypes.data, 3 * columns, *box, out.ctypes.data, height, width
    )
    if status:
        raise MemoryError(f"no memory to shrink {columns} x {rows} px")
    return out
