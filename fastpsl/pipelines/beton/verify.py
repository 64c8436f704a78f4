"""The summary of a dataset file and the search for its faults: `fastpsl data info` and `verify`."""

import glob
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from fastpsl.console.progress import operation
from fastpsl.files.atomic import is_locked
from fastpsl.files.digest import sha256
from fastpsl.files.paths import named_files
from fastpsl.files.remote.address import is_remote
from fastpsl.files.workers import map_in_order, usable_cores
from fastpsl.pipelines.beton.encode import decodes_cleanly, unpacks_cleanly
from fastpsl.pipelines.beton.file import MIN_PAGE_BYTES
from fastpsl.pipelines.beton.output import journal_path, whole_of
from fastpsl.pipelines.beton.reader import Beton, SampleTable
from fastpsl.pipelines.beton.shard import COEFFICIENTS, JPG, RAW, chunks
from fastpsl.pipelines.beton.sidecar import (
    Sidecar,
    Written,
    has_checksums,
    how_written,
    matches_checksum,
    missing_shards,
    read_checksums,
    read_sidecar,
    set_faults,
    shard_paths,
)
from fastpsl.pipelines.image.jpeg import HEADER_GOOD, HEADER_REASONS, SCAN_REASONS, jpeg_header, jpeg_scans
from fastpsl.pipelines.interface.dataset import BadImage

_BLOCK_BYTES = 1 << 22  # read at a time for a checksum: 1 MiB would do as well (not measured)
_BARS = 30  # classes with a bar of their own


def betons_to_verify(names: Sequence[str]) -> "tuple[list[Path | str], list[str]]":
    """Return the files that `names` (files and globs) name, and their faults as data sets, a line each.

    Of an address, the files' addresses are returned. That they belong together is judged when it is opened.

    Such faults are shards that were interrupted, are missing, come from different runs, or appear twice. Each
    glob is one data set; files named one by one are grouped by source.
    """
    paths, faults, singles = list[Path | str](), list[str](), dict[object, list[Written]]()
    for name in names:
        if is_remote(name):
            with Beton(name) as beton:
                paths += [shard.name for shard in beton.shards]
            continue
        interrupted = _interrupted(name)
        faults += interrupted
        is_glob = glob.has_magic(name) and not os.path.lexists(name)
        if interrupted and not (named_files(name) if is_glob else os.path.lexists(name)):
            continue
        matches = shard_paths(name)
        paths += matches
        shards = [written for path in matches if (written := _written(path))]
        if is_glob:
            faults += set_faults(shards) + missing_shards(shards)
        for written in shards if not is_glob else ():
            singles.setdefault(written.source, []).append(written)
    for shards in singles.values():
        if len(shards) > 1:
            faults += set_faults(shards) + missing_shards(shards)
    return list(dict.fromkeys(paths)), faults


def _written(path: Path) -> Written | None:
    try:
        sidecar = read_sidecar(path)
    except ValueError:
        return None  # `verify` reports why
    return how_written(path, sidecar.written, sidecar.class_names) if sidecar else None


def _interrupted(name: str) -> list[str]:
    """Return a line per beton of a name or glob that exists under its partial name only."""
    folder, base = os.path.split(name)
    faults = []
    for partial in named_files(os.path.join(folder, f".{base}.partial")):
        path = partial.with_name(partial.name[1 : -len(".partial")])
        if not path.exists():
            locks = partial, journal_path(whole_of(path))
            why = (
                "is being written"
                if any(map(is_locked, locks))
                else "its writing was interrupted; go on with the same command and --resume"
            )
            faults.append(f"{path}: is only there as {os.path.basename(partial)}, {why}")
    return faults


def verify(
    path: "Path | str", num_workers: int | None = None, on_progress: Callable[[int, int], None] | None = None
) -> Iterator[str]:
    """Yield the faults of one dataset file, a line each, with path and sample.

    It checks header, tables, bounds and pages, and the checksums in the file and its JSON (see `unchecked`).
    It also checks that each sample decodes without a libjpeg warning.
    """
    try:
        beton = Beton(path)
    except ValueError as error:
        yield str(error)
        return
    with beton:
        sidecar = read_sidecar(beton.paths[0])
        yield from _pages(beton)
        sources: Iterator[str] = iter(())
        try:
            if sidecar:
                deque(sidecar.source_paths(), 0)
                sources = sidecar.source_paths()
        except ValueError as error:
            yield str(error)
        num_bad = 0
        num_workers = num_workers or usable_cores()
        checksums = None
        try:
            checksums = read_checksums(beton.shards[0]) if has_checksums(beton.shards[0]) else None
        except ValueError as error:
            yield str(error)

        def check(sample: tuple[int, SampleTable, int]) -> str:
            data, reason = _decoded(sample)
            if reason or checksums is None:
                return reason
            index = sample[0]
            is_sound = matches_checksum(beton.shards[0], index, data, int(checksums[index]))
            return "" if is_sound else "its bytes, size or label are not those that were written"

        for (index, _, _), reason in map_in_order(check, _samples(beton), num_workers, "beton-verify"):
            source = next(sources, "")
            if reason:
                num_bad += 1
                yield f"{path} sample {index}{f' ({source})' if source else ''}: {reason}"
            if on_progress:
                on_progress(index + 1, num_bad)
        # Of a remote file, the samples' own checksums are enough, as it may be larger than the cache.
        if sidecar and beton.remote is None and _checksum(beton.paths[0], sidecar) != sidecar.sha256:
            yield (
                f"{path}: its bytes do not have the checksum in {beton.paths[0].name}.json; "
                f"copy it again, or write it again"
            )


def _pages(beton: Beton) -> Iterator[str]:
    """Yield the samples that cross pages or overlap; this takes 24 bytes per sample for a moment."""
    shard = beton.shards[0]
    page = shard.page_size
    if page < MIN_PAGE_BYTES or page & (page - 1):
        yield f"{shard.name}: a page of {page:,} bytes; a power of two from 2 MiB is needed, write it again"
        return
    all_samples = slice(0, shard.num_samples)
    first = shard.table(all_samples)[0]["data_ptr"].astype(np.int64)
    last = first + shard.sizes(all_samples).astype(np.int64) - 1
    across = np.flatnonzero(first // page != last // page)
    if len(across):
        yield f"{shard.name} sample {across[0]}: lies across two pages, ffcv cannot read it; write it again"
    order = np.argsort(first)
    shared = np.flatnonzero(last[order[:-1]] >= first[order[1:]])
    if len(shared):
        one, other = order[shared[0]], order[shared[0] + 1]
        yield f"{shard.name} sample {one}: its bytes run into those of sample {other}; write it again"


def _checksum(path: Path, sidecar: Sidecar) -> str:
    """Return the SHA-256 of the bytes from data_start on, then of those before it, as they were written."""
    digest, start = sha256(), sidecar.data_start
    num_mb = path.stat().st_size // 1_000_000
    with (
        open(path, "rb") as file,
        operation(f"{path}: reading it for its checksum", "MB", num_mb) as progress,
    ):
        file.seek(start)
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
            progress.update((file.tell() - sidecar.data_start) // 1_000_000)
        file.seek(0)
        while start > 0 and (block := file.read(min(_BLOCK_BYTES, start))):
            digest.update(block)
            start -= len(block)
    return digest.hexdigest()


def _samples(beton: Beton) -> Iterator[tuple[int, SampleTable, int]]:
    """Yield (index, rows, i) for each sample, which is row i of `rows`."""
    for part in chunks(beton.num_samples):
        rows = beton.rows(np.arange(part.start, part.stop))
        for i in range(part.stop - part.start):
            if beton.remote is not None:
                beton.wait(np.array([part.start + i]))
            yield part.start + i, rows, i


def _decoded(sample: tuple[int, SampleTable, int]) -> tuple[bytes, str]:
    """Return a sample's bytes, and their fault or ""."""
    _, rows, i = sample
    num_bytes = int(rows.num_bytes[i])
    try:
        data = os.pread(int(rows.fd[i]), num_bytes, int(rows.offset[i]))
    except OSError as error:
        return b"", f"cannot be read ({error.strerror})"
    if len(data) != num_bytes:
        return data, f"{len(data)} of {num_bytes} bytes are there"
    if rows.mode[i] == RAW:
        return data, ""  # its length was checked with the table
    return data, _why_no_jpeg(data, int(rows.height[i]), int(rows.width[i]), int(rows.mode[i]))


def _why_no_jpeg(data: bytes, height: int, width: int, mode: int) -> str:
    status, header_height, header_width, components, _, precision = jpeg_header(data, len(data))
    if status != HEADER_GOOD:
        return HEADER_REASONS[status]
    if (header_height, header_width) != (height, width):
        return f"a JPEG of {header_width} x {header_height} px, {width} x {height} by the table"
    if components not in (1, 3) or precision != 8:
        return f"a JPEG of {components} components and {precision} bits; readers take 1 or 3, and 8 bits"
    if mode == COEFFICIENTS:
        try:
            return "" if unpacks_cleanly(data, height, width) else "packed coefficients that are damaged"
        except BadImage as error:
            return str(error)
    if decodes_cleanly(data, height, width):
        return ""
    return SCAN_REASONS.get(jpeg_scans(data), "does not decode without a libjpeg error or warning")


def unchecked(beton: Beton) -> str:
    """Return what `verify` could not check in this file, in words; "" where checksums cover everything."""
    if has_checksums(beton.shards[0]) or (read_sidecar(beton.paths[0]) and beton.remote is None):
        return ""
    return (
        "no checksums in it and no JSON beside it, "
        "so pixels and labels that changed and can still be read were not noticed"
    )


def _spread(counts: np.ndarray) -> str:
    """Return the minimum, median and maximum of values below 65536, from their counts."""
    values, total = np.flatnonzero(counts), counts.sum()
    median = int(np.searchsorted(np.cumsum(counts), (total + 1) // 2))
    return f"{values[0]} / {median} / {values[-1]}"


def info(beton: Beton) -> str:
    """Return counts, sizes, classes and origin of a dataset file (or shards), as text for people."""
    heights, widths = np.zeros(65536, np.int64), np.zeros(65536, np.int64)
    kilobytes, modes = np.zeros(65536, np.int64), np.zeros(COEFFICIENTS + 1, np.int64)
    num_bytes = 0
    for shard in beton.shards:
        for part in chunks(shard.num_samples):
            images, sizes = shard.table(part)[0], shard.sizes(part)
            heights += np.bincount(images["height"], minlength=65536)
            widths += np.bincount(images["width"], minlength=65536)
            kilobytes += np.bincount(np.minimum(sizes // 1000, 65535).astype(np.int64), minlength=65536)
            modes += np.bincount(images["mode"], minlength=len(modes))
            num_bytes += int(sizes.sum())
    mean_kb = num_bytes / beton.num_samples / 1e3
    more = f" and {len(beton.shards) - 1} more" if len(beton.shards) > 1 else ""
    file_bytes = sum(shard.file_size for shard in beton.shards)
    packed = (
        f", {modes[COEFFICIENTS]:,} packed coefficients, which ffcv cannot read" if beton.is_packed else ""
    )
    lines = [
        f"{beton.shards[0].name}{more}: {beton.num_samples:,} samples, {file_bytes / 1e6:,.1f} MB",
        f"  height min / median / max  {_spread(heights)} px",
        f"  width  min / median / max  {_spread(widths)} px",
        f"  bytes  min / median / max  {_spread(kilobytes)} kB, mean {mean_kb:.1f} kB",
        f"  stored as                  {modes[JPG]:,} JPEG, {modes[RAW]:,} raw{packed}",
        f"  page                       {beton.shards[0].page_size / 2**20:g} MiB",
        f"  checksum of each sample    {'CRC-32' if all(map(has_checksums, beton.shards)) else 'none'}",
    ]
    if left_out := beton.left_out.line():
        lines.append(f"  left out when written      {left_out}")
    return "\n".join(lines + _classes(beton) + _origin(beton))


def _classes(beton: Beton) -> list[str]:
    counts, num_unlabelled = np.zeros(0, np.int64), 0
    for shard in beton.shards:
        for part in chunks(shard.num_samples):
            labels = shard.table(part)[1]
            num_unlabelled += int((labels < 0).sum())
            if shard.max_label > 10_000_000:
                return [f"  labels up to               {shard.max_label:,}"]
            part_counts = np.bincount(labels[labels >= 0], minlength=max(beton.num_classes, len(counts)))
            counts = part_counts + np.pad(counts, (0, len(part_counts) - len(counts)))
    lines = [f"  classes                    {beton.num_classes}"] if len(counts) else []
    if num_unlabelled:
        lines.append(f"  without a label            {num_unlabelled:,}")
    classes = np.argsort(-counts, kind="stable")[:_BARS] if len(counts) > _BARS else np.arange(len(counts))
    if len(classes):
        names = [beton.class_names[i] if beton.class_names else str(i) for i in classes]
        width, most = min(40, max(len(name) for name in names)), max(1, counts.max())
        lines += [
            f"    {name:{width}.{width}}  {counts[i]:>9,}  {'#' * round(40 * counts[i] / most)}"
            for name, i in zip(names, classes, strict=True)
        ]
    if len(classes) < len(counts):
        lines.append(
            f"    and {len(counts) - len(classes):,} classes "
            f"with {counts.min():,} to {counts[classes[-1]]:,} samples each"
        )
    return lines


def _origin(beton: Beton) -> list[str]:
    sidecar = read_sidecar(beton.paths[0])
    if sidecar is None:
        return ["  how it was written         not known (no JSON beside it)"]
    written = {name: value for name, value in sidecar.written.items() if name != "left_out"}
    entries = ", ".join(f"{name} {value}" for name, value in written.items() if value is not None)
    return [f"  how it was written         {entries}", f"  checksum (sha256)          {sidecar.sha256}"]
