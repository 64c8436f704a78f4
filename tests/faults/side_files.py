"""A damaged JSON beside a sound beton: pixels must be read right, and no internal error may occur.

The loader, `fastpsl data verify` and `info`, and the name of a sample in messages read the JSON.
"""

import base64
import json
import random
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastpsl.commands import data as beton_command
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.beton.sidecar import sidecar_path
from tests.faults.betons import judge_reading, sound_beton
from tests.faults.child import Case, Limits, describe, judge_cases, refusal
from tests.faults.readings import CONTROL, command, read
from tests.faults.report import Finding

# A bomb of 16 MB of names must not be unpacked for 24 samples.
LIMITS = Limits(wall_s=180.0, cpu_s=60, resident_bytes=48 << 20, address_bytes=8 << 30)
_NAMES_BYTES = 16 << 20
_DECODER = "pillow"
_ESCAPES = "\x1b[2J\x1b]0;title\x07\x9b31m"

Random = random.Random
_WEIRD: list[Any] = [
    None, True, -1, 0, 1, 10**30, 2**63, float("inf"), float("-inf"), float("nan"), 1.5, "", "x", "1", [], {},
    [[]],
    {"a": 1}, _ESCAPES, ["a"] * 3, "AAAA", [None, 1], "\ud800", "a" * 100_000, "../../etc/passwd",
]  # fmt: skip


def bit(text: bytes, random: Random) -> bytes:
    data = bytearray(text)
    for _ in range(random.choice([1, 1, 3])):
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    return bytes(data)


def truncated(text: bytes, random: Random) -> bytes:
    return text[: random.randrange(len(text))]


def value(text: bytes, random: Random) -> bytes:
    """Replace a value by one of another type or size."""
    record = json.loads(text)
    record[random.choice(sorted(record))] = random.choice(_WEIRD)
    return json.dumps(record).encode()


def written_value(text: bytes, random: Random) -> bytes:
    """Replace a value within `written`."""
    record = json.loads(text)
    record["written"][random.choice(sorted(record["written"]))] = random.choice(_WEIRD)
    return json.dumps(record).encode()


def missing(text: bytes, random: Random) -> bytes:
    record = json.loads(text)
    del record[random.choice(sorted(record))]
    return json.dumps(record).encode()


def another(text: bytes, random: Random) -> bytes:
    """Return no object, or endless nesting."""
    depth = random.choice([10, 1000, 200_000])
    return random.choice(
        [b"", b"7", b"null", b"[]", b'"x"', b"[" * depth, b'{"a":' * depth, b"\xff\xfe{\0}\0", bytes(100)]
    )


def paths(text: bytes, random: Random) -> bytes:
    """Cut or damage the packed names, change their number, or add a bomb or escapes."""
    record = json.loads(text)
    packed = str(record["source_paths"])
    raw = bytearray(base64.b64decode(packed))
    raw[random.randrange(len(raw))] ^= 1 << random.randrange(8)
    names = [
        b"\n" * 1000,
        b"a\\",
        f"{_ESCAPES}\n".encode("utf-8", "surrogateescape") * 24,
        b"\n" * _NAMES_BYTES,
    ]
    choices = [bytes(raw), random.randbytes(50), *(zlib.compress(name) for name in names)]
    record["source_paths"] = random.choice(
        [packed[: len(packed) // 8 * 4], base64.b64encode(random.choice(choices)).decode()]
    )
    return json.dumps(record).encode()


def class_names(text: bytes, random: Random) -> bytes:
    """Remove, add or double class names, or use escapes and markup."""
    record = json.loads(text)
    names = list(record["class_names"])
    choices = [
        names[:-1],
        [*names, "gnu"],
        [names[0]] * 4,
        [_ESCAPES] * 4,
        ["<script>"] * 4,
        [[]] * 4,
        [None] * 4,
        ["a" * 10**6] * 4,
    ]
    record["class_names"] = random.choice(choices)
    return json.dumps(record).encode()


KINDS = (bit, truncated, value, written_value, missing, another, paths, class_names)


def run(folder: Path, seed: int, count: int) -> Iterator[Finding]:
    """Yield the findings of the mutants `seed` to `seed + count - 1`."""
    sound = sound_beton(folder / "mutant.beton", "jpg")
    text = sidecar_path(sound).read_bytes()
    expected = {}

    def prepare() -> None:
        sidecar_path(sound).write_bytes(text)
        expected["sound"] = read(sound, _DECODER)

    def judge(case: Case) -> tuple[str, str]:
        sidecar_path(sound).write_bytes(KINDS[case.seed % len(KINDS)](text, random.Random(case.seed)))
        outcome, detail = judge_reading(sound, _DECODER, "raise", expected["sound"])
        return (
            (outcome, detail)
            if outcome not in ("as before", "refused")
            else _judge_info(sound, outcome, detail)
        )

    cases = [Case(seed + i, KINDS[(seed + i) % len(KINDS)].__name__) for i in range(count)]
    yield from judge_cases("side_files", cases, judge, folder / "log", LIMITS, batch=250, prepare=prepare)


def _judge_info(path: Path, outcome: str, detail: str) -> tuple[str, str]:
    """Return the outcome of `info` and of a sample's name; by default the given one."""
    try:
        result = command(beton_command.Info([str(path)]))
    except Exception as error:  # noqa: BLE001 - it is what is looked for
        return "traceback", f"info: {describe(error)}"
    if CONTROL.search(result.text):
        return "escaped", f"info: {result.text!r}"
    if result.error and refusal(result.error, path.name)[0] != "refused":
        return "unclear", f"info: {result.error}"
    try:
        with Beton(path) as beton:
            beton.name(3)
    except ValueError as error:
        return refusal(error, path.name)
    except Exception as error:  # noqa: BLE001 - it is what is looked for
        return "traceback", f"name: {describe(error)}"
    return outcome, detail
