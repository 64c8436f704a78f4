"""What `fastpsl data write` and `append` share: opening a source, and writing it with its progress."""

import contextlib
import os
import shlex
import warnings
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from fastpsl.files.remote.address import is_remote
from fastpsl.pipelines.data.source import Source


def counted(src: str, format: str, **options: Any) -> Source:
    """Open a source, and print what was chosen and what is odd about it."""
    from fastpsl.pipelines.datasets.open import open_source

    with _counting() as on_progress:
        source = open_source(src, format, on_progress=on_progress, **options)
    for line in source.notes:
        print(f"{src}: {line}")
    left_out = source.left_out.line()
    for line in (*source.warnings, *([f"left out: {left_out}"] if left_out else ())):
        warnings.warn(f"{src}: {line}", stacklevel=1)
    return source


@contextlib.contextmanager
def _counting() -> Iterator[Callable[[int, int], None]]:
    """Yield a callback that shows the progress (MB done, MB in all) of counting a source."""
    from fastpsl.console.screen import Progress

    with contextlib.ExitStack() as stack:
        bars: list[Progress] = []

        def show(done: int, total: int) -> None:
            if not bars:
                bars.append(stack.enter_context(Progress("MB", total, "counting")))
            bars[0].update(done, 0)

        yield show


def record_of(src: str, split: str | None, shard: str, source: Source) -> dict[str, object]:
    """Return what the JSON beside a dataset file has about its source."""
    return {
        "source": src if src.startswith("hf:") or is_remote(src) else os.path.abspath(src),
        "split": split,
        "shard": shard,
        "num_total": source.num_total,
        "left_out": {kind: num for kind, num in source.left_out.counts.items() if num},
    }


def write_and_tell(
    command: str, options: Any, out: Path, num_samples: int, samples: Any, **more: Any
) -> None:
    """Write a dataset file, show the progress, and print what became of the images.

    Args:
        command: The command's name, for the line that says how to go on.
        options: The command's dataclass.
        out: The dataset file.
        num_samples: The number of images.
        samples: The function that yields the images from the i-th on.
        more: Further arguments of `write_beton`.

    Raises:
        KeyboardInterrupt: It was interrupted; the message says how it goes on.
        ValueError: It cannot be written.
    """
    from fastpsl.console.screen import Progress
    from fastpsl.pipelines.beton.output import bad_path, shard_path, shards_of, small_path
    from fastpsl.pipelines.beton.write import can_go_on, write_beton

    if options.resume and not (can_go_on(out) or out.exists() or shards_of(out)):
        print(f"{out}: there is nothing to go on with, so writing starts at the first image")
    is_begun = False

    with Progress("images", num_samples, f"{out}: writing") as progress:

        def show(num_done: int, num_bad: int, num_bytes: int) -> None:
            nonlocal is_begun
            if not is_begun:
                progress.begin_at(num_done)
                is_begun = True
            size = num_bytes / 1e6
            of = f"{size:,.0f} of about {size * num_samples / num_done:,.0f} MB" if num_done else ""
            progress.update(num_done, num_bad, of)

        try:
            report = write_beton(samples, out, num_samples=num_samples, on_progress=show, **more)
        except KeyboardInterrupt:
            if not can_go_on(out):
                raise
            raise KeyboardInterrupt(f"interrupted; go on with: {again(command, options)}") from None
    what, shards = out, ""
    if more.get("shard_mb"):
        what = shard_path(out, 0, report.num_shards)
        shards = f"{report.num_shards:,} {'shard' if report.num_shards == 1 else 'shards'}, "
    speed = (report.num_samples - report.num_before) / max(report.seconds, 1e-9)
    before = f", {report.num_before:,} of them before the interruption" if report.num_before else ""
    print(
        f"{what}: {shards}{report.num_samples:,} samples{before}, {report.num_bytes / 1e6:,.1f} MB, "
        f"{report.seconds:.1f} s ({speed:,.0f} images/s): "
        f"{report.num_passed:,} taken over, "
        f"{report.num_encoded:,} encoded, {report.num_mended:,} encoded after a libjpeg warning"
    )
    if report.num_bad:
        num, was = report.num_bad, "was" if report.num_bad == 1 else "were"
        print(f"{bad_path(out)}: {num:,} {was} left out as bad, the first is {report.first_bad}")
    if report.num_small:
        num, was = report.num_small, "was" if report.num_small == 1 else "were"
        print(
            f"{small_path(out)}: {num:,} {was} left out as smaller than {more['target'].min_px} px, "
            f"the first is {report.first_small}"
        )


def again(command: str, options: Any) -> str:
    """Return the command that goes on, with the options that differ from their defaults."""
    words = ["fastpsl", "data", command]
    for field in fields(options):
        value = getattr(options, field.name)
        if field.default is MISSING:
            words.append(str(value))
        elif field.name != "resume" and value != field.default:
            name = f"--{field.name.replace('_', '-')}"
            words += [name] if value is True else [name, str(value)]
    return shlex.join([*words, "--resume"])
