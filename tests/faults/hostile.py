"""Hostile or damaged files from strangers: none may run code, write outside of its place, or fill memory.

Messages about them must not control the terminal, and the pages of `fastpsl table` must hold none of their
markup.
"""

import html.parser
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

from typing_extensions import override

from fastpsl.console.terminal import escaped
from tests.faults.attacks import ATTACKS, PRIVATE_IMAGE, Attack
from tests.faults.child import Case, Jury, Limits, refusal
from tests.faults.gates import GATES, Gate, Refused
from tests.faults.readings import CONTROL, flip
from tests.faults.report import Finding, Outcome

# Bombs unpack to 512 MB; sound files of their size take a few MB.
LIMITS = Limits(wall_s=120.0, cpu_s=120, resident_bytes=256 << 20, address_bytes=8 << 30)


def hostile(folder: Path, seed: int, count: int) -> Iterator[Finding]:
    """Yield the findings of the cases `seed` to `seed + count - 1` of single files."""
    yield from Subject(folder, GATES, ATTACKS).findings(seed, count)


class Subject:
    """The sound files of gates, the attacks on them, and the folder where a copy of them is attacked."""

    def __init__(self, folder: Path, gates: Sequence[Gate], attacks: Sequence[Attack]):
        self.folder, self.case_folder = folder, folder / "here"
        self.gates, self.attacks = {gate.name: gate for gate in gates}, attacks
        self.used = list(gates)
        for gate in gates:
            sound = folder / "sound" / gate.name
            sound.mkdir(parents=True)
            gate.make(sound / gate.place)

    def findings(self, seed: int, count: int) -> Iterator[Finding]:
        """Yield the findings of the hand-made attacks, then of damaged sound files, gate by gate."""
        cases = [self._case_of(seed + i) for i in range(count)]
        self.used = [
            gate for name, gate in self.gates.items() if any(c.name.startswith(f"{name}: ") for c in cases)
        ]
        yield from Jury(self.judge, self.folder / "log", LIMITS, self.open_sound).findings(cases)

    def _case_of(self, seed: int) -> Case:
        if seed < len(self.attacks):
            gate, name, _ = self.attacks[seed]
        else:
            gate, name = [*self.gates][seed % len(self.gates)], "damage"
        return Case(seed, f"{gate}: {name}")

    def open_sound(self) -> None:
        """Open the sound files in each child, which warms the gates."""
        warnings.simplefilter("ignore")
        os.chdir(self.folder)
        for gate in self.used:
            try:
                gate.open(self._fresh(gate))
            except Refused as error:  # the weights lack the other layers of the network
                assert "w." in gate.name, error

    def _fresh(self, gate: Gate) -> Path:
        shutil.rmtree(self.case_folder, ignore_errors=True)
        shutil.copytree(self.folder / "sound" / gate.name, self.case_folder)
        return self.case_folder / gate.place

    def judge(self, case: Case) -> Outcome:
        gate = self.gates[case.name.partition(": ")[0]]
        path = self._fresh(gate)
        if case.seed < len(self.attacks):
            self.attacks[case.seed][2](path)
        else:
            path.write_bytes(damage(path.read_bytes(), Random(case.seed)))
        if not os.path.lexists(path):  # the attack renamed its folder
            path = next(self.case_folder.rglob(path.name))
        return self.attack(gate, path)

    def attack(self, gate: Gate, path: Path) -> Outcome:
        """Open a file and return the harm that it did, or else whether it was read."""
        before = self._listing()
        outcome, detail, text = _open(gate, path)
        return self._harm(before, text) or (outcome, detail)

    def _listing(self) -> set[str]:
        """Return the names beside the case's own folder, and above it."""
        folders = (self.folder.parent, self.folder, self.folder / "sound")
        return {str(path) for folder in folders for path in folder.iterdir() if path.name != "canary"}

    def _harm(self, before: set[str], text: str) -> Outcome | None:
        """Return the harm that was done, if any."""
        if canaries := list(self.folder.rglob("canary")):
            for path in canaries:
                path.unlink()
            return "executed", str(canaries[0])
        if new := self._listing() - before:
            return "wrote", str(sorted(new)[:3])
        if any(PRIVATE_IMAGE in path.read_bytes() for path in self.case_folder.glob("*.beton")):
            return "disclosed", "a picture of this machine is in the beton"
        if CONTROL.search(text):
            return "escaped", repr(text[-300:])
        for page in self.case_folder.glob("out/*.[hm]*"):
            written = page.read_text()
            if found := CONTROL.search(written):
                return "escaped", f"{page.name}: {written[: found.end()][-300:]!r}"
            if page.suffix == ".html" and (fault := _strange_markup(written)):
                return "escaped", f"{page.name}: {fault}"
        return None


def _open(gate: Gate, path: Path) -> tuple[str, str, str]:
    """Return the outcome, its detail and the text that users see.

    Errors of the library are shown as the commands show them: escaped, on one line.
    """
    names = (path.name, "runs" if path.name == "result.json" else path.stem, *gate.names)
    try:
        text = gate.open(path)
    except Refused as error:
        text = str(error)
        last = [line for line in text.splitlines() if line.startswith("fastpsl")][-1]
        is_named = any(name in last for name in (*names, "listed on stdout"))
        return "refused" if is_named else "unclear", last, text
    except Exception as error:  # noqa: BLE001 - any exception is a finding
        outcome, detail = refusal(error, *names)
        return outcome, detail, escaped(detail).encode(errors="backslashreplace").decode()
    return "read", "", text


_INSERTED = [b"\xff" * 8, b"\n", b'"', b"1e999", b"\x1b[2J"]
_NUMBERS = [b"-1", b"1e999", b"NaN", b"99999999999999999999", b"4294967295", b"null", b"[]", b'""', b"0"]


def damage(data: bytes, random: Random) -> bytes:
    """Change bits or runs of bytes, cut or insert, or replace numbers of a text."""
    changed, how = bytearray(data), random.randrange(6)
    if how == 0:
        del changed[random.randrange(len(changed)) :]
    elif how == 1:
        start = random.randrange(len(changed))
        changed[start:start] = random.choice([bytes(8), random.randbytes(30), *_INSERTED])
    elif how == 2:
        start, size = random.randrange(len(changed)), random.choice([1, 8, 64, 512])
        changed[start : start + size] = random.choice([bytes(size), random.randbytes(size)])
    elif how == 3 and (numbers := list(re.finditer(rb"\d+", data))):
        number = random.choice(numbers)
        changed[number.start() : number.end()] = random.choice(_NUMBERS)
    elif how == 4:
        # Archives have their directory there.
        start = random.randrange(max(1, len(changed) - 400), len(changed))
        changed[start] ^= 1 << random.randrange(8)
    else:
        flip(changed, random, [1, 3, 30])
    return bytes(changed)


def _strange_markup(page: str) -> str:
    """Return the first tag or attribute of a page that fastpsl does not write itself."""
    faults: list[str] = []

    class Parser(html.parser.HTMLParser):
        @override
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if tag in ("script", "iframe", "object", "embed", "link", "form", "base"):
                faults.append(f"<{tag}>")
            for name, value in attrs:
                is_ours = (value or "").startswith(("data:image/png", "#"))
                if name.startswith("on") or (name in ("src", "href") and not is_ours):
                    faults.append(f"{tag} {name}={value!r}")

    Parser().feed(page)
    return faults[0] if faults else ""
