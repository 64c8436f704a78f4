"""Read result.json. This module does not import torch."""

from pathlib import Path
from typing import Any

from fastpsl.files.json_records import (
    COUNT,
    NUMBERS,
    RECORD,
    TEXT,
    TRUTH,
    WHOLE,
    Form,
    NoRecord,
    maybe,
)
from fastpsl.files.system_errors import input_errors

FORMAT = 1
_RECORDED = Form("result.json", {
    "format": WHOLE, "protocol": TEXT, "recipe": TEXT, "numbers": NUMBERS, "settings": RECORD,
    "settings.seed": maybe(WHOLE), "checkpoint": RECORD, "checkpoint.path": maybe(TEXT),
    "checkpoint.kind": maybe(TEXT), "checkpoint.sha256": maybe(TEXT), "checkpoint.cut": maybe(TRUTH),
    "checkpoint.input": maybe(RECORD), "checkpoint.science": maybe(RECORD),
    "checkpoint.science.recipe": maybe(TEXT),
    "checkpoint.science.seed": maybe(WHOLE), "checkpoint.science.data_digest": maybe(TEXT),
    "checkpoint.science.pseudo_labels": maybe(RECORD), "checkpoint.science.fine_tuned": maybe(RECORD),
    "data": RECORD, "data.train": maybe(TEXT), "data.val": maybe(TEXT), "data.whole_train": maybe(TEXT),
    "data.num_train": COUNT, "data.num_val": maybe(COUNT), "cut": TRUTH, "date": maybe(TEXT),
    "commit": maybe(TEXT),
})  # fmt: skip
NAME = _RECORDED.name


def read_result(path: Path) -> dict[str, Any]:
    """Return the record of a result.json."""
    try:
        with input_errors(path):
            record: dict[str, Any] = _RECORDED.read(path)
    except NoRecord as error:
        raise ValueError(f"{path} cannot be read as a result (it {error.why}); evaluate again") from None
    if record["format"] != FORMAT:
        raise ValueError(
            f"{path} is no result of format {FORMAT}: it was written by another version; evaluate again"
        )
    return record
