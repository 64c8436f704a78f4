"""A decoder and encoder of whole JPEGs for plain Python: libffcv through ctypes, which releases the GIL."""

import ctypes

import numpy as np

from fastpsl.pipelines.decoders.libffcv import (
    ACCURATE_DCT,
    FAST_DCT,
    FAST_UPSAMPLING,
    NO_REALLOC,
    RGB,
    Handle,
    library,
)

_MAX_KEPT_BYTES = 3 << 23  # larger buffers are freed after each image


class Codec:
    """A decoder and encoder of whole images for plain Python; every call releases the GIL.

    Use one per thread: the next call of the same method overwrites the result. (Fresh arrays of this size are
    mapped and cleared page by page each time, which takes 0.1 to 1 ms per image.)
    """

    def __init__(self) -> None:
        self._library = library()
        self._buffers: dict[str, np.ndarray] = {}
        self._compressor, self._decompressor = Handle("tjInitCompress"), Handle("tjInitDecompress")

    @property
    def reaches_turbojpeg(self) -> bool:
        """Return whether libffcv gives access to libturbojpeg, which alone decodes accurately and encodes."""
        return bool(self._compressor.address and self._decompressor.address)

    def _buffer(self, use: str, num_bytes: int) -> np.ndarray:
        if num_bytes > _MAX_KEPT_BYTES:
            return np.empty(num_bytes, np.uint8)
        buffer = self._buffers.get(use)
        if buffer is None or len(buffer) < num_bytes:
            buffer = self._buffers[use] = np.empty(num_bytes, np.uint8)
        return buffer[:num_bytes]

    def decode(
        self,
        jpeg: bytes,
        height: int,
        width: int,
        denominator: int = 1,
        *,
        accurate: bool = False,
        to_shrink: bool = False,
    ) -> tuple[np.ndarray, bool]:
        """Decode to RGB as `decode_into` does, or exactly as Pillow does.

        Args:
            jpeg: The JPEG.
            height: The height in its header.
            width: The width in its header.
            denominator: The divisor of the size, 1, 2, 4 or 8.
            accurate: Whether by the accurate DCT, which costs 3 % more: at full size the pixels are then
                Pillow's. Needs `reaches_turbojpeg`.
            to_shrink: Whether the image will be halved at least, so that colour needs no interpolation: 0.38
                ms instead of 0.49 for 400 x 533 px.

        Returns:
            uint8 [h, w, 3] with sides rounded up, and whether libjpeg had neither error nor warning.
        """
        rows, columns = -(-height // denominator), -(-width // denominator)
        out = self._buffer("decode", rows * columns * 3)
        if self._decompressor.address:
            flags = ACCURATE_DCT if accurate else FAST_DCT
            flags |= FAST_UPSAMPLING if to_shrink else NO_REALLOC
            status = self._library.tjDecompress2(
                self._decompressor.address, jpeg, len(jpeg), out.ctypes.data, columns, 0, rows, RGB, flags
            )
        else:
            assert not accurate
            whole = (height, width, 0, 0, 1, denominator, False, False)
            status = self._library.imdecode(jpeg, len(jpeg), height, width, out.ctypes.data, *whole)
        return out.reshape(rows, columns, 3), status == 0

    def encode(self, image: np.ndarray, quality: int) -> bytes | None:
        """Encode an image as a baseline JPEG, 4:2:0, with the accurate DCT.

        Args:
            image: Contiguous uint8 [H, W, 3].
            quality: libjpeg's quality, 1 to 100.

        Returns:
            The JPEG, or None if libffcv gives no access to libturbojpeg or that fails.
        """
        if not self._compressor.address:
            return None
        assert image.dtype == np.uint8 and image.flags.c_contiguous and image.size
        rows, columns = image.shape[:2]
        subsampling = 2  # 4:2:0
        capacity = self._library.tjBufSize(columns, rows, subsampling)
        out = self._buffer("encode", capacity)
        address, size = ctypes.c_void_p(out.ctypes.data), ctypes.c_ulong(capacity)
        status = self._library.tjCompress2(
            self._compressor.address, image.ctypes.data, columns, 0, rows, RGB,
            ctypes.byref(address), ctypes.byref(size), subsampling, quality, NO_REALLOC | ACCURATE_DCT,
        )  # fmt: skip
        return out[: size.value].tobytes() if status == 0 else None
