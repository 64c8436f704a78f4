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
from fastpsl.pipelines.embedded.draw_sample import sample_paths
from fastpsl.pipelines.interface.reading import PLAIN
from fastpsl.plots.clusters import draw_contents, draw_sizes, shown_classes
from fastpsl.plots.contact_sheet import draw_filters
from fastpsl.tasks.pseudo_labels import scores
from fastpsl.tasks.pseudo_labels.file import NAME, SECOND_NAME, Labels, read_labels

_WITH_TRUE = {
    "ari": scores.ari, "hungarian_accuracy": scores.hungarian_accuracy,
    "many_to_one_accuracy": scores.many_to_one_accuracy,
}  # fmt: skip
# Numbers of IIC's second head, which get the suffix _b.
_OF_SECOND = ("nmi_true", "hungarian_accuracy", "many_to_one_accuracy")
# The "checkpoint" of result.json where the labels come from a file, without weights.
_NO_CHECKPOINT = {"kind": "labels"} | dict.fromkeys(
    ("path", "sha256", "backbone", "run_step", "science", "input")
)


@dataclass(frozen=True, eq=False)
class Measured:
    """The numbers of pseudo-labels."""

    labels: Labels
    sizes: np.ndarray  # of the classes, int64
    figures: Mapping[str, float | None]  # of `label_figures`
    numbers: Mapping[str, float]  # percentages for result.json
    num_labelled: int  # images that have a true label


def measure(labels: Labels, true: np.ndarray, seed: int) -> Measured:
    """Compute the numbers of pseudo-labels."""
    figures = scores.label_figures(labels.labels, None, true, labels.num_classes, seed)
    names = ("entropy_share", "biggest", "nmi_true", "nmi_true_shuffled")
    shares = {name: value for name in names if (value := figures[name]) is not None}
    if num_labelled := int((true >= 0).sum()):
        shares |= {name: score(labels.labels, true) for name, score in _WITH_TRUE.items()}
    entropies = labels.entropy[np.isfinite(labels.entropy)]
    if len(entropies) and labels.num_classes > 1:
        shares["label_entropy_share"] = float(entropies.mean(dtype=float)) / math.log(labels.num_classes)
    sizes = np.bincount(labels.labels, minlength=labels.num_classes)
    return Measured(
        labels, sizes, figures, {name: 100 * share for name, share in shares.items()}, num_labelled
    )


def report(
    run_or_file: Path,
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
    path, source, held_back, out = _paths(run_or_file, data, labels, out)
    pretrained = load_pretrained(run_or_file, backbone) if run_or_file.is_dir() else None
    reading = PLAIN if pretrained is None else pretrained.input.reading
    record = _NO_CHECKPOINT if pretrained is None else pretrained.record
    whole = open_data(source, reading=reading, reading_of=OF_WEIGHTS)
    with closing(split_by_name(whole, held_back)[0] if held_back else whole) as opened:
        true = opened.labels()
        first = measure(read_labels(path, opened), true, seed)
        if require_labels and not first.num_labelled:
            raise ValueError(
                f"--require-labels: {scores.ABSENT} in {source}; "
                "give data that is written from a folder per class"
            )
        measured, numbers = {path: first}, dict(first.numbers)
        second_path = path.with_name(SECOND_NAME)
        if path.name == NAME and second_path.exists():
            second = measured[second_path] = measure(read_labels(second_path, opened), true, seed)
            numbers |= {f"{name}_b": each for name, each in second.numbers.items() if name in _OF_SECOND}
        made, sizes, has_true = first.labels, first.sizes, first.num_labelled > 0
        entropies = scores.class_entropies(made.labels, true, made.num_classes) if has_true else None
        classes = shown_classes(sizes, entropies).tolist()
        with output_errors(out):
            out.mkdir(parents=True, exist_ok=True)
            draw_sizes(sizes, out / "sizes.png", run_or_file.resolve().name)
            draw_contents(out / "contents.png", opened, made.labels, classes, entropies, seed)
            if pretrained is not None:
                draw_filters(pretrained.backbone, out / "filters.png")
            settings = {
                "labels": str(path), "made_by": made.made_by, "configuration": dict(made.configuration),
                "split": made.split, "num_classes": made.num_classes, "non_empty": int((sizes > 0).sum()),
                "entropy_nats": first.figures["entropy"], "num_labelled": first.num_labelled,
                "num_split": made.num_split, "nmi_average": "arithmetic", "seed": seed,
            }  # fmt: skip
            result = write_result(
                out, recipe="clusters", protocol="clusters", numbers=numbers, settings=settings,
                checkpoint=record, data=data_record(opened, None), seconds=time.monotonic() - started,
            )  # fmt: skip
    which = "most images (without true labels the purest cannot be told)"
    if has_true:
        which = "lowest entropy of true labels"
    filters = "" if pretrained is None else "filters.png, "
    return [
        *([f"weights: {pretrained}"] if pretrained is not None else []),
        *(line for of, each in measured.items() for line in label_lines(of, each)),
        f"charts in {out}: sizes.png, {filters}contents.png of the {len(classes)} classes with the {which}",
        result_line(result),
    ]


def label_lines(path: Path, measured: Measured) -> list[str]:
    """Return lines that describe the labels in `path`, warn of a collapse and compare with true labels."""
    labels, figures, numbers, sizes = measured.labels, measured.figures, measured.numbers, measured.sizes
    num, num_labelled = len(labels.labels), measured.num_labelled
    line = (
        f"labels {path} ({labels.made_by}): {num:,} images, {labels.num_classes:,} classes, "
        f"{figures['non_empty']:,.0f} not empty, of {sizes[sizes > 0].min():,} to {sizes.max():,} images; "
        f"the biggest has {numbers['biggest']:.2f} % of the images ({sizes.max() / sizes.mean():.1f} times "
        f"its even share); entropy {figures['entropy']:.2f} nats, {numbers['entropy_share']:.1f} % of even "
        "classes'"
    )
    if labels.num_split:
        line += (
            f"; {labels.num_split:,} of them were empty and have halves of others: "
            "as the network made them, the labels are less even (epochs.jsonl)"
        )
    lines = [line, *filter(None, [scores.collapse_warning(figures, labels.num_classes)])]
    if "label_entropy_share" in numbers:
        entropies = labels.entropy[np.isfinite(labels.entropy)]
        lines.append(
            f"an image's own distribution over the classes has an entropy of {entropies.mean():.3f} nats "
            f"on average: {numbers['label_entropy_share']:.1f} % of an even one's (median "
            f"{np.median(entropies):.3f}, 90 % of the images below {np.quantile(entropies, 0.9):.3f})"
        )
    if not num_labelled:
        absent = "NMI, ARI and accuracies are left out (--require-labels stops instead)"
        return [*lines, f"{scores.ABSENT}: {absent}"]
    coverage = f"; {num_labelled:,} of {num:,} images have one" if num_labelled < num else ""
    lines.append(
        f"with the true labels: NMI {numbers['nmi_true']:.1f} % "
        f"(the same labels shuffled: {numbers['nmi_true_shuffled']:.1f} %), "
        f"ARI {numbers['ari']:.1f} %, Hungarian accuracy (one-to-one) {numbers['hungarian_accuracy']:.1f} %, "
        f"many-to-one accuracy {numbers['many_to_one_accuracy']:.1f} %{coverage}"
    )
    return lines


def _paths(
    run: Path, data: str | None, labels: Path | None, out: Path | None
) -> tuple[Path, str | Path, float | None, Path]:
    """Return the file of labels, the data, the share of these without labels, and the folder to write to."""
    held_back, path = None, run if labels is None else labels
    if run.is_file():
        if labels is not None:
            raise ValueError(f"--labels {labels}: {run} is a file of labels itself; give one of the two")
        out = out or run.with_name(f"{run.stem}-clusters")
    elif not run.is_dir():
        raise ValueError(f"{run}: no such folder; give the folder of a run, or a file of labels")
    elif labels is None and not (path := run / NAME).exists():
        raise ValueError(
            f"{run} has no {NAME}: it made no pseudo-labels or has not finished; "
            "give another run, or --labels FILE"
        )
    elif data is None:
        if (trained := TrainedRun.of(run)) is None:
            raise ValueError(f"{run} has no config.json, which says what the run learned from: give --data")
        data, held_back = trained.train_images(), trained.held_back
    return path, sample_paths().train if data is None else data, held_back, out or run / "clusters"
