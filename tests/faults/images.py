"""Damaged images and odd files beside sound ones: written to a beton, and read as a folder by every decoder.

The sound ones must be read as ever. The damaged one must be reported with its name and a reason, or be read
as an image. What is written must be sound for `fastpsl data verify`. Lists and messages must hold no control
character.
"""

import csv
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

from fastpsl.commands import data as beton_command
from fastpsl.pipelines.beton.encode import BYTES_PER_PIXEL
from fastpsl.pipelines.beton.output import bad_path
from fastpsl.pipelines.data.dataset import MAX_FILE_BYTES
from fastpsl.pipelines.image.image_file import MAX_PIXELS
from tests.faults import image_mutants, odd_files
from tests.faults.child import Case, Limits, judge_cases, refusal
from tests.faults.readings import CONTROL, CommandOutput, command, read, verify
from tests.faults.report import Finding
from tests.pipelines.photos import DECODERS, jpeg, photo

# The most memory of one image and its file. The results show that most take a hundredth.
_MOST_BYTES = BYTES_PER_PIXEL * MAX_PIXELS + MAX_FILE_BYTES
LIMITS = Limits(wall_s=400.0, cpu_s=120, resident_bytes=_MOST_BYTES, address_bytes=24 << 30)
NUM_SOUND = 4
# One case in ten has an entry that is no image file.
_ODD_EVERY = 10
_MUTANTS = image_mutants.KINDS
_ODD = odd_files.KINDS


def case_of(seed: int) -> Case:
    if seed % _ODD_EVERY == _ODD_EVERY - 1:
        return Case(seed, _ODD[seed // _ODD_EVERY % len(_ODD)].__name__)
    return Case(seed, _MUTANTS[seed % len(_MUTANTS)].__name__)


def run(folder: Path, seed: int, count: int) -> Iterator[Finding]:
    """Yield the findings of the cases `seed` to `seed + count - 1`."""
    subject = _Subject(folder)
    cases = [case_of(seed + i) for i in range(count)]
    yield from judge_cases(
        "images", cases, subject.judge, folder / "log", LIMITS, batch=250, prepare=subject.read_sound
    )


class _Subject:
    """A folder of two classes: the sound images, then the damaged one, so that it comes last."""

    def __init__(self, folder: Path):
        self.root, self.odd = folder / "images", folder / "images" / "z"
        self.out, self.cache = folder / "out.beton", folder / "cache"
        (self.root / "a").mkdir(parents=True)
        self.odd.mkdir()
        for i in range(NUM_SOUND):
            (self.root / "a" / f"{i}.jpg").write_bytes(jpeg(photo(i, 50 + i, 64 - i)))
        self.expected: dict[str, tuple[str, ...]] = {}

    def read_sound(self) -> None:
        """Store the digests of the sound images in each child, which also warms the decoders."""
        os.environ["XDG_CACHE_HOME"] = str(self.cache)
        _remove(self.odd)
        self.odd.mkdir()
        assert self._write().error is None
        for decoder in DECODERS:
            self.expected[decoder] = read(self._read_by(decoder), decoder).digests

    def judge(self, case: Case) -> tuple[str, str]:
        self._make(case)
        return self._judge_writing() or self._judge_reading() or self._outcome()

    def _make(self, case: Case) -> None:
        """Put the damaged file alone into the second class."""
        _remove(self.odd)
        self.odd.mkdir()
        choices = random.Random(case.seed)
        if case.seed % _ODD_EVERY == _ODD_EVERY - 1:
            _ODD[case.seed // _ODD_EVERY % len(_ODD)](self.odd, choices)
            return
        data, ending = _MUTANTS[case.seed % len(_MUTANTS)](choices)
        name = choices.choice(odd_files.NAMES) if choices.random() < 0.3 else b"mutant"
        with open(os.path.join(os.fsencode(self.odd), name + ending.encode()), "wb") as file:
            file.write(data)

    def _read_by(self, decoder: str) -> Path:
        """Return the beton for turbo and ffcv, which read nothing else, and the folder for other decoders."""
        return self.out if decoder in ("turbo", "ffcv") else self.root

    def _write(self) -> CommandOutput:
        arguments = beton_command.Write(str(self.root), str(self.out), max_bad="2", workers=1, overwrite=True)
        return command(arguments)

    def _judge_writing(self) -> tuple[str, str] | None:
        result = self._write()
        if CONTROL.search(result.text):
            return "escaped", f"write: {result.text!r}"
        if result.error:
            return refusal(result.error, self.root.name, self.out.name)
        if fault := verify(self.out).error:
            return "differs", f"what was written is not sound: {fault}"
        if rows := self._quarantine_rows():
            if any(len(row) != 2 for row in rows) or rows[0] != ["path", "reason"] or len(rows) > 3:
                return "escaped", f"{bad_path(self.out).name} falls apart: {rows}"
            if any(CONTROL.search(row[1]) or not row[1] for row in rows):
                return "unclear", f"reasons: {rows}"
        return None

    def _quarantine_rows(self) -> list[list[str]]:
        path = bad_path(self.out)
        if not path.exists():
            return []
        with open(path, newline="", errors="surrogateescape") as file:
            return list(csv.reader(file))

    def _judge_reading(self) -> tuple[str, str] | None:
        for decoder in DECODERS:
            path = self._read_by(decoder)
            try:
                reading = read(path, decoder, on_bad_sample="skip")
            except Exception as error:  # noqa: BLE001 - any exception is a finding
                outcome, detail = refusal(error, path.name)
                return outcome, f"{decoder}: {detail}"
            if reading.digests[:NUM_SOUND] != self.expected[decoder][:NUM_SOUND]:
                return "silent", f"{decoder}: sound pictures beside it are read differently"
        return None

    def _outcome(self) -> tuple[str, str]:
        rows = self._quarantine_rows()
        return ("skipped", rows[1][1]) if rows else ("read", "")


def _remove(folder: Path) -> None:
    """Remove a folder, even with folders deeper than a path can name."""
    top = folder
    while (top / "d" / "d").is_dir():
        os.rename(top / "d", folder.with_name("removed"))
        if (folder.with_name("removed") / "d").is_dir():
            os.rename(folder.with_name("removed") / "d", top / "d")
        shutil.rmtree(folder.with_name("removed"))
    shutil.rmtree(folder, ignore_errors=False)
