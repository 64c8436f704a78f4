"""The files of one writing: its dataset file or its shards in turn, their JSONs, and the journal.

A dataset file is written under its partial name, as are all shards, until the last one is whole. How many
there are is known only then. `take` adds an image. `take_again` does so with the images of an interrupted
writing, by the journal: their bytes are read from the partial file and checked, so everything that follows
from them (the tables, checksums and counts) becomes what it was. Shards that are whole are not read again.

The journal lies beside the partial file, `.train.beton.journal` for `train.beton`, and is removed when the
file is whole. Each line is a JSON with its CRC-32: first the command, then the images whose bytes are on
the disk, in batches, and the ends of shards.
"""

import csv
import glob
import io
import json
import os
import re
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastpsl.console.progress import operation
from fastpsl.files import atomic
from fastpsl.pipelines.beton.encode import Stored
from fastpsl.pipelines.beton.file import BetonFile, rows_in_a_page
from fastpsl.pipelines.beton.shard import COEFFICIENTS
from fastpsl.pipelines.beton.sidecar import PathPacker, Sidecar, dump_sidecar, read_sidecar, sidecar_path
from fastpsl.pipelines.interface.source import BAD, SMALL, Tally


def bad_path(out: Path) -> Path:
    """Return train.beton.bad.csv for train.beton."""
    return out.with_name(out.name + ".bad.csv")


def small_path(out: Path) -> Path:
    """Return train.beton.small.csv for train.beton."""
    return out.with_name(out.name + ".small.csv")


def left_out_before(records: Sequence[dict[str, Any]]) -> Tally:
    """Return how many images were left out when files were written, by the `written` of their JSONs."""
    sources, tally = set[tuple[str, str]](), Tally()
    for record in records:
        counts = {BAD: record.get("num_bad"), SMALL: record.get("num_small")}
        source = (str(record.get("source")), str(record.get("split")))
        if source not in sources and isinstance(record.get("left_out"), dict):
            sources.add(source)  # once, because all shards of a source have the same counts
            counts |= record["left_out"]
        tally.counts.update({kind: num for kind, num in counts.items() if type(num) is int and num > 0})
    return tally


class LeftOut:
    """A CSV of images that are left out, with the reasons; the file appears with its first image."""

    def __init__(self, path: Path):
        self._path, self._offset = path, 0
        self._file: atomic.PartialFile | None = None
        self.num, self.first = 0, ""  # the number of images; the first one and its reason, in one line

    def add(self, name: str, reason: str) -> None:
        """Add an image."""
        self.num += 1
        self.first = self.first or " ".join(f"{name}: {reason}".split())
        if self._file is None:
            self._file = atomic.PartialFile(self._path)
            self._write("path", "reason")
        # "./" leaves the path the same, and keeps spreadsheets from taking it for a formula.
        self._write(f"./{name}" if name.startswith(("=", "+", "-", "@", "\t", "\r")) else name, reason)

    def _write(self, *cells: str) -> None:
        assert self._file is not None
        line = io.StringIO()
        csv.writer(line, quoting=csv.QUOTE_ALL, lineterminator="\n").writerow(cells)
        data = line.getvalue().encode("utf-8", "surrogateescape")
        atomic.write_all(self._file.fd, data, self._offset)
        self._offset += len(data)

    def publish(self) -> None:
        if self._file:
            self._file.publish()
        else:
            self._path.unlink(missing_ok=True)  # from an older run

    def discard(self) -> None:
        if self._file:
            self._file.discard()


# Both must have passed since the last batch, because each waits for the disk. An interruption costs what was
# written since then: 3 s of a fast writing, or 16 MiB of a slow one (not measured).
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
        command: The options and the source of the interrupted writing; None where no writing was begun.
        num_images: The number of images that are on the disk or were left out.
        last_name: The name of the last of these images.
        num_whole: The number of whole shards.
        is_whole: Whether all images are written, so that only the files' final names are missing.
    """

    def __init__(self, out: Path):
        self.file = atomic.PartialFile(out, journal_path(out), keep=True)  # its lines are read below
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
                    return  # torn by a kill or a loss of power; none follows it
                yield len(line), json.loads(text)

    def entries(self) -> Iterator[_Entry]:
        """Yield what was written after the command, as far as it was there when the journal was opened."""
        end, position = self._end, 0  # kept, because lines are added while these are read
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
        """Note an image by its name and the record for `take_again`. Return whether `commit` is due."""
        self._num_pending += 1
        self._pending += (b"," if self._pending else b"") + _dumped(image)
        self._num_bytes += num_bytes
        return len(self._pending) >= _MAX_TEXT_BYTES or (
            self._num_bytes >= EVERY_BYTES and time.monotonic() - self._last_commit >= EVERY_S
        )

    def commit(self, sync: Callable[[], None]) -> None:
        """Write the images noted so far, after `sync` has brought their bytes to the disk."""
        sync()  # first, so that what the journal holds is true after a loss of power, too
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
        atomic.write_all(self.file.fd, line, self._end)
        os.fsync(self.file.fd)  # each, because none may follow one that is torn (`_lines`)
        if self._end == 0:  # the journal's name must be on the disk, too
            atomic.sync_folder(self.file.partial.parent)
        self._end += len(line)

    @property
    def holds_images(self) -> bool:
        """Whether there is something to go on with."""
        return self.num_images > 0

    def leave(self) -> None:
        """Close the journal, and remove one that holds nothing."""
        if self.holds_images:
            self.file.close()
        else:
            self.file.discard()


_NUMBER = "-[0-9][0-9][0-9][0-9][0-9]-of-"


@dataclass
class WriteReport:
    """The outcome of writing; its counts add up to the number of images."""

    num_samples: int = 0
    num_passed: int = 0  # byte for byte, or with their coefficients
    num_encoded: int = 0
    num_mended: int = 0  # encoded again because libjpeg warned, though Pillow could read them
    num_bad: int = 0
    num_clipped: int = 0  # of num_encoded, those with values outside of the range
    num_clipped_values: int = 0
    num_coefficients: int = 0  # of the samples, those that are packed coefficients
    num_small: int = 0  # left out, because the shorter side is below the target's min_px
    first_bad: str = ""  # the first bad image and its fault
    first_small: str = ""  # the first image that was too small and its size
    num_bytes: int = 0
    seconds: float = 0.0
    num_shards: int = 1
    num_before: int = 0  # of num_samples, those that an interrupted run had written

    def counts(self) -> dict[str, int]:
        """Return the counts of one file for its JSON."""
        names = (
            "samples", "passed", "encoded", "mended", "bad", "small", "clipped", "clipped_values",
            "coefficients", "bytes",
        )  # fmt: skip
        return {f"num_{name}": getattr(self, f"num_{name}") for name in names}


def shard_path(out: Path, index: int, num_shards: int | None = None) -> Path:
    """Return train-00000-of-00003.beton for train.beton; with "xxxxx" while their number is not known."""
    of = "xxxxx" if num_shards is None else f"{num_shards:05}"
    return out.with_name(f"{out.stem}-{index:05}-of-{of}{out.suffix}")


def whole_of(shard: Path) -> Path:
    """Return train.beton for a shard whose number of shards is not known yet, or for itself."""
    return shard.with_name(re.sub(r"-[0-9]{5}-of-xxxxx(?=(\.[^.]*)?$)", "", shard.name))


def shards_of(out: Path) -> list[Path]:
    """Return the whole shards of `out` that are there."""
    pattern = f"{glob.escape(out.stem)}{_NUMBER}[0-9][0-9][0-9][0-9][0-9]{glob.escape(out.suffix)}"
    return sorted(out.parent.glob(pattern))


def unfinished(out: Path) -> list[Path]:
    """Return what a killed writing has left under hidden names, but for its journal."""
    shard = f".{glob.escape(out.stem)}{_NUMBER}xxxxx{glob.escape(out.suffix)}.partial"
    patterns = [
        f"{name}{end}" for name in (f".{glob.escape(out.name)}.partial", shard) for end in ("", ".json")
    ]
    return sorted(path for pattern in patterns for path in out.parent.glob(pattern))


class Output:
    """The files of one writing."""

    def __init__(
        self, out: Path, journal: Journal, max_samples: int, page_bytes: int, shard_bytes: int | None,
        class_names: list[str] | None, written: tuple[dict[str, Any], dict[str, Any]],
        command: dict[str, Any], again: bool,
    ):  # fmt: skip
        self.out, self.journal, self.class_names, self.written = out, journal, class_names, written
        self.page_bytes, self.shard_bytes = page_bytes, shard_bytes
        # The table lies before the data. How many samples a shard gets is not known when its data begin.
        self.max_samples = min(max_samples, rows_in_a_page(page_bytes)) if shard_bytes else max_samples
        self.bad, self.small = LeftOut(bad_path(out)), LeftOut(small_path(out))
        self.num_done = self._num_whole_bytes = 0
        self.whole, self.report, self.packer = list[WriteReport](), WriteReport(), PathPacker()
        self.file: BetonFile | None = None
        self._is_published = False
        if not again:
            for path in unfinished(out):
                path.unlink(missing_ok=True)
        if not (again and journal.is_whole):
            first = journal.num_whole if again else 0
            self.file = BetonFile(self._begun(first), self.max_samples, page_bytes, again)
        # A kill before this line leaves a journal of images that are gone. --resume refuses it (`_refuse`).
        if not again:
            journal.begin(command)

    def _begun(self, index: int) -> Path:
        """Return the name of a shard, or of the whole beton, before the number of shards is known."""
        return shard_path(self.out, index) if self.shard_bytes else self.out

    @property
    def num_bytes(self) -> int:
        """The size so far, but for the tables of the present file."""
        present = 0 if self.file is None else self.file.num_bytes - self.file.data_start
        return self._num_whole_bytes + present

    def take(self, name: str, label: int, image: Stored) -> None:
        """Add an image."""
        assert self.file is not None
        num_bytes = len(image.data)
        # An empty shard takes an image of any size, which nothing else could hold.
        if self.shard_bytes and self.file.num_samples and not self.file.has_room(num_bytes, self.shard_bytes):
            self._end_shard(is_last=False)
            self.file = BetonFile(self._begun(len(self.whole)), self.max_samples, self.page_bytes)
            atomic.sync_folder(self.out.parent)  # before the journal tells of images in it
        checksum = self._add(name, label, image)
        record = [name, label, image.height, image.width, image.mode, image.how, num_bytes, checksum]
        record += [image.num_clipped] if image.num_clipped else []
        self._note(record, num_bytes)

    def leave_out(self, name: str, kind: str, reason: str) -> None:
        """Add an image to the list of those that are BAD or SMALL."""
        self._list(name, kind, reason)
        self._note([name, kind, reason], 0)

    def _note(self, record: list[Any], num_bytes: int) -> None:
        if self.journal.add(record, num_bytes):
            self.journal.commit(self._sync)

    def _add(self, name: str, label: int, image: Stored) -> int:
        assert self.file is not None
        checksum = self.file.add(image, label)
        self.packer.add(name)
        self._count(image.how)
        self.report.num_coefficients += image.mode == COEFFICIENTS
        self.report.num_clipped += image.num_clipped > 0
        self.report.num_clipped_values += image.num_clipped
        return checksum

    def _list(self, name: str, kind: str, reason: str) -> None:
        (self.bad if kind == BAD else self.small).add(name, reason)
        self._count(kind)

    def _count(self, what: str) -> None:
        self.num_done += 1
        # `Stored.how`, BAD and SMALL are the ends of WriteReport's names.
        setattr(self.report, f"num_{what}", getattr(self.report, f"num_{what}") + 1)

    def _sync(self) -> None:
        if self.file is not None:
            self.file.flush()
            os.fsync(self.file.file.fd)

    def take_again(self) -> None:
        """Take up the images of the journal."""
        journal, num = self.journal, self.journal.num_images
        with operation(f"{self.out}: checking what was written before", "images", num) as progress:
            for entry in journal.entries():
                for image in entry.get("images", ()):
                    if len(image) == 3:  # name, kind and reason, as `leave_out` notes them
                        self._list(*image)
                    elif len(self.whole) < journal.num_whole:
                        self.num_done += 1  # it lies in a whole shard, whose counts its entry brings
                    else:
                        self._add_again(*image)
                    progress.update(self.num_done)
                if "shard" in entry:
                    self._end_again(WriteReport(**entry["shard"]))
        if self.file is not None:
            self.file.go_on()
        journal.go_on()

    def _add_again(self, name: str, label: int, *image: Any) -> None:
        assert self.file is not None
        height, width, mode, how, num_bytes, checksum, *num_clipped = image
        data = self.file.next_data(num_bytes)
        stored = Stored(data, height, width, mode, how, *num_clipped)
        # Added before it is compared: a refusal ends the writing, and with it all that was counted.
        if len(data) != num_bytes or self._add(name, label, stored) != checksum:
            raise self._refuse(self.file.file.partial)

    def _end_again(self, report: WriteReport) -> None:
        partial = atomic.partial_path(self._begun(len(self.whole)))
        # A shard that is missing may have been published, if the writing was interrupted at its end.
        is_there = partial.exists()
        if not (is_there or self.journal.is_whole) or (
            is_there and partial.stat().st_size != report.num_bytes
        ):
            raise self._refuse(partial)
        self.whole.append(report)
        self._num_whole_bytes += report.num_bytes
        self.report = WriteReport()

    def _refuse(self, partial: Path) -> ValueError:
        return ValueError(
            f"{self.out}: cannot go on, {partial.name} is not as {journal_path(self.out).name} says; "
            f"--overwrite instead of --resume starts anew"
        )

    def _end_shard(self, is_last: bool) -> None:
        """Finish the present file; it keeps its partial name."""
        assert self.file is not None
        self.journal.commit(self._sync)  # now, because `take_again` ends a shard behind its last image
        file, report = self.file, self.report
        report.num_samples = file.num_samples
        sha256, fd = file.finish(), file.file.fd
        report.num_bytes = os.fstat(fd).st_size
        written = {**self.written[0], **report.counts(), **self.written[1]}
        sidecar = Sidecar(
            file.num_samples, self.class_names, written, file.data_start, sha256, self.packer.finish()
        )
        os.fsync(fd)  # the tables, which the commit above did not have yet
        self._write_sidecar(sidecar_path(file.file.partial), sidecar)
        # Last: a shard that the journal calls whole is not read again.
        self.journal.end_shard(report.counts(), is_last)
        file.file.close()
        self.whole.append(report)
        self._num_whole_bytes += report.num_bytes
        self.report, self.packer, self.file = WriteReport(), PathPacker(), None

    def finish(self) -> WriteReport:
        """Finish the last file, publish all under their final names, and return the counts of all."""
        if self.file is not None:
            self._end_shard(is_last=True)
        # In any order: until the journal is gone, the same command with --resume does all of this again.
        self.bad.publish()
        self.small.publish()
        num, finals = len(self.whole), list[Path]()
        for index in range(num):
            begun = self._begun(index)
            finals.append(shard_path(self.out, index, num) if self.shard_bytes else self.out)
            self._publish(atomic.partial_path(begun), finals[-1], f"{index}/{num}")
        # Only now: files that were published before stay until all new ones are there.
        for path in set(shards_of(self.out)) - set(finals) if self.shard_bytes else ():
            path.unlink()  # of an older writing, which had another number of shards
            sidecar_path(path).unlink(missing_ok=True)
        atomic.sync_folder(self.out.parent)
        self.journal.file.discard()  # last, because without it nothing would finish what is left
        self._is_published = True
        total = {name: sum(report.counts()[name] for report in self.whole) for name in self.report.counts()}
        return WriteReport(**total, first_bad=self.bad.first, first_small=self.small.first, num_shards=num)

    def _publish(self, partial: Path, final: Path, shard: str) -> None:
        sidecar = read_sidecar(partial)
        if sidecar is None:
            return  # published before the interruption
        if self.shard_bytes:
            sidecar.written["shard"] = shard
        self._write_sidecar(sidecar_path(final), sidecar)  # first, so that a new file has its JSON at once
        if partial.exists():
            os.replace(partial, final)
        atomic.sync_folder(final.parent)
        sidecar_path(partial).unlink()  # last, because its absence tells that the lines above are done

    def _write_sidecar(self, path: Path, sidecar: Sidecar) -> None:
        atomic.remove_leftovers(path.parent, path.name)  # OUT's lock keeps other writers away
        atomic.write_atomically(path, dump_sidecar(sidecar))

    def close(self, keep: bool) -> None:
        """Close what is open; remove what is not published, unless `keep` and the journal holds images."""
        self.bad.discard()
        self.small.discard()
        if self._is_published:
            return
        if keep and self.journal.holds_images:
            if self.file is not None:
                self.file.file.close()
            self.journal.leave()
            return
        if self.file is not None:
            self.file.file.discard()
        for path in unfinished(self.out):
            path.unlink(missing_ok=True)
        self.journal.file.discard()
