"""What the figures of ratios show: ours over the best peer by image size, and augmentations over others'."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bench.figures.throughput import NAMES
from bench.ratios import kernel_ratios
from bench.size_tables import RATE, Batches, best_peers, without_form

Result = Mapping[str, Any]
Row = tuple[str, Sequence[tuple[float, str] | None]]
"""Name → ratio and words of each column, None where there is none."""
TITLES = {
    "uint8": "Speed over the fastest other loader", "float32": "float32 batches over the fastest others",
    "folder": "From a folder, over the fastest others",
}  # fmt: skip
_VALUE_PX = 128  # beside a bar, for its words
OTHERS = {"Kornia's modules": "Kornia", "torchvision, one draw per batch": "torchvision"}
CHAINS = {
    "normalise": "normalise", "flip": "flip", "colour": "colour jitter", "grey": "greyscale",
    "blur": "Gaussian blur", "Sobel": "Sobel", "SimCLR T1": "SimCLR, level 1", "SimCLR T2": "SimCLR, level 2",
    "SimCLR T3": "SimCLR, level 3", "SimCLR T3, no Sobel": "level 3, no Sobel",
    "MoCo v2 T3": "MoCo v2, level 3", "rotation, one of 4": "one rotation of 4",
    "rotation, all 8": "all 8 rotations", "area crop": "crop (unfused)",
}  # fmt: skip


def sizes_words(results: Mapping[str, Result], batches: Batches = "uint8") -> dict[str, Any]:
    """Return the words of a figure of image sizes: ours over the fastest other loader of each size.

    Args:
        results: File name → result.
        batches: A table of bench/sizes.py.
    """
    of_table = {name: result for name, result in results.items() if best_peers(result, batches)}
    file, result = newest(of_table, "sizes")
    best = {cell: ratios[RATE] for cell, ratios in best_peers(result, batches).items()}
    crops = sorted({num for _, num in best})
    rows: list[Row] = []
    for size in dict.fromkeys(size for size, _ in best):
        cells = [best.get((size, num)) for num in crops]
        name = "original sizes" if size == "originals" else f"{size} px"
        rows.append((name, [(cell["median"], f" {_peer(cell)}") if cell else None for cell in cells]))
    of_tars = {_peer(cell) for cell in best.values() if NAMES[cell["form"]].endswith("(tar)")}
    return _words(
        f"{TITLES[batches]}, on {_device(result)}",
        "Images per second of fastpsl over its own. The line is equal speed.",
        f"Batches of {result['settings']['batch_size']}. {_medians(file, result)}"
        + "".join(f". {peer} reads a tar" for peer in sorted(of_tars)),
        [f"{num} crop{'' if num == 1 else 's'} of each image" for num in crops],
        rows,
        lambda ratio: ratio,
    )


def _peer(cell: Mapping[str, Any]) -> str:
    """Return the peer's name beside a bar, which needs the room; below stands what it reads."""
    return without_form(NAMES[cell["form"]])


def augmentations_words(results: Mapping[str, Result]) -> dict[str, Any]:
    """Return the words of the figure of augmentations: others' times over ours."""
    file, result = newest(of_all_chains(results), "kernels")
    settings = result["settings"]
    found = {(row["chain"], row["what"].split(" / ")[0]): row["median"] for row in kernel_ratios(result)}
    rows: list[Row] = []
    for chain, name in CHAINS.items():
        ratios = [found.get((chain, other)) for other in OTHERS]
        if any(ratios):
            rows.append((name, [(ratio, "") if ratio else None for ratio in ratios]))
    return _words(
        f"Speed of augmentations, on {_device(result)}",
        "Their time over fastpsl's, logarithmic. The line is equal speed.",
        f"Batches of {settings['batch_size']} images of {settings['size_px']} px. {_medians(file, result)}",
        [f"beside {other}" for other in OTHERS.values()],
        rows,
        math.log,
    )


def of_all_chains(results: Mapping[str, Result]) -> dict[str, Result]:
    """Return the results that have each of CHAINS, and not some that were asked for."""
    return {
        name: result
        for name, result in results.items()
        if CHAINS.keys() <= {row.get("chain") for row in result["rows"]}
    }


def newest(results: Mapping[str, Result], bench: str) -> tuple[str, Result]:
    """Return the file of a bench and its result: that of a GPU if there is one, else the last by name.

    Raises:
        ValueError: No file is of this bench.
    """
    found = {name: result for name, result in results.items() if result["bench"] == bench}
    if not found:
        raise ValueError(f"no file in bench/results/ is of bench/{bench}.py")
    name = max(found, key=lambda name: (found[name]["environment"]["gpu"] is not None, name))
    return name, found[name]


def _device(result: Result) -> str:
    machine = result["environment"]
    return machine["gpu"] or f"{machine['num_cores']} CPU cores"


def _medians(file: str, result: Result) -> str:
    return f"Medians of {result['settings']['repeats']} repeats: bench/results/{file}"


def _words(
    title: str,
    about: str,
    source: str,
    columns: Sequence[str],
    rows: Sequence[Row],
    scale: Callable[[float], float],
) -> dict[str, Any]:
    """Return the words of a figure whose bars begin where `scale` is 0: at no speed, or at an equal one.

    Args:
        title: What is shown.
        about: How to read it.
        source: Where it is from.
        columns: Heading of each column.
        rows: Rows from top to bottom.
        scale: Callable that turns a ratio into a length.
    """
    lengths = [scale(cell[0]) for _, cells in rows for cell in cells if cell]
    low, high = min(0.0, *lengths), max(scale(1.0), *lengths)

    def place(length: float) -> float:
        return (length - low) / (high - low)

    shown = [
        (name, [_shown(cell[0], cell[1], place(scale(cell[0]))) if cell else None for cell in cells])
        for name, cells in rows
    ]
    spoken = [
        f"{column}: " + ", ".join(f"{name} {cell['text']}" for name, cells in shown if (cell := cells[i]))
        for i, column in enumerate(columns)
    ]
    return {
        "title": title,
        "description": f"{title}, higher is better. {'. '.join(spoken)}.",
        "about": about,
        "source": source,
        "columns": columns,
        "rows": shown,
        "start": place(0.0),
        "equal": place(scale(1.0)),
        "missing": "not measured",
        "value_px": max(_VALUE_PX, *(12 * len(cell["text"]) for _, cells in shown for cell in cells if cell)),
    }


def _shown(ratio: float, words: str, place: float) -> dict[str, Any]:
    digits = 0 if ratio >= 10 else 2
    return {"place": place, "text": f"{ratio:.{digits}f}×{words}", "is_loss": ratio < 1}
