"""What the figure of loaders shows: images per second of ours and of each peer, from a results file."""

from collections.abc import Container, Mapping
from typing import Any

from bench.size_tables import Batches, is_of
from bench.targets import JPEG_DECODERS

NAMES = {
    "ffcv_loader": "FFCV",
    "dali_reader": "DALI",
    "dataloader": "PyTorch DataLoader",
    "webdataset": "WebDataset",
    "spdl_cv2": "SPDL",
    "spdl_ffmpeg": "SPDL",
    "image_folder": "PyTorch DataLoader",
    "turboloader": "TurboLoader (tar)",
    "turboloader_antialias": "TurboLoader (tar)",
}
OURS = "fastpsl"
DECODERS = (*JPEG_DECODERS, "auto")
SIZE = "500"  # of those in a result of bench/sizes.py
_SAMPLE = "the embedded sample"


def throughput_words(results: Mapping[str, Mapping[str, Any]], batches: Batches = "uint8") -> dict[str, Any]:
    """Return the words of the figure of throughput, of uint8 crops or of float32 batches.

    The file is that of a GPU if there is one, with the most peers, with the fastest of ours. It is one of
    bench/sizes.py, of which the images of SIZE are shown, or one of bench/throughput.py. The embedded sample
    does not count, because its images are smaller than photos. Ours is the fastest JPEG decoder. Of two forms
    of a peer the faster one is shown.

    Args:
        results: File name → result.
        batches: A table of bench/sizes.py.

    Raises:
        ValueError: No file has ours and peers on photos.
    """
    found = {
        name: rates
        for name, result in results.items()
        if result["bench"] in ("sizes", "throughput") and result["data"]["name"] != _SAMPLE
        if fastest(rates := loader_rates(result, batches), DECODERS) and fastest(rates, NAMES)
    }
    if not found:
        raise ValueError(
            "no file in bench/results/ has our loader and a peer on photos: "
            "run bench/sizes.py, or bench/throughput.py --data PHOTOS"
        )

    def merit(name: str) -> tuple[bool, int, float]:
        rates = found[name]
        ours = rates[fastest(rates, DECODERS)[0]]
        peers = {NAMES[peer] for peer in rates if peer in NAMES}
        return results[name]["environment"]["gpu"] is not None, len(peers), max(ours.values())

    file = max(sorted(found), key=merit)
    rates, machine = found[file], results[file]["environment"]
    data, repeats = results[file]["data"], results[file]["settings"]["repeats"]
    decoder = fastest(rates, DECODERS)[0]
    views = sorted(rates[decoder])
    names = {OURS: decoder}
    for peer in fastest(rates, NAMES):
        names.setdefault(NAMES[peer], peer)
    rows = [(text, [rates[name].get(num) for num in views]) for text, name in names.items()]
    crops = [f"{num} crop{'' if num == 1 else 's'} of each image" for num in views]
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
    what = {"uint8": "Loaders alone", "float32": "float32 batches", "folder": "float32 batches of a folder"}
    ours = "fastpsl.loader with its defaults" if decoder == "auto" else f"fastpsl's decoder: {decoder}"
    return {
        "title": title,
        "description": f"{title}, higher is better. {'. '.join(spoken)}.",
        "about": f"Higher is better. {what[batches]}, {images}{beside_gpu}.",
        "source": f"{ours}. Medians of {repeats} repeats: bench/results/{file}",
        "crops": crops,
        "rows": rows,
        "ours": OURS,
        "longest": max(value for _, values in rows for value in values if value),
    }


def loader_rates(result: Mapping[str, Any], batches: Batches) -> dict[str, dict[int, float]]:
    """Return decoder or peer → number of views → median images per second, of loaders alone."""
    rates: dict[str, dict[int, float]] = {}
    for row in result["rows"]:
        is_shown = row.get("stage") is None and row.get("size", SIZE) == SIZE
        if row["measured"] in ("loader", "peer") and is_shown and is_of(row, batches):
            rates.setdefault(row["decoder"], {})[row["num_views"]] = row["median"]
    return rates


def fastest(rates: Mapping[str, Mapping[int, float]], allowed: Container[str]) -> list[str]:
    """Return the allowed decoders or peers, the one with the highest rate first."""
    return sorted((name for name in rates if name in allowed), key=lambda name: -max(rates[name].values()))
