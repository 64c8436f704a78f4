"""Our speed-ups over others in all results, wins and losses, and how much training waits."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from bench.peers import TITLES, TRAINING
from bench.program import counted
from bench.schema import spread
from bench.show_kernels import TITLES as PATHS
from bench.size_tables import BATCHES, is_of

Result = Mapping[str, Any]
WHAT = {
    "uint8": "loader alone", "float32": "float32 batches", "folder": "float32 batches from a folder",
}  # fmt: skip
WAITS_FOR = "the slower of its loader and its step, alone"


class Ratio(NamedTuple):
    """One of our ratios, above 1 if ours is faster.

    Attributes:
        what: What is measured.
        ours: Which of ours.
        beside: What it is compared with.
        case: The views, stage or size; ratios that differ in it alone share a line of a table.
        file: The file of the result.
        row: Mapping with median, quartile_1 and quartile_3.
    """

    what: str
    ours: str
    beside: str
    case: str
    file: str
    row: Mapping[str, Any]


def against_others(results: Mapping[str, Result]) -> list[Ratio]:
    """Return every ratio of ours to another's, and of fused augmentations to ours one by one."""
    ratios = []
    for name, result in results.items():
        if result["bench"] == "beton_write":
            for row in result["ratios"]:
                what = f"writing a dataset file, {row['photos']}"
                ratios.append(Ratio(what, "fastpsl data write", "ffcv's DatasetWriter", "", name, row))
        elif result["bench"] == "kernels":
            for row in kernel_ratios(result):
                beside, ours = row["what"].split(" / ")
                ratios.append(Ratio(f"augmentation: {row['chain']}", ours, beside, "", name, row))
        elif result["bench"] in ("loader", "decode"):
            for row in result["ratios"]:
                if row["decoder"] != "ffcv_loader":
                    case = counted(row["num_views"], "view")
                    ratios.append(Ratio("loader alone", _decoder(row), _other(row["what"]), case, name, row))
        elif result["bench"] == "training":
            for row in result["ratios"]:
                what, peer = f"training, {row['recipe']}", TRAINING[row["peer"]].title
                ratios.append(Ratio(what, "fastpsl train", peer, row["stage"], name, row))
        elif result["bench"] in ("throughput", "sizes"):
            ratios += _loaders(name, result)
    return ratios


def kernel_ratios(result: Result) -> list[dict[str, Any]]:
    """Return each path's time over ours in a result of bench/kernels.py, with titles as names of paths.

    Ours is fused; where there is no fused kernel it is unfused, repeat by repeat.
    """
    ratios = [
        row | {"what": f"{PATHS[row['what'].removesuffix(' / fused')]} / fused"} for row in result["ratios"]
    ]
    values = {
        (row["chain"], row["path"]): row["values"] for row in result["rows"] if row["measured"] == "kernel"
    }
    for (chain, path), theirs in values.items():
        ours = values.get((chain, "kornia"))
        if ours and path != "kornia" and (chain, "fused") not in values:
            both = spread([a / b for a, b in zip(theirs, ours, strict=True)])
            ratios.append({"what": f"{PATHS[path]} / unfused", "chain": chain} | both)
    return ratios


def _other(what: str) -> str:
    """Return the other side of a ratio: the last part of, for example, "samples/s / ffcv_loader's"."""
    other = what.split(" / ")[-1].removesuffix("'s")
    return TITLES.get(other, other)


def _decoder(row: Mapping[str, Any]) -> str:
    threads = f", {counted(row['num_threads'], 'thread')}" if "num_threads" in row else ""
    return f"decoder `{row['decoder']}`{threads}"


def _loaders(name: str, result: Result) -> Iterator[Ratio]:
    """Yield the ratio of each of our decoders to each peer, loaders alone, repeat by repeat."""
    rows = [
        row
        for row in result["rows"]
        if row["measured"] in ("loader", "peer")
        and row.get("stage") is None
        and row["decoder"] != "synthetic"
    ]
    for ours in rows:
        for peer in rows:
            is_pair = ours["measured"] == "loader" and peer["measured"] == "peer"
            table = next(batches for batches in BATCHES if is_of(ours, batches))
            if (
                is_pair
                and is_of(peer, table)
                and all(ours.get(label) == peer.get(label) for label in ("num_views", "size"))
            ):
                both = spread([a / b for a, b in zip(ours["values"], peer["values"], strict=False)])
                case = counted(ours["num_views"], "view") + (
                    f" of {ours['size']} px" if "size" in ours else ""
                )
                yield Ratio(WHAT[table], _decoder(ours), TITLES[peer["decoder"]], case, name, both)


def waiting(results: Mapping[str, Result]) -> list[Ratio]:
    """Return the rates of training over the slower of loader and step; 1 means no mutual slow-down."""
    return [
        Ratio(
            f"training, {row.get('recipe', 'jigsaw')}", f"decoder `{row['decoder']}`", WAITS_FOR,
            f"{row['stage']} with {counted(row['num_views'], 'view')}", name, row,
        )
        for name, result in results.items()
        if result["bench"] == "throughput"
        for row in result["ratios"]
        if row["what"] == "both / min(loader, step)" and row["decoder"] != "synthetic"
    ]  # fmt: skip


def losses_table(results: Mapping[str, Result]) -> str:
    """Return a Markdown table of all ratios below 1; a line has those of one of ours on one task."""
    lines: dict[tuple[str, str, str], dict[str, list[str]]] = {}
    for each in (*against_others(results), *waiting(results)):
        if round(each.row["median"], 2) < 1:
            beside = lines.setdefault((each.what, each.ours, each.file), {}).setdefault(each.beside, [])
            beside.append(f"{each.row['median']:.2f}x" + (f" ({each.case})" if each.case else ""))
    rows = ["| what | fastpsl | slower than, with the ratio of the speeds | file |", "|---|---|---|---|"]
    for (what, ours, file), peers in lines.items():
        cells = "; ".join(f"{peer}: {', '.join(ratios)}" for peer, ratios in peers.items())
        rows.append(f"| {what} | {ours} | {cells} | [{file}](/bench/results/{file}) |")
    return "\n".join(rows)
