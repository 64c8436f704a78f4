"""The JSON files of a run's folder: what may stand in them, and their reader. No other module opens them."""

import os
import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from fastpsl.files.json_records import (
    COUNT,
    FIGURES,
    NUMBER,
    RECORD,
    TEXT,
    TEXTS,
    WHOLE,
    Form,
    Kind,
    NoRecord,
    maybe,
    open_regular,
    parse,
)
from fastpsl.files.system_errors import input_errors

MAX_RANKS = 1 << 16
_RANKS = Kind(f"1 to {MAX_RANKS:,}", lambda value: type(value) is int and 1 <= value <= MAX_RANKS)

CONFIG = Form("config.json", {
    "options": maybe(RECORD), "options.data": maybe(TEXT), "options.val": maybe(TEXT),
    "options.preset": maybe(TEXT), "options.backbone": maybe(TEXT), "options.plan": maybe(TEXT),
    "science": maybe(RECORD), "science.recipe": maybe(TEXT), "science.data_digest": maybe(TEXT),
    "science.precision": maybe(TEXT), "science.seed": maybe(WHOLE),
    "science.initial_weights": maybe(RECORD), "science.initial_weights.path": maybe(TEXT),
    "science.initial_weights.sha256": maybe(TEXT), "images": maybe(RECORD), "images.train": maybe(COUNT),
    "images.val": maybe(COUNT), "steps": maybe(COUNT),
    "command": maybe(TEXTS),
})  # fmt: skip
ENVIRONMENT = Form("environment.json", {"world_size": maybe(_RANKS), "packages": maybe(RECORD)})
STATUS = Form("status.json", {
    "state": maybe(TEXT), "stage": maybe(COUNT), "step": maybe(COUNT), "reason": maybe(TEXT),
})  # fmt: skip
RESULTS = Form("results.json", {
    "stage": maybe(TEXT), "num_steps": maybe(COUNT), "num_steps_planned": maybe(COUNT),
    "seconds": maybe(NUMBER), "val": maybe(FIGURES), "so_far": maybe(FIGURES), "level": maybe(COUNT),
    "loss_start": maybe(NUMBER), "loss_end": maybe(NUMBER), "chance": maybe(NUMBER),
    "accuracy_name": maybe(TEXT), "knn_accuracy": maybe(NUMBER), "peak_allocated_bytes": maybe(NUMBER),
}, is_list=True)  # fmt: skip


def recorded_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a config.json, with the precision that the run had in place of "auto".

    fp16 stays "auto", which takes it on every GPU and never on a CPU.
    """
    options, precision = dict(config.get("options") or {}), (config.get("science") or {}).get("precision")
    if options.get("precision") == "auto" and precision not in (None, "fp16"):
        options["precision"] = precision
    return options


METRICS, PROBES, EPOCHS = LINES = "metrics.jsonl", "probe.jsonl", "epochs.jsonl"
_MAX_LINE_BYTES = 1 << 20
_MOST_EMPTY = 64  # parts of so many bytes in which no line ends
_LAST_BYTES = 1 << 16
_COUNT, _NUMBER, _TEXT = (int,), (int, float, type(None)), (str,)
# The types of the fields of lines that we use; counts are not negative. A task or a program may add others.
_TYPES = {
    "stage": _TEXT, "block": _TEXT, "settled": (bool,),
    **dict.fromkeys(
        ("run_step", "step", "level", "num_train", "num_val", "num_classes", "channels"), _COUNT
    ),
    **dict.fromkeys((
        "lr", "loss", "epoch", "knn_accuracy", "linear_accuracy", "knn_untrained", "knn_at_start",
        "feature_std", "effective_rank", "similarity", "seconds", "images", "joules", "non_empty",
        "entropy_share", "biggest", "nmi_previous", "nmi_true", "nmi_true_shuffled",
    ), _NUMBER),
}  # fmt: skip


class Line(NamedTuple):
    """One line of a file."""

    row: dict[str, Any]  # it has at least "run_step", an integer from 0, and "stage", a name
    end: int  # the offset in bytes at which the line ends


def read_lines(path: Path) -> Iterator[Line]:
    """Yield the lines of a file up to the first that cannot be read; nothing where the file does not exist.

    A warning counts the lines that are lost, unless it is only the half line that a killed run leaves.

    Raises:
        ValueError: It is no file, or cannot be read.
    """
    if not os.path.exists(path):
        return
    end = 0
    with input_errors(path), open_regular(path) as file:
        texts = iter(partial(file.readline, _MAX_LINE_BYTES), b"")
        for number, text in enumerate(texts, 1):
            row = _row(path, text)
            if row is None:
                num_lost = 1 + _count_ends(file)
                if num_lost > 1 or text.endswith(b"\n") or len(text) == _MAX_LINE_BYTES:
                    warnings.warn(
                        f"{path}: line {number} cannot be read; "
                        f"{num_lost:,} lines from there to the end are lost",
                        stacklevel=2,
                    )
                return
            end += len(text)
            yield Line(row, end)


def last_row(path: Path) -> dict[str, Any] | None:
    """Return the last line of a file that can be read, without reading all of it; None if there is none."""
    with open_regular(path) as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _LAST_BYTES))
        texts = file.read(_LAST_BYTES).splitlines(keepends=True)
    return next((row for text in reversed(texts) if (row := _row(path, text)) is not None), None)


def count_lines(path: Path, start: int = 0) -> int:
    """Return the number of a file's lines from an offset on, whatever they hold."""
    with input_errors(path), open_regular(path) as file:
        file.seek(start)
        return _count_ends(file)


def _count_ends(file: BinaryIO) -> int:
    """Return how many lines end in the rest of a file, which counts up to 64 MB without an end of one."""
    num = num_empty = 0
    for part in iter(partial(file.read, _MAX_LINE_BYTES), b""):
        ends = part.count(b"\n")
        num, num_empty = num + ends, 0 if ends else num_empty + 1
        if num_empty == _MOST_EMPTY:  # it may claim a terabyte
            break
    return num


def _row(path: Path, text: bytes) -> dict[str, Any] | None:
    """Return the object of a whole line; None if it is none, or has a field that is not of its kind."""
    if not text.endswith(b"\n"):
        return None
    try:
        row = parse(path, text)
    except NoRecord:
        return None
    if not isinstance(row, dict) or "run_step" not in row or "stage" not in row:
        return None
    for name, value in row.items():
        types = _TYPES.get(name)
        if types is not None and (type(value) not in types or (types is _COUNT and value < 0)):
            return None
    return row
