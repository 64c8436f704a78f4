"""Damaged betons, and damaged JSONs beside sound ones: is what is read what was written?

Every decoder reads them. `fastpsl data verify` must report every beton that the loader refuses, or reads with
other pixels or labels.
"""

import base64
import json
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from fastpsl.commands.data import Info
from fastpsl.pipelines.beton.encode import Target
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.beton.shard import ALLOCATION, FIELD, HEADER, row_dtype
from fastpsl.pipelines.beton.sidecar import sidecar_path
from fastpsl.pipelines.beton.write import write_beton
from fastpsl.pipelines.interface.source import Sample
from tests.faults.child import Case, Jury, Limits, cases_of, describe, refusal
from tests.faults.readings import CONTROL, Reading, command, flip, read, verify
from tests.faults.report import Finding, Outcome
from tests.pipelines.photos import DECODERS, jpeg, photo

_NUM = 24  # samples
# A loader holds a few batches, and DALI reserves memory for decoding at each start.
LIMITS = Limits(wall_s=180.0, cpu_s=60, resident_bytes=512 << 20, address_bytes=24 << 30)
# A bomb of 16 MB of names must not be unpacked for 24 samples.
LIMITS_OF_SIDE_FILES = LIMITS._replace(resident_bytes=48 << 20, address_bytes=8 << 30)
_NAMES_BYTES = 16 << 20

# Numbers at which 32-bit and 64-bit arithmetic overflows.
EXTREMES = [0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**62, 2**63 - 1, 2**63, 2**63 + 1, 2**64 - 1]
_ROW = row_dtype((2, 1))
_HEAD = HEADER.itemsize
_SECTOR, _BLOCK = 512, 4096
_ESCAPES = "\x1b[2J\x1b]0;title\x07\x9b31m"
_FRAMES = (0xC0, 0xC1, 0xC2)  # of a JPEG


class Mutant(bytearray):
    """The bytes of a sound beton, to be damaged in place, and the offsets of its parts."""

    def __init__(self, sound: bytes):
        super().__init__(sound)
        header = np.frombuffer(sound[:_HEAD], HEADER)[0]
        self.num = int(header["num_samples"])
        self.table = _HEAD + int(header["num_fields"]) * FIELD.itemsize
        self.table_end = self.table + self.num * _ROW.itemsize
        self.data, self.data_end = int(self.images["data_ptr"].min()), int(header["alloc_table_ptr"])
        self.allocations_end, self.end = self.data_end + self.num * ALLOCATION.itemsize, len(sound)

    @property
    def rows(self) -> np.ndarray:
        """The table's rows; writing to them changes the bytes, here and below."""
        return np.frombuffer(memoryview(self)[self.table : self.table_end], _ROW)

    @property
    def images(self) -> np.ndarray:
        return self.rows["f0"]

    @property
    def allocations(self) -> np.ndarray:
        return np.frombuffer(memoryview(self)[self.data_end : self.allocations_end], ALLOCATION)


def damage(m: Mutant, kind: str, random: Random) -> None:
    """Damage a beton in one of KINDS, in place."""
    match kind:
        case "header_bit":
            flip(m, random, [1, 1, 2, 4], 0, _HEAD)
        case "header_field":  # a wrong count or pointer
            start, size = random.choice([(0, 2), (2, 2), (4, 4), (8, 8), (16, 8)])
            near = [m.num - 1, m.num + 1, m.num // 2, m.data_end - 24, m.data_end + 24, m.data_end - 1]
            value = random.choice([*EXTREMES, *near, m.end, m.end - 24, 3, 256]) % (1 << 8 * size)
            m[start : start + size] = value.to_bytes(size, "little")
        case "descriptor_bit":
            flip(m, random, [1, 2, 8], _HEAD, m.table)
            if random.random() < 0.5:
                m[_HEAD + FIELD.itemsize * random.randrange(2)] = random.randrange(9)
        case "table_bit":
            flip(m, random, [1, 1, 3, 20], m.table, m.table_end)
        case "label":
            labels = [-2, -1, 0, 1, 2, 3, 2**31 - 2, 2**31 - 1, 2**31, 2**63 - 1, -(2**63)]
            m.rows["f1"][random.randrange(m.num)] = random.choice(labels)
        case "mode":
            m.images["mode"][random.randrange(m.num)] = random.choice([0, 1, 2, 255])
        case "side":  # the width, the height or both of one sample
            row = m.images[random.randrange(m.num) :][:1]
            for name in random.choice([("width",), ("height",), ("width", "height")]):
                px = int(row[name][0])
                row[name] = random.choice([0, 1, 2, 65535, 32768, px + 1, px // 2])
        case "pointer":
            one, other = (random.randrange(m.num) for _ in range(2))
            near = [m.data_end, m.data_end - 1, m.end, m.table, int(m.images["data_ptr"][other])]
            m.images["data_ptr"][one] = np.uint64(random.choice(EXTREMES + near))
        case "allocation_bit":
            flip(m, random, [1, 1, 3, 20], m.data_end, m.allocations_end)
        case "allocation_field":
            one, other = (random.randrange(m.num) for _ in range(2))
            size = int(m.allocations["size"][one])
            near = [m.data_end, size - 1, size + 1, 3, 4, int(m.allocations["ptr"][other])]
            number = np.uint64(random.choice(EXTREMES + near))
            m.allocations[random.choice(["sample_id", "ptr", "size", "size"])][one] = number
        case "allocation_order":  # of the rows of the table, or of one of its columns
            column = random.choice([None, "size", "ptr", "sample_id"])
            if column is None:
                order = np.random.default_rng(random.randrange(1 << 30)).permutation(m.num)
                m.allocations[:] = m.allocations[order]
            else:
                m.allocations[column] = m.allocations[column][::-1].copy()
        case "data_bit":
            flip(m, random, [1, 1, 10, 1000], m.data, m.data_end)
        case "sample_head_bit":  # a JPEG's headers are there
            start = int(m.images["data_ptr"][random.randrange(m.num)])
            flip(m, random, [1, 2, 5], start, min(start + 700, m.data_end))
        case "anywhere_bit":
            flip(m, random, [1, 1, 8, 64])
        case "tail_bit":
            flip(m, random, [1, 2, 8], m.end - 64)
        case "truncate":
            del m[random.randrange(m.end) :]
        case "truncate_at_a_border":
            ends = [0, _HEAD, m.table, m.table_end, m.data, m.data_end, m.allocations_end, m.end - 24, m.end]
            del m[max(0, random.choice(ends) + random.choice([-1, 0, 1])) :]
        case "grow":
            noise = random.randbytes(24), random.randbytes(240)
            m += random.choice([bytes(1), bytes(24), bytes(_BLOCK), *noise, bytes(m[m.data_end :])])
        case "zeros":  # a page, a block or a run, as if it had never been written
            size = random.choice([_SECTOR, _BLOCK, 65536, 1 << 21, random.randrange(1, 5000)])
            starts = [0, random.randrange(m.data, m.end), m.end - 1, random.randrange(m.table_end)]
            start = random.choice(starts)
            start -= start % _SECTOR if size % _SECTOR == 0 else 0
            m[start : start + size] = bytes(min(size, len(m) - start))
        case "swapped_blocks":
            size = random.choice([_SECTOR, _BLOCK])
            one, other = (random.randrange(m.data, m.end - size) // _SECTOR * _SECTOR for _ in range(2))
            if abs(one - other) >= size:
                m[one : one + size], m[other : other + size] = m[other : other + size], m[one : one + size]
        case "noise":  # in one of the file's regions
            borders = [0, _HEAD, m.table, m.table_end, m.data, m.data_end, m.end]
            start = random.randrange(*random.choice([borders[i : i + 2] for i in (0, 1, 2, 4, 5)]))
            size = min(random.choice([2, 8, 64, 1024]), m.end - start)
            m[start : start + size] = random.randbytes(size)
        case "copied_part":
            start, to = random.randrange(m.end), random.randrange(m.end)
            part = m[start : start + random.randrange(1, 20000)][: m.end - to]
            m[to : to + len(part)] = part
        case "doubled_table":  # the first row of a table repeated, or one table replaced by the other
            how = random.randrange(3)
            if how < 2:
                table = (m.allocations, m.rows)[how]
                table[:] = table[0]
            else:
                part = m[m.data_end : m.allocations_end][: m.table_end - m.table]
                m[m.table : m.table + len(part)] = part
        case "swapped_rows":  # two samples, with or without their labels, so that every row stays sound
            one, other = random.sample(range(m.num), 2)
            field = random.choice([None, "f0", "f1"])
            table = m.rows if field is None else m.rows[field]
            table[[one, other]] = table[[other, one]].copy()
        case "agreed_size":  # a wrong one both in the table and in the JPEG's header
            row = m.images[random.randrange(m.num) :][:1]
            height, width = int(row["height"][0]), int(row["width"][0])
            sizes = [(65535, 65535), (1, 1), (65535, 1), (8, 65535), (20000, 20000), (height + 1, width)]
            height, width = random.choice([*sizes, (2 * height, 2 * width)])
            row["height"], row["width"] = height, width
            at = int(row["data_ptr"][0]) + 2
            while m[at] == 0xFF and m[at + 1] not in _FRAMES and at + 4 < m.data_end:
                at += 2 + int.from_bytes(m[at + 2 : at + 4], "big")
            if m[at] == 0xFF:
                m[at + 5 : at + 9] = struct.pack(">HH", height, width)
        case "raw_for_jpeg":  # a JPEG as raw pixels of a size that fits, or does not
            one = random.randrange(m.num)
            height, width = random.choice([(10, 10), (1, 1), (20, 5), (65535, 65535)])
            m.images[["mode", "height", "width"]][one] = (1, height, width)
            m.allocations["size"][one] = height * width * 3
        case _:
            raise KeyError(kind)


KINDS = (
    "header_bit", "header_field", "descriptor_bit", "table_bit", "label", "mode", "side", "pointer",
    "allocation_bit", "allocation_field", "allocation_order", "data_bit", "sample_head_bit", "anywhere_bit",
    "tail_bit", "truncate", "truncate_at_a_border", "grow", "zeros", "swapped_blocks", "noise", "copied_part",
    "doubled_table", "swapped_rows", "agreed_size", "raw_for_jpeg",
)  # fmt: skip


def sound_beton(path: Path, mode: str) -> Path:
    """Write a beton of small photos in 4 classes, as JPEGs or raw, and return its path."""
    sizes = [(48 + 3 * i % 40, 40 + 7 * i % 50) for i in range(_NUM)]
    samples = [Sample(f"{i % 4}/{i}.jpg", jpeg(photo(i, *size)), i % 4) for i, size in enumerate(sizes)]
    write_beton(
        samples, path, num_samples=_NUM, class_names=["cat", "dog", "eel", "fox"], target=Target(mode=mode),
        num_workers=1, page_bytes=1 << 21, record={"source": "/photos", "shard": "0/1"},
    )  # fmt: skip
    return path


def betons(folder: Path, seed: int, count: int) -> Iterator[Finding]:
    """Yield the findings of the mutants `seed` to `seed + count - 1`.

    The seed also determines the mode (raw or JPEG), the JSON, the decoder, and whether bad samples are
    skipped.
    """
    yield from _mutants(folder, seed, count, ("jpg", "jpg", "jpg", "jpg", "raw"), DECODERS)


def coefficients(folder: Path, seed: int, count: int) -> Iterator[Finding]:
    """Yield the findings of the same mutants of packed coefficients."""
    decoders = [name for name in DECODERS if name in ("turbo", "pillow")]
    yield from _mutants(folder, seed, count, ("coefficients",), decoders)


def _mutants(
    folder: Path, seed: int, count: int, modes: Sequence[str], decoders: Sequence[str]
) -> Iterator[Finding]:
    path = folder / "mutant.beton"
    sound = {mode: sound_beton(folder / f"{mode}.beton", mode) for mode in dict.fromkeys(modes)}
    contents = {mode: (path.read_bytes(), sidecar_path(path).read_bytes()) for mode, path in sound.items()}
    expected: dict[tuple[str, str], Reading] = {}

    def read_sound() -> None:
        """Read the sound betons in each child, which also warms the decoders."""
        for mode, file in sound.items():
            expected.update({(mode, decoder): read(file, decoder) for decoder in decoders})
            assert verify(file).error is None

    def judge(case: Case) -> Outcome:
        choices = Random(f"{case.seed} choices")
        mode, decoder = choices.choice(modes), choices.choice(decoders)
        with_json = choices.random() < 0.5
        on_bad_sample = "skip" if choices.random() < 0.25 else "raise"
        mutant = Mutant(contents[mode][0])
        damage(mutant, case.name, Random(case.seed))
        path.write_bytes(mutant)
        sidecar_path(path).unlink(missing_ok=True)
        if with_json:
            sidecar_path(path).write_bytes(contents[mode][1])
        outcome, detail = _judge_reading(path, decoder, on_bad_sample, expected[mode, decoder])
        json_words = "with JSON" if with_json else "no JSON"
        return outcome, f"{mode}, {decoder}, {on_bad_sample}, {json_words}: {detail}"

    yield from Jury(judge, folder / "log", LIMITS, read_sound).findings(cases_of(KINDS, seed, count))


def _judge_reading(path: Path, decoder: str, on_bad_sample: str, expected: Reading) -> Outcome:
    """Read and verify a damaged beton; return the outcome and a detail."""
    outcome, detail = _read(path, decoder, on_bad_sample, expected)
    try:
        result = verify(path)
    except Exception as error:  # noqa: BLE001 - it is what is looked for
        return "traceback", f"verify: {describe(error)}"
    if CONTROL.search(result.text):
        return "escaped", f"verify: {result.text!r}"
    if outcome in ("found", "refused", "skipped") and result.error is None:
        return "silent", f"verify finds nothing; the loader: {detail}"
    return outcome, (result.text or str(result.error)).splitlines()[0] if outcome == "found" else detail


def _read(path: Path, decoder: str, on_bad_sample: str, expected: Reading) -> Outcome:
    """Return the loader's outcome; "found" if it reads something else, which verify must then report."""
    try:
        reading = read(path, decoder, on_bad_sample)
    except Exception as error:  # noqa: BLE001 - it is what is looked for
        return refusal(error, path.name)
    if reading[:2] == expected[:2]:
        return "as before", ""
    if reading.bad:
        if not all(path.name in name for name in reading.bad):
            return "unclear", reading.bad[0]
        pairs, sound = ([*zip(each.digests, each.labels, strict=True)] for each in (reading, expected))
        if len(pairs) == len(sound) and all(not pair[0] or pair == sound[i] for i, pair in enumerate(pairs)):
            return "skipped", reading.bad[0]
    return "found", "other pixels or labels are read"


_WEIRD: list[Any] = [
    None, True, -1, 0, 1, 10**30, 2**63, float("inf"), float("-inf"), float("nan"), 1.5, "", "x", "1", [], {},
    [[]], {"a": 1}, _ESCAPES, ["a"] * 3, "AAAA", [None, 1], "\ud800", "a" * 100_000, "../../etc/passwd",
]  # fmt: skip


def damage_json(text: bytes, kind: str, random: Random) -> bytes:
    """Damage the JSON in one of SIDE_KINDS."""
    record = json.loads(text)
    match kind:
        case "bit":
            data = bytearray(text)
            flip(data, random, [1, 1, 3])
            return bytes(data)
        case "truncated":
            return text[: random.randrange(len(text))]
        case "value" | "written_value":  # of another type or size
            place, value = (record if kind == "value" else record["written"]), random.choice(_WEIRD)
            place[random.choice(sorted(place))] = value
        case "missing":
            del record[random.choice(sorted(record))]
        case "another":  # no object, or endless nesting
            depth = random.choice([10, 1000, 200_000])
            nested = [b"[" * depth, b'{"a":' * depth]
            return random.choice([b"", b"7", b"null", b"[]", b'"x"', *nested, b"\xff\xfe{\0}\0", bytes(100)])
        case "paths":  # packed names that are cut or damaged, of another number, a bomb or escapes
            packed = str(record["source_paths"])
            raw = bytearray(base64.b64decode(packed))
            raw[random.randrange(len(raw))] ^= 1 << random.randrange(8)
            escapes = f"{_ESCAPES}\n".encode("utf-8", "surrogateescape") * 24
            names = [b"\n" * 1000, b"a\\", escapes, b"\n" * _NAMES_BYTES]
            choices = [bytes(raw), random.randbytes(50), *(zlib.compress(name) for name in names)]
            other = base64.b64encode(random.choice(choices)).decode()
            record["source_paths"] = random.choice([packed[: len(packed) // 8 * 4], other])
        case "class_names":  # removed, added or doubled, escapes and markup
            classes = list(record["class_names"])
            odd: list[Any] = [classes[0], _ESCAPES, "<script>", [], None, "a" * 10**6]
            fours = [[name] * 4 for name in odd]
            record["class_names"] = random.choice([classes[:-1], [*classes, "gnu"], *fours])
        case _:
            raise KeyError(kind)
    return json.dumps(record).encode()


SIDE_KINDS = (
    "bit", "truncated", "value", "written_value", "missing", "another", "paths", "class_names",
)  # fmt: skip


def side_files(folder: Path, seed: int, count: int) -> Iterator[Finding]:
    """Yield the findings of damaged JSONs beside a sound beton: pixels must be read right.

    The loader, `fastpsl data verify` and `info`, and the name of a sample in messages read the JSON.
    """
    path = sound_beton(folder / "mutant.beton", "jpg")
    text, expected = sidecar_path(path).read_bytes(), list[Reading]()

    def read_sound() -> None:
        sidecar_path(path).write_bytes(text)
        expected.append(read(path, "pillow"))

    def judge(case: Case) -> Outcome:
        sidecar_path(path).write_bytes(damage_json(text, case.name, Random(case.seed)))
        outcome = _judge_reading(path, "pillow", "raise", expected[0])
        return (_judge_info(path) or outcome) if outcome[0] in ("as before", "refused") else outcome

    jury = Jury(judge, folder / "log", LIMITS_OF_SIDE_FILES, read_sound)
    yield from jury.findings(cases_of(SIDE_KINDS, seed, count))


def _judge_info(path: Path) -> Outcome | None:
    """Return the outcome of `info` and of a sample's name, unless both are good."""
    step = "info"
    try:
        result = command(Info([str(path)]))
        if CONTROL.search(result.text):
            return "escaped", f"info: {result.text!r}"
        if result.error and refusal(result.error, path.name)[0] != "refused":
            return "unclear", f"info: {result.error}"
        step = "name"
        with Beton(path) as beton:
            beton.name(3)
    except Exception as error:  # noqa: BLE001 - it is what is looked for
        if step == "name" and isinstance(error, ValueError):
            return refusal(error, path.name)
        return "traceback", f"{step}: {describe(error)}"
    return None
