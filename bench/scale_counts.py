"""The tables of docs/explanation/scale.md that bench/simulated_world.py's and large_set.py's results make.

`exchanged` is the page's arithmetic of what ranks exchange. A test holds it to the counts, byte by byte.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bench.scale_arithmetic import STAGES, gradients
from bench.schema import Results

_FLOAT, _INT32, _INT64 = 4, 4, 8


class Exchanged(NamedTuple):
    """The bytes of one rank's collectives."""

    handed_over: int
    received: int


def exchanged(part: str, num_ranks: int, settings: Mapping[str, int], num_samples: int) -> Exchanged:
    """Return what a part of bench/simulated_world.py exchanges in a step, or `labels` in an epoch.

    Args:
        part: The part.
        num_ranks: The number of ranks, 2 or more.
        settings: Those of the result: batch_size_per_rank, width and size_px.
        num_samples: The number of images of the data set.
    """
    batch, width = settings["batch_size_per_rank"], settings["width"]
    if part.startswith("gradients, "):
        num = gradients()[part.removeprefix("gradients, ")]
        return Exchanged(num, num)
    if part == "labels":  # a label with its position each, a place for padding, and the two counts of draws
        num = (num_samples + 1 + 2) * _INT64
        return Exchanged(num, num)
    if part == "nt_xent":  # both embeddings and whether they count, then the log-sum of each
        num = batch * (2 * width + 1 + 2) * _FLOAT
        return Exchanged(num, num_ranks * num)
    assert part == "moco"  # images to the ranks that encode them; keys and indices to all
    images, rest = batch * 3 * settings["size_px"] ** 2 * _FLOAT, batch * (width * _FLOAT + _INT64)
    return Exchanged(images + rest, images + num_ranks * rest)


WHAT = {
    "nt_xent": "NT-Xent (SimCLR), per step",
    "moco": "MoCo v2's images and keys, per step",
    "labels": "UIC's labels, per epoch",
    **{f"gradients, {stage}": f"gradients of jigsaw {stage}, per step" for stage in STAGES},
    "resume": "finding a checkpoint",
}
ALONE = {
    ("start, random", "seconds"): "a loader and its first batch, random order",
    ("start, quasi_random", "seconds"): "the same, quasi-random order",
    ("labels", "order"): "UIC's balanced order",
    ("labels", "end of the epoch"): "UIC's end of an epoch",
    ("resume", "write, rank 0 alone"): "rank 0 writes 100 MB of checkpoint",
    ("resume", "read, each rank"): "each rank reads it",
}
MEMORY = {
    "start, random": "a loader and its first batch, random order",
    "start, quasi_random": "the same, quasi-random order",
    "nt_xent": WHAT["nt_xent"],
    "moco": WHAT["moco"],
    "labels": WHAT["labels"],
}


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in (titles, *rows)]
    return "\n".join([lines[0], "|---" * len(titles) + "|", *lines[1:]])


def _bytes(value: float | None) -> str:
    if value is None:
        return "0"
    for unit, size in (("MB", 1e6), ("KB", 1e3)):
        if value >= size:
            return f"{value / size:,.1f} {unit}"
    return f"{value:.0f} B"


def _run(name: str, result: Mapping[str, Any]) -> str:
    machine = result["environment"]
    load = f"load {machine['load_average_before']:g} before"
    return f"{machine['cpu']}, {machine['num_cores']} cores, {load} ([{name}](/bench/results/{name}))"


def counts_table(results: Results) -> str:
    """Return the Markdown of what one rank of simulated worlds exchanges, holds and computes."""
    found = [(name, result) for name, result in results.items() if result["bench"] == "simulated_world"]
    if not found:
        return "Not measured yet: `python bench/simulated_world.py`."
    name, result = found[-1]
    values = {(row["part"], row["num_ranks"], row["measured"]): row["median"] for row in result["rows"]}
    worlds = sorted({num_ranks for _, num_ranks, _ in values})
    many, settings = [num for num in worlds if num > 1], result["settings"]
    ranks = [f"{num} rank{'s' if num > 1 else ''}" for num in worlds]
    bytes_rows = [
        [
            title, _bytes(values.get((part, many[0], "handed over"))),
            *(_bytes(values.get((part, num, "received"))) for num in many),
            f"{values.get((part, many[0], 'calls'), 0):.0f}",
        ]
        for part, title in WHAT.items()
    ]  # fmt: skip
    memory_rows = [
        [title, *(f"{values.get((part, num, 'memory'), 0):,.0f} MiB" for num in worlds)]
        for part, title in MEMORY.items()
    ]
    alone_rows = [
        [title, *(f"{values[part, num, measured]:.2f} s" for num in worlds)]
        for (part, measured), title in ALONE.items()
    ]
    about = (
        f"{_run(name, result)}. {settings['batch_size_per_rank']} images per rank, width "
        f"{settings['width']}, float32 images of {settings['size_px']} px, "
        f"{result['data']['num_samples']:,} images of data."
    )
    byte_titles = (
        "what", "handed over, any world", *(f"received, {num} ranks" for num in many), "calls",
    )  # fmt: skip
    return "\n\n".join([
        about,
        "Counted bytes of one rank, and its calls in a world of more than one:",
        _table(byte_titles, bytes_rows),
        "Memory that one rank needs beyond what it had before:",
        _table(["what", *ranks], memory_rows),
        "Seconds of one rank alone, without any waiting:",
        _table(["what", *ranks], alone_rows),
    ])  # fmt: skip


def large_set_table(results: Results) -> str:
    """Return the Markdown of what opening, entering and resuming a very large data set takes."""
    found = [(name, result) for name, result in results.items() if result["bench"] == "large_set"]
    if not found:
        return "Not measured yet: `python bench/large_set.py`."
    name, result = found[-1]
    rows = {(row["measured"], row["order"]): row["median"] for row in result["rows"]}
    names = ("open", "digest", "loader", "first batch", "seek", "resume")
    cells = []
    for order in ("random", "quasi_random"):
        seconds = [rows[measured, order] for measured in names]
        times = [f"{value:.1f} s" if value > 1 else f"{value:.2f} s" for value in seconds]
        cells.append([order.replace("_", "-"), *times, f"{rows['memory', order]:.0f} MiB"])
    titles = (
        "order", "open, all tables checked", "digest", "make a loader", "first batch",
        "first batch from the middle", "resume, in all", "memory",
    )  # fmt: skip
    return (
        f"{result['data']['num_samples']:,} images in {result['data']['num_shards']} files, whose images are "
        f"holes. {_run(name, result)}:\n\n{_table(titles, cells)}\n\nThe tables were in the page cache. With "
        f"tables that were dropped from it, opening took {rows['open from disk', 'random']:.1f} s."
    )
