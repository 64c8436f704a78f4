"""Tables IX and XI to XIV of sslpp.txt, number by number as they are printed, and what its figures 4 to 6 show, measured."""

from dataclasses import replace

from fastpsl.tables.needs import BLOCK_PROBE, CLUSTERS, COUPLED, RETRIEVAL, TSNE, Evaluation, Measure, Weights
from fastpsl.tables.rows import Row, Table
from fastpsl.tables.sslpp import DISTANCE_NOTE, STL_BLOCK_PROBE, STL_NOTE
from fastpsl.tables.sslpp_rows import (
    BLOCKS,
    CIFAR10,
    COLUMNS,
    IIC,
    STL10,
    STL_IIC,
    TASKS,
    Numbers,
    all_weights,
    alone,
    conv_blocks,
    methods,
    neighbours,
    table,
    with_labels,
)
from fastpsl.tables.sslpp_sizes import LAMBDAS

CLUSTER_NOTE = (
    "The paper names the best one-to-one matching of clusters and classes, by which 70 even clusters of 10 classes reach 14.3 % at most: its "
    "54.4 % cannot be that. Ours is many-to-one: every cluster counts as its most frequent class."
)


def _table_9() -> Table:
    sources: tuple[tuple[str, Weights | str, str], ...] = (
        ("Labels", "true", "the true labels"),
        ("Random", "random", "as many classes as Ours has clusters: the paper does not say"),
        ("K-means", "k-means", "likewise; of PCA of the pixels, 64 components: the paper does not say"),
        ("Ours", IIC, "70 clusters by IIC"),
    )
    printed = {
        "rotation": ((90.3, 88.1, 85.0, 87.8), (89.2, 85.4, 60.0, 78.2), (89.7, 86.0, 63.7, 79.8), (90.1, 86.5, 75.9, 84.2)),
        "aet": ((92.6, 91.9, 91.4, 92.0), (90.2, 85.4, 58.7, 78.1), (90.1, 85.8, 62.1, 79.3), (90.9, 86.8, 75.7, 84.5)),
    }  # fmt: skip
    rows = [
        Row(
            f"{name}: {scheme}",
            "NIN",
            numbers,
            conv_blocks(with_labels(task, labels)),
            baseline=None if scheme == "Random" else f"{name}: Random",
            note=note,
        )
        for task, name in (("rotation", "Rotation [8]"), ("aet", "AET [9]"))
        for (scheme, labels, note), numbers in zip(sources, printed[task], strict=True)
    ]
    ten = with_labels("rotation", replace(IIC, variant="10"))
    note = "of the text beside the table, not in it: 10 clusters, as many as there are true classes"
    rows.insert(
        4,
        Row(
            "Rotation [8]: Ours, 10 clusters",
            "NIN",
            (88.4, 83.3, 73.5, None),
            conv_blocks(ten),
            baseline="Rotation [8]: Random",
            note=note,
        ),
    )
    return table(
        "9",
        "Where pseudo-labels come from, CIFAR-10",
        "Table IX",
        COLUMNS,
        tuple(rows),
        "The paper prints Rotation and AET side by side.",
        means=3,
    )


def _table_11(name: str, labels: Weights, probe: Evaluation, printed: tuple[Numbers, ...]) -> Table:
    weights = {
        "AET": alone("aet"),
        "SPL": with_labels("aet", labels, "labels_alone"),
        "Ours": with_labels("aet", labels),
    }
    notes = {"SPL": "the pseudo-labels alone", "Ours": "both"}
    rows: list[Row] = []
    for evaluation in ("Re-training", "KNN"):
        for method, one in weights.items():
            measures = conv_blocks(one, probe) if evaluation == "Re-training" else neighbours(one)
            baseline = f"{evaluation}: AET" if method != "AET" else None
            cells = printed[len(rows)]
            rows.append(
                Row(
                    f"{evaluation}: {method}",
                    "NIN",
                    cells,
                    measures,
                    baseline=baseline,
                    note=notes.get(method, ""),
                )
            )
    stl = name == "11-stl"
    return table(
        name,
        f"AET, pseudo-labels, or both, {'STL-10' if stl else 'CIFAR-10'}",
        "Table XI",
        COLUMNS,
        tuple(rows),
        *([STL_NOTE] if stl else []),
        DISTANCE_NOTE,
        pictures=STL10 if stl else CIFAR10,
        means=3,
        gains="What is added to AET alone",
    )


def _tables_11() -> tuple[Table, Table]:
    cifar = (
        (90.7, 86.2, 59.4, 78.8), (84.1, 78.7, 71.1, 78.0), (90.9, 86.8, 75.7, 84.5),
        (70.4, 68.3, 25.1, 54.6), (61.4, 64.5, 61.3, 62.4), (72.1, 75.9, 66.4, 71.5),
    )  # fmt: skip
    stl = (
        (86.5, 80.5, 54.5, 73.8), (79.3, 73.6, 66.2, 72.9), (87.7, 84.6, 75.0, 82.4),
        (50.5, 48.1, 18.1, 38.9), (45.7, 44.3, 45.4, 45.1), (53.5, 58.3, 53.5, 55.1),
    )  # fmt: skip
    return (
        _table_11("11", IIC, BLOCK_PROBE, cifar),
        _table_11("11-stl", STL_IIC, STL_BLOCK_PROBE, stl),
    )


def _table_12() -> Table:
    coupled = Row(
        "Coupled",
        "NIN",
        (85.2, 81.5, 67.7, 78.1),
        conv_blocks(with_labels("aet", COUPLED)),
        note="k-means of the features before each epoch; into how many clusters is not said, ours into 70",
    )
    ours = Row(
        "Ours",
        "NIN",
        (90.9, 86.8, 75.7, 84.5),
        conv_blocks(with_labels("aet")),
        baseline="Coupled",
        note="IIC's labels, made before",
    )
    return table(
        "12",
        "AET and clusters: coupled or decoupled, CIFAR-10",
        "Table XII",
        COLUMNS,
        (coupled, ours),
        means=3,
        gains="What decoupling adds",
    )


def _cluster_row(
    name: str, variant: str | None, accuracy: float, b2: float, b4: float, note: str = ""
) -> Row:
    labels = replace(IIC, variant=variant)
    weights = with_labels("rotation", labels)
    measures = (
        Measure(labels, CLUSTERS, ("many_to_one_accuracy",)),
        *(Measure(weights, BLOCK_PROBE, (f"top1_conv_{block}",)) for block in (BLOCKS[0], BLOCKS[2])),
    )
    return Row(name, "ResNet-34, NIN", (accuracy, b2, b4), measures, note=note)


def _table_13() -> Table:
    rows = (
        _cluster_row("10 clusters", "10", 42.1, 88.4, 73.5),
        _cluster_row("30 clusters", "30", 46.1, 89.0, 74.2),
        _cluster_row("50 clusters", "50", 52.3, 89.2, 75.2),
        _cluster_row("70 clusters", None, 54.4, 90.1, 75.9),
        _cluster_row("100 clusters", "100", 50.4, 89.7, 75.1),
    )
    return table(
        "13",
        "Number of clusters, Rotation, CIFAR-10",
        "Table XIII",
        ("Cluster Acc.", "B2", "B4"),
        rows,
        CLUSTER_NOTE,
        "The paper prints a column for each number of clusters. The task is not said beside its table: its numbers are Rotation's.",
        number="accuracy, %",
    )


def _table_14() -> Table:
    rows = (
        _cluster_row("Cr / Cr", "crop", 22.3, 89.0, 60.1),
        _cluster_row("Cr / Cr+F", "flip", 23.1, 89.1, 61.0),
        _cluster_row("Cr / Cr+F+Co", "colour", 30.3, 89.5, 66.4),
        _cluster_row("Cr+G / Cr+F+Co+G", "grey", 50.1, 89.6, 74.4),
        _cluster_row("Cr+G+S / Cr+F+Co+G+S", None, 54.4, 90.1, 75.9),
    )
    return table(
        "14",
        "Weak / strong transformations of IIC, Rotation, CIFAR-10",
        "Table XIV",
        ("Cluster Acc.", "B2", "B4"),
        rows,
        CLUSTER_NOTE,
        "The paper prints a column for each pair. Cr, F, Co, G, S: crop, flip, colour jitter, grey, Sobel.",
        number="accuracy, %",
    )


def _figure(number: str, title: str, column: str, evaluation: Evaluation, name: str, *notes: str) -> Table:
    """Of all methods, one number each, which the paper does not print."""
    weights = all_weights()
    if evaluation == RETRIEVAL:
        weights = {m: one for m, one in weights.items() if m not in ("Supervised", "Random")}
    rows = methods(
        {method: (None,) for method in weights},
        {method: (Measure(one, evaluation, (name,)),) for method, one in weights.items()},
    )
    unprinted = "the paper shows pictures and prints no number"
    return table(
        f"fig{number}",
        title,
        f"Figure {number}",
        (column,),
        rows,
        *notes,
        number="share of pictures, %",
        unprinted=unprinted,
    )


def _figure_6() -> Table:
    usual = {"colorization": 1.0, "context": 1.0, "rotation": 0.05, "aet": 0.05}
    heads = tuple(f"top1_conv_{block}" for block in BLOCKS)

    def cell(task: str, value: float) -> Measure:
        variant = None if value == usual[task] else f"lambda_{value:g}"
        weights = with_labels(task, IIC, variant) if value else alone(task)
        return Measure(weights, BLOCK_PROBE, heads, of="mean")

    names = [(value, f"λ = {value:g}", "the task alone" if value == 0 else "") for value in (0.0, *LAMBDAS)]
    rows = tuple(
        Row(
            name,
            "NIN",
            (None,) * len(TASKS),
            tuple(cell(task, value) for task in TASKS),
            baseline="λ = 0" if value else None,
            note=note,
        )
        for value, name, note in names
    )
    return table(
        "fig6",
        "Weight of the pseudo-labels' loss, mean over B2 to B4, CIFAR-10",
        "Figure 6",
        ("Colorization", "Context", "Rotation", "AET"),
        rows,
        "The paper draws curves, does not say of which block, and states the best: λ = 1, 5, 0.05 and 0.05; it uses 1, 1, 0.05 and 0.05.",
        unprinted="the paper draws it and prints no number",
    )


TABLES = (
    _table_9(),
    *_tables_11(),
    _table_12(),
    _table_13(),
    _table_14(),
    _figure(
        "4",
        "Nearest neighbours of held-out pictures, CIFAR-10",
        "Same class among 8",
        RETRIEVAL,
        "precision_top8",
        "The paper shows neighbours among 100,000 pictures of YFCC100M by AlexNet's Fc7; ours are of the NIN's B4 among the training "
        "pictures, where classes are known.",
    ),
    _figure(
        "5",
        "t-SNE of B4, CIFAR-10's test pictures",
        "Same class beside it",
        TSNE,
        "same_class_2d",
        "How many pictures have one of their class as the nearest in the plane. The command draws the plane itself.",
    ),
    _figure_6(),
)  # fmt: skip
