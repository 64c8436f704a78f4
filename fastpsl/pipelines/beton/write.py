"""The writer of betons: images from a folder or from memory to a stock FFCV file with its JSON.

Threads convert (libffcv, Pillow and read() release the GIL), and the calling thread writes in the order of
the samples, so the file does not depend on the number of workers. Memory grows by 8 bytes and a packed path
per sample.
"""

import csv
import io
import os
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

import fastpsl
from fastpsl.pipelines.beton.encode import BrokenImage, Stored, Target, convert, store_array
from fastpsl.pipelines.beton.file import MAX_PAGE_BYTES, BetonFile
from fastpsl.pipelines.beton.sidecar import PathPacker, Sidecar, dump_sidecar, sidecar_path
from fastpsl.pipelines.data.image_file import read_image_file
from fastpsl.pipelines.decoders.libturbo import INSTALL, why_missing
from fastpsl.pipelines.doing import doing
from fastpsl.pipelines.files.atomic import (
    PartialFile,
    output_errors,
    sync_folder,
    write_all,
    write_atomically,
)
from fastpsl.pipelines.loader.workers import map_in_order
from fastpsl.pipelines.sources.source import Sample

DEFAULT_PAGE_BYTES = 1 << 23  # ffcv's
_AS_THEY_ARE = Target()


@dataclass
class WriteReport:
    """The outcome of writing; its counts add up to the number of images."""

    num_samples: int = 0
    num_passed: int = 0  # byte for byte
    num_encoded: int = 0
    num_mended: int = 0  # encoded again because libjpeg warned, though Pillow could read them
    num_quarantined: int = 0
    num_small: int = 0  # left out, because the shorter side is below the target's min_px
    first_broken: str = ""  # the first quarantined image and its fault
    first_small: str = ""  # the first image that was too small and its size
    num_bytes: int = 0
    seconds: float = 0.0


def max_bad_count(max_bad: str, num_total: int) -> int:
    """Return "12" or "1%" (of all images, rounded down) as a number of images.

    Raises:
        ValueError: The text is neither.
    """
    text = max_bad.strip()
    try:
        if text.endswith("%"):
            share = float(text[:-1])
            count = int(num_total * share / 100) if 0 <= share <= 100 else -1
        else:
            count = int(text)
    except ValueError:
        count = -1
    if count < 0:
        raise ValueError(f"--max-bad {max_bad}: not a number of images or a share; give e.g. 20 or 0.5%")
    return count


def quarantine_path(out: Path) -> Path:
    """Return train.beton.quarantine.csv for train.beton."""
    return out.with_name(out.name + ".quarantine.csv")


def small_path(out: Path) -> Path:
    """Return train.beton.small.csv for train.beton."""
    return out.with_name(out.name + ".small.csv")


class _List:
    """A CSV of images that are left out, with the reasons; the file appears with its first image."""

    def __init__(self, path: Path):
        self._path, self._offset = path, 0
        self._file: PartialFile | None = None

    def add(self, name: str, reason: str) -> None:
        if self._file is None:
            self._file = PartialFile(self._path)
            self._write("path", "reason")
        # "./" leaves the path the same, and keeps spreadsheets from taking it for a formula.
        self._write(f"./{name}" if name.startswith(("=", "+", "-", "@", "\t", "\r")) else name, reason)

    def _write(self, *cells: str) -> None:
        assert self._file is not None
        line = io.StringIO()
        csv.writer(line, quoting=csv.QUOTE_ALL, lineterminator="\n").writerow(cells)
        data = line.getvalue().encode("utf-8", "surrogateescape")
        write_all(self._file.fd, data, self._offset)
        self._offset += len(data)

    def publish(self) -> None:
        if self._file:
            self._file.publish()
        else:
            self._path.unlink(missing_ok=True)  # from an older run

    def discard(self) -> None:
        if self._file:
            self._file.discard()


class TooSmall(str):
    """The size of an image that is sound but smaller than wanted."""


def convert_one(
    image: "Path | bytes | np.ndarray | BrokenImage", target: Target
) -> Stored | BrokenImage | TooSmall:
    """Convert an image in a worker, and return the error where this one image fails."""
    if isinstance(image, BrokenImage):
        return image
    try:
        if isinstance(image, Path):
            image = read_image_file(image)
        stored = convert(image, target) if isinstance(image, bytes) else store_array(image, target)
    except OSError as error:
        return BrokenImage(f"cannot be read ({error.strerror})")
    except BrokenImage as error:
        return error
    if min(stored.height, stored.width) < target.min_px:
        return TooSmall(f"{stored.width} x {stored.height} px")
    if len(stored.data) > MAX_PAGE_BYTES:
        return BrokenImage(f"{len(stored.data):,} bytes; a page holds {MAX_PAGE_BYTES:,}")
    return stored


def write_beton(
    samples: Iterable[Sample],
    out: str | Path,
    *,
    num_samples: int,
    class_names: list[str] | None = None,
    target: Target = _AS_THEY_ARE,
    num_workers: int | None = None,
    max_bad: str = "1%",
    overwrite: bool = False,
    page_bytes: int = DEFAULT_PAGE_BYTES,
    record: dict[str, object] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> WriteReport:
    """Write a beton with its JSON and, if any, the lists of broken and of too small images.

    Args:
        samples: The images, at most `num_samples`.
        out: The beton.
        num_samples: The number of samples to make room for.
        class_names: The name of each label; None for images without classes.
        target: The form in which images are stored.
        num_workers: The number of threads; None for one per core.
        max_bad: How many broken images are left out and listed, as "20" or "1%" of num_samples; one more is
            an error.
        overwrite: Replace an existing beton.
        page_bytes: The size of a page, a power of two.
        record: Further entries of the JSON's `written`.
        on_progress: Called with (num_done, num_bad) after each image.

    Raises:
        ValueError: `out` cannot be written, exists, or too many images are broken. It is then as before. The
            message is one line.
    """
    out = Path(out)
    allowed_bad = max_bad_count(max_bad, num_samples)
    num_workers = num_workers or len(os.sched_getaffinity(0))
    started = time.monotonic()
    with output_errors(out):
        if out.is_dir() or (out.exists() and not overwrite):
            if out.is_dir():
                raise ValueError(f"{out}: is a folder; choose another name, e.g. {out / 'train.beton'}")
            raise ValueError(f"{out}: exists already; remove it, give --overwrite, or choose another name")
        file = BetonFile(out, num_samples, page_bytes)
    if why_missing():
        warnings.warn(
            f"{why_missing()}: torchvision and Pillow check and make the JPEGs, slower; {INSTALL}",
            stacklevel=2,
        )
    quarantine, small = _List(quarantine_path(out)), _List(small_path(out))
    packer, report = PathPacker(), WriteReport()
    results = map_in_order(
        lambda sample: convert_one(sample.image, target), samples, num_workers, "beton-write"
    )
    try:
        for sample, result in results:
            if isinstance(result, BrokenImage):
                report.num_quarantined += 1
                report.first_broken = report.first_broken or " ".join(f"{sample.name}: {result}".split())
                with output_errors(out):
                    quarantine.add(sample.name, str(result))
                    if report.num_quarantined > allowed_bad:
                        quarantine.publish()
                        raise ValueError(
                            f"{quarantine_path(out)}: lists {report.num_quarantined} broken images, "
                            f"--max-bad {max_bad} allows {allowed_bad} of {num_samples:,} "
                            f"(the first is {report.first_broken}); "
                            f"repair or remove them, or raise --max-bad"
                        )
            elif isinstance(result, TooSmall):
                report.num_small += 1
                report.first_small = report.first_small or " ".join(f"{sample.name}: {result}".split())
                with output_errors(out):
                    small.add(sample.name, result)
            else:
                with output_errors(out):
                    file.add(result, sample.label)
                packer.add(sample.name)
                report.num_passed += result.how == "passed"
                report.num_encoded += result.how == "encoded"
                report.num_mended += result.how == "mended"
            if on_progress:
                num_done = file.num_samples + report.num_quarantined + report.num_small
                on_progress(num_done, report.num_quarantined)
        if not file.num_samples:
            why = (
                f"{report.num_small:,} are below --min-px {target.min_px}"
                if report.num_small
                else "see the source"
            )
            raise ValueError(f"{out}: nothing to write, no image could be used; {why}")
        report.num_samples = file.num_samples
        with (
            output_errors(out),
            doing(f"{out}: writing its tables, and waiting until all of it is on the disk"),
        ):
            sha256 = file.finish()
            report.num_bytes = os.fstat(file.file.fd).st_size
            written = {
                "fastpsl": fastpsl.__version__,
                "by": "torchvision, Pillow" if why_missing() else "libjpeg-turbo",
                **asdict(target),
                **{name: value for name, value in asdict(report).items() if name.startswith("num_")},
                **(record or {}),
            }
            sidecar = Sidecar(
                file.num_samples, class_names, written, file.data_start, sha256, packer.finish()
            )
            os.fsync(file.file.fd)  # this takes long, so it precedes the first rename
            quarantine.publish()
            small.publish()
            write_atomically(sidecar_path(out), dump_sidecar(sidecar))
            file.file.publish()
            sync_folder(out.parent)
    finally:
        results.close()
        file.file.discard()
        quarantine.discard()
        small.discard()
    report.seconds = time.monotonic() - started
    return report
