"""The `fastpsl` command."""

import contextlib
import io
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from fastpsl.command_line import parse

# Each command imports what it needs: `fastpsl --help` shall not wait for torch or numba.

EXIT_USER_ERROR = 2
Pixels = Annotated[int | None, tyro.conf.arg(metavar="PX")]


@dataclass(frozen=True)
class Write:
    """Write a folder of images as one beton: FFCV's format, which ffcv's own Reader and Loader read too.

    JPEGs that need no change are taken over byte for byte; others (progressive, CMYK, grey, PNG, WebP,
    16-bit, ...) become baseline JPEGs, upright by their EXIF orientation, alpha over white. Nothing is
    enlarged. Broken images are listed in OUT.quarantine.csv, class names and origin in OUT.json. OUT appears
    when it is whole.
    """

    src: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="SRC")]]
    """Folder with a folder per class (images at any depth), or a flat folder of images (label -1)."""
    out: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="OUT")]]
    """The file to write, e.g. train.beton."""
    short_side: Pixels = None
    """Shrink images to this shorter side."""
    max_side: Pixels = None
    """Shrink images to this longer side; with --short-side, both hold."""
    quality: Annotated[int, tyro.conf.arg(metavar="1..100")] = 90
    """Quality of the JPEGs that are made."""
    shard: Annotated[str, tyro.conf.arg(metavar="i/n")] = "0/1"
    """Write only the i-th (from 0) of n runs of neighbouring images; read them together with a glob, e.g.
    'train-*.beton'."""
    workers: Annotated[int | None, tyro.conf.arg(metavar="NUM")] = None
    """Threads; the file does not depend on it. [one per core]"""
    max_bad: Annotated[str, tyro.conf.arg(metavar="N|N%")] = "1%"
    """How many broken images are left out and listed before writing stops with exit 2."""
    overwrite: bool = False
    """Replace OUT, which is refused otherwise."""


@dataclass(frozen=True)
class Verify:
    """Check betons: header, tables, bounds, checksum, and that every sample decodes. Names what is bad and
    exits 2."""

    betons: tyro.conf.Positional[Annotated[list[str], tyro.conf.arg(metavar="BETON...")]]
    """Files or globs."""
    workers: Annotated[int | None, tyro.conf.arg(metavar="NUM")] = None
    """Threads. [one per core]"""


@dataclass(frozen=True)
class Info:
    """Show what is in a beton: counts, sizes, classes, how it was written."""

    betons: tyro.conf.Positional[Annotated[list[str], tyro.conf.arg(metavar="BETON...")]]
    """Files or globs; each is shown as one data set."""


@dataclass(frozen=True)
class Beton:
    """Write, check and show data sets in FFCV's format."""

    command: (
        Annotated[Write, tyro.conf.subcommand("write")]
        | Annotated[Verify, tyro.conf.subcommand("verify")]
        | Annotated[Info, tyro.conf.subcommand("info")]
    )


@dataclass(frozen=True)
class Permutations:
    """Make a set of jigsaw permutations far from each other: integers [max(counts), pieces] from 0, in nested
    prefixes."""

    out: Annotated[Path, tyro.conf.arg(metavar="FILE.npy")]
    """The .npy file to write."""
    num_pieces: Annotated[int, tyro.conf.arg(metavar="NUM")] = 9
    """Tiles of a puzzle."""
    counts: Annotated[tuple[int, ...], tyro.conf.arg(metavar="NUM...")] = (500, 1000, 2000)
    """Sizes of the nested sets: the first 500 rows are the first set, and so on."""


@dataclass(frozen=True)
class Show:
    """Draw a contact sheet of what the network sees: a task's views at the paper's sizes, or the decoder's crops.

    Each picture's caption tells the sample's number, its class, and what the task drew.
    """

    data: tyro.conf.Positional[Annotated[str | None, tyro.conf.arg(metavar="DATA")]] = None
    """A beton, a quoted glob of shards, or a folder of images. [the embedded sample]"""
    task: Annotated[str, tyro.conf.arg(metavar="crops|jigsaw")] = "crops"
    """crops: two random resized crops of each sample, no task."""
    level: Annotated[int, tyro.conf.arg(metavar="LEVEL")] = 1
    """The task's level, from 1."""
    num: Annotated[int, tyro.conf.arg(metavar="NUM")] = 16
    """Samples to draw."""
    seed: int = 0
    """Another seed shows other samples, other crops and other draws."""
    shorter_px: Annotated[int, tyro.conf.arg(metavar="PX")] = 256
    """Shorter side of the picture that is cut from; the task's other sizes keep the paper's proportion to it."""
    decoder: Annotated[str, tyro.conf.arg(metavar="NAME")] = "auto"
    """As in a recipe."""
    device: Annotated[str, tyro.conf.arg(metavar="auto|cpu|cuda")] = "auto"
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE.png")] = None
    """The PNG to write. [TASK-GLEVEL.png in this folder]"""


Command = (
    Annotated[Beton, tyro.conf.subcommand("beton")]
    | Annotated[Show, tyro.conf.subcommand("show")]
    | Annotated[Permutations, tyro.conf.subcommand("permutations")]
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and exit: 0 done, 2 user error (one line on stderr), 130 interrupted."""
    try:
        command = parse(
            Command,
            arguments,
            prog="fastpsl",
            description="Self-supervised pre-training of vision backbones: data sets, contact sheets and permutation sets.",
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
        )
        with _one_line_warnings():
            if isinstance(command, Permutations):
                _permutations(command)
            elif isinstance(command, Show):
                _show(command)
            elif isinstance(command.command, Write):
                _write(command.command)
            elif isinstance(command.command, Verify):
                _verify(command.command)
            else:
                _info(command.command)
        sys.stdout.flush()
    except ValueError as error:
        print(f"fastpsl: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    except KeyboardInterrupt:
        print("fastpsl: interrupted; nothing was left under the final name", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `fastpsl beton info x | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(0)


@contextlib.contextmanager
def _one_line_warnings() -> Iterator[None]:
    def show(message: Warning | str, *_: object, **__: object) -> None:
        print(f"fastpsl: warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")  # on single images; they are judged by what comes out
        warnings.filterwarnings(
            "ignore", message="The image decoding and encoding capabilities of TorchVision"
        )
        warnings.showwarning = show
        yield


def _shard(text: str) -> tuple[int, int]:
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise ValueError(f"--shard {text}: not a shard; give i/n with i from 0 to n - 1, e.g. 0/8")
    return int(index), int(count)


def _write(command: Write) -> None:
    from fastpsl.pipelines.beton_convert import Target
    from fastpsl.pipelines.beton_write import max_bad_count, quarantine_path, write_beton
    from fastpsl.pipelines.sources import image_folder
    from fastpsl.progress import Progress

    for name, value, low, high in (
        ("--short-side", command.short_side, 1, 65535),
        ("--max-side", command.max_side, 1, 65535),
        ("--quality", command.quality, 1, 100),
        ("--workers", command.workers, 1, 4096),
    ):
        if value is not None and not low <= value <= high:
            raise ValueError(f"{name} {value}: give a number from {low} to {high}")
    shard = _shard(command.shard)
    max_bad_count(command.max_bad, 0)  # before the folder is walked
    source = image_folder(command.src, shard)
    for name in source.empty_classes:
        warnings.warn(f"{command.src}: class {name} holds no image; it keeps its label", stacklevel=1)
    if source.num_ignored:
        warnings.warn(
            f"{command.src}: {source.num_ignored:,} files are no images by their names; left out",
            stacklevel=1,
        )
    with Progress("images", source.num_samples) as progress:
        report = write_beton(
            source.samples(),
            command.out,
            num_samples=source.num_samples,
            class_names=source.class_names,
            target=Target(command.short_side, command.max_side, command.quality),
            num_workers=command.workers,
            max_bad=command.max_bad,
            overwrite=command.overwrite,
            record={"source": str(command.src), "shard": command.shard, "num_no_images": source.num_ignored},
            on_progress=progress.update,
        )
    print(
        f"{command.out}: {report.num_samples:,} samples, {report.num_bytes / 1e6:,.1f} MB, {report.seconds:.1f} s "
        f"({report.num_samples / max(report.seconds, 1e-9):,.0f} images/s): {report.num_passed:,} taken over, "
        f"{report.num_encoded:,} encoded, {report.num_mended:,} encoded after a libjpeg warning"
    )
    if report.num_quarantined:
        print(f"{quarantine_path(command.out)}: {report.num_quarantined:,} broken images were left out")


def _verify(command: Verify) -> None:
    from fastpsl.pipelines.beton import Beton as OpenBeton
    from fastpsl.pipelines.beton import shard_paths
    from fastpsl.pipelines.beton_verify import verify
    from fastpsl.progress import Progress

    if not command.betons:
        raise ValueError("no beton given; name files or globs, see fastpsl beton verify --help")
    num_bad = 0
    for path in [path for given in command.betons for path in shard_paths(given)]:
        try:
            with OpenBeton(path) as beton:
                num_samples = beton.num_samples
        except ValueError:
            num_samples = 0  # verify tells why
        with Progress("samples", num_samples) as progress:
            problems = list(verify(path, command.workers, progress.update))
        for problem in problems:
            print(problem)
        num_bad += len(problems)
        if not problems:
            print(f"{path}: {num_samples:,} samples, all sound")
    if num_bad:
        raise ValueError(f"{num_bad:,} faults, listed on stdout; write the beton again from sound images")


def _info(command: Info) -> None:
    from fastpsl.pipelines.beton import Beton as OpenBeton
    from fastpsl.pipelines.beton_verify import info

    if not command.betons:
        raise ValueError("no beton given; name files or globs, see fastpsl beton info --help")
    for given in command.betons:
        with OpenBeton(given) as beton:
            print(info(beton))


def _show(command: Show) -> None:
    from fastpsl.show import show

    print(show(**vars(command)))


def _permutations(command: Permutations) -> None:
    import numpy as np

    from fastpsl.kernels.permutations import hamming_bound, mean_hamming, minimum_hamming, permutation_set
    from fastpsl.pipelines.beton_file import output_errors, publish_bytes

    found = permutation_set(command.num_pieces, command.counts)
    data = io.BytesIO()
    np.save(data, found.permutations.astype(np.int64))
    with output_errors(command.out):
        publish_bytes(command.out, data.getvalue())
    print(f"{command.out}: {len(found.permutations):,} permutations of {command.num_pieces} pieces")
    print("  permutations   minimum distance   mean distance   bound of the mean")
    for count in found.counts:
        some = found.permutations[:count]
        bound = hamming_bound(count, command.num_pieces)
        print(f"  {count:>12,}   {minimum_hamming(some):>16}   {mean_hamming(some):>13.4f}   {bound:>17.4f}")
