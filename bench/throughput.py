"""How fast one machine feeds and trains: the loader alone, the step on synthetic data, both together, and their ratio.

    python bench/throughput.py                                    the embedded sample, under two minutes on a CPU
    python bench/throughput.py --data 'imagenet/train-*.beton'    PSL's values: 225 px, tiles of 64, batch 256 on a GPU

The headline is both / min(loader, step): 1 means that neither waits for the other. The loader by decoder and number of
views of each sample, the step by PSL's stage: the recipe's own Learner.step (jigsaw: one puzzle a view). Beside them
ffcv's own Loader, DALI's reader, torchvision with DataLoader and WebDataset on the same pictures. Writes a JSON and a bar chart; see bench/README.md.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
# Spinning at barriers, as libgomp does by itself, turns a neighbour on a core into steps 10 times as long: a bench that
# shares its machine would measure the neighbour. Read when torch is imported; recorded in the settings.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(ROOT))  # bench/ and recipes/ are folders of programs, not installed
from bench import peers
from bench.chart import draw_chart
from bench.schema import SCHEMA, command_line, environment, finish, spread, write_result
from bench.variants import Bench
from fastpsl.distributed import choose_device
from fastpsl.pipelines import libffcv
from fastpsl.pipelines.decoders import dali


@dataclass(frozen=True, kw_only=True)
class Options:
    data: str | None = None
    """A beton, or a quoted glob of shards. Without it: the embedded sample, with the recipe's small values."""
    decoders: tuple[Literal["ffcv", "dali", "torchvision", "resident", "synthetic"], ...] = (
        "ffcv", "dali", "torchvision", "synthetic",
    )  # fmt: skip
    views: tuple[int, ...] = (1, 2)
    """Views of each sample, from one decode."""
    stages: tuple[Literal["S1", "S2", "S3", "E"], ...] = ("S1", "S2", "S3")
    """Of PSL; E: end to end."""
    backbone: Literal["resnet50", "resnet18"] = "resnet50"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    batch_size: int | None = None
    """Default: 256 on CUDA, else 32, and 8 for the sample."""
    num_threads: int | None = None
    """Decoding threads (DataLoader: processes). Default: the cores."""
    repeats: int | None = None
    """Default: 5, and 3 for the sample."""
    seconds: float | None = None
    """Length of a timed region; whole steps, one at least. Default: 3, and 0.2 for the sample."""
    limit_s: float | None = None
    """No further repeat begins when it would end later than this. Default: none, and 100 for the sample."""
    peers: bool = True
    """ffcv's own Loader, DALI's reader, torchvision with DataLoader, WebDataset."""
    out: Path = ROOT / "bench" / "results" / "throughput.json"
    """The result; the bar chart stands beside it as .png."""

    def check(self) -> None:
        """ValueError where a value cannot be; not in __post_init__, as tyro would frame its one line."""
        for name in ("batch_size", "num_threads", "repeats", "seconds", "limit_s"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"--{name.replace('_', '-')} {value}: it must be above 0")
        if not (self.views and self.decoders and self.stages) or min(self.views) < 1:
            raise ValueError("--views, --decoders and --stages: give at least one of each, views from 1")


Key = tuple[str, str | None, int, str | None]  # measured, decoder or peer, views, stage


def available(options: Options, bench: Bench) -> tuple[list[str], list[str], list[dict[str, str]]]:
    """Our decoders and the peers that can be measured here; what cannot, and why."""
    decoders: list[str] = []
    others: list[str] = []
    missing: list[dict[str, str]] = []
    for name in options.decoders:
        reason: str | None = None
        if name == "ffcv":
            reason = libffcv.why_missing()
        elif name == "dali":
            reason = dali.why_missing(bench.device)
        if reason:
            missing.append({"what": f"decoder {name}", "reason": reason})
        else:
            decoders.append(name)
    for kind, title in peers.TITLES.items():
        reason = peers.why_missing(kind, bench.path) if options.peers else "left out by --no-peers"
        if reason:
            missing.append({"what": title, "reason": reason})
        else:
            others.append(kind)
    if not decoders:
        raise ValueError(f"--decoders {' '.join(options.decoders)}: {missing[0]['reason']}")
    return decoders, others, missing


def measure(options: Options, bench: Bench, files: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Warm up, then every variant in turn, as many times as there are repeats, every other time backwards.

    files: an empty folder for pictures of peers that read no betons.
    """
    start = time.perf_counter()
    decoders, others, missing = available(options, bench)
    variants: dict[Key, Callable[[], float]] = {}
    for views in options.views:
        for decoder in decoders:
            variants["loader", decoder, views, None] = partial(bench.loader_alone, decoder, views)
        for stage in options.stages:
            variants["step", None, views, stage] = partial(bench.step_alone, views, stage)
            for decoder in decoders:
                variants["both", decoder, views, stage] = partial(bench.both, decoder, views, stage)
    say("warming up")
    for key, run in variants.items():
        if key[0] != "both":  # it is made of the others
            run()
    first_batch_s, started, notes = {}, {}, []
    if set(others) & set(peers.NEED_FILES):
        say("the pictures as files, for DALI's reader and WebDataset")
        num_files = peers.copy_out(bench.path, files, num_shards=4 * bench.num_threads)
        if num_files < bench.data.num_samples:
            notes.append(
                f"DALI's reader and WebDataset read {num_files:,} of the pictures, taken in even steps"
            )
    try:
        for kind in (*decoders, *others):  # after the warm-up: numba's cache is filled
            say(f"{peers.TITLES.get(kind, kind)}: from an empty process to the first batch")
            try:
                peer = peers.Peer(bench.work(kind, str(files)))
                first_batch_s[kind] = round(peer.first_batch_s, 2)
                if kind in decoders:
                    peer.close()
                    continue
                started[kind] = peer
                for views in options.views:
                    peer.samples_per_s(views, 0.0)
                    variants["peer", kind, views, None] = partial(peer.samples_per_s, views, bench.seconds)
            except RuntimeError as error:
                missing.append({"what": peers.TITLES.get(kind, kind), "reason": f"failed: {error}"})
                variants = {key: run for key, run in variants.items() if key[:2] != ("peer", kind)}
        # What is compared stands side by side, as others' load comes in waves: loaders, then each stage's step and both.
        keys = sorted(variants, key=lambda key: (key[2], key[3] or ""))
        rates: dict[Key, list[float]] = {key: [] for key in keys}
        limit_s = options.limit_s or (100.0 if options.data is None else float("inf"))
        num_done, repeat_s = 0, 0.0
        while num_done < bench.repeats and (not num_done or time.perf_counter() - start + repeat_s < limit_s):
            say(f"repeat {num_done + 1} of {bench.repeats}")
            repeat_start = time.perf_counter()
            for key in keys if num_done % 2 else keys[::-1]:
                rates[key].append(variants[key]())
            num_done, repeat_s = num_done + 1, time.perf_counter() - repeat_start
    finally:
        for peer in started.values():
            peer.close()
    if num_done < bench.repeats:
        notes.append(
            f"{num_done} repeats of {bench.repeats}: the machine was slow, and --limit-s {limit_s:g} is kept"
        )
    rest = {"not_measured": missing, "notes": notes, "num_repeats": num_done}
    return tabulate(rates, first_batch_s) | rest


def tabulate(rates: dict[Key, list[float]], first_batch_s: dict[str, float]) -> dict[str, Any]:
    """Rows, and the ratios repeat by repeat: neighbours in time share the machine's moods."""
    rows, ratios = [], []
    for (measured, decoder, views, stage), values in rates.items():
        row: dict[str, Any] = {
            "measured": measured,
            "decoder": decoder,
            "num_views": views,
            "stage": stage,
            "unit": "samples/s",
        }
        if measured in ("loader", "peer") and decoder in first_batch_s:
            row["first_batch_s"] = first_batch_s[decoder]
        rows.append(row | spread(values))
        if measured == "both":
            pairs = zip(
                values, rates["loader", decoder, views, None], rates["step", None, views, stage], strict=True
            )
            label = {
                "what": "both / min(loader, step)",
                "decoder": decoder,
                "num_views": views,
                "stage": stage,
            }
            ratios.append(label | spread([both / min(loader, step) for both, loader, step in pairs]))
    return {"rows": rows, "ratios": ratios}  # fmt: skip


def show(result: dict[str, Any], console: Console) -> None:
    rates = {(r["measured"], r["decoder"], r["num_views"], r["stage"]): r for r in result["rows"]}
    table = Table(
        "views", "stage", "decoder", "loader", "step", "both", "both / min", title="samples/s (medians)"
    )
    for ratio in result["ratios"]:
        decoder, views, stage = ratio["decoder"], ratio["num_views"], ratio["stage"]
        keys = (
            ("loader", decoder, views, None),
            ("step", None, views, stage),
            ("both", decoder, views, stage),
        )
        figures = [f"{rates[key]['median']:,.1f}" for key in keys]
        table.add_row(str(views), stage, decoder, *figures, f"{ratio['median']:.2f}")
    console.print(table)
    console.print(loaders_alone(result))
    for missing in result["not_measured"]:
        console.print(f"{missing['what']}: {missing['reason']}")
    for note in result["notes"]:
        console.print(note)
    headline = statistics.median(ratio["median"] for ratio in result["ratios"])
    console.print(f"both / min(loader, step), the median of {len(result['ratios'])}: {headline:.2f}")


def loaders_alone(result: dict[str, Any]) -> Table:
    """A row each of our decoders and the peers, a column a number of views."""
    rows = [row for row in result["rows"] if row["measured"] in ("loader", "peer")]
    views = sorted({row["num_views"] for row in rows})
    titles = [f"{num} view{'s' * (num > 1)}" for num in views]
    table = Table("loader alone", *titles, "first batch after", title="samples/s (medians)")
    rates = {(row["decoder"], row["num_views"]): f"{row['median']:,.0f}" for row in rows}
    first_batch_s = {
        row["decoder"]: f"{row['first_batch_s']:.1f} s" for row in rows if "first_batch_s" in row
    }
    for name in dict.fromkeys(row["decoder"] for row in rows):
        title = peers.TITLES.get(name, f"fastpsl, decoder {name}")
        table.add_row(title, *(rates[name, num] for num in views), first_batch_s.get(name, ""))
    return table


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    options.check()
    console = Console(highlight=False, soft_wrap=True)
    machine = environment(choose_device(options.device, 0))
    bench = Bench(
        options.data, options.stages, options.backbone, options.device, options.precision,
        batch_size=options.batch_size, num_threads=options.num_threads, repeats=options.repeats, seconds=options.seconds,
    )  # fmt: skip
    sizes = bench.data.image_sizes()
    num_bytes = sum(path.stat().st_size for path in bench.data.paths)
    result: dict[str, Any] = {
        "schema": SCHEMA, "bench": "throughput", "command": command_line(), "environment": machine,
        "data": {
            "name": "the embedded sample" if options.data is None else Path(options.data).name,
            "num_samples": bench.data.num_samples, "mean_bytes": round(num_bytes / bench.data.num_samples),
            "min_height_px": sizes[0], "min_width_px": sizes[1], "max_height_px": sizes[2], "max_width_px": sizes[3],
        },
        "settings": {
            "repeats": bench.repeats, "seconds": bench.seconds, "batch_size": bench.batch_size,
            "num_threads": bench.num_threads, "backbone": options.backbone, "precision": bench.precision,
            "device": bench.device.type, "crop": "RandomResizedCrop", "cell_px": bench.recipe.cell_px,
            "tile_px": bench.recipe.tile_px, "counts": list(bench.recipe.counts),
            "permutations_per_image": bench.recipe.permutations_per_image,
            "OMP_WAIT_POLICY": os.environ["OMP_WAIT_POLICY"], "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
        },
    }  # fmt: skip
    with console.status("") as status, tempfile.TemporaryDirectory(prefix="fastpsl-bench-") as files:
        result |= measure(options, bench, Path(files), lambda line: status.update(line))
    result["settings"]["repeats"] = result.pop("num_repeats")
    result["notes"] += finish(machine)
    write_result(options.out, result)
    draw_chart(result, options.out.with_suffix(".png"))
    show(result, console)
    console.print(f"{options.out}\n{options.out.with_suffix('.png')}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        print(f"throughput: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
