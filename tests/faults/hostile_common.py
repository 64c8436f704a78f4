"""What attacks have in common."""

from collections.abc import Callable
from pathlib import Path

Payload = Callable[[Path], object]  # changes the sound file at a path, or what lies beside it
Attack = tuple[str, str, Payload]  # the gate's name, what it tries, and how

ESCAPES = "\x1b[2J\x1b]0;owned\x07\x9b31m\r"
MARKUP = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>"
# Far more than the limit of memory, in far less than that on the disk.
BOMB_BYTES = 1 << 29
DEEP = "[" * 200_000
DIGITS = "9" * 5000


def text(*parts: str | bytes) -> Payload:
    """The file is this, whatever it was."""
    data = b"".join(
        part if isinstance(part, bytes) else part.encode("utf-8", "surrogateescape") for part in parts
    )

    return lambda path: path.write_bytes(data)
