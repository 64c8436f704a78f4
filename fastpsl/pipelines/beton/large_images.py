"""A memory bound that the threads which handle large images share."""

import contextlib
import threading
from collections.abc import Iterator

# The most that an image takes from decoding to JPEG. Measured: JPEG 2000 with alpha 25, WebP 16, AVIF and
# a progressive CMYK JPEG 12, HEIC 10, RGBA 7, 16-bit grey and GIF 5.
BYTES_PER_PIXEL = 25
LARGE_PIXELS = 1 << 23  # smaller images do not wait: 210 MB per thread at most
TOGETHER_BYTES = 4 << 30


class LargeImages:
    """A gate that admits large images up to `limit_bytes` together; one that takes more goes in alone."""

    def __init__(self, limit_bytes: int = TOGETHER_BYTES) -> None:
        self._limit_bytes, self._held_bytes = limit_bytes, 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def room_for(self, num_pixels: int) -> Iterator[None]:
        """Wait for room, and hold it during the block.

        Those inside only compute on bytes in memory, so the wait ends.
        """
        num_bytes = num_pixels * BYTES_PER_PIXEL if num_pixels > LARGE_PIXELS else 0
        if not num_bytes:
            yield
            return
        with self._changed:
            self._changed.wait_for(
                lambda: not self._held_bytes or self._held_bytes + num_bytes <= self._limit_bytes
            )
            self._held_bytes += num_bytes
        try:
            yield
        finally:
            with self._changed:
                self._held_bytes -= num_bytes
                self._changed.notify_all()
