"""Runs and weights of strangers, which `replay`, `runs`, `compare`, `--config` and `--init` read.

No record and no weights may run code, lead out of their folder, fill memory, or end in more than a line.
"""

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from fastpsl.models.weights import open_weights
from tests import cheaper, recorded
from tests.faults.attacks import (
    DIGITS,
    ESCAPES,
    HEADS,
    JSON_TEXTS,
    MARKUP,
    METADATA,
    TORCH_FILES,
    Attack,
    Payload,
    all_strings,
    json_edit,
    keys_of,
    metadata_of,
    plant_code,
    text,
    texts,
    value_attacks,
)
from tests.faults.gates import Gate, command
from tests.faults.hostile import Subject
from tests.faults.report import Finding
from tests.files.test_remote_http import serving
from tests.models.test_hostile_weights import OLDER, PICKLES, ZIPPED, older, zipped
from tests.pipelines.photos import photo_samples, write
from tests.pipelines.threads import in_a_forked_process

_RUN = Path("runs/simclr-001")
_TINY = (
    *("--backbone", "resnet18", "--size-px", 32, "--epochs", 1, "--batch-size", 4, "--workers", 1),
    *("--plan", "end_to_end", "--max-steps-per-stage", 2, "--val", "20%", "--no-tensorboard"),
)
_LISTED = ("config.json", "environment.json", "status.json", "results.json", "metrics.jsonl", "probe.jsonl")
_CHECKPOINT = "checkpoints/step-00000001.pt"
# What refusals of the options in a config.json may name: an option, or the file that one names.
_OPTIONS = ("--", "seed", "no such file or folder", "net.py")
# The files that each command reads.
_FILES = {
    "replay": ("config.json", "environment.json", "metrics.jsonl", _CHECKPOINT),
    "runs": _LISTED,
    "compare": _LISTED,
    "--config": ("config.json",),
    "--init": ("theirs.pt", "theirs.safetensors", "theirs.pkl"),
    "--init of an address": ("theirs.pt", "theirs.safetensors"),
}


def records(folder: Path, seed: int, count: int) -> Iterator[Finding]:
    """Yield the findings of the cases `seed` to `seed + count - 1` of runs and weights."""
    cheaper.for_good()
    data, sound = folder / "data.beton", folder / "trained"
    failure = in_a_forked_process(partial(_train, data, sound))  # because training starts threads
    assert failure is None, failure
    yield from Subject(folder / "cases", _gates(data, sound), ATTACKS).findings(seed, count)


def _train(data: Path, sound: Path) -> None:
    """Train a run, and write its weights in other formats."""
    write(data, photo_samples(12))
    run, weights = sound / _RUN, sound / "theirs.safetensors"
    often = ("--checkpoint-steps", 1, "--probe-every", 1)
    command("train", "simclr", *_TINY, *often, "--data", data, "--out", run)
    shutil.copytree(run, run.with_name("simclr-002"), ignore=shutil.ignore_patterns("*.pt"))
    shutil.copy(run / "checkpoints" / "step-00000002.pt", sound / "theirs.pt")
    command("export", run, weights, "--to", "safetensors")
    arrays = {name: tensor.numpy() for name, tensor in open_weights(weights).state.items()}
    (sound / "theirs.pkl").write_bytes(pickle.dumps({"model": arrays}, 2))


def _gates(data: Path, sound: Path) -> list[Gate]:
    """Return the gates of records and weights; `sound` has a run and weights."""

    def train(here: Path, *arguments: object) -> str:
        return command("train", "simclr", "--dry-run", "--data", data, "--out", here / "again", *arguments)

    def begin(here: Path, file: str) -> str:
        return train(here, *_TINY, "--init", here / file)

    def begin_elsewhere(here: Path, file: str) -> str:
        os.environ["XDG_CACHE_HOME"] = str(here / "cache")
        lies = json.loads((here / "lies.json").read_text()) if (here / "lies.json").exists() else {}
        content = (here / file).read_bytes()
        with serving({file: (content, len(content) + lies.get("more", 0))}) as server:
            server.version, server.shift = lies.get("version", server.version), lies.get("shift", 0)
            if "changes" in lies:
                server.on_request = lambda number, _: setattr(server, "version", ("ETag", f'"{number}"'))
            return train(here, *_TINY, "--init", f"{server.address}/{file}")

    def list_runs(here: Path, _: str) -> str:
        json.loads(command("runs", here / "runs", "--json"))
        return command("runs", here / "runs")

    looks: Mapping[str, Callable[[Path, str], str]] = {
        "replay": lambda here, _: command(
            "replay", here / _RUN, "--step", 2, "--out", here / "out", "--workers", 1
        ),
        "runs": list_runs,
        "compare": lambda here, _: command("compare", here / "runs", "--out", here / "out"),
        "--config": lambda here, _: train(here, "--config", here / _RUN),
        "--init": begin,
        "--init of an address": begin_elsewhere,
    }

    def gate(name: str, file: str) -> Gate:
        place = file if file.startswith("theirs.") else str(_RUN / file)
        num_parts = len(Path(place).parts)

        def make(path: Path) -> None:
            part = Path(place).parts[0]
            copy = shutil.copytree if (sound / part).is_dir() else shutil.copy
            copy(sound / part, path.parents[num_parts - 1] / part)

        names = (_RUN.name, *(_OPTIONS if file == "config.json" else ()))
        return Gate(place, name, make, lambda path: looks[name](path.parents[num_parts - 1], file), names)

    return [gate(name, file) for name, files in _FILES.items() for file in files]


def _link(target: str) -> Payload:
    """Return an attack that replaces the file by a link."""

    def make(path: Path) -> None:
        path.unlink()
        path.symlink_to(target)

    return make


def _special(create: Callable[[Path], object]) -> Payload:
    """Return an attack that replaces the file by what is none."""

    def make(path: Path) -> None:
        path.unlink()
        create(path)

    return make


def _names_code(*places: str) -> Payload:
    """Return an attack that names a Python file at places of the record; at none given, at all strings."""

    def make(path: Path) -> None:
        record, code = recorded.read(path), str(plant_code(path))
        for keys in [keys_of(place) for place in places] or list(recorded.strings(record)):
            record = recorded.planted(record, keys, f"{code}:Net" if keys[-1] == "backbone" else code)
        recorded.write(path, record)

    return make


def _without(place: str) -> Payload:
    """Return an attack that removes a value."""
    *keys, last = keys_of(place)

    def edit(record: Any) -> None:
        for key in keys:
            record = record[key]
        del record[last]

    return json_edit(edit)


def _lies(**told: Any) -> Payload:
    """Return an attack by a server that lies about the file."""
    return lambda path: path.with_name("lies.json").write_text(json.dumps(told))


_FEW_BYTES, _MANY_BYTES = 1 << 32, 1 << 40  # of weights, which are mapped, and of records
_ODD_FILES: dict[str, Payload] = {
    "a pipe": _special(os.mkfifo),
    "a folder": _special(os.mkdir),
    "a link to /dev/zero": _link("/dev/zero"),
    "a link to /dev/tty": _link("/dev/tty"),
    "a link to itself": _special(lambda path: path.symlink_to(path)),
    "zeros without end": lambda path: os.truncate(
        path, _FEW_BYTES if path.name.startswith("theirs.") else _MANY_BYTES
    ),
}
_VALUES: dict[str, Any] = {
    "a word": "word", "a list": [[]], "an object": {"a": []}, "null": None, "true": True, "negative": -4,
    "infinity": float("inf"), "NaN": float("nan"), "10^15": 10**15, "10^400": 10**400,
    "a long word": "a" * 1_000_000, "a path": "../../../etc/passwd",
}  # fmt: skip
_PLACES = {
    "config.json": (
        "options", "options.data", "options.val", "options.backbone", "options.batch_size",
        "options.size_px", "options.epochs", "options.seed", "options.workers", "science", "science.recipe",
        "science.seed", "science.data_digest", "science.precision", "images.train", "command.0", "steps",
    ),
    "environment.json": ("world_size", "packages"),
    "status.json": ("state", "stage", "step", "reason"),
    "results.json": (
        "0.stage", "0.num_steps", "0.num_steps_planned", "0.seconds", "0.val", "0.val.loss", "0.so_far",
        "0.so_far.images", "0.loss_end",
    ),
    "metrics.jsonl": ("1.run_step", "1.stage", "1.level", "1.step", "1.lr", "1.loss", "1.accuracy"),
    "probe.jsonl": (
        "1.run_step", "1.stage", "1.epoch", "1.block", "1.seconds", "1.images", "1.knn_accuracy",
        "1.knn_untrained",
    ),
    "step-00000001.pt": (
        "science", "science.recipe", "science.seed", "machine", "position", "position.stage",
        "position.step", "position.run_step", "position.summaries", "input", "input.mean",
    ),
    "theirs.pt": (
        "science", "science.recipe", "science.backbone", "position.run_step", "input", "input.mean",
    ),
}  # fmt: skip
_LINES: dict[str, str | bytes] = {
    "many digits of a step": f'{{"run_step": 2, "stage": "E", "step": {DIGITS}}}\n',
    "many digits of a loss": f'{{"run_step": 2, "stage": "E", "step": 2, "loss": 1{DIGITS}.5}}\n',
    "40 MB in a line": b'{"run_step": 2, "stage": "' + b"E" * 40_000_000 + b'"}\n',
    "no stage": '{"run_step": 2, "step": 2}\n',
}
_READ = [(name, Path(file).name) for name, files in _FILES.items() for file in files]
_JSON = [f"{name} {file}" for name, file in _READ if ".json" in file]
_RECORDED = [f"{name} {file}" for name, file in _READ if name != "--init of an address" and file in _PLACES]
_LONG_HEAD = json.dumps({"a" * 1_000_000: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}).encode()

ATTACKS: list[Attack] = [
    *(
        (f"{name} {file}", what, make)
        for name, file in _READ if name != "--init of an address" for what, make in _ODD_FILES.items()
    ),
    *((gate, f"JSON: {what}", text(content, "\n")) for gate in _JSON for what, content in JSON_TEXTS.items()),
    *(
        attack for name, file in _READ if file in ("metrics.jsonl", "probe.jsonl")
        for attack in texts(f"{name} {file}", _LINES, "lines: ")
    ),
    *(
        (gate, f"{what} in every string", make) for gate in _RECORDED for what, make in {
            "escapes": all_strings(ESCAPES), "markup": all_strings(MARKUP), "a Python file": _names_code(),
        }.items()
    ),
    *(
        (f"{name} config.json", f"a Python file as {place}", _names_code(place))
        for name in ("replay", "runs", "compare", "--config")
        for place in ("science.recipe", "science.backbone", "options.backbone", "options.init", "options.val")
    ),
    *(
        attack for name, file in _READ if f"{name} {file}" in _RECORDED
        for attack in value_attacks(f"{name} {file}", _PLACES[file], _VALUES)
    ),
    *(
        (f"{name} {file}", f"no {place}", _without(place))
        for name, file in _READ if f"{name} {file}" in _RECORDED for place in _PLACES[file]
    ),
    *(("--init theirs.pkl", what, text(content)) for what, content in PICKLES.items()),
    *(("--init theirs.pt", what, text(zipped(content))) for what, content in ZIPPED.items()),
    *(("--init theirs.pt", f"older: {what}", text(older(content))) for what, content in OLDER.items()),
    *(("--init theirs.pt", f"torch: {what}", make) for what, make in TORCH_FILES.items()),
    *(
        ("--init theirs.safetensors", f"header: {what}", text(struct.pack("<Q", len(head)), head))
        for what, head in (HEADS | {"a long name": _LONG_HEAD}).items()
    ),
    ("--init theirs.safetensors", "header of 2^62 bytes", text(struct.pack("<Q", 2**62), b"{}")),
    *(
        ("--init theirs.safetensors", f"metadata: {what}", metadata_of(said))
        for what, said in METADATA.items()
    ),
    *(
        (f"--init of an address {file}", f"the server {what}", make)
        for file in _FILES["--init of an address"] for what, make in {
            "claims 5 TB": _lies(more=5 << 40), "claims 100 bytes more": _lies(more=100),
            "claims 100 bytes less": _lies(more=-100), "sends what lies before": _lies(shift=8),
            "tells no version": _lies(version=None), "changes it": _lies(changes=True),
        }.items()
    ),
]  # fmt: skip
