"""Large pictures share a bound on memory: however many threads there are, they do not all hold one at the same time."""

import contextlib
import threading
from collections.abc import Iterator

# What a picture takes at most, from its decoding to its JPEG: WebP 15, a progressive CMYK JPEG 12, RGBA 7, 16-bit grey 5 (measured).
BYTES_PER_PIXEL = 16
LARGE_PIXELS = 1 << 23  # smaller ones do not wait: 134 MB a thread at most
TOGETHER_BYTES = 4 << 30


class LargePictures:
    """Lets pictures in as long as all that are within take `limit_bytes`; one that takes more by itself goes in alone."""

    def __init__(self, limit_bytes: int = TOGETHER_BYTES) -> None:
        self._limit_bytes, self._held_bytes = limit_bytes, 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def room_for(self, num_pixels: int) -> Iterator[None]:
        """Waits for those within: what they do is arithmetic on bytes that are there, so none of them hangs."""
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
