"""Hostile or damaged files from strangers: none may run code, write outside of its place, or fill memory.

Messages about them must not control the terminal, and the pages of `fastpsl table` must hold none of their
markup.
"""

import html.parser
import os
import random
import re
import shutil
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from typing_extensions import override

from fastpsl.console.terminal import escaped
from tests.faults import hostile_archives, hostile_arrays, hostile_texts
from tests.faults.child import Case, Limits, judge_cases, refusal
from tests.faults.hostile_archives import PRIVATE_IMAGE
from tests.faults.hostile_common import Attack
from tests.faults.hostile_gates import GATES, Gate, Refused
from tests.faults.readings import CONTROL
from tests.faults.report import Finding

# Bombs unpack to 512 MB; sound files of their size take a few MB.
LIMITS = Limits(wall_s=120.0, cpu_s=120, resident_bytes=256 << 20, address_bytes=8 << 30)
_MADE_BY_HAND: list[Attack] = hostile_arrays.ATTACKS + hostile_archives.ATTACKS + hostile_texts.ATTACKS
_BY_NAME = {gate.name: gate for gate in GATES}


def case_of(seed: int) -> Case:
    """Return the case of a seed: the hand-made attacks, then damaged sound files, gate by gate."""
    if seed < len(_MADE_BY_HAND):
        gate, name, _ = _MADE_BY_HAND[seed]
        return Case(seed, f"{gate}: {name}")
    return Case(seed, f"{GATES[seed % len(GATES)].name}: damage")


def run(folder: Path, seed: int, count: int) -> Iterator[Finding]:
    """Yield the findings of the cases `seed` to `seed + count - 1`."""
    subject = Subject(folder)
    cases = [case_of(seed + i) for i in range(count)]
    subject.used = [gate for gate in GATES if any(case.name.startswith(f"{gate.name}: ") for case in cases)]
    yield from judge_cases(
        "hostile", cases, subject.judge, folder / "log", LIMITS, batch=250, prepare=subject.open_sound
    )


class Subject:
    """The sound files of each gate, and the folder where a copy of them is attacked."""

    def __init__(self, folder: Path, gates: Sequence[Gate] = GATES):
        self.folder, self.case_folder = folder, folder / "here"
        self.sound: dict[str, Path] = {}
        self.used = list(gates)
        for gate in gates:
            gate_folder = folder / "sound" / gate.name
            gate_folder.mkdir(parents=True)
            self.sound[gate.name] = gate.make(gate_folder).relative_to(gate_folder)

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
        return self.case_folder / self.sound[gate.name]

    def judge(self, case: Case) -> tuple[str, str]:
        if case.seed < len(_MADE_BY_HAND):
            gate = _BY_NAME[_MADE_BY_HAND[case.seed][0]]
            path = self._fresh(gate)
            _MADE_BY_HAND[case.seed][2](path)
        else:
            gate = GATES[case.seed % len(GATES)]
            path = self._fresh(gate)
            path.write_bytes(damage(path.read_bytes(), random.Random(case.seed)))
        if not path.exists():  # the attack renamed its folder
            path = next(self.case_folder.rglob(path.name))
        return self.attack(gate, path)

    def attack(self, gate: Gate, path: Path) -> tuple[str, str]:
        """Open a file and return the harm that it did, or else whether it was read."""
        before = _listing(self.folder)
        outcome, detail, text = _open(gate, path)
        return self._harm(before, text) or (outcome, detail)

    def _harm(self, before: set[str], text: str) -> tuple[str, str] | None:
        """Return the harm that was done, if any."""
        if canaries := [str(path) for path in self.folder.rglob("canary")]:
            for path in canaries:
                os.unlink(path)
            return "executed", canaries[0]
        if new := _listing(self.folder) - before:
            return "wrote", str(sorted(new)[:3])
        if any(PRIVATE_IMAGE in path.read_bytes() for path in self.case_folder.glob("*.beton")):
            return "disclosed", "a picture of this machine is in the beton"
        if CONTROL.search(text):
            return "escaped", repr(text[-300:])
        for page in self.case_folder.glob("out/*.html"):
            if fault := _strange_markup(page.read_text()):
                return "escaped", f"{page.name}: {fault}"
        return None


def _open(gate: Gate, path: Path) -> tuple[str, str, str]:
    """Return the outcome, its detail and the text that users see.

    Errors of the library are shown as the commands show them: escaped, on one line.
    """
    names = (path.name, path.stem) if path.name != "result.json" else (path.name, "runs")
    try:
        text = gate.open(path)
    except Refused as error:
        text = str(error)
        last = [line for line in text.splitlines() if line.startswith("fastpsl: ")][-1]
        is_named = any(name in last for name in (*names, "listed on stdout"))
        return "refused" if is_named else "unclear", last, text
    except Exception as error:  # noqa: BLE001 - any exception is a finding
        outcome, detail = refusal(error, *names)
        return outcome, detail, escaped(detail).encode(errors="backslashreplace").decode()
    return "read", "", text


def _listing(folder: Path) -> set[str]:
    """Return the names beside the case's own folder, and above it."""
    above = {f"../{name}" for name in os.listdir(folder.parent)}
    return (
        {name for name in os.listdir(folder) if name != "canary"} | above | set(os.listdir(folder / "sound"))
    )


def damage(data: bytes, random: random.Random) -> bytes:
    """Change bits or runs of bytes, cut or insert, or replace numbers of a text."""
    changed = bytearray(data)
    how = random.randrange(6)
    if how == 0:
        del changed[random.randrange(len(changed)) :]
    elif how == 1:
        start = random.randrange(len(changed))
        changed[start:start] = random.choice(
            [bytes(8), random.randbytes(30), b"\xff" * 8, b"\n", b'"', b"1e999", b"\x1b[2J"]
        )
    elif how == 2:
        start, size = random.randrange(len(changed)), random.choice([1, 8, 64, 512])
        changed[start : start + size] = random.choice([bytes(size), random.randbytes(size)])
    elif how == 3 and (numbers := list(re.finditer(rb"\d+", data))):
        number = random.choice(numbers)
        value = random.choice(
            [b"-1", b"1e999", b"NaN", b"99999999999999999999", b"4294967295", b"null", b"[]", b'""', b"0"]
        )
        changed[number.start() : number.end()] = value
    elif how == 4:
        # Archives have their directory there.
        start = random.randrange(max(1, len(changed) - 400), len(changed))
        changed[start] ^= 1 << random.randrange(8)
    else:
        for _ in range(random.choice([1, 3, 30])):
            changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
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
                if name.startswith("on") or (
                    name in ("src", "href") and not (value or "").startswith(("data:image/png", "#"))
                ):
                    faults.append(f"{tag} {name}={value!r}")

    Parser().feed(page)
    return faults[0] if faults else ""
