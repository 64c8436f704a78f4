"""`fastpsl data write | append | verify | info | show`."""

import os
import shlex
import warnings
from contextlib import suppress
from dataclasses import KW_ONLY, MISSING, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tyro

from fastpsl.commands.show import Show
from fastpsl.console.words import number_of, pasted
from fastpsl.files.remote.address import is_remote
from fastpsl.scripts.command_line import option_words, require_within

if TYPE_CHECKING:
    from fastpsl.pipelines.beton.encode import Target
    from fastpsl.pipelines.beton.upload import StagedUpload
    from fastpsl.pipelines.interface.source import Source


@dataclass(frozen=True, kw_only=True)
class _Writing:
    """The command `write` or `append`, and the options that they share."""

    src: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="SRC")]]
    format: Literal[
        "auto", "folder", "list", "tar", "npz", "parquet", "beton", "cifar10", "cifar100", "stl10"
    ] = "auto"  # fmt: skip
    """The kind of SRC. [recognised by SRC's names and contents]"""
    split: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Which part of a SRC that holds several, e.g. train."""
    image_column: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """For parquet and hf: the column of images, if several may hold them."""
    label_column: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """For parquet and hf: the column of labels, if several may hold them; none for no labels."""
    workers: Annotated[int | None, tyro.conf.arg(metavar="NUM")] = None
    """Number of threads, on which the file does not depend. [one per core]"""
    max_bad: Annotated[str, tyro.conf.arg(metavar="N|N%")] = "1%"
    """How many bad images are left out and listed before writing stops with exit 2."""
    if TYPE_CHECKING:  # the last ones of a command
        overwrite: bool
        resume: bool

    def counted(self, **more: Any) -> "Source":
        """Open the source, and print what was chosen and what is odd about it."""
        from fastpsl.console.screen import Progress
        from fastpsl.pipelines.datasets.open import open_source

        with Progress("counting what there is to write", "MB") as progress:

            def show(done: int, total: int) -> None:
                progress.total = total
                progress.update(done)

            source = open_source(
                self.src, self.format, split=self.split, image_column=self.image_column,
                label_column=self.label_column, on_progress=show, **more,
            )  # fmt: skip
        for line in source.notes:
            print(f"{self.src}: {line}")
        left_out = source.left_out.line()
        for line in (*source.warnings, *([f"left out: {left_out}"] if left_out else ())):
            warnings.warn(f"{self.src}: {line}", stacklevel=1)
        return source

    def record_of(self, source: "Source", shard: str) -> dict[str, object]:
        """Return what the JSON beside a dataset file has about its source."""
        is_address = self.src.startswith("hf:") or is_remote(self.src)
        return {
            "source": self.src if is_address else os.path.abspath(self.src),
            "split": self.split,
            "shard": shard,
            "num_total": source.num_total,
            "left_out": {kind: num for kind, num in source.left_out.counts.items() if num},
            **source.reading.as_options(),
        }

    def write(self, out: Path, num_samples: int, samples: Any, target: "Target", **more: Any) -> None:
        """Write a dataset file, show the progress, and print what became of the images."""
        from fastpsl.console.screen import Progress
        from fastpsl.pipelines.beton.output import bad_path, shard_path, shards_of, small_path
        from fastpsl.pipelines.beton.write import can_go_on, write_beton

        if self.resume and not (can_go_on(out) or out.exists() or shards_of(out)):
            print(f"{out}: there is nothing to go on with, so writing starts at the first image")
        is_begun = False

        with Progress(f"{out}: writing", "images", num_samples) as progress:

            def show(num_done: int, num_bad: int, num_bytes: int) -> None:
                nonlocal is_begun
                if not is_begun:
                    progress.begin_at(num_done)
                    is_begun = True
                size = num_bytes / 1e6
                of = f"{size:,.0f} of about {size * num_samples / num_done:,.0f} MB" if num_done else ""
                progress.update(num_done, num_bad, of)

            try:
                report = write_beton(
                    samples, out, num_samples=num_samples, target=target, num_workers=self.workers,
                    max_bad=self.max_bad, overwrite=self.overwrite, resume=self.resume, on_progress=show,
                    **more,
                )  # fmt: skip
            except KeyboardInterrupt:
                if not can_go_on(out):
                    raise
                raise self.interrupted() from None
        what, shards = out, ""
        if more.get("shard_mb"):
            what = shard_path(out, 0, report.num_shards)
            shards = f"{number_of(report.num_shards, 'shard')}, "
        speed = (report.num_samples - report.num_before) / max(report.seconds, 1e-9)
        before = f", {report.num_before:,} of them before the interruption" if report.num_before else ""
        print(
            f"{what}: {shards}{report.num_samples:,} samples{before}, {report.num_bytes / 1e6:,.1f} MB, "
            f"{report.seconds:.1f} s ({speed:,.0f} images/s): "
            f"{report.num_passed:,} taken over, "
            f"{report.num_encoded:,} encoded, {report.num_mended:,} encoded after a libjpeg warning"
        )
        if target.mode == "coefficients":
            num_others = report.num_samples - report.num_coefficients
            print(f"{what}: {report.num_coefficients:,} packed coefficients, {num_others:,} kept as JPEGs")
        if report.num_clipped:
            print(
                f"{what}: {report.num_clipped_values:,} values of {number_of(report.num_clipped, 'image')} "
                f"were outside of --range {target.range} and clipped"
            )
        small = f"smaller than {target.min_px} px"
        for path, num, why, first in (
            (bad_path(out), report.num_bad, "bad", report.first_bad),
            (small_path(out), report.num_small, small, report.first_small),
        ):
            if num:
                was = "was" if num == 1 else "were"
                print(f"{path}: {num:,} {was} left out as {why}, the first is {first}")

    def interrupted(self) -> KeyboardInterrupt:
        """Return an interruption that tells the command that goes on, with the options that were given."""
        names = [field.name for field in fields(self) if field.default is MISSING]
        usual = {field.name: field.default for field in fields(self) if field.default is not MISSING}
        changed = {name: getattr(self, name) for name in usual if getattr(self, name) != usual[name]}
        words = [type(self).__name__.lower(), *(pasted(getattr(self, name)) for name in names)]
        words += map(shlex.quote, option_words(changed | {"resume": True}))
        return KeyboardInterrupt(f"interrupted; go on with: fastpsl data {' '.join(words)}")


@dataclass(frozen=True)
class Append(_Writing):
    """Append the images of another source to a dataset file or to shards, as one more file beside them.

    What is there is not touched: to train.beton comes train.more-00001.beton, and 'train.*beton' names both.
    Images are stored as those of DATA (sizes, quality, mode). Labels go by the names of the classes; a class
    that DATA has not is refused.
    """

    src: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="SRC")]]
    """What to append: a folder, a list, tars, ..., as for fastpsl data write."""
    data: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="DATA")]]
    """A dataset file, or a quoted glob of shards."""
    _: KW_ONLY
    overwrite: bool = False
    """Without --resume, start an interrupted appending anew."""
    resume: bool = False
    """Go on where an interrupted appending was."""

    def run(self) -> None:
        """Write the further file, and print what became of the images."""
        from fastpsl.pipelines.beton.write import appendix, max_bad_count

        require_within(("--workers", self.workers, 1, 4096))
        max_bad_count(self.max_bad, 0)  # fails before the source is counted
        source = self.counted()
        record = self.record_of(source, "0/1") | {"appended": True}
        new = appendix(self.data, source, record)
        samples = new.samples(source)
        self.write(
            new.out, source.num_samples, samples, new.target, class_names=new.class_names, record=record
        )
        print(f"'{new.pattern}' names all of it")


_FORESEEN_FROM = 1000  # images; writing fewer takes hardly longer than an estimate
Pixels = Annotated[int | None, tyro.conf.arg(metavar="PX")]


@dataclass(frozen=True)
class Write(_Writing):
    """Write images as one dataset file: FFCV's format, which ffcv's own Reader and Loader read too, but for
    --mode coefficients.

    JPEGs that need no change are taken over byte for byte; others (progressive, CMYK, grey, PNG, WebP,
    GIF, HEIC, 16-bit, ...) become baseline JPEGs, upright, alpha over white. Nothing is enlarged. Bad
    images are listed in OUT.bad.csv, class names and origin in OUT.json. OUT appears when it is whole;
    the same command with --resume goes on with a writing that was interrupted.
    """

    src: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="SRC")]]
    """The images. A folder with a folder per class, or a flat folder (label -1). A list of image files (.txt,
    .csv, or iNaturalist's .json). A tar, or a quoted glob of tars, also WebDataset's. An .npz of uint8
    images. Parquet files, or hf:NAME for a data set in Hugging Face's cache. A dataset file, or a quoted glob
    of shards. CIFAR-10, CIFAR-100 or STL-10 as published. Tars and Parquet files may be elsewhere, e.g.
    s3://bucket/*.tar. See
    https://fastpsl.github.io/fastpsl/how_to/pack_a_dataset.html."""
    out: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="OUT")]]
    """The file to write, e.g. train.beton; or its address, e.g. s3://bucket/train.beton."""
    _: KW_ONLY
    labels: Annotated[str | None, tyro.conf.arg(metavar="LIST")] = None
    """Of a folder without class folders: a list of PATH CLASS, or one class per line in the files' order."""
    classes: Annotated[str | None, tyro.conf.arg(metavar="DATA|LIST|folders|none")] = None
    """Class names in the order of the labels: those of a training set (a folder, a .beton file), or a list
    with one class per line. folders: folders are classes, even train and val. none: no labels. [SRC's own,
    sorted]"""
    mode: Literal["auto", "jpg", "raw", "coefficients"] = "auto"
    """How images are stored: jpg; raw RGB; or coefficients, JPEGs without their entropy coding, which CPUs
    decode faster, and which ffcv and DALI cannot read. [raw for .npz, CIFAR and STL-10;
    of a dataset file as there; else jpg]"""
    short_side: Pixels = None
    """Shrink images to this shorter side."""
    max_side: Pixels = None
    """Shrink images to this longer side; with --short-side, both hold."""
    quality: Annotated[int, tyro.conf.arg(metavar="1..100")] = 90
    """Quality of the JPEGs that are made."""
    reencode: Literal["larger", "all"] = "larger"
    """Which JPEGs are encoded anew: those that cannot be taken over (larger than wanted, turned, progressive,
    ...), or all, as by ffcv's own writer, but for those that --quality would make no smaller."""
    shard: Annotated[str, tyro.conf.arg(metavar="i/n")] = "0/1"
    """Write only the i-th (from 0) of n runs of neighbouring images; read them together with a glob, e.g.
    'train-*.beton'."""
    shard_mb: Annotated[int | None, tyro.conf.arg(metavar="MB")] = None
    """Write shards of about this size, e.g. 1000, named train-00000-of-00003.beton for OUT train.beton. [one
    file]"""
    min_px: Annotated[int, tyro.conf.arg(metavar="PX")] = 0
    """Leave out images whose shorter side, as stored, is less, and list them in OUT.small.csv; they do not
    count as bad images."""
    range: Annotated[str | None, tyro.conf.arg(metavar="auto|LOW:HIGH")] = None
    """Of images of more than 8 bits: the values that become 0 and 255, e.g. 0:4095; auto: the least and the
    greatest of up to 256 images. Others are clipped and counted. [all that their bits hold]"""
    bands: Annotated[str | None, tyro.conf.arg(metavar="N[,N,N]")] = None
    """Of images of more bands than colours: one or three to take, counted from 1, e.g. 4,3,2."""
    dry_run: bool = False
    """Write nothing; estimate OUT's size and the time from some images, and show the free space."""
    cache_dir: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """For an OUT elsewhere: where it is written before it is uploaded. [a folder in $TMPDIR]"""
    overwrite: bool = False
    """Replace OUT, which is refused otherwise; without --resume, an interrupted writing of it, too."""
    resume: bool = False
    """Go on where an interrupted writing of OUT was; the files become as if it had not been."""

    def run(self) -> None:
        """Write the dataset file and print what became of the images."""
        from fastpsl.pipelines.beton.encode import Target, require_mode
        from fastpsl.pipelines.beton.upload import StagedUpload
        from fastpsl.pipelines.beton.write import max_bad_count, require_writable
        from fastpsl.pipelines.datasets.measured import measure_source
        from fastpsl.pipelines.interface.reading import Reading, range_text

        require_within(
            ("--short-side", self.short_side, 1, 65535),
            ("--max-side", self.max_side, 1, 65535),
            ("--quality", self.quality, 1, 100),
            ("--workers", self.workers, 1, 4096),
            ("--shard-mb", self.shard_mb, 16, 1_000_000),
            ("--min-px", self.min_px, 0, 65535),
        )
        require_mode(self.mode)
        shard = _shard(self.shard)
        reading = Reading.of(self.range, self.bands)
        if reading.measures and shard != (0, 1):
            raise ValueError(
                f"--range auto with --shard {self.shard}: each would measure its own; give LOW:HIGH"
            )
        if self.shard_mb is not None and shard != (0, 1):
            raise ValueError(f"--shard {self.shard} with --shard-mb {self.shard_mb}: give one of them")
        max_bad_count(self.max_bad, 0)  # what can be refused is refused before the source is counted
        out, upload = Path(self.out), None
        shards = self.shard_mb is not None
        if is_remote(self.out):
            upload = StagedUpload(self.out, self.cache_dir)
            out = upload.local
            begun = upload.begin(overwrite=self.overwrite, resume=self.resume, shards=shards)
            if begun and not self.dry_run:
                return self._send(upload)
        elif self.cache_dir is not None:
            raise ValueError(f"--cache-dir {self.cache_dir}: it is for an OUT elsewhere; leave it out")
        if not self.dry_run:
            require_writable(out, overwrite=self.overwrite, resume=self.resume, shards=shards)
        source = self.counted(shard=shard, labels=self.labels, classes=self.classes)
        mode = source.mode if self.mode == "auto" else self.mode
        require_mode(mode)
        if mode == "raw" and self.reencode == "all":
            raise ValueError(
                "--reencode all: it makes JPEGs, but this source is stored as raw pixels; "
                "give --mode jpg, or leave --reencode out"
            )
        if reading.measures:
            measured = measure_source(self.src, source, reading.bands)
            reading = measured.applied(self.src, reading)
            print(f"{self.src}: {reading.in_words()}, by {number_of(measured.num, 'image')}")
        target = Target(
            self.short_side, self.max_side, self.quality, mode, self.min_px, self.reencode,
            range_text(reading.range) if reading.range else None, self.bands,
        )  # fmt: skip
        if self._foresee(source, target, out):
            return
        record = self.record_of(source, self.shard)
        names = source.class_names
        self.write(
            out, source.num_samples, source.samples, target, class_names=names, shard_mb=self.shard_mb,
            record=record,
        )  # fmt: skip
        if upload is not None:
            self._send(upload)

    def _send(self, upload: "StagedUpload") -> None:
        """Upload what is written, and say so; an interruption says how it goes on."""
        try:
            num, num_bytes = upload.send()
        except KeyboardInterrupt:
            raise self.interrupted() from None
        print(f"{self.out}: {number_of(num, 'file')} uploaded, {num_bytes / 1e6:,.1f} MB")

    def _foresee(self, source: "Source", target: "Target", out: Path) -> bool:
        """Print an estimate of the file's size and of the time; return whether --dry-run wants no more."""
        from fastpsl.files.workers import default_num_threads
        from fastpsl.pipelines.beton.estimate import estimate

        num_threads = self.workers or default_num_threads()
        if self.dry_run:
            expected = estimate(source, target, num_threads)
            print("\n".join([expected.line(out), *expected.details(self.max_bad), "nothing was written"]))
            expected.scale.warn_if_dark(self.src)
        elif source.num_samples >= _FORESEEN_FROM:
            expected = estimate(source, target, num_threads, num=64, limit_s=0.7)
            print(expected.line(out))
            expected.scale.warn_if_dark(self.src)
            expected.require_space(out)
        return self.dry_run


def _require_any(betons: list[str], command: str) -> None:
    if not betons:
        example = f"fastpsl data {command} train.beton"
        raise ValueError(f"no dataset file given; name files or quoted globs, as in {example}")


@dataclass(frozen=True)
class Verify:
    """Check dataset files: header, tables, bounds, checksum, and that every sample decodes.

    Of shards, it also checks that all are there, whole, and of one run. Names what is bad and exits 2."""

    betons: tyro.conf.Positional[Annotated[list[str], tyro.conf.arg(metavar="BETON...")]]
    """Files or quoted globs; each glob is one data set."""
    workers: Annotated[int | None, tyro.conf.arg(metavar="NUM")] = None
    """Threads. [one per core]"""

    def run(self) -> None:
        """Print the faults of each dataset file, or that it is sound."""
        from fastpsl.console.screen import Progress
        from fastpsl.pipelines.beton.reader import Beton as OpenBeton
        from fastpsl.pipelines.beton.verify import betons_to_verify, unchecked, verify

        _require_any(self.betons, "verify")
        paths, faults = betons_to_verify(self.betons)
        for fault in faults:
            print(fault)
        num_bad = len(faults)
        for path in paths:
            num_samples, less = 0, ""
            with suppress(ValueError), OpenBeton(path) as beton:  # verify reports the reason
                num_samples, less = beton.num_samples, unchecked(beton)
            with Progress(f"{path}: decoding", "samples", num_samples) as progress:
                problems = list(verify(path, self.workers, progress.update))
            for problem in problems:
                print(problem)
            num_bad += len(problems)
            if not problems:
                print(f"{path}: {num_samples:,} samples, all sound" + (f" ({less})" if less else ""))
        if num_bad:
            raise ValueError(f"{number_of(num_bad, 'fault')}, listed on stdout with what to do")


@dataclass(frozen=True)
class Info:
    """Show what is in a dataset file: counts, sizes, classes, how it was written."""

    betons: tyro.conf.Positional[Annotated[list[str], tyro.conf.arg(metavar="BETON...")]]
    """Files or globs; each is shown as one data set."""

    def run(self) -> None:
        """Print what each dataset file holds."""
        from fastpsl.pipelines.beton.reader import Beton as OpenBeton
        from fastpsl.pipelines.beton.verify import info

        _require_any(self.betons, "info")
        for pattern in self.betons:
            with OpenBeton(pattern) as beton:
                print(info(beton))


class Data:
    """Write, check and show data sets in FFCV's format."""

    commands: ClassVar[dict[str, type]] = {
        "write": Write, "append": Append, "verify": Verify, "info": Info, "show": Show,
    }  # fmt: skip


def _shard(text: str) -> tuple[int, int]:
    """Return i and n of "i/n"; raise ValueError unless 0 <= i < n."""
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise ValueError(f"--shard {text}: not a shard; give i/n with i from 0 to n - 1, e.g. 0/8")
    return int(index), int(count)
