"""What the charts of results show: loaders, ratios by image size, augmentations, determinism."""

import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any

from bench.peers import PACKED
from bench.program import counted
from bench.tables import (
    CPU,
    JPEG_DECODERS,
    RATE,
    Batches,
    best_peers,
    is_of,
    kernel_ratios,
    packed_files,
    without_form,
)

NAMES = {
    "ffcv_loader": "FFCV", "dali_reader": "DALI", "dataloader": "PyTorch DataLoader",
    "webdataset": "WebDataset", "spdl_cv2": "SPDL", "spdl_ffmpeg": "SPDL",
    "image_folder": "PyTorch DataLoader", "turboloader": "TurboLoader (tar)",
    "turboloader_antialias": "TurboLoader (tar)",
}  # fmt: skip
OURS = "fastpsl"
WHOLE_PLAN = "PSL"  # a stage's name in results of bench/training.py: all stages, by the recipe's epochs
SIZE = "500"  # of those in a result of bench/sizes.py
_SAMPLE = "the embedded sample"


def throughput_words(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the words of the figure of throughput: of SIZE in a file of bench/sizes.py, or of throughput.py.

    The file is that of a GPU if there is one, with the most peers, with the fastest of ours. The sample's
    images are too small. Ours is the fastest JPEG decoder. Of a peer's forms the faster is shown.
    """
    found = {
        name: rates
        for name, result in results.items()
        if result["bench"] in ("sizes", "throughput") and result["data"]["name"] != _SAMPLE
        if fastest(rates := loader_rates(result), JPEG_DECODERS) and fastest(rates, NAMES)
    }
    if not found:
        raise ValueError(
            "no file in bench/results/ has our loader and a peer on photos: "
            "run bench/sizes.py, or bench/throughput.py --data PHOTOS"
        )

    def merit(name: str) -> tuple[bool, int, float]:
        rates = found[name]
        ours = rates[fastest(rates, JPEG_DECODERS)[0]]
        peers = {NAMES[peer] for peer in rates if peer in NAMES}
        return results[name]["environment"]["gpu"] is not None, len(peers), max(ours.values())

    file = max(sorted(found), key=merit)
    rates, machine = found[file], results[file]["environment"]
    data, repeats = results[file]["data"], results[file]["settings"]["repeats"]
    decoder = fastest(rates, JPEG_DECODERS)[0]
    views = sorted(rates[decoder])
    names = {OURS: decoder}
    for peer in fastest(rates, NAMES):
        names.setdefault(NAMES[peer], peer)
    rows = [(text, [rates[name].get(num) for num in views]) for text, name in names.items()]
    crops = _crops(views)
    spoken = [
        f"{crop}: " + ", ".join(f"{name} {values[i]:,.0f}" for name, values in rows if values[i])
        for i, crop in enumerate(crops)
    ]
    cores = f"{machine['num_cores']} CPU cores"
    beside_gpu = f", {cores}" if machine["gpu"] else ""
    if results[file]["bench"] == "sizes":
        images = f"images of {SIZE} px and {data[f'mean_bytes_{SIZE}'] / 1000:.0f} KB"
    else:
        images = f"images of up to {max(data['max_height_px'], data['max_width_px'])} px"
    title = f"Images per second on {machine['gpu'] or cores}"
    return {
        "title": title, "description": f"{title}, higher is better. {'. '.join(spoken)}.",
        "about": f"Higher is better. Loaders alone, {images}{beside_gpu}.",
        "source": f"fastpsl's decoder: {decoder}. Medians of {repeats} repeats: bench/results/{file}",
        "crops": crops, "rows": rows, "ours": OURS,
        "longest": max(value for _, values in rows for value in values if value),
    }  # fmt: skip


def training_words(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the words of the figure of training: our SimCLR end to end, all of PSL, and the peers'.

    Each is shown in its fastest precision, and a peer in its fastest form.
    """
    beside = {
        name: result
        for name, result in results.items()
        if result["bench"] == "training" and any(row["trained_by"] == "lightly" for row in result["rows"])
    }
    _, result = newest(beside, "training")
    settings, device = result["settings"], _device(result)
    names = {"E": f"{OURS}, end to end", WHOLE_PLAN: f"{OURS}, all of PSL"}
    names |= {"lightly": "lightly", "torch_loop": "torch, torchvision"}
    fastest: dict[str, Result] = {}
    for row in sorted(result["rows"], key=lambda row: row["median"]):
        key = row["stage"] or row["trained_by"]
        if row["recipe"] in ("simclr", None) and key in names:
            fastest[key] = row
    precisions = {row["precision"] for row in fastest.values()}
    rows = []
    for key, row in sorted(fastest.items(), key=lambda pair: -pair[1]["median"]):
        name = names[key]
        rows.append((f"{name}, {row['precision']}" if len(precisions) > 1 else name, [row["median"]]))
    in_all = f" in {precision}" if len(precisions) == 1 and (precision := precisions.pop()) else ""
    spoken = "; ".join(f"{name}: {rate:,.0f}" for name, (rate,) in rows)
    reads = "a folder of JPEGs" if settings.get("folder") else "a dataset file"
    over = {
        ratio["peer"]: ratio
        for ratio in result["ratios"]
        if ratio["stage"] == "E" and ratio["precision"] == fastest["E"]["precision"]
    }
    spreads = ", ".join(
        f"{names[peer]} {ratio['median']:.2f} ({ratio['quartile_1']:.2f} to {ratio['quartile_3']:.2f})"
        for peer, ratio in over.items()
        if peer in fastest
    )
    return {
        "title": f"Training SimCLR{in_all}: images per second on {device}",
        "description": f"Training SimCLR{in_all}: images per second on {device}, higher is better. {spoken}.",
        "about": f"Higher is better. {settings['backbone']}, crops of {settings['size_px']} px, "
        f"batches of {settings['batch_size']}, from {reads}.",
        "source": f"End to end over {spreads}; {len(fastest['E']['values'])} repeats",
        "crops": ["images of two crops each"], "rows": rows, "ours": OURS,
        "longest": max(rate for _, (rate,) in rows),
    }  # fmt: skip


def loader_rates(result: Mapping[str, Any]) -> dict[str, dict[int, float]]:
    """Return decoder or peer → number of views → median uint8 images per second, of loaders alone."""
    rates: dict[str, dict[int, float]] = {}
    for row in result["rows"]:
        is_shown = row.get("stage") is None and row.get("size", SIZE) == SIZE
        if row["measured"] in ("loader", "peer") and is_shown and is_of(row, "uint8"):
            rates.setdefault(row["decoder"], {})[row["num_views"]] = row["median"]
    return rates


def fastest(rates: Mapping[str, Mapping[int, float]], allowed: Container[str]) -> list[str]:
    """Return the allowed decoders or peers, the one with the highest rate first."""
    return sorted((name for name in rates if name in allowed), key=lambda name: -max(rates[name].values()))


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
    "rotation, all 8": "all 8 rotations", "area crop": "crop (torch)",
}  # fmt: skip


def sizes_words(results: Mapping[str, Result], batches: Batches = "uint8") -> dict[str, Any]:
    """Return the words of a figure of image sizes: ours over the fastest other loader of each size."""
    file, result = newest({name: of for name, of in results.items() if best_peers(of, batches)}, "sizes")
    best = {cell: ratios[RATE] for cell, ratios in best_peers(result, batches).items()}
    of_tars = {_peer(cell) for cell in best.values() if NAMES[cell["form"]].endswith("(tar)")}
    return _words(
        f"{TITLES[batches]}, on {_device(result)}",
        "Images per second of fastpsl over its own. The line is equal speed.",
        f"Batches of {result['settings']['batch_size']}. {_medians(file, result)}"
        + "".join(f". {peer} reads a tar" for peer in sorted(of_tars)),
        *_by_size({cell: (ratio["median"], f" {_peer(ratio)}") for cell, ratio in best.items()}),
    )


def packed_words(results: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the words of the figure of packed coefficients: the CPU time of JPEGs over theirs."""
    file, result = packed_files(results)[0]
    own = {
        (ratio["size"], ratio["num_views"]): (ratio["median"], "")
        for ratio in result["ratios"]
        if (ratio["batches"], ratio.get("decoder"), ratio["what"]) == ("uint8", PACKED, CPU)
        and ratio["peer"] == "turbo"
    }
    return _words(
        f"Packed coefficients over JPEGs, on {_device(result)}",
        "CPU time for JPEGs over that for their coefficients. The line is equal time.",
        f"Batches of {result['settings']['batch_size']}. {_medians(file, result)}",
        *_by_size(own),
    )


def _crops(nums: Iterable[int]) -> list[str]:
    return [f"{counted(num, 'crop')} of each image" for num in nums]


def _by_size(cells: Mapping[tuple[str, int], tuple[float, str]]) -> tuple[list[str], list[Row]]:
    """Return the columns, of numbers of crops, and the rows, of sizes, of what is known of both."""
    crops = sorted({num for _, num in cells})
    names = {size: "original sizes" if size == "originals" else f"{size} px" for size, _ in cells}
    return _crops(crops), [(name, [cells.get((size, num)) for num in crops]) for size, name in names.items()]


def _peer(cell: Mapping[str, Any]) -> str:
    """Return the peer's name beside a bar, which needs the room; below stands what it reads."""
    return without_form(NAMES[cell["form"]])


def augmentations_words(results: Mapping[str, Result]) -> dict[str, Any]:
    """Return the words of the figure of augmentations: others' times over ours."""
    # Not those of some chains that were asked for.
    whole = {n: of for n, of in results.items() if CHAINS.keys() <= {row.get("chain") for row in of["rows"]}}
    file, result = newest(whole, "kernels")
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


def newest(results: Mapping[str, Result], bench: str) -> tuple[str, Result]:
    """Return the file of a bench and its result: that of a GPU if there is one, else the last by name."""
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
    scale: Callable[[float], float] = float,
) -> dict[str, Any]:
    """Return the words of a figure whose bars begin where `scale` is 0: at no speed, or at an equal one."""
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
        "title": title, "description": f"{title}, higher is better. {'. '.join(spoken)}.", "about": about,
        "source": source, "columns": columns, "rows": shown, "start": place(0.0), "equal": place(scale(1.0)),
        "missing": "not measured",
        "value_px": max(_VALUE_PX, *(12 * len(cell["text"]) for _, cells in shown for cell in cells if cell)),
    }  # fmt: skip


def _shown(ratio: float, words: str, place: float) -> dict[str, Any]:
    digits = 0 if ratio >= 10 else 2
    return {"place": place, "text": f"{ratio:.{digits}f}×{words}", "is_loss": ratio < 1}


DETERMINISM = "determinism.json"
# Plots in px: left, right, then top and bottom of the losses and of the differences.
LEFT, RIGHT = 76, 822
LOSSES, DIFFERENCES = (150, 360), (500, 726)
POWERS = range(-9, 1, 3)  # of the differences' axis
NETWORKS = {
    "batch_norm": "jigsaw, BatchNorm by each process",
    "group_norm": "rotation, no BatchNorm, ReLU",
    "smooth": "rotation, no BatchNorm, GELU",
}


def determinism_words(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the words of the chart."""
    if DETERMINISM not in results:
        raise ValueError(f"no {DETERMINISM} in bench/results/: take it from the repository")
    result = results[DETERMINISM]
    rows = result["rows"]
    jigsaw = [row for row in rows if row["measured"] == "loss" and row["network"] == "batch_norm"]
    differences = [row for row in rows if row["measured"] == "difference"]
    killed = next(row for row in jigsaw if row["killed_at"])
    num_steps, kill = len(killed["values"]), killed["killed_at"]
    highest = math.ceil(max(max(row["values"]) for row in jigsaw))
    largest = {
        network: max(row["largest_difference"] for row in differences if row["network"] == network)
        for network in NETWORKS
    }
    inputs = [row for row in rows if row["measured"] == "steps with equal inputs"]
    same = all(row["median"] == num_steps for row in inputs)
    counts = sorted({row["num_processes"] for row in jigsaw})
    on = f"{', '.join(map(str, counts[:-1]))} and {counts[-1]} processes"
    spoken = "; ".join(f"{NETWORKS[network]}, {value:.1g}" for network, value in largest.items())
    return {
        "title": f"Losses on {on}, and after a kill",
        "description": (
            f"Losses of {num_steps} steps on {on}, and of a run that was killed after {kill} steps and "
            f"resumed. The killed run has the same loss in {killed['num_equal']} of {num_steps} steps. "
            f"{'Images, views and labels are equal in all steps. ' if same else ''}"
            f"Largest differences from the losses on 1 process: {spoken}."
        ),
        "about": f"Jigsaw puzzles, a small network, {result['environment']['num_cores']} CPU cores",
        "left": LEFT, "right": RIGHT, "losses": LOSSES, "differences": DIFFERENCES,
        "lines": [
            {
                "num": row["num_processes"], "killed": row["killed_at"],
                "path": _path(row["values"], lambda loss: loss / highest, *LOSSES),
            }
            for row in jigsaw
        ],
        "ticks": [
            (str(loss), _y(loss / highest, *LOSSES)) for loss in range(0, highest + 1, math.ceil(highest / 4))
        ],
        "kill": {"step": kill, "x": _x(kill - 1, num_steps)},
        "stages": [
            (f"S{number + 1}", _x(sum(epochs[:number]) * num_steps / sum(epochs), num_steps))
            for epochs in [result["settings"]["epochs"]]
            for number in range(len(epochs))
        ],
        "num_steps": num_steps,
        "num_equal": killed["num_equal"],
        "gaps": [
            {
                "network": row["network"], "num": row["num_processes"],
                "path": _path(row["values"], _share_of_power, *DIFFERENCES),
            }
            for row in differences
        ],
        "powers": [
            (f"1e{power}" if power else "1", _y(_share_of_power(10**power), *DIFFERENCES)) for power in POWERS
        ],
        "names": NETWORKS,
    }  # fmt: skip


def _share_of_power(value: float) -> float:
    """Map the differences' axis to [0, 1]."""
    first, last = POWERS[0], POWERS[-1]
    return (math.log10(value) - first) / (last - first)


def _x(step: float, num_steps: int) -> float:
    return LEFT + (RIGHT - LEFT) * step / (num_steps - 1)


def _y(share: float, top: float, bottom: float) -> float:
    return bottom - share * (bottom - top)


def _path(values: Sequence[float], share: Any, top: float, bottom: float) -> str:
    points = (
        f"{_x(step, len(values)):.1f} {_y(share(value), top, bottom):.1f}"
        for step, value in enumerate(values)
    )
    return "M" + "L".join(points)
