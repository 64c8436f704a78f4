"""The writer of dataset files: images from a folder or from memory to a stock FFCV file with its JSON.

Threads convert (the C library, Pillow and read() release the GIL). The calling thread writes in the order
of the samples, so the file does not depend on the number of workers. Memory grows by 8 bytes and a packed
path per sample of a file. A journal (output.py) keeps what an interrupted writing has brought to the disk.

Appending touches nothing that is there: the images become one more file of the set, train.more-00001.beton
for train.beton, which readers open with the others by a glob. Its name follows theirs, so the indices of
the samples before stay as they are.
"""

import fnmatch
import json
import os
import re
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from itertools import count, islice
from pathlib import Path

import numpy as np

import fastpsl
from fastpsl.console.progress import operation
from fastpsl.console.words import number_of
from fastpsl.files.digest import sha256_of_json
from fastpsl.files.system_errors import input_error, output_errors
from fastpsl.files.workers import map_in_order, usable_cores
from fastpsl.pipelines.beton.encode import Stored, Target, convert, require_mode, store_array
from fastpsl.pipelines.beton.file import MAX_PAGE_BYTES
from fastpsl.pipelines.beton.output import (
    Journal,
    Output,
    WriteReport,
    bad_path,
    journal_path,
    shards_of,
    unfinished,
)
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.beton.sidecar import Sidecar, how_written, read_sidecar, set_faults, shard_paths
from fastpsl.pipelines.image.coefficients import to_jpeg
from fastpsl.pipelines.image.depth import Scale
from fastpsl.pipelines.image.image_file import read_image_file
from fastpsl.pipelines.image.libturbo import remedy, why_missing
from fastpsl.pipelines.interface.dataset import BadImage, is_of_one_file
from fastpsl.pipelines.interface.source import BAD, SMALL, Packed, Relabelled, Sample, Source


def require_writable(out: Path, *, overwrite: bool, resume: bool, shards: bool) -> None:
    """Check that `write_beton` may write `out`, before the images are looked for."""
    with output_errors(out):
        open_journal(out, overwrite=overwrite, resume=resume, shards=shards).leave()


def can_go_on(out: Path) -> bool:
    """Return whether an interrupted writing of `out` is there that `resume` goes on with."""
    if not journal_path(out).exists():
        return False
    journal = Journal(out)
    journal.leave()
    return journal.holds_images


def open_journal(out: Path, *, overwrite: bool, resume: bool, shards: bool) -> Journal:
    """Open the journal of a dataset file that may be written."""
    if out.is_dir():
        raise ValueError(f"{out}: is a folder; choose another name, e.g. {out / 'train.beton'}")
    journal = Journal(out)
    try:
        if journal.holds_images and not unfinished(out):
            journal.begin({})  # somebody has removed what it speaks of
        there = shards_of(out)[:1] if shards else [path for path in (out,) if path.exists()]
        if there and not overwrite and not (resume and journal.is_whole):
            raise ValueError(
                f"{there[0]}: exists already; remove it, give --overwrite, or choose another name"
            )
        if journal.holds_images and not resume and not overwrite:
            raise ValueError(
                f"{out}: an interrupted writing of it is there, with {journal.num_images:,} images; "
                f"--resume goes on with it, --overwrite starts anew"
            )
    except BaseException:
        journal.leave()
        raise
    return journal


def require_same(out: Path, journal: Journal, command: dict[str, object]) -> None:
    """Raise ValueError unless the interrupted writing and `command` write the same bytes."""
    begun, command = journal.command or {}, json.loads(json.dumps(command))
    for name in command | begun:
        if begun.get(name) != command.get(name):
            raise ValueError(
                f"{out}: cannot go on, it was begun with {name} {begun.get(name)}, now it is "
                f"{command.get(name)}; give the same command and source as then, or --overwrite instead of "
                f"--resume to start anew"
            )


DEFAULT_PAGE_BYTES = 1 << 23  # ffcv's
_AS_THEY_ARE = Target()


def max_bad_count(max_bad: str, num_total: int) -> int:
    """Return "12" or "1%" (of all images, rounded down) as a number of images."""
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


def no_image() -> ValueError:
    """Build the error of a source, or of a shard of it, that has no image."""
    return ValueError("nothing to write: the source holds no image; give another SRC, or leave out --shard")


class TooSmall(str):
    """The size of an image that is sound but smaller than wanted."""


def convert_one(
    image: "Path | bytes | Packed | np.ndarray | BadImage", target: Target
) -> Stored | BadImage | TooSmall:
    """Convert an image in a worker, and return the error where this one image fails."""
    if isinstance(image, BadImage):
        return image
    try:
        if isinstance(image, Path):
            image = read_image_file(image)
        elif isinstance(image, Packed):
            image = to_jpeg(*image)
        stored = convert(image, target) if isinstance(image, bytes) else store_array(image, target)
    except OSError as error:
        if not is_of_one_file(error):
            raise input_error(image, error) from None
        return BadImage(f"cannot be read ({error.strerror})")
    except BadImage as error:
        return error
    if min(stored.height, stored.width) < target.min_px:
        return TooSmall(f"{stored.width} x {stored.height} px")
    if len(stored.data) > MAX_PAGE_BYTES:
        return BadImage(f"{len(stored.data):,} bytes; a page holds {MAX_PAGE_BYTES:,}")
    return stored


def write_beton(
    samples: Iterable[Sample] | Callable[[int], Iterable[Sample]], out: str | Path, *, num_samples: int,
    class_names: list[str] | None = None, target: Target = _AS_THEY_ARE, num_workers: int | None = None,
    max_bad: str = "1%", overwrite: bool = False, resume: bool = False, shard_mb: int | None = None,
    page_bytes: int = DEFAULT_PAGE_BYTES, record: dict[str, object] | None = None,
    on_progress: Callable[[int, int, int], None] | None = None,
) -> WriteReport:  # fmt: skip
    """Write a dataset file with its JSON and, if any, the lists of bad and of too small images.

    `samples` are at most `num_samples` images, or a function that gives them from the i-th on. Up to
    `max_bad` bad ones, as "20" or "1%" of `num_samples`, are left out and listed. With `shard_mb`, shards of
    about this many MB are named after `out`: train-00000-of-00003.beton for train.beton. `record` has further
    entries of the JSON's `written`. `on_progress` is called with (num_done, num_bad, bytes so far) at the
    start and after each image.

    Where it is interrupted, what has come to the disk stays beside `out` under hidden names. `resume`
    continues from there, and the files become the same as without an interruption. It refuses a writing that
    another command has begun. Files that were published before stay until all new ones are whole.
    """
    out = Path(out)
    if not num_samples:
        raise no_image()
    allowed_bad = max_bad_count(max_bad, num_samples)
    num_workers = num_workers or usable_cores()
    started = time.monotonic()
    shard_bytes = None if shard_mb is None else shard_mb * 1_000_000
    by = "Pillow" if why_missing() else "libjpeg-turbo"
    before = {"fastpsl": fastpsl.__version__, "by": by, **asdict(target)}
    after = dict(record or {})
    if shard_mb is not None:
        after |= {"shard": "", "shard_mb": shard_mb}  # the shard is told when all are whole
    command = {
        "shard_mb": shard_mb,
        **before,
        # Files that are left out may have come meanwhile, such as a .DS_Store.
        **{name: value for name, value in after.items() if name != "left_out"},
        "versions": f"pillow {version('pillow')}",
        "num_samples": num_samples,
        "page_bytes": page_bytes,
        "class_names": _digest(class_names),
    }
    with output_errors(out):
        journal = open_journal(out, overwrite=overwrite, resume=resume, shards=shard_mb is not None)
        try:
            is_resumed = resume and journal.holds_images
            if is_resumed:
                require_same(out, journal, command)
            output = Output(
                out, journal, num_samples, page_bytes, shard_bytes, class_names, (before, after), command,
                again=is_resumed,
            )  # fmt: skip
        except BaseException:
            journal.leave()
            raise
    if why_missing():
        warnings.warn(f"{why_missing()}: Pillow checks and makes the JPEGs, slower; {remedy()}", stacklevel=2)
    results, keep, num_before, seen = None, True, 0, Scale(target.reading.range)
    try:
        if is_resumed:
            with output_errors(out):
                output.take_again()
            num_before = output.num_done - output.bad.num - output.small.num
        if on_progress:
            on_progress(output.num_done, output.bad.num, output.num_bytes)
        rest = () if is_resumed and journal.is_whole else _rest(samples, output, num_samples)
        results = map_in_order(
            lambda sample: convert_one(sample.image, target), rest, num_workers, "beton-write"
        )
        for sample, result in results:
            with output_errors(out):
                if isinstance(result, BadImage):
                    output.leave_out(sample.name, BAD, str(result))
                elif isinstance(result, TooSmall):
                    output.leave_out(sample.name, SMALL, result)
                else:
                    output.take(sample.name, sample.label, result)
                    seen.add(result.scale)
                if isinstance(result, BadImage) and output.bad.num > allowed_bad:
                    keep = False
                    output.bad.publish()
                    raise ValueError(
                        f"{bad_path(out)}: lists {number_of(output.bad.num, 'bad image')}, "
                        f"--max-bad {max_bad} allows {allowed_bad} of {num_samples:,} "
                        f"(the first is {output.bad.first}); "
                        f"repair them or their rights, or raise --max-bad"
                    )
            if on_progress:
                on_progress(output.num_done, output.bad.num, output.num_bytes)
        if output.num_done == output.bad.num + output.small.num:
            keep = False
            output.bad.publish()
            why = (
                f"{output.small.num:,} are below --min-px {target.min_px}"
                if output.small.num
                else f"{bad_path(out)} lists them (the first is {output.bad.first})"
            )
            raise ValueError(f"{out}: nothing to write, no image could be used; {why}")
        with (
            output_errors(out),
            operation(f"{out}: writing its tables, and waiting until all of it is on the disk"),
        ):
            report = output.finish()
    finally:
        if results is not None:
            results.close()
        output.close(keep)
    seen.warn_if_dark(out)
    report.seconds, report.num_before = time.monotonic() - started, num_before
    return report


def _rest(
    samples: Iterable[Sample] | Callable[[int], Iterable[Sample]], output: Output, num_samples: int
) -> Iterator[Sample]:
    """Yield the images that are not done; raise ValueError if the last one that is done is another now."""
    num_done, last = output.num_done, output.journal.last_name
    skip = max(num_done - 1, 0)
    rest = iter(samples(skip) if callable(samples) else islice(samples, skip, None))
    if num_done:
        sample = next(rest, None)
        if sample is None or sample.name != last:
            now = "missing" if sample is None else sample.name
            raise ValueError(
                f"{output.out}: cannot go on, the source has changed: image {num_done:,} of {num_samples:,} "
                f"was {last}, now it is {now}; --overwrite instead of --resume starts anew"
            )
    yield from rest


def _digest(class_names: list[str] | None) -> str:
    """Return class names in short."""
    if class_names is None:
        return "none"
    return f"{len(class_names):,} names ({sha256_of_json(class_names)[:8]})"


_MORE = ".more-"


@dataclass(frozen=True)
class NewShard:
    """The file to be written."""

    out: Path
    target: Target  # that of the set's images
    class_names: list[str] | None
    pattern: str  # names the set with this file

    def samples(self, source: Source) -> Callable[[int], Iterator[Sample]]:
        """Return the function that yields the source's images from the i-th on, with the set's labels."""
        return source.samples if self.class_names is None else Relabelled(source, self.class_names).samples


def appendix(data: str, source: Source, record: dict[str, object]) -> NewShard:
    """Return the file to write for appending `source` to `data`, a dataset file or a glob of shards."""
    paths = shard_paths(data)
    if len(paths) == 1:
        first = paths[0]
        beside = (path for path in first.parent.iterdir() if path.suffix == first.suffix)
        paths = sorted({first, *(path for path in beside if path.stem != _stem(first) == _stem(path))})
    with Beton(paths) as beton:
        class_names = beton.class_names
    sidecars = [_sidecar(path) for path in paths]
    targets = [_target(sidecar) for sidecar in sidecars]
    for path, target in zip(paths, targets, strict=True):
        for name, first in vars(targets[0]).items():
            if (value := getattr(target, name)) != first:
                option = f"--{name.replace('_', '-')}"
                raise ValueError(
                    f"{path}: was written with {option} {value}, {paths[0]} with {option} {first}; "
                    f"append to one of the two"
                )
    require_mode(targets[0].mode)
    out = _next(paths)
    written = [how_written(p, s.written, s.class_names) for p, s in zip(paths, sidecars, strict=True)]
    new = how_written(out, record, class_names)
    faults = set_faults([each for each in (*written, new) if each])
    if faults:
        raise ValueError(faults[0].replace("remove one of them", "they are there already"))
    _require_known(paths[0], class_names, source)
    return NewShard(out, targets[0], class_names, _pattern(data, paths, out))


def _stem(path: Path) -> str:
    return re.sub(rf"{re.escape(_MORE)}[0-9]{{5}}$", "", path.stem)


def _next(paths: list[Path]) -> Path:
    """Return the name of the next file, which follows the others in their order."""
    last = paths[-1]
    outs = (last.with_name(f"{_stem(last)}{_MORE}{number:05}{last.suffix}") for number in count(1))
    return next(out for out in outs if not out.exists())


def _pattern(data: str, paths: list[Path], out: Path) -> str:
    """Return `data` if it names the new file, too, else a glob that does."""
    if not os.path.exists(data) and fnmatch.fnmatch(str(out), data):
        return data
    stems = {_stem(path) for path in paths}
    name = f"{stems.pop()}.*" if len(stems) == 1 else f"{os.path.commonprefix(sorted(stems))}*."
    return str(out.with_name(name + out.suffix[1:]))


def _sidecar(path: Path) -> Sidecar:
    sidecar = read_sidecar(path)
    if sidecar is None or "mode" not in sidecar.written:
        raise ValueError(
            f"{path}: does not tell how it was written ({path.name}.json is missing, or of another writer); "
            f"write the new images to a file of their own by `fastpsl data write`, and read both with a glob"
        )
    return sidecar


def _target(sidecar: Sidecar) -> Target:
    names = {field.name for field in fields(Target)}
    return Target(**{name: value for name, value in sidecar.written.items() if name in names})


def _require_known(path: Path, class_names: list[str] | None, source: Source) -> None:
    """Raise ValueError unless the set has all of the source's classes, which go by their names."""
    if source.class_names is None or class_names is None:
        if source.class_names != class_names:
            has, other = ("none", "has some") if class_names is None else ("class names", "has none")
            raise ValueError(f"{path}: has {has}, the source {other}; give a source of the same kind")
        return
    known = set(class_names)
    new = [name for name in source.class_names if name not in known]
    if new:
        more = f" (and {len(new) - 1:,} more)" if len(new) > 1 else ""
        raise ValueError(
            f"{path}: has no class {' '.join(new[0].split())}{more}, which the source has; "
            f"leave it out, or write all anew with all classes"
        )
