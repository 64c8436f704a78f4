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

from fastpsl import beton_command
from fastpsl.command_line import parse

# Each command imports what it needs: `fastpsl --help` shall not wait for torch or numba.

EXIT_USER_ERROR = 2


@dataclass(frozen=True)
class Permutations:
    """Make a set of jigsaw permutations far from each other: integers [max(counts), pieces] from 0, in nested
    prefixes."""

    out: Annotated[Path, tyro.conf.arg(metavar="FILE.npy")]
    """The .npy file to write."""
    num_pieces: Annotated[int, tyro.conf.arg(metavar="NUM")] = 9
    """Tiles of a puzzle."""
    counts: Annotated[tuple[int, ...], tyro.conf.arg(metavar="NUM...")] = (500, 1000, 2000)
    """Sizes of the nested sets, rising: the first 500 rows are the first set, and so on."""
    overwrite: bool = False
    """Replace FILE.npy, which is refused otherwise."""


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
    Annotated[beton_command.Beton, tyro.conf.subcommand("beton")]
    | Annotated[Show, tyro.conf.subcommand("show")]
    | Annotated[Permutations, tyro.conf.subcommand("permutations")]
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and exit: 0 done, 2 user error (one line on stderr), 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files may be any bytes
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
            else:
                beton_command.run(command.command)
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
        warnings.showwarning = show
        yield


def _show(command: Show) -> None:
    from fastpsl.show import show

    print(show(**vars(command)))


def _permutations(command: Permutations) -> None:
    import numpy as np

    from fastpsl.kernels.permutations import hamming_bound, mean_hamming, minimum_hamming, permutation_set
    from fastpsl.pipelines.beton_file import output_errors, publish_bytes

    if any(one >= other for one, other in zip(command.counts, command.counts[1:], strict=False)):
        raise ValueError(
            f"--counts {' '.join(map(str, command.counts))}: the sets are nested; give rising numbers"
        )
    if command.out.exists() and not command.overwrite:
        raise ValueError(
            f"{command.out}: exists already; remove it, give --overwrite, or choose another name"
        )
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
