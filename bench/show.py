"""A result of bench/throughput.py as tables on the terminal."""

from typing import Any

from rich.console import Console
from rich.table import Table

from bench.peers import TITLES


def show_throughput(result: dict[str, Any], console: Console) -> None:
    rates = {
        (row["measured"], row["decoder"], row.get("recipe"), row["stage"]): row for row in result["rows"]
    }
    table = Table(
        "stage", "decoder", "loader", "step", "both", "both/step", "both/min", "cores: loader", "both-step",
        title="samples/s (medians)",
    )  # fmt: skip
    ratios = {(r["what"], r["decoder"], r.get("recipe"), r["stage"]): r["median"] for r in result["ratios"]}
    both_rows = [row for row in result["rows"] if row["measured"] == "both"]
    for row in both_rows:
        decoder, recipe, stage = row["decoder"], row["recipe"], row["stage"]
        loader, step = rates["loader", decoder, recipe, stage], rates["step", None, recipe, stage]
        table.add_row(
            f"{recipe} {stage}", decoder,
            *(f"{each['median']:,.1f}" for each in (loader, step, row)),
            *(f"{ratios[what, decoder, recipe, stage]:.3f}" for what in ("both / step", "both / min(loader, step)")),
            *(f"{cores:.1f}" for cores in (loader["cores_used"], row["cores_beyond_step"])),
        )  # fmt: skip
    if both_rows:
        console.print(table)
    alone = [row for row in result["rows"] if row["measured"] in ("loader", "peer") and row["stage"] is None]
    if alone:
        console.print(loaders_alone(alone))
    for missing in result["not_measured"]:
        console.print(f"{missing['what']}: {missing['reason']}")
    for note in result["notes"]:
        console.print(note)
    real = [row for row in both_rows if row["decoder"] != "synthetic"]
    for what in ("both / step", "both / min(loader, step)"):
        found = [(ratios[what, row["decoder"], row["recipe"], row["stage"]], row) for row in real]
        if found:
            worst, row = min(found, key=lambda pair: pair[0])
            console.print(
                f"{what}: {worst:.3f} at the least ({row['recipe']} {row['stage']}, {row['decoder']})"
            )


def loaders_alone(rows: list[dict[str, Any]]) -> Table:
    """A row each of our decoders and the peers, a column a number of views."""
    views = sorted({row["num_views"] for row in rows})
    titles = [f"{num} view{'s' * (num > 1)}" for num in views]
    table = Table(
        "loader alone", *titles, "cores", "first batch after", title="samples/s (medians), equal crops"
    )
    rates = {(row["decoder"], row["num_views"]): f"{row['median']:,.0f}" for row in rows}
    for name in dict.fromkeys(row["decoder"] for row in rows):
        first = next(row for row in rows if row["decoder"] == name)
        cores = "" if first["cores_used"] is None else f"{first['cores_used']:.1f}"
        title = TITLES.get(name, f"fastpsl, decoder {name}")
        table.add_row(title, *(rates[name, num] for num in views), cores, f"{first['first_batch_s']:.1f} s")
    return table
