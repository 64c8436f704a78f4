"""The parts that all attacks share."""

from collections.abc import Callable
from pathlib import Path

Payload = Callable[[Path], object]  # changes the sound file at a path, or a file beside it
Attack = tuple[str, str, Payload]  # the gate's name, the attack in words, and the attack

ESCAPES = "\x1b[2J\x1b]0;owned\x07\x9b31m\r"
MARKUP = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>"
# Far above the memory limit when unpacked, far below it on the disk.
BOMB_BYTES = 1 << 29
DEEP = "[" * 200_000
DIGITS = "9" * 5000


def text(*parts: str | bytes) -> Payload:
    """Return an attack that replaces the file by these parts."""
    data = b"".join(
        part if isinstance(part, bytes) else part.encode("utf-8", "surrogateescape") for part in parts
    )

    return lambda path: path.write_bytes(data)


def text_attacks(gate: str, contents: dict[str, str | bytes]) -> list[Attack]:
    """Return, for each named content, an attack that replaces a gate's file by it."""
    return [(gate, name, text(content)) for name, content in contents.items()]
