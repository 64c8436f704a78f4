"""The table of an epoch from a server, for the page on data that live elsewhere."""

from collections.abc import Mapping
from typing import Any

from bench.schema import Results

TITLES = {
    "local": "fastpsl, a local file",
    "fastpsl": "fastpsl, from the server",
    "webdataset": "WebDataset, from the server",
    "streaming": "MosaicML Streaming, from the server",
}


def remote_table(results: Results) -> str:
    """Return the Markdown of images per second by latency and loader."""
    found = [(name, result) for name, result in results.items() if result["bench"] == "remote"]
    if not found:
        return "Not measured yet: `python bench/remote.py --data photos.beton`."
    name, result = found[-1]
    rows = {(row["loader"], row["measured"], row["latency_ms"]): row for row in result["rows"]}
    latencies = sorted({latency for _, _, latency in rows})
    machine, data, settings = result["environment"], result["data"], result["settings"]
    about = (
        f"{machine['cpu']}, {machine['num_cores']} cores, load {machine['load_average_before']:g} before; "
        f"{data['num_samples']:,} images, {data['num_bytes'] / 1e6:,.0f} MB, {settings['gbit']:g} Gbit/s "
        f"([{name}](/bench/results/{name})). Medians of {settings['repeats']}, with the quartiles:"
    )
    lines = [
        about,
        "",
        f"| | {' | '.join(f'latency {latency:g} ms' for latency in latencies)} |",
        "|---" * (len(latencies) + 1) + "|",
    ]
    cells = [(title, loader, "epoch", "images/s") for loader, title in TITLES.items()]
    for title, loader, measured, unit in [*cells, ("fastpsl, without decoding", "fastpsl", "fetch", "MB/s")]:
        if (loader, measured, latencies[0]) in rows:
            values = " | ".join(_spread(rows[loader, measured, latency], unit) for latency in latencies)
            lines.append(f"| {title} | {values} |")
    return "\n".join(lines)


def _spread(row: Mapping[str, Any], unit: str) -> str:
    return f"{row['median']:,.0f} {unit} ({row['quartile_1']:,.0f} to {row['quartile_3']:,.0f})"
