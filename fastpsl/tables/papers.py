"""Read the tables of all papers."""

import math
from pathlib import Path

from fastpsl.tables import psl, sslpp, uic
from fastpsl.tables.paper_file import read_paper

MODULES = {"psl": psl, "uic": uic, "sslpp": sslpp}
TABLES = {
    table.name: table
    for paper, module in MODULES.items()
    for table in read_paper(Path(__file__).with_name(f"{paper}.json"), module.WEIGHTS, module.COLUMNS)
}


def _place(name: str) -> tuple[int, float, str]:
    """Return the key of a table's place: papers in order, numbers in order, then what has no number."""
    paper, _, which = name.partition("/")
    number = which.partition("-")[0]
    return [*MODULES].index(paper), int(number) if number.isdigit() else math.inf, which


NAMES = tuple(sorted(TABLES, key=_place))
