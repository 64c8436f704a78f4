"""A paper's table: its rows number by number as they are printed, and what ours are measured on."""

from dataclasses import dataclass

from fastpsl.tables.needs import Measure


@dataclass(frozen=True)
class Row:
    """One printed row. `measures`, one a column, are empty where the method is not implemented here.

    numbers: None where the paper prints a dash, and throughout in rows that it does not have. million_parameters: as printed; None
    where the table has no such column. baseline: the row that this one is to improve.
    """

    method: str
    arch: str
    numbers: tuple[float | None, ...]
    measures: tuple[Measure, ...] = ()
    million_parameters: int | None = None
    baseline: str | None = None
    note: str = ""

    @property
    def printed(self) -> bool:
        """Whether the paper has it."""
        return any(number is not None for number in self.numbers)


@dataclass(frozen=True)
class Table:
    """A printed table; every number is a percentage.

    gains: the headline over what rows add to their baselines. unmeasured: why a row has the paper's numbers alone.
    """

    name: str
    title: str
    number: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    gains: str = "What stages add"
    unmeasured: str = "not implemented here"

    @property
    def paper(self) -> str:
        """The word before the slash."""
        return self.name.partition("/")[0]

    def row(self, method: str) -> Row:
        return next(row for row in self.rows if row.method == method)
