"""Report what pseudo-labels are worth: numbers in a result.json, and charts beside it."""

import math
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastpsl.evaluation.result import data_record, result_line, write_result
from fastpsl.evaluation.trained_run import TrainedRun
from fastpsl.files.system_errors import output_errors
from fastpsl.models.initial_weights import load_pretrained
from fastpsl.pipelines.datasets.open import OF_WEIGHTS, open_data
from fastpsl.pipelines.datasets.subset import split_by_name
from fastpsl.pipelines.embedded.betons import sample_paths
from fastpsl.pipelines.interface.reading import PLAIN
from fastpsl.plots.clusters import draw_contents, draw_sizes, shown_classes
from fastpsl.plots.contact_sheet import draw_filters
from fastpsl.tasks.pseudo_labels import scores
from fastpsl.tasks.pseudo_labels.file import NAME, SECOND_NAME, Labels, read_labels

# Numbers of IIC's second head, which get the suffix _b.
_OF_SECOND = ("nmi_true", "hungarian_accuracy", "many_to_one_accuracy")
# The "checkpoint" of result.json where the labels come from a file, without weights.
_NO_CHECKPOINT = {
    "path": None, "sha256": None, "kind": "labels", "backbone": None, "run_step": None, "science": None,
    "input": None,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Measured:
    """The numbers of pseudo-labels."""

    labels: Labels
    figures: Mapping[str, float | None]  # of `label_figures`
    numbers: Mapping[str, float]  # percentages for result.json
    num_labelled: int  # images that have a true label


def measure(labels: Labels, true: np.ndarray, seed: int) -> Measured:
    """Compute the numbers of pseudo-labels."""
    num_labelled = int((true >= 0).sum())
    figures = scores.label_figures(labels.labels, None, true, labels.num_classes, seed)
    numbers = {name: 100 * value for name in ("entropy_share", "biggest", "nmi_true", "nmi_true_shuffled")
               if (value := figures[name]) is not None}  # fmt: skip
    if num_labelled:
        numbers["ari"] = 100 * scores.ari(labels.labels, true)
        numbers["hungarian_accuracy"] = 100 * scores.hungarian_accuracy(labels.labels, true)
        numbers["many_to_one_accuracy"] = 100 * scores.many_to_one_accuracy(labels.labels, true)
    entropies = labels.entropy[np.isfinite(labels.entropy)]
    if len(entropies) and labels.num_classes > 1:
        numbers["label_entropy_share"] = (
            100 * float(entropies.mean(dtype=float)) / math.log(labels.num_classes)
        )
    return Measured(labels, figures, numbers, num_labelled)


def report(
    run: Path,
    *,
    data: str | None,
    labels: Path | None,
    out: Path | None,
    seed: int,
    require_labels: bool,
    backbone: str | None = None,
) -> list[str]:
    """Measure a run's or a file's pseudo-labels, draw charts of them and return the lines to print."""
    started = time.monotonic()
    path, source, held_back, out = _paths(run, data, labels, out)
    pretrained = load_pretrained(run, backbone) if run.is_dir() else None
    reading = PLAIN if pretrained is None else pretrained.input.reading
    whole = open_data(source, reading=reading, reading_of=OF_WEIGHTS)
    with closing(split_by_name(whole, held_back)[0] if held_back else whole) as opened:
        pseudo_labels, true = read_labels(path, opened), opened.labels()
        if require_labels and not (true >= 0).any():
            raise ValueError(
                f"--require-labels: {scores.ABSENT} in {source}; "
                "give data that is written from a folder per class"
            )
        measured = measure(pseudo_labels, true, seed)
        numbers = dict(measured.numbers)
        second_path = path.with_name(SECOND_NAME)
        second = None
        if path.name == NAME and second_path.exists():
            second = measure(read_labels(second_path, opened), true, seed)
            numbers |= {f"{name}_b": second.numbers[name] for name in _OF_SECOND if name in second.numbers}
        entropies = (
            scores.class_entropies(pseudo_labels.labels, true, pseudo_labels.num_classes)
            if measured.num_labelled
            else None
        )
        sizes = np.bincount(pseudo_labels.labels, minlength=pseudo_labels.num_classes)
        chart_classes = shown_classes(sizes, entropies)
        record = _NO_CHECKPOINT if pretrained is None else pretrained.record
        with output_errors(out):
            out.mkdir(parents=True, exist_ok=True)
            draw_sizes(sizes, out / "sizes.png", run.resolve().name)
            draw_contents(
                out / "contents.png", opened, pseudo_labels.labels, chart_classes.tolist(), entropies, seed
            )
            if pretrained is not None:
                draw_filters(pretrained.backbone, out / "filters.png")
            settings = {
                "labels": str(path), "made_by": pseudo_labels.made_by,
                "configuration": dict(pseudo_labels.configuration), "split": pseudo_labels.split,
                "num_classes": pseudo_labels.num_classes, "non_empty": int((sizes > 0).sum()),
                "entropy_nats": measured.figures["entropy"], "num_labelled": measured.num_labelled,
                "num_split": pseudo_labels.num_split, "nmi_average": "arithmetic", "seed": seed,
            }  # fmt: skip
            result = write_result(
                out, recipe="clusters", protocol="clusters", numbers=numbers, settings=settings,
                checkpoint=record, data=data_record(opened, None), seconds=time.monotonic() - started,
                cut=bool(record.get("cut")),
            )  # fmt: skip
    which = (
        "the lowest entropy of true labels"
        if measured.num_labelled
        else "the most images (without true labels the purest cannot be told)"
    )
    charts = "sizes.png, filters.png, contents.png" if pretrained is not None else "sizes.png, contents.png"
    return [
        *([f"weights: {pretrained}"] if pretrained is not None else []),
        *label_lines(path, measured),
        *(label_lines(second_path, second) if second is not None else []),
        f"charts in {out}: {charts} of the {len(chart_classes)} classes with {which}",
        result_line(result),
    ]


def label_lines(path: Path, measured: Measured) -> list[str]:
    """Return lines that describe the labels in `path`, warn of a collapse and compare with true labels."""
    labels, figures, numbers = measured.labels, measured.figures, measured.numbers
    share, biggest, entropy = figures["entropy_share"], figures["biggest"], figures["entropy"]
    assert share is not None and biggest is not None and entropy is not None
    sizes = np.bincount(labels.labels, minlength=labels.num_classes)
    description = (
        f"labels {path} ({labels.made_by}): {len(labels.labels):,} images, {labels.num_classes:,} classes, "
        f"{figures['non_empty']:,.0f} not empty, of {sizes[sizes > 0].min():,} to {sizes.max():,} images; "
        f"the biggest has {100 * biggest:.2f} % of the images ({biggest * labels.num_classes:.1f} times its "
        f"even share); entropy {entropy:.2f} nats, {100 * share:.1f} % of even classes'"
    )
    if labels.num_split:
        description += (
            f"; {labels.num_split:,} of them were empty and have halves of others: "
            "as the network made them, the labels are less even (epochs.jsonl)"
        )
    warning, entropy_percent = (
        scores.collapse_warning(figures, labels.num_classes),
        numbers.get("label_entropy_share"),
    )
    lines = [description, *([warning] if warning else [])]
    if entropy_percent is not None:
        entropies = labels.entropy[np.isfinite(labels.entropy)]
        lines.append(
            f"an image's own distribution over the classes has an entropy of {entropies.mean():.3f} nats "
            f"on average: {entropy_percent:.1f} % of an even one's (median {np.median(entropies):.3f}, "
            f"90 % of the images below {np.quantile(entropies, 0.9):.3f})"
        )
    return [*lines, _numbers_line(numbers, measured.num_labelled, len(labels.labels))]


def _paths(
    run: Path, data: str | None, labels: Path | None, out: Path | None
) -> tuple[Path, str | Path, float | None, Path]:
    """Return the file of labels, the data, the share of these without labels, and the folder to write to."""
    if run.is_file():
        if labels is not None:
            raise ValueError(f"--labels {labels}: {run} is a file of labels itself; give one of the two")
        source = data if data is not None else sample_paths().train
        return run, source, None, out if out is not None else run.with_name(f"{run.stem}-clusters")
    if not run.is_dir():
        raise ValueError(f"{run}: no such folder; give the folder of a run, or a file of labels")
    path = labels if labels is not None else run / NAME
    if labels is None and not path.exists():
        raise ValueError(
            f"{run} has no {NAME}: it made no pseudo-labels or has not finished; "
            "give another run, or --labels FILE"
        )
    held_back = None
    if data is None:
        if (trained := TrainedRun.of(run)) is None:
            raise ValueError(f"{run} has no config.json, which says what the run learned from: give --data")
        data, held_back = trained.train_images(), trained.held_back
    source = data if data is not None else sample_paths().train
    return path, source, held_back, out if out is not None else run / "clusters"


def _numbers_line(numbers: Mapping[str, float], num_labelled: int, num: int) -> str:
    if not num_labelled:
        return f"{scores.ABSENT}: NMI, ARI and accuracies are left out (--require-labels stops instead)"
    coverage = f"; {num_labelled:,} of {num:,} images have one" if num_labelled < num else ""
    return (
        f"with the true labels: NMI {numbers['nmi_true']:.1f} % "
        f"(the same labels shuffled: {numbers['nmi_true_shuffled']:.1f} %), "
        f"ARI {numbers['ari']:.1f} %, Hungarian accuracy (one-to-one) {numbers['hungarian_accuracy']:.1f} %, "
        f"many-to-one accuracy {numbers['many_to_one_accuracy']:.1f} %{coverage}"
    )
