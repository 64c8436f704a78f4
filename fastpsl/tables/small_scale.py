"""Read what our small experiments measured, to be shown beside a paper's table.

small_scale.json is written by `python -m bench.evidence.page` from the results in docs/runs.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class SmallScale:
    """An experiment on few images with a small network, which says nothing about the paper's sizes.

    Attributes:
        title: What was trained, on what.
        number: What the numbers are.
        page: The page of the documentation that has protocol, seeds and intervals.
        columns: The blocks.
        rows: Pairs of an arm's name and its numbers, mean ± standard deviation (number of seeds).
    """

    title: str
    number: str
    page: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]


def small_scale(table: str) -> list[SmallScale]:
    """Return the experiments on the claim of a table, such as psl/5."""
    return [
        SmallScale(
            title=record["title"],
            number=record["number"],
            page=record["page"],
            columns=tuple(record["columns"]),
            rows=tuple((name, tuple(cells)) for name, cells in record["rows"]),
        )
        for record in _records().get(table, [])
    ]


@cache
def _records() -> dict[str, list[dict[str, Any]]]:
    records: dict[str, list[dict[str, Any]]] = json.loads(
        Path(__file__).with_suffix(".json").read_text(encoding="utf-8")
    )
    return records
