"""Readings of a beton or a folder by the loader, outputs of commands, and edits of bytes."""

import contextlib
import hashlib
import io
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

from fastpsl.commands import data as data_commands
from fastpsl.console.terminal import safe_output
from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.kernels.geometry import Flip
from fastpsl.pipelines.datasets.open import open_data
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.views import ViewSpec

# Characters that control a terminal, a pager or a log viewer: C0 without tab and newline, DEL, C1, those that
# turn the direction of writing, and bytes that are no UTF-8.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\udc80-\udcff]")
# One crop is nearly the whole image, the other any part of it.
VIEWS = [
    ViewSpec(RandomResizedCrop(64, scale=(0.9, 1.0)), (Flip(),)),
    ViewSpec(RandomResizedCrop(32), (Flip(),)),
]


def flip(
    data: bytearray, random: Random, counts: Sequence[int], start: int = 0, end: int | None = None
) -> None:
    """Flip so many bits as one of `counts` says, between two offsets."""
    for _ in range(random.choice(counts)):
        data[random.randrange(start, len(data) if end is None else end)] ^= 1 << random.randrange(8)


class Reading(NamedTuple):
    """One epoch in the order of the data."""

    digests: tuple[str, ...]  # a digest of each sample's views; "" for a skipped one
    labels: tuple[int, ...]  # the labels; -1 for a skipped sample
    bad: tuple[str, ...]  # the names of the skipped samples, with their reasons


def read(path: Path, decoder: str, on_bad_sample: str = "raise") -> Reading:
    """Open `path` and read it once; errors of the library pass through."""
    digests, labels, bad = list[str](), list[int](), list[str]()
    with warnings.catch_warnings(), contextlib.ExitStack() as stack:
        warnings.simplefilter("ignore")
        data = stack.enter_context(contextlib.closing(open_data(path)))
        loader = Loader(
            data, VIEWS, batch_size_per_rank=8, train=False, decoder=decoder, num_threads=2, timeout_s=120.0,
            on_bad_sample=on_bad_sample,
        )  # fmt: skip
        for batch in stack.enter_context(loader).epoch(0):
            bad += map(str, batch.bad)
            for i, index in enumerate(batch.indices.tolist()):
                views = b"".join(images[i].numpy().tobytes() for images in batch.images)
                digests.append(hashlib.blake2b(views, digest_size=8).hexdigest() if index >= 0 else "")
                labels.append(int(batch.labels[i]) if index >= 0 else -1)
    return Reading(tuple(digests), tuple(labels), tuple(bad))


class CommandOutput(NamedTuple):
    """The output of a command (stdout and stderr), and the error that it ended with."""

    text: str
    error: ValueError | None


def command(arguments: data_commands.Write | data_commands.Verify | data_commands.Info) -> CommandOutput:
    """Run `fastpsl data ...` in this process, as `fastpsl.cli` does; only ValueError is caught."""

    def lose(name: str, error: OSError) -> None:
        raise error

    output, error = io.BytesIO(), None
    stream = io.TextIOWrapper(output, encoding="utf-8", write_through=True)
    with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream), safe_output(lose):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                arguments.run()
        except ValueError as raised:
            error = raised
            print(f"fastpsl: {' '.join(str(error).split())}", file=sys.stderr)
    return CommandOutput(output.getvalue().decode(errors="surrogateescape"), error)


def verify(path: Path) -> CommandOutput:
    """Run `fastpsl data verify PATH`; `error` is None for a sound beton."""
    return command(data_commands.Verify([str(path)], workers=1))
