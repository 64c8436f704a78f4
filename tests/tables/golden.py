"""What every row of the tables is measured on, and with which values, in words.

rows.txt and sizes.txt are to be read beside the papers. `python -m tests.tables.golden` writes them.
"""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from fastpsl.tables.page import sizes_of
from fastpsl.tables.paper_file import TABLES
from fastpsl.tables.rows import Measure, Row, Table, Weights
from fastpsl.tables.scales import SCALES

ROWS, SIZES = (Path(__file__).with_name(name) for name in ("rows.txt", "sizes.txt"))


def weights_in_words(weights: Weights) -> str:
    """Return backbone, recipe, plan and variant; - is none."""
    words = [weights.backbone, *(word or "-" for word in (weights.recipe, weights.plan, weights.variant))]
    if weights.channels != "RGB":
        words.append(weights.channels)
    if weights.base:
        words.append(f"fine-tunes ({weights_in_words(weights.base)})")
    if isinstance(weights.labels, Weights):
        words.append(f"learns ({weights_in_words(weights.labels)})")
    elif weights.labels:
        words.append(f"learns {weights.labels}")
    return " ".join(words)


def measure_in_words(measure: Measure) -> str:
    """Return the evaluation and the number; of several, that of the best or the mean."""
    of = measure.of if len(measure.numbers) > 1 else ""
    minus = f"minus ({weights_in_words(measure.minus)})" if measure.minus else ""
    return " ".join(filter(None, (measure.evaluation.name, of, *measure.numbers, minus)))


def row_lines(row: Row) -> Iterator[str]:
    """Yield the row and, below it, its weights with what is measured on them."""
    baseline = f", from {row.baseline}" if row.baseline else ""
    yield f"{row.method}, {row.arch}{baseline}" + ("" if row.measures else ": the paper's alone")
    for weights, measures in groupby(row.measures, lambda measure: measure.weights):
        yield f"    {weights_in_words(weights)}: {'; '.join(map(measure_in_words, measures))}"


def table_lines(table: Table) -> list[str]:
    """Return the lines of a table in rows.txt."""
    evaluations = dict.fromkeys(measure.evaluation for row in table.rows for measure in row.measures)
    return [
        f"[{table.name}]",
        *(line for row in table.rows for line in row_lines(row)),
        *(f"{one.name}: {one.recipe} {one.protocol} {' '.join(one.reads)}".rstrip() for one in evaluations),
        *(f"note: {note}" for note in table.notes),
    ]


def sections(path: Path) -> dict[str, list[str]]:
    """Return the lines of each section of a file, by its name in brackets."""
    found: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("[") and line.endswith("]"):
            lines = found.setdefault(line[1:-1], [])
        if line:
            lines.append(line)
    return found


def size_lines(scale: str) -> list[str]:
    """Return the lines of a scale in sizes.txt."""
    sizes: dict[str, str] = {}
    for table in TABLES.values():
        sizes |= sizes_of(table, SCALES[scale])
    return [f"[{scale}]", *(f"{name}: {words}" for name, words in sorted(sizes.items()))]


def main() -> None:
    """Write both files."""
    for path, parts in ((ROWS, map(table_lines, TABLES.values())), (SIZES, map(size_lines, SCALES))):
        path.write_text("\n\n".join("\n".join(lines) for lines in parts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
