"""What the tables of sslpp.txt share: whose weights, which measures, and what is said of printed means."""

import statistics
from collections.abc import Iterable
from dataclasses import replace

from fastpsl.tables.needs import BLOCK_PROBE, KNN, Evaluation, Measure, Weights
from fastpsl.tables.rows import Pictures, Row, Table

BLOCKS = ("B2", "B3", "B4")
COLUMNS = (*BLOCKS, "Avg.")
CIFAR10 = Pictures("CIFAR-10", 50_000, 10_000)
STL10 = Pictures("STL-10", 5_000, 8_000, num_pretrain=105_000)
IIC = Weights("resnet34_iic", "sslpp_iic", "end_to_end")
STL_IIC = replace(IIC, variant="stl")
SUPERVISED = Weights("nin4", "supervised", "end_to_end", "32px")
RANDOM = Weights("nin4")
# How a task is called, alone and in our rows.
METHODS = {
    "colorization": ("Color. [6]", "Ours+Color."),
    "context": ("Context [7]", "Ours+Con."),
    "rotation": ("Rotation [8]", "Ours+Rot."),
    "aet": ("AET [9]", "Ours+AET"),
}
TASKS = tuple(METHODS)

Numbers = tuple[float | None, ...]


def alone(task: str) -> Weights:
    """The pretext task without pseudo-labels."""
    return Weights("nin4", f"sslpp_{task}", "end_to_end")


def with_labels(task: str, labels: Weights | str = IIC, variant: str | None = None) -> Weights:
    """The pretext task and pseudo-labels."""
    return replace(alone(task), labels=labels, variant=variant)


def with_mean(weights: Weights, evaluation: Evaluation, numbers: Iterable[str]) -> tuple[Measure, ...]:
    """Each number in a column of its own, and their mean in the last."""
    numbers = tuple(numbers)
    cells = [Measure(weights, evaluation, (number,)) for number in numbers]
    return (*cells, Measure(weights, evaluation, numbers, of="mean"))


def conv_blocks(weights: Weights, evaluation: Evaluation = BLOCK_PROBE) -> tuple[Measure, ...]:
    """A NIN block as classifier on B2, B3 and B4, and their mean."""
    return with_mean(weights, evaluation, (f"top1_conv_{block}" for block in BLOCKS))


def neighbours(weights: Weights) -> tuple[Measure, ...]:
    """10 nearest neighbours on B2, B3 and B4, and their mean."""
    return with_mean(weights, KNN, (f"top1_k10_majority_{block}" for block in BLOCKS))


def methods(
    numbers: dict[str, Numbers],
    measures: dict[str, tuple[Measure, ...]],
    notes: dict[str, str] | None = None,
    arch: str = "NIN",
) -> tuple[Row, ...]:
    """Rows in the order of `numbers`; ours are to improve the task alone."""
    baselines = {ours: task for task, ours in METHODS.values()}
    return tuple(
        Row(
            method,
            arch,
            printed,
            measures[method],
            baseline=baselines.get(method),
            note=(notes or {}).get(method, ""),
        )
        for method, printed in numbers.items()
    )


def all_weights(labels: Weights = IIC) -> dict[str, Weights]:
    """Of the ten methods of Tables III to VIII, in their order."""
    weights = {"Supervised": SUPERVISED, "Random": RANDOM}
    for task, (method, ours) in METHODS.items():
        weights |= {method: alone(task), ours: with_labels(task, labels)}
    return weights


def table(
    name: str,
    title: str,
    whose: str,
    columns: tuple[str, ...],
    rows: tuple[Row, ...],
    *notes: str,
    pictures: Pictures = CIFAR10,
    means: int = 0,
    curves: bool = False,
    **texts: str,
) -> Table:
    """name: behind sslpp/. means: how many numbers before each mean, in tables that print such; wrong ones are told in a note.

    whose: the paper's table or figure.
    """
    told = [mean_note(rows, means)] if means else []
    words = {"number": "top-1 accuracy, %", "gains": "What pseudo-labels add"} | texts
    return Table(
        f"sslpp/{name}",
        f"{title} (SSL++, {whose})",
        columns=columns,
        rows=rows,
        notes=(*told, *notes),
        pictures=pictures,
        curves=curves,
        **words,
    )


def mean_note(rows: Iterable[Row], num: int) -> str:
    """Every printed mean that differs from the mean of its `num` cells by more than 0.1."""
    wrong = []
    for row in rows:
        for start in range(0, len(row.numbers), num + 1):
            *cells, printed = row.numbers[start : start + num + 1]
            if printed is None:
                continue
            mean = statistics.fmean(cell for cell in cells if cell is not None)
            if abs(mean - printed) > 0.1 + 1e-9:
                wrong.append(f"{row.method} {printed:.1f}, its cells' mean is {mean:.1f}")
    said = "Avg.: the paper's as it prints it, ours of our cells."
    return (
        f"{said} Printed means that differ from their cells' mean by more than 0.1: {'; '.join(wrong)}."
        if wrong
        else said
    )
