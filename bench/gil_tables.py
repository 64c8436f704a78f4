"""The table of docs/explanation/scale.md that bench/gil.py's results make."""

from collections.abc import Mapping
from typing import Any

SATURATED = "CPU time of a batch / the part under the interpreter lock"


def growth(num_threads: int) -> str:
    """Return the name of a ratio."""
    return f"CPU time of {num_threads} threads / of one a core"


def gil_table(results: Mapping[str, dict[str, Any]]) -> str:
    """Return a Markdown table a file: CPU time under the lock and in all, cores, and what threads cost."""
    parts = []
    for name, result in results.items():
        if result["bench"] != "gil":
            continue
        machine, settings = result["environment"], result["settings"]
        cores = settings["num_cores"]
        rows = {(row["size"], row["measured"], row["num_threads"]): row["median"] for row in result["rows"]}
        ratios = {(row["size"], row["what"]): row["median"] for row in result["ratios"]}
        counts = sorted({num for _, measured, num in rows if measured == "cpu" and num != cores})
        titles = ["px", "CPU time per batch", "under the lock", "cores at which the lock is always taken"]
        titles += [f"CPU time, {num} threads" for num in counts]
        titles += [f"page faults per batch, {num} threads" for num in (cores, *counts)]
        lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
        for size in dict.fromkeys(size for size, *_ in rows):
            cells = [
                size,
                f"{rows[size, 'cpu', cores]:.1f} ms",
                f"{rows[size, 'under the lock', 1]:.2f} ms",
                f"{ratios[size, SATURATED]:.0f} cores",
                *(f"x{ratios[size, growth(num)]:.2f}" for num in counts),
                *(f"{rows[size, 'page faults', num]:,.0f}" for num in (cores, *counts)),
            ]
            lines.append(f"| {' | '.join(cells)} |")
        run = f"{machine['cpu']}, {cores} cores, batch {settings['batch_size']}, one view"
        parts.append(f"{run} ([{name}](/bench/results/{name})):\n\n" + "\n".join(lines))
    return "\n\n".join(parts) or "Not measured yet: `python bench/gil.py`."
