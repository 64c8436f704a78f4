"""Damaged betons, with and without their JSON, read by every decoder: is what is read what was written?

`fastpsl data verify` must report every beton that the loader refuses, or reads with other pixels or labels.
"""

import random
from collections.abc import Iterator
from pathlib import Path

from fastpsl.pipelines.beton.encode import Target
from fastpsl.pipelines.beton.sidecar import sidecar_path
from fastpsl.pipelines.beton.write import write_beton
from fastpsl.pipelines.data.source import Sample
from tests.faults.beton_mutants import KINDS, Layout
from tests.faults.child import Case, Limits, describe, judge_cases, refusal
from tests.faults.readings import CONTROL, CommandOutput, Reading, read, verify
from tests.faults.report import Finding
from tests.pipelines.photos import DECODERS, jpeg, photo

NUM_SAMPLES = 24
# A loader holds a few batches, and DALI reserves memory for decoding at each start.
LIMITS = Limits(wall_s=180.0, cpu_s=60, resident_bytes=512 << 20, address_bytes=24 << 30)
_PAGE_BYTES = 1 << 21


def case_of(seed: int) -> Case:
    return Case(seed, KINDS[seed % len(KINDS)].__name__)


def run(folder: Path, seed: int, count: int) -> Iterator[Finding]:
    """Yield the findings of the mutants `seed` to `seed + count - 1`."""
    subject = _Subject(folder)
    cases = [case_of(seed + i) for i in range(count)]
    yield from judge_cases(
        "betons", cases, subject.judge, folder / "log", LIMITS, batch=250, prepare=subject.read_sound
    )


def sound_beton(path: Path, mode: str) -> Path:
    """Write a beton of small photos in 4 classes, as JPEGs or raw, and return its path."""
    samples = [
        Sample(f"{i % 4}/{i}.jpg", jpeg(photo(i, 48 + 3 * i % 40, 40 + 7 * i % 50)), i % 4)
        for i in range(NUM_SAMPLES)
    ]
    names = ["cat", "dog", "eel", "fox"]
    write_beton(
        samples, path, num_samples=len(samples), class_names=names, target=Target(mode=mode), num_workers=1,
        page_bytes=_PAGE_BYTES, record={"source": "/photos", "shard": "0/1"},
    )  # fmt: skip
    return path


class _Subject:
    """The two sound betons, and the path of their mutants."""

    def __init__(self, folder: Path):
        self.path = folder / "mutant.beton"
        self.sound = [sound_beton(folder / f"{mode}.beton", mode) for mode in ("jpg", "raw")]
        self.bytes = [path.read_bytes() for path in self.sound]
        self.jsons = [sidecar_path(path).read_bytes() for path in self.sound]
        self.expected: dict[tuple[int, str], Reading] = {}

    def read_sound(self) -> None:
        """Read the sound betons in each child, which also warms the decoders."""
        for which, path in enumerate(self.sound):
            for decoder in DECODERS:
                self.expected[which, decoder] = read(path, decoder)
            assert verify(path).error is None

    def judge(self, case: Case) -> tuple[str, str]:
        """Damage a beton, read it and verify it.

        The seed also determines the mode (raw or JPEG), the JSON, the decoder, and whether bad samples are
        skipped.
        """
        choices = random.Random(f"{case.seed} choices")
        which = int(choices.random() < 0.2)
        decoder = choices.choice(DECODERS)
        with_json, skip = choices.random() < 0.5, choices.random() < 0.25
        data = bytearray(self.bytes[which])
        KINDS[case.seed % len(KINDS)](data, Layout.of(data), random.Random(case.seed))
        self.path.write_bytes(data)
        if with_json:
            sidecar_path(self.path).write_bytes(self.jsons[which])
        else:
            sidecar_path(self.path).unlink(missing_ok=True)
        mode, json_words = "raw" if which else "jpg", "with JSON" if with_json else "no JSON"
        how = f"{mode}, {decoder}, {'skip' if skip else 'raise'}, {json_words}"
        outcome, detail = judge_reading(
            self.path, decoder, "skip" if skip else "raise", self.expected[which, decoder]
        )
        return outcome, f"{how}: {detail}"


def judge_reading(path: Path, decoder: str, on_bad_sample: str, expected: Reading) -> tuple[str, str]:
    """Read and verify a damaged beton; return the outcome and a detail."""
    outcome, detail = _read(path, decoder, on_bad_sample, expected)
    try:
        result = verify(path)
    except Exception as error:  # noqa: BLE001 - it is what is looked for
        return "traceback", f"verify: {describe(error)}"
    if CONTROL.search(result.text):
        return "escaped", f"verify: {result.text!r}"
    if outcome == "found":
        return (
            ("silent", f"{detail}, verify finds nothing")
            if result.error is None
            else ("found", _first(result))
        )
    if outcome in ("refused", "skipped") and result.error is None:
        return "silent", f"verify finds nothing; the loader: {detail}"
    return outcome, detail


def _read(path: Path, decoder: str, on_bad_sample: str, expected: Reading) -> tuple[str, str]:
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
        good_indices = [i for i, digest in enumerate(reading.digests) if digest]
        pairs = list(zip(reading.digests, reading.labels, strict=True))
        sound = list(zip(expected.digests, expected.labels, strict=True))
        if len(pairs) == len(sound) and all(pairs[i] == sound[i] for i in good_indices):
            return "skipped", reading.bad[0]
    return "found", "other pixels or labels are read"


def _first(output: CommandOutput) -> str:
    """Return the first line of a command's output, or its error."""
    return output.text.splitlines()[0] if output.text else str(output.error)
