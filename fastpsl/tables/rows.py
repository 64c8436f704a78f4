"""A paper's table: its rows number by number as they are printed, and what ours are measured on."""

from dataclasses import dataclass

from fastpsl.tables.needs import Measure


@dataclass(frozen=True)
class Pictures:
    """The numbers of images that a paper's table is measured on: to train, classifiers too, and held out.

    num_pretrain: Of those that trainings without labels learn from, where these are not the training images.
    """

    name: str
    num_train: int
    num_val: int
    num_pretrain: int | None = None


@dataclass(frozen=True)
class Row:
    """A printed row. `measures`, one a column, are empty where the method is not implemented here.

    numbers: None where the paper prints a dash, and throughout in rows that it does not have. million_parameters:
    As printed; None where the table has no such column. baseline: The row that this one is to improve.
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
        """Return whether the paper has it."""
        return any(number is not None for number in self.numbers)


@dataclass(frozen=True)
class Table:
    """A printed table; every number is a percentage.

    gains: The headline over what rows add to their baselines. unmeasured: Why a row has the paper's numbers alone.
    unprinted: What is said of rows of which the paper prints none. curves: Whether it is drawn as lines over the
    columns, a panel for each row that has a baseline.
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
    pictures: Pictures
    curves: bool = False

    @property
    def paper(self) -> str:
        """Return the word before the slash."""
        return self.name.partition("/")[0]

    @property
    def folder(self) -> str:
        """Return the folder of its runs: the paper, and behind a dash its data set, but for the first one."""
        paper, _, which = self.name.partition("/")
        return paper + "".join(which.partition("-")[1:])

    @property
    def pretrains_elsewhere(self) -> bool:
        """Return whether trainings without labels learn from other images than evaluations do."""
        return self.pictures.num_pretrain is not None

    @property
    def reads(self) -> tuple[str, ...]:
        """Return names of the data that evaluations read in the place of the table's own (`other_data`)."""
        evaluations = (measure.evaluation for row in self.rows for measure in row.measures)
        return tuple(dict.fromkeys(name for evaluation in evaluations for name in evaluation.reads))

    def row(self, method: str) -> Row:
        """Return the row of a method."""
        return next(row for row in self.rows if row.method == method)
