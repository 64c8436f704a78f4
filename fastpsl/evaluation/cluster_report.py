"""What a run's pseudo-labels are worth, in one folder: result.json and pictures."""

import json
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import numpy as np

from fastpsl.evaluation.cluster_pictures import draw_contents, draw_sizes, shown_classes
from fastpsl.evaluation.clusters import ABSENT, ari, class_entropies, hungarian_accuracy
from fastpsl.evaluation.filter_picture import draw_filters
from fastpsl.evaluation.result import data_record, result_line, write_result
from fastpsl.evaluation.weights import load_pretrained
from fastpsl.label_file import NAME, Labels, read_labels
from fastpsl.label_monitor import collapse_warning, label_figures
from fastpsl.pipelines.beton_file import output_errors
from fastpsl.pipelines.data import open_data
from fastpsl.sample import sample_paths


def report(
    run: Path, *, data: str | None, labels: Path | None, out: Path | None, seed: int, require_labels: bool
) -> list[str]:
    """Measure and draw, and return lines for people. The arguments are those of `fastpsl clusters`.

    ValueError where the run, its labels or its checkpoint are missing, the labels are other images', or there are no true labels and
    `require_labels` is given.
    """
    started = time.monotonic()
    if not run.is_dir():
        raise ValueError(f"{run}: no such folder; give the folder of a run")
    path = labels if labels is not None else run / NAME
    if labels is None and not path.exists():
        raise ValueError(
            f"{run} has no {NAME}: it made no pseudo-labels or has not come to its end; give another run, or --labels FILE"
        )
    source, out = data if data is not None else _data_of(run), out if out is not None else run / "clusters"
    pretrained = load_pretrained(run)
    with closing(open_data(source)) as opened:
        found, true = read_labels(path, opened), opened.labels()
        num_labelled = int((true >= 0).sum())
        if require_labels and not num_labelled:
            raise ValueError(
                f"--require-labels: {ABSENT} in {source}; give data that is written from a folder per class"
            )
        figures = label_figures(found.labels, None, true, found.num_classes, seed)
        numbers = {name: 100 * value for name in ("entropy_share", "biggest", "nmi_true", "nmi_true_shuffled")
                   if (value := figures[name]) is not None}  # fmt: skip
        entropies = None
        if num_labelled:
            numbers["ari"] = 100 * ari(found.labels, true)
            numbers["hungarian_accuracy"] = 100 * hungarian_accuracy(found.labels, true)
            entropies = class_entropies(found.labels, true, found.num_classes)
        sizes = np.bincount(found.labels, minlength=found.num_classes)
        shown = shown_classes(sizes, entropies)
        with output_errors(out):
            out.mkdir(parents=True, exist_ok=True)
            draw_sizes(sizes, out / "sizes.png", run.resolve().name)
            draw_contents(out / "contents.png", opened, found.labels, shown.tolist(), entropies, seed)
            draw_filters(pretrained.backbone, out / "filters.png")
            settings = {
                "labels": str(path), "made_by": found.made_by, "num_classes": found.num_classes,
                "non_empty": int((sizes > 0).sum()), "entropy_nats": figures["entropy"], "num_labelled": num_labelled, "num_split": found.num_split,
                "nmi_average": "arithmetic", "seed": seed,
            }  # fmt: skip
            result = write_result(
                out, recipe="clusters", protocol="clusters", numbers=numbers, settings=settings, checkpoint=pretrained.record,
                data=data_record(opened, None), seconds=time.monotonic() - started, cut=bool(pretrained.record["cut"]),
            )  # fmt: skip
    warning = collapse_warning(figures, found.num_classes)
    which = (
        "the lowest entropy of true labels"
        if num_labelled
        else "the most images (without true labels the purest cannot be told)"
    )
    return [
        f"weights: {pretrained}",
        _labels_line(path, found, figures),
        *([warning] if warning else []),
        _numbers_line(numbers, num_labelled, len(true)),
        f"pictures in {out}: sizes.png, filters.png, contents.png of the {len(shown)} classes with {which}",
        result_line(result),
    ]


def _data_of(run: Path) -> str | Path:
    """What the run says that it learned from."""
    path = run / "config.json"
    try:
        source = json.loads(path.read_text())["options"]["data"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(f"{path} does not say what the run learned from: give --data") from None
    return sample_paths().train if source is None else str(source)


def _labels_line(path: Path, found: Labels, figures: Mapping[str, float | None]) -> str:
    share, biggest, entropy = figures["entropy_share"], figures["biggest"], figures["entropy"]
    assert share is not None and biggest is not None and entropy is not None
    return (
        f"labels {path} ({found.made_by}): {len(found.labels):,} images, {found.num_classes:,} classes, {figures['non_empty']:,.0f} "
        f"not empty; the biggest has {100 * biggest:.2f} % of the images ({biggest * found.num_classes:.1f} times its even share); "
        f"entropy {entropy:.2f} nats, {100 * share:.1f} % of even classes'"
    ) + (
        f"; {found.num_split:,} of them were empty and have halves of others: as the network made them, the labels are less even "
        f"(epochs.jsonl)"
        if found.num_split
        else ""
    )


def _numbers_line(numbers: Mapping[str, float], num_labelled: int, num: int) -> str:
    if not num_labelled:
        return f"{ABSENT}: NMI, ARI and Hungarian accuracy are left out (--require-labels stops instead)"
    some = f"; {num_labelled:,} of {num:,} images have one" if num_labelled < num else ""
    return (
        f"with the true labels: NMI {numbers['nmi_true']:.1f} % (the same labels shuffled: {numbers['nmi_true_shuffled']:.1f} %), "
        f"ARI {numbers['ari']:.1f} %, Hungarian accuracy {numbers['hungarian_accuracy']:.1f} %{some}"
    )
