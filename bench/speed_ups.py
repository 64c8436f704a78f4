"""Our speed-ups over others in all results: README's lines of them, and each that is a loss."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatch
from typing import Any, NamedTuple

from bench.peers import TITLES, TRAINING
from bench.program import counted
from bench.schema import Results, spread
from bench.tables import (
    BATCHES,
    RATE,
    Result,
    Row,
    best,
    device_of,
    headline,
    is_of,
    kernel_ratios,
    rows_of,
    table,
    without_form,
)

Find = Callable[[Result], Sequence[float]]
"""Callable that returns a line's ratios in one result, such as those of one view and of two, or none."""


class Line(NamedTuple):
    """A line of the table of speed-ups.

    Attributes:
        what: What is measured; "" for that of the line above.
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


def times(ratio: float) -> str:
    """Format a ratio."""
    return f"{ratio:.0f}x" if ratio >= 10 else f"{ratio:.1f}x" if ratio >= 1.2 else f"{ratio:.2f}x"


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


def _views(**labels: Any) -> list[dict[str, Any]]:
    return [labels | {"num_views": num} for num in (1, 2)]


def _by_size(what: str, file: str, *titles: str, batches: str | None = None) -> list[Line]:
    """Return lines of samples/s over peers, by images of 500 px, with one and two crops."""
    of_batches = {"batches": batches} if batches else {}
    return [
        Line(
            "" if number else what, title.replace("ffcv Loader,", "ffcv's Loader,"), file,
            ratios(RATE, *_views(size="500", peer=_PEER.get(title, without_form(title)), **of_batches)),
        )
        for number, title in enumerate(titles)
    ]  # fmt: skip


_PEER = {
    "ffcv's Loader, which decodes twice for two crops": "ffcv Loader",
    "DALI's own reader, on the CPU": "DALI's reader",
    "torchvision with DataLoader": "torchvision + DataLoader",
}
_T3 = ratios("kornia_modules / fused", {"chain": "SimCLR T3"})
_SIMCLR = {"peer": "lightly", "recipe": "simclr"}
_WRITE, _TRAINED = "fastpsl data write / ffcv DatasetWriter", "ours / the peer's"
_COST, _ROTATION = "PSL's cost per epoch / end to end's", {"recipe": "rotation", "backbone": "resnet50"}
LINES = (
    *_by_size(
        "loading images of 500 px: one / two crops of 224 px", "sizes.json",
        "ffcv's Loader, which decodes twice for two crops", "SPDL", "DALI's own reader, on the CPU",
        "WebDataset", "torchvision with DataLoader",
    ),
    *_by_size(
        "float32 batches of images of 500 px: one / two crops of 224 px", "sizes-float32.json",
        "TurboLoader (tar)", "SPDL", "ffcv Loader", "DALI's reader", "torchvision + DataLoader", "WebDataset",
        batches="float32",
    ),
    *_by_size(
        "the same from a folder of JPEGs", "sizes-float32.json", "SPDL", "DALI's reader",
        "torchvision + DataLoader", batches="folder",
    ),
    Line("SimCLR's augmentations at level 3 (T3)", "Kornia's modules", "kernels-cpu.json", _T3),
    Line(
        "writing a dataset file, JPEGs copied", "ffcv's DatasetWriter", "beton_write.json",
        ratios(_WRITE, {"photos": "taken over"}),
    ),
    Line(
        "writing a dataset file, images shrunk to 256 px", "ffcv's DatasetWriter", "beton_write.json",
        ratios(_WRITE, {"photos": "longer side 256"}),
    ),
    Line(
        "loading with the decoder `dali`: one / two crops of 224 px", "ffcv's Loader", "decode-*.json",
        ratios("samples/s / ffcv Loader", *_views(decoder="dali")), True,
    ),
    Line(
        "", "DALI's own reader and random_resized_crop", "decode-*.json",
        ratios("samples/s / DALI's reader, whole images", *_views(decoder="dali")), True,
    ),
    Line("SimCLR's augmentations at level 3 (T3)", "Kornia's modules", "kernels-*.json", _T3, True),
    Line(
        "training from JPEGs, the stage that waits the most", "the slower of its loader and its step, alone",
        "throughput-*.json", slowest_stage, True,
    ),
    # Results from before captured steps say nothing of them.
    Line(
        "cost of an epoch of PSL, rotation, eager (below 1: cheaper)", "an epoch of end-to-end training",
        "step-*.json", ratios(_COST, _ROTATION | {"mode": "eager", "graph": None}), True,
    ),
    Line(
        "cost of an epoch of PSL, rotation, captured, fused, folded (below 1: cheaper)",
        "an epoch of end-to-end training", "step-*.json",
        ratios(_COST, _ROTATION | {"mode": "fused+fold", "graph": "on"}), True,
    ),
    Line(
        "training SimCLR from JPEGs: end to end / PSL's S1", "lightly's SimCLR, end to end",
        "training-*.json", ratios(_TRAINED, *(_SIMCLR | {"stage": stage} for stage in ("E", "S1"))), True,
    ),
    Line(
        "supervised training from JPEGs", "DALI's example of ResNet-50", "training-*.json",
        ratios(_TRAINED, {"peer": "dali_resnet50", "recipe": "supervised", "stage": "E"}), True,
    ),
    Line(
        "a step of detection, ResNet-50 C4", "torchvision's FasterRCNN", "detection-*.json",
        ratios("torchvision's ms / ours", {"backbone": "resnet50"}), True,
    ),
)  # fmt: skip


def how_fast_table(results: Results) -> str:
    """Return a table of our ratios over other libraries, below a line with the machines.

    Lines of a GPU appear as soon as their files exist.
    """
    lines: list[list[str]] = []
    devices: dict[bool, set[str]] = {False: set(), True: set()}
    for line in LINES:
        for name, result in results.items():
            is_gpu = result["environment"]["gpu"] is not None
            if fnmatch(name, line.files) and is_gpu == line.is_gpu and (figures := line.find(result)):
                devices[is_gpu].add(device_of(result))
                what = f"{line.what}, on a GPU" if is_gpu and line.what else line.what
                file = f"[{name}](/bench/results/{name})"
                lines.append([what, " / ".join(map(times, figures)), line.beside, file])
    cpus, gpus = (" and ".join(sorted(devices[is_gpu])) for is_gpu in (False, True))
    machines = f"Without a GPU: {cpus}. On a GPU: {gpus or 'not measured yet'}."
    words = "A ratio above 1 means that fastpsl is faster. Each is of one run with both in turn."
    return f"{words} {machines}\n\n{table(('what', 'ratio', 'beside', 'file'), lines)}"


# All ratios of ours to others', for the table of losses.


class Ratio(NamedTuple):
    """One of our ratios, above 1 if ours is faster.

    Attributes:
        what: What is measured.
        ours: Which of ours.
        beside: What it is compared with.
        case: The views, stage or size; ratios that differ in it alone share a line of a table.
        median: The ratio.
    """

    what: str
    ours: str
    beside: str
    case: str
    median: float


_LOADERS = {"uint8": "loader alone", "float32": "float32 batches", "folder": "float32 batches from a folder"}


def _decoder(row: Row) -> str:
    threads = f", {counted(row['num_threads'], 'thread')}" if "num_threads" in row else ""
    return f"decoder `{row['decoder']}`{threads}"


def against_others(result: Result) -> Iterator[Ratio]:
    """Yield every ratio of ours to another's, and of fused augmentations to ours one by one."""
    bench = result["bench"]
    for row in kernel_ratios(result) if bench == "kernels" else result["ratios"]:
        median = row["median"]
        if bench == "beton_write":
            what = f"writing a dataset file, {row['photos']}"
            yield Ratio(what, "fastpsl data write", "ffcv's DatasetWriter", "", median)
        elif bench == "kernels":
            beside, ours = row["what"].split(" / ")
            yield Ratio(f"augmentation: {row['chain']}", ours, beside, "", median)
        elif bench in ("loader", "decode") and row["decoder"] != "ffcv_loader":
            other = row["what"].split(" / ")[-1].removesuffix("'s")
            case = counted(row["num_views"], "view")
            yield Ratio("loader alone", _decoder(row), TITLES.get(other, other), case, median)
        elif bench == "training":
            peer = TRAINING[row["peer"]].title
            yield Ratio(f"training, {row['recipe']}", "fastpsl train", peer, row["stage"], median)
    if bench in ("throughput", "sizes"):
        yield from _loaders(result)


def _loaders(result: Result) -> Iterator[Ratio]:
    """Yield the ratio of each of our decoders to each peer, loaders alone, repeat by repeat."""
    alone = [row for row in result["rows"] if row.get("stage") is None and row["decoder"] != "synthetic"]
    for ours in (row for row in alone if row["measured"] == "loader"):
        batches = next(each for each in BATCHES if is_of(ours, each))
        case = counted(ours["num_views"], "view") + (f" of {ours['size']} px" if "size" in ours else "")
        for peer in (row for row in alone if row["measured"] == "peer" and is_of(row, batches)):
            if all(ours.get(label) == peer.get(label) for label in ("num_views", "size")):
                both = spread([a / b for a, b in zip(ours["values"], peer["values"], strict=False)])
                yield Ratio(_LOADERS[batches], _decoder(ours), TITLES[peer["decoder"]], case, both["median"])


def waiting(result: Result) -> Iterator[Ratio]:
    """Yield the rates of training over the slower of loader and step; 1 means no mutual slow-down."""
    for row in result["ratios"] if result["bench"] == "throughput" else ():
        if row["what"] == "both / min(loader, step)" and row["decoder"] != "synthetic":
            case = f"{row['stage']} with {counted(row['num_views'], 'view')}"
            beside = "the slower of its loader and its step, alone"
            yield Ratio(
                f"training, {row.get('recipe', 'jigsaw')}", _decoder(row), beside, case, row["median"]
            )


def losses_table(results: Results) -> str:
    """Return a table of all ratios below 1; a line has those of one of ours on one task."""
    lines: dict[tuple[str, str, str], dict[str, list[str]]] = {}
    for find in (against_others, waiting):
        for file, result in results.items():
            for each in find(result):
                if round(each.median, 2) < 1:
                    beside = lines.setdefault((each.what, each.ours, file), {}).setdefault(each.beside, [])
                    beside.append(f"{each.median:.2f}x" + (f" ({each.case})" if each.case else ""))
    rows = (
        [what, ours, "; ".join(f"{peer}: {', '.join(found)}" for peer, found in peers.items()),
         f"[{file}](/bench/results/{file})"]
        for (what, ours, file), peers in lines.items()
    )  # fmt: skip
    return table(("what", "fastpsl", "slower than, with the ratio of the speeds", "file"), rows)
