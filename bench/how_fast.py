"""The table of speed-ups over other libraries, from the committed results.

Lines of a GPU appear as soon as their files exist.
"""

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatch
from typing import Any, NamedTuple

from bench.size_tables import RATE, without_form
from bench.targets import best, headline, rows_of

Result = Mapping[str, Any]
Find = Callable[[Result], Sequence[float]]
"""Callable that returns a line's ratios in one result, such as those of one view and of two, or none."""


class Line(NamedTuple):
    """A line of the table.

    Attributes:
        what: What is measured.
        beside: The other library.
        files: Pattern of file names.
        find: Callable that returns the ratios.
        is_gpu: Whether the line takes results of a GPU only, instead of results without one.
    """

    what: str
    beside: str
    files: str
    find: Find
    is_gpu: bool = False


def ratios(what: str, *labels: Mapping[str, Any]) -> Find:
    """Return a search for the highest ratio with each of these labels, over all threads and shares."""

    def find(result: Result) -> list[float]:
        one = {"": dict(result)}
        rows = [list(best(rows_of(one, result["bench"], "ratios", what=what, **each))) for each in labels]
        return [row[0][1]["median"] for row in rows] if all(rows) else []

    return find


def slowest_stage(result: Result) -> list[float]:
    """Return the ratio of the recipe and stage that wait the most."""
    medians = [median for median, _ in headline(result).values()]
    return [min(medians)] if medians else []


def views(**labels: Any) -> list[dict[str, Any]]:
    return [labels | {"num_views": num} for num in (1, 2)]


def by_size(peer: str, **labels: str) -> Find:
    """Return a search for ratios of samples/s over a peer, by images of 500 px, with one and two crops."""
    return ratios(RATE, *views(size="500", peer=peer, **labels))


def of_batches(what: str, batches: str, titles: Sequence[str]) -> list[Line]:
    """Return a table's lines of float32 batches, which have a file of their own."""
    return [
        Line(
            "" if number else what,
            title,
            "sizes-float32.json",
            by_size(without_form(title), batches=batches),
        )
        for number, title in enumerate(titles)
    ]


T3 = ratios("kornia_modules / fused", {"chain": "SimCLR T3"})
_ROTATION = {"recipe": "rotation", "backbone": "resnet50"}
# Results from before captured steps say nothing of them.
COST_BEFORE = ratios("PSL's cost per epoch / end to end's", _ROTATION | {"mode": "eager", "graph": None})
COST = ratios("PSL's cost per epoch / end to end's", _ROTATION | {"mode": "fused+fold", "graph": "on"})
_TRAINED = "ours / the peer's"
SIMCLR = ratios(_TRAINED, *({"peer": "lightly", "recipe": "simclr", "stage": stage} for stage in ("E", "S1")))
SUPERVISED = ratios(_TRAINED, {"peer": "dali_resnet50", "recipe": "supervised", "stage": "E"})
WHOLE = ratios("samples/s / DALI's reader, whole images", *views(decoder="dali"))
LINES = (
    Line(
        "loading images of 500 px: one / two crops of 224 px",
        "ffcv's Loader, which decodes twice for two crops", "sizes.json", by_size("ffcv Loader"),
    ),
    Line("", "SPDL", "sizes.json", by_size("SPDL")),
    Line("", "DALI's own reader, on the CPU", "sizes.json", by_size("DALI's reader")),
    Line("", "WebDataset", "sizes.json", by_size("WebDataset")),
    Line("", "torchvision with DataLoader", "sizes.json", by_size("torchvision + DataLoader")),
    *of_batches(
        "float32 batches of images of 500 px: one / two crops of 224 px", "float32",
        (
            "TurboLoader (tar)", "SPDL", "ffcv Loader", "DALI's reader", "torchvision + DataLoader",
            "WebDataset",
        ),
    ),
    *of_batches(
        "the same from a folder of JPEGs", "folder", ("SPDL", "DALI's reader", "torchvision + DataLoader")
    ),
    Line("SimCLR's augmentations at level 3 (T3)", "Kornia's modules", "kernels-cpu.json", T3),
    Line(
        "writing a dataset file, JPEGs copied", "ffcv's DatasetWriter", "beton_write.json",
        ratios("fastpsl data write / ffcv DatasetWriter", {"photos": "taken over"}),
    ),
    Line(
        "writing a dataset file, images shrunk to 256 px", "ffcv's DatasetWriter", "beton_write.json",
        ratios("fastpsl data write / ffcv DatasetWriter", {"photos": "longer side 256"}),
    ),
    Line(
        "loading with the decoder `dali`: one / two crops of 224 px", "ffcv's Loader", "decode-*.json",
        ratios("samples/s / ffcv Loader", *views(decoder="dali")), True,
    ),
    Line("", "DALI's own reader and random_resized_crop", "decode-*.json", WHOLE, True),
    Line("SimCLR's augmentations at level 3 (T3)", "Kornia's modules", "kernels-*.json", T3, True),
    Line(
        "training from JPEGs, the stage that waits the most", "the slower of its loader and its step, alone",
        "throughput-*.json", slowest_stage, True,
    ),
    Line(
        "cost of an epoch of PSL, rotation, eager (below 1: cheaper)", "an epoch of end-to-end training",
        "step-*.json", COST_BEFORE, True,
    ),
    Line(
        "cost of an epoch of PSL, rotation, captured, fused, folded (below 1: cheaper)",
        "an epoch of end-to-end training", "step-*.json", COST, True,
    ),
    Line(
        "training SimCLR from JPEGs: end to end / PSL's S1", "lightly's SimCLR, end to end",
        "training-*.json", SIMCLR, True,
    ),
    Line(
        "supervised training from JPEGs", "DALI's example of ResNet-50", "training-*.json", SUPERVISED, True,
    ),
    Line(
        "a step of detection, ResNet-50 C4", "torchvision's FasterRCNN", "detection-*.json",
        ratios("torchvision's ms / ours", {"backbone": "resnet50"}), True,
    ),
)  # fmt: skip


def times(ratio: float) -> str:
    """Format a ratio."""
    return f"{ratio:.0f}x" if ratio >= 10 else f"{ratio:.1f}x" if ratio >= 1.2 else f"{ratio:.2f}x"


def how_fast_table(results: Mapping[str, Result]) -> str:
    """Return a Markdown table of our ratios over other libraries, below a line with the machines."""
    lines = ["| what | ratio | beside | file |", "|---|---|---|---|"]
    cpus: set[str] = set()
    gpus: set[str] = set()
    for line in LINES:
        for name, result in results.items():
            machine = result["environment"]
            if not fnmatch(name, line.files) or (machine["gpu"] is not None) != line.is_gpu:
                continue
            if figures := line.find(result):
                (gpus if line.is_gpu else cpus).add(
                    machine["gpu"] or f"{machine['cpu']}, {machine['num_cores']} cores"
                )
                what = f"{line.what}, on a GPU" if line.is_gpu and line.what else line.what
                ratio = " / ".join(map(times, figures))
                lines.append(f"| {what} | {ratio} | {line.beside} | [{name}](/bench/results/{name}) |")
    gpu_names = " and ".join(sorted(gpus)) or "not measured yet"
    machines = f"Without a GPU: {' and '.join(sorted(cpus))}. On a GPU: {gpu_names}."
    words = "A ratio above 1 means that fastpsl is faster. Each is of one run with both in turn."
    return "\n".join([f"{words} {machines}", "", *lines])
