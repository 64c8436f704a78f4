"""All papers' tables by name."""

from pathlib import Path

from fastpsl.tables import psl, sslpp, uic
from fastpsl.tables.paper_file import read_paper

_MODULES = {"psl": psl, "uic": uic, "sslpp": sslpp}
TABLES = {
    table.name: table
    for paper, module in _MODULES.items()
    for table in read_paper(Path(__file__).with_name(f"{paper}.json"), module.WEIGHTS, module.COLUMNS)
}
