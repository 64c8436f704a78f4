"""Describe a paper's table: its rows as they are printed, and what our numbers are measured on."""

from dataclasses import dataclass

from fastpsl.tables.needs import Measure


@dataclass(frozen=True)
class PaperImages:
    """The images that a paper's table is measured on.

    Attributes:
        name: The name of the data set.
        num_train: The number of training images, of classifiers too.
        num_val: The number of validation images.
        num_pretrain: The number of images that trainings without labels learn from, if these are others.
    """

    name: str
    num_train: int
    num_val: int
    num_pretrain: int | None = None


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        method: The name of the row.
        arch: The network, as printed.
        numbers: The paper's numbers; None for a dash. All are None in a row that the paper does not have.
        measures: One per column; empty if the method is not implemented here.
        million_parameters: As printed; None if the table has no such column.
        baseline: The method of the row that this one improves.
        note: A remark beside the method.
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
        """Whether the paper has the row."""
        return any(number is not None for number in self.numbers)


@dataclass(frozen=True)
class Table:
    """A table of a paper. Every number is a percentage.

    Attributes:
        name: The paper and the table, such as psl/5.
        title: The title of the page.
        number: What the numbers are, such as "top-1 accuracy, %".
        columns: The titles of the columns.
        rows: The rows.
        notes: The notes below the table.
        gains: The headline over what rows add to their baselines.
        unmeasured: Why a row has the paper's numbers alone.
        unprinted: The mark of rows that the paper does not have.
        images: The images of the paper's numbers.
        curves: Whether it is drawn as lines over the columns, in a panel for each row that has a baseline.
    """

    name: str
    title: str
    number: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    gains: str
    unmeasured: str
    unprinted: str
    images: PaperImages
    curves: bool = False

    @property
    def paper(self) -> str:
        """The paper: the word before the slash."""
        return self.name.partition("/")[0]

    @property
    def folder(self) -> str:
        """The folder of its runs: the paper, and the data set if the name has one, as in sslpp-stl."""
        paper, _, number = self.name.partition("/")
        return paper + "".join(number.partition("-")[1:])

    @property
    def pretrains_elsewhere(self) -> bool:
        """Whether trainings without labels learn from other images than evaluations do."""
        return self.images.num_pretrain is not None

    @property
    def reads(self) -> tuple[str, ...]:
        """The names of the data that evaluations read instead of the table's own (see `other_data`)."""
        evaluations = (measure.evaluation for row in self.rows for measure in row.measures)
        return tuple(dict.fromkeys(name for evaluation in evaluations for name in evaluation.reads))

    def row(self, method: str) -> Row:
        """Return the row of a method."""
        return next(row for row in self.rows if row.method == method)
