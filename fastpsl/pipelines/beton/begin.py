"""Whether a dataset file may be written, and whether an interrupted writing goes on."""

import json
from pathlib import Path

from fastpsl.files.atomic import output_errors
from fastpsl.pipelines.beton.journal import Journal, journal_path
from fastpsl.pipelines.beton.output import shards_of, unfinished


def require_writable(out: Path, *, overwrite: bool, resume: bool, shards: bool) -> None:
    """Check that `write_beton` may write `out`, before the images are looked for.

    Args:
        out: The dataset file.
        overwrite: As in `write_beton`.
        resume: As in `write_beton`.
        shards: Whether shards are written.

    Raises:
        ValueError: It exists, an interrupted writing of it is there, its folder cannot be written, or another
            process is writing it.
    """
    with output_errors(out):
        leave(open_journal(out, overwrite=overwrite, resume=resume, shards=shards))


def can_go_on(out: Path) -> bool:
    """Return whether an interrupted writing of `out` is there that `resume` goes on with."""
    if not journal_path(out).exists():
        return False
    journal = Journal(out)
    try:
        return journal.holds_images
    finally:
        leave(journal)


def leave(journal: Journal) -> None:
    """Close a journal, and remove one that holds nothing."""
    if journal.holds_images:
        journal.close()
    else:
        journal.discard()


def open_journal(out: Path, *, overwrite: bool, resume: bool, shards: bool) -> Journal:
    """Open the journal of a dataset file that may be written.

    Args:
        out: The dataset file.
        overwrite: As in `write_beton`.
        resume: As in `write_beton`.
        shards: Whether shards are written.

    Raises:
        ValueError: It may not be written.
    """
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
        leave(journal)
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
