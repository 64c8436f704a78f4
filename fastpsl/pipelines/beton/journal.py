"""The journal of a dataset file that is being written, by which an interrupted writing goes on.

It lies beside the partial file, `.train.beton.journal` for `train.beton`, and is removed when the file is
whole. Each line is a JSON with its CRC-32: first the command, then the images whose bytes are on the disk, in
batches, and the ends of shards. A line is written after the bytes that it speaks of have been synced. So what
the journal holds is true after a loss of power, too. A last line that is torn is dropped.
"""

import json
import os
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fastpsl.files.atomic import PartialFile, sync_folder, write_all

# Both must have passed since the last batch. An interruption costs what was written since then.
EVERY_BYTES, EVERY_S = 16 << 20, 3.0
_MAX_TEXT_BYTES = 1 << 20  # a batch is written when its text is this long, so that memory is bounded
_Entry = dict[str, Any]


def journal_path(out: Path) -> Path:
    """Return .train.beton.journal for train.beton."""
    return out.with_name(f".{out.name}.journal")


def _dumped(entry: object) -> bytes:
    return json.dumps(entry, separators=(",", ":")).encode()


class Journal:
    """The journal of a dataset file, locked against other writers while it is open.

    Attributes:
        command: What the interrupted writing was asked for; None where none was begun.
        num_images: The images that are on the disk, those included that were left out.
        last_name: The name of the last one of the interrupted writing.
        num_whole: The shards of the interrupted writing that are whole.
        is_whole: It had written all images, and only the publication is left.

    Raises:
        ValueError: Another process is writing the same file.
    """

    def __init__(self, out: Path):
        self.file = PartialFile(out, journal_path(out), keep=True)
        self.command: _Entry | None = None
        self.num_images, self.last_name, self.num_whole, self.is_whole = 0, "", 0, False
        self._end, self._pending, self._num_pending, self._num_bytes = 0, bytearray(), 0, 0
        self._last_commit = time.monotonic()
        for num_bytes, entry in self._lines():
            self._end += num_bytes
            self._count(entry)

    def _count(self, entry: _Entry) -> None:
        self.command = entry.get("command", self.command)
        images = entry.get("images", ())
        self.num_images += len(images)
        self.last_name = images[-1][0] if images else self.last_name
        self.num_whole += "shard" in entry
        self.is_whole = self.is_whole or entry.get("is_last", False)

    def _lines(self) -> Iterator[tuple[int, _Entry]]:
        """Yield the length of each sound line and its entry, one line in memory at a time."""
        with open(self.file.partial, "rb") as file:
            for line in file:
                checksum, _, text = line.partition(b" ")
                if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(text):
                    return
                yield len(line), json.loads(text)

    def entries(self) -> Iterator[_Entry]:
        """Yield what was written after the command, as far as it was there when the journal was opened."""
        end, position = self._end, 0
        for num_bytes, entry in self._lines():
            position += num_bytes
            if position > end:
                return
            if "command" not in entry:
                yield entry

    def begin(self, command: _Entry) -> None:
        """Start anew, for this command."""
        os.ftruncate(self.file.fd, 0)
        self._end, self.num_images, self.last_name, self.num_whole, self.is_whole = 0, 0, "", 0, False
        self.command = command
        self._write({"command": command})

    def go_on(self) -> None:
        """Drop a torn last line, and write behind the others."""
        os.ftruncate(self.file.fd, self._end)
        self._last_commit = time.monotonic()

    def add(self, image: list[Any], num_bytes: int) -> bool:
        """Note an image that is done, and return whether it is time for `commit`.

        Args:
            image: Its name, and what `output.py` needs to take it up again.
            num_bytes: The bytes that were written for it.
        """
        self._num_pending += 1
        self._pending += (b"," if self._pending else b"") + _dumped(image)
        self._num_bytes += num_bytes
        return len(self._pending) >= _MAX_TEXT_BYTES or (
            self._num_bytes >= EVERY_BYTES and time.monotonic() - self._last_commit >= EVERY_S
        )

    def commit(self, sync: Callable[[], None]) -> None:
        """Write the images noted so far.

        Args:
            sync: Called before, to bring their bytes to the disk.
        """
        sync()
        if self._pending:
            self._write_text(b'{"images":[%b]}\n' % bytes(self._pending))
            self.num_images += self._num_pending
        self._pending, self._num_pending, self._num_bytes = bytearray(), 0, 0
        self._last_commit = time.monotonic()

    def end_shard(self, report: _Entry, is_last: bool) -> None:
        """Note that a shard is whole, with its counts; all of its images must be committed."""
        self._write({"shard": report, "is_last": is_last})

    def _write(self, entry: _Entry) -> None:
        self._write_text(_dumped(entry) + b"\n")

    def _write_text(self, text: bytes) -> None:
        line = b"%08x %b" % (zlib.crc32(text), text)
        write_all(self.file.fd, line, self._end)
        os.fsync(self.file.fd)
        if self._end == 0:
            sync_folder(self.file.partial.parent)
        self._end += len(line)

    @property
    def holds_images(self) -> bool:
        """Whether there is something to go on with."""
        return self.num_images > 0

    def close(self) -> None:
        self.file.close()

    def discard(self) -> None:
        self.file.discard()
