"""Damaged files and the attacks made by hand, gate by gate: none may do harm.

What is read is plain data, or is refused in one line, or left out by name. No code runs, nothing is written,
memory stays small, and messages do not control the terminal.
"""

import contextlib
import os
import re
import shutil
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random

from fastpsl.console.terminal import escaped
from tests.faults.attacks import ATTACKS, COMMANDS, PRIVATE_IMAGE
from tests.faults.child import Case, Limits, judged, refusal
from tests.faults.gates import FOUND, GATES, IMAGES, Gate, Refused
from tests.faults.mutations import mutated
from tests.faults.report import Finding, Outcome

# Characters that control a terminal, a pager or a log viewer: C0 without tab and newline, DEL, C1, those that
# turn the direction of writing, and bytes that are no UTF-8.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\udc80-\udcff]")
# Bombs unpack to 512 MB; sound files of their size take a few MB.
LIMITS = Limits(wall_s=60.0, cpu_s=60, resident_bytes=320 << 20, address_bytes=2 << 30)
# Images of up to 10^9 pixels are read, and small files may claim to be large.
LIMITS_OF_IMAGES = LIMITS._replace(wall_s=400.0, cpu_s=120, resident_bytes=4 << 30, address_bytes=6 << 30)


def damage(folder: Path, seed: int, count: int) -> Iterator[Finding]:
    """Yield the findings of `count` mutants of each gate's file, from a seed on."""
    yield from damaged(GATES, folder, seed, count)


def damaged(gates: Iterable[str], folder: Path, seed: int, count: int) -> Iterator[Finding]:
    """Yield the findings of `count` mutants of the files of some gates."""
    yield from _judged([(gate, Case(seed + i, gate)) for gate in gates for i in range(count)], folder)


def attacks(folder: Path, seed: int, count: int) -> Iterator[Finding]:
    """Yield the findings of the attacks `seed` to `seed + count - 1`."""
    some = list(enumerate(ATTACKS))[seed : seed + count]
    yield from _judged([(each.gate, Case(i, f"{each.gate}: {each.words}")) for i, each in some], folder)


def _judged(cases: Iterable[tuple[str, Case]], folder: Path) -> Iterator[Finding]:
    """Yield the findings of cases of gates, those of images in a process of their own for their limits."""
    folder.mkdir(exist_ok=True)
    for limits in (LIMITS, LIMITS_OF_IMAGES):
        some = [
            case for gate, case in cases if (LIMITS_OF_IMAGES if _is_of_images(gate) else LIMITS) is limits
        ]
        yield from judged(Damage(folder), some, folder / "log", limits)


def _is_of_images(gate: str) -> bool:
    return gate in IMAGES or gate.endswith("images/b/x.jpg")


class Damage:
    """A judge of mutants and attacks of one gate's file after the other's, which lie in `folder`/here."""

    def __init__(self, folder: Path):
        self.folder, self.name = folder, ""

    def prepare(self, case: Case) -> None:
        """Make a gate's sound file and open it, which warms the gate."""
        name = ATTACKS[case.seed].gate if case.name not in GATES else case.name
        if name == self.name:
            return
        warnings.simplefilter("ignore")
        os.environ["XDG_CACHE_HOME"] = str(self.folder / "cache")
        os.chdir(self.folder)
        self.name, self.gate = name, (GATES | COMMANDS)[name]
        self.path, kept = self.folder / "here" / name.rpartition(": ")[2], self.folder / "sound"
        for each in (self.folder / "here", kept):
            shutil.rmtree(each, ignore_errors=True)
        (self.folder / "here").mkdir()
        self.gate.make(self.path)
        self.sound = self.path.read_bytes()
        shutil.copytree(self.folder / "here", kept)
        with contextlib.suppress(Refused):  # weights without the other layers of their network
            self.text = str(self.gate.open(self.path))

    def judge(self, case: Case) -> Outcome:
        """Damage the file, open it, and return the harm that it did, or else what came of it."""
        if case.name in GATES:
            random = Random(f"{case.name} {case.seed}")
            data = mutated(self.sound, random)
            self.path.write_bytes(self.gate.seal(data) if random.random() < 0.5 else data)
        else:
            shutil.rmtree(self.folder / "here")
            shutil.copytree(self.folder / "sound", self.folder / "here")
            ATTACKS[case.seed].make(self.path)
        before = self._listing()
        outcome, detail, result = _opened(self.gate, self.path)
        if outcome == "read" and self.gate.exact:
            outcome = {self.text: "as before", FOUND: "found"}.get(str(result), "silent")
        # Commands return what they print.
        return self._harm(before, result if isinstance(result, str) else "") or (outcome, detail)

    def _listing(self) -> dict[Path, tuple[int, int]]:
        """Return size and time of all files but those where a gate may write."""
        found = {}
        for top, folders, files in os.walk(self.folder):
            folders[:] = [name for name in folders if name not in ("cache", "out", "sound")]
            for name in files:
                stat = os.lstat(path := Path(top, name))
                found[path] = stat.st_size, stat.st_mtime_ns
        return {path: what for path, what in found.items() if path.name != "log"}

    def _harm(self, before: dict[Path, tuple[int, int]], text: str) -> Outcome | None:
        after = self._listing()
        changed = [path for path in before | after if before.get(path) != after.get(path)]
        if changed:
            return "executed" if any(path.name == "canary" for path in changed) else "wrote", str(changed[:3])
        out = self.folder / "here" / "out"
        out = out if out.exists() else self.path.parent / "out"
        if any(PRIVATE_IMAGE in path.read_bytes() for path in out.rglob("*.beton")):
            return "disclosed", "an image of this machine is in the dataset file"
        pages = [*out.glob("*.html"), *out.glob("*.md")]
        for name, page in [("the output", text), *((path.name, path.read_text()) for path in pages)]:
            if found := CONTROL.search(page):
                return "escaped", f"{name}: {page[: found.end()][-300:]!r}"
            if name.endswith(".html") and "<script>alert" in page:
                return "escaped", f"{name}: markup"
        return None


def _opened(gate: Gate, path: Path) -> tuple[str, str, object]:
    """Return the outcome, its detail, and what was read or is shown.

    Errors of the library are shown as the commands show them: escaped, on one line.
    """
    try:
        return "read", "", gate.open(path)
    except Refused as error:
        text = str(error)
        return "refused", [line for line in text.splitlines() if line.startswith("fastpsl")][-1], text
    except Exception as error:  # noqa: BLE001 - any exception is a finding
        outcome, detail = refusal(error, *((path.name, path.stem, path.parent.name) if gate.named else [""]))
        return outcome, detail, escaped(detail).encode(errors="backslashreplace").decode()
