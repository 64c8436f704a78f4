"""One node's GPUs, 1 to all of them: the step alone and with its loader; and what says how far more would go.

    python bench/scaling.py --data 'imagenet/train-*.beton' --recipe jigsaw simclr
    python bench/scaling.py --device cpu --ranks 1 2  two processes on a CPU: shows that it works, and no more

Each number of ranks is a torchrun of its own: the trainer's TrainStep under DDP, with as many images per
rank and as many steps each time. The inputs of the arithmetic in docs/explanation/scale.md are measured,
too: the loader's rate and cores, the step, and bytes of the gradients that are summed.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch comes: see throughput.py

import torch

# bench/ and recipes/ are folders of programs, not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bench.charts import publish
from bench.program import check_out, check_positive, counted, in_turn, progress, run_program
from bench.recipe_stages import DATA, Recipe, StageName, recipe_options, stage_experiment
from bench.schema import RUNS, data_record, environment, spread
from fastpsl.engine.distributed import World, choose_device, join_world, leave_world, wait_for_all
from fastpsl.engine.options import GraphName
from fastpsl.engine.stage_bench import StageBench
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.embedded.draw_sample import sample_paths
from fastpsl.scripts.command_line import parse


@dataclass(frozen=True, kw_only=True)
class Options:
    data: Annotated[str | None, DATA] = None
    recipe: tuple[Recipe, ...] = ("jigsaw",)
    stages: tuple[StageName, ...] = ("S1", "S2", "S3", "E")
    ranks: tuple[int, ...] = ()  # Numbers of GPUs. Default: 1, 2, 4, ... up to all of them; on a CPU 1.
    backbone: str | None = None  # Default: the recipe's.
    device: Literal["auto", "cpu", "cuda"] = "auto"
    decoder: str = "auto"
    compile: Literal["auto", "off", "fused", "on"] = "auto"
    graph: GraphName = "auto"
    batch_size: int | None = None  # Images of a rank. Default: 256 on CUDA, else 16.
    repeats: int = 5
    steps: int | None = None  # Of a timed region. Default: 60 on CUDA, else 3.
    timeout_s: float = 400.0  # Of each number of ranks.
    out: Path = RUNS / "scaling.json"
    worker: Path | None = None  # Used by itself: where rank 0 of a torchrun leaves its rows.

    def check(self) -> None:
        """Raise ValueError if an option is out of range."""
        check_positive(self, "batch_size", "steps", "repeats", "timeout_s")
        if any(num < 1 for num in self.ranks) or not self.recipe or not self.stages:
            raise ValueError("--ranks, --recipe and --stages: give at least one of each, ranks from 1")


def numbers_of_ranks(options: Options) -> list[int]:
    """Return the numbers of ranks to measure, in ascending order."""
    if options.ranks:
        return sorted(set(options.ranks))
    if choose_device(options.device, 0).type == "cpu":
        return [1]
    num = torch.cuda.device_count()
    return sorted({2**power for power in range(num.bit_length()) if 2**power <= num} | {num})


def rows_of_ranks(options: Options, world: World) -> list[dict[str, Any]]:
    """Measure step, loader and both of every stage in each rank; return rates of all ranks together."""
    batch_size = options.batch_size or (256 if world.device.type == "cuda" else 16)
    rows: list[dict[str, Any]] = []
    with Beton(options.data or str(sample_paths().train)) as data:
        for recipe in options.recipe:
            for stage in options.stages:
                settings = recipe_options(
                    recipe, is_sample=options.data is None, batch_size=batch_size * world.size,
                    backbone=options.backbone,
                    device=options.device, decoder=options.decoder, compile=options.compile,
                    graph=options.graph,
                )  # fmt: skip
                experiment, number = stage_experiment(recipe, stage, settings, world)
                bench = StageBench(experiment, number, settings, data, world, seconds=0.0, min_steps=3)
                bench.step_alone()  # warm-up
                bench.min_steps = options.steps or (60 if world.device.type == "cuda" else 3)
                labels = {
                    "recipe": recipe, "stage": stage, "num_ranks": world.size,
                    "precision": settings.resolved_precision(world.device),
                }  # fmt: skip
                rates: dict[str, list[float]] = {"step": [], "both": [], "loader": []}
                cores: dict[str, list[float]] = {name: [] for name in rates}
                work = {"step": bench.step_alone, "both": bench.both, "loader": bench.loader_alone}
                for name in in_turn(work, options.repeats, lambda phase: None):
                    wait_for_all(world)
                    # DDP keeps the ranks within one step of each other, so that their times agree.
                    rates[name].append(work[name]() * world.size)
                    cores[name].append(bench.cores_used)
                rows += [
                    {"measured": name, **labels, "unit": "samples/s",
                     "cores_used": round(statistics.median(cores[name]), 3), "batch_size": bench.batch_size,
                     **spread(values)}
                    for name, values in rates.items()
                ]  # fmt: skip
                # DDP sums the gradients; this is their exact number, because a spread rounds to six digits.
                count = sum(weights.nbytes for _, weights in bench.train_step.module.learning_parameters())
                about = {"unit": "bytes a step", "num_bytes": count, **spread([count])}
                rows.append({"measured": "gradients", **labels, **about})
    return rows


def start_ranks(options: Options, num_ranks: int, answer: Path) -> list[dict[str, Any]]:
    """Measure in a torchrun of this file."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}",
        f"--log-dir={answer.parent}", __file__,
        *sys.argv[1:], "--worker", str(answer),
    ]  # fmt: skip
    threads = max(1, len(os.sched_getaffinity(0)) // num_ranks)
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            start_new_session=True
        )  # fmt: skip
        try:
            process.wait(options.timeout_s)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"no answer within {options.timeout_s:g} s") from None
        finally:
            if process.poll() is None:
                # Only torchrun ends its ranks, which have sessions of their own; after 30 s it kills them.
                process.terminate()
                try:
                    process.wait(45)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        output.seek(0)
        words = [line for line in output.read().decode(errors="replace").splitlines() if line.strip()]
    if process.returncode or not answer.exists():
        error_lines = (
            [line for line in words if "Error" in line or line.startswith("scaling:")]
            or words
            or ["it said nothing"]
        )
        raise RuntimeError(error_lines[0].strip())
    rows: list[dict[str, Any]] = json.loads(answer.read_text())
    return rows


def efficiencies(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return each rate per rank over that of the fewest ranks, by medians: they ran one after another."""
    ratios = []
    first: dict[Any, dict[str, Any]] = {}
    for row in rows:
        if row["measured"] not in ("step", "both"):
            continue
        base = first.setdefault((row["measured"], row["recipe"], row["stage"]), row)
        if base is row:
            continue
        value = row["median"] / row["num_ranks"] / (base["median"] / base["num_ranks"])
        what = f"{row['measured']} a rank, over that of {base['num_ranks']}"
        labels = {"recipe": row["recipe"], "stage": row["stage"], "num_ranks": row["num_ranks"]}
        ratios.append({"what": what, **labels, **spread([value])})
    return ratios


def main() -> None:
    options: Options = parse(Options, description=__doc__)
    options.check()
    if options.worker:
        world = join_world(options.device, timeout_s=options.timeout_s)
        rows = rows_of_ranks(options, world)
        if world.rank == 0:
            options.worker.write_text(json.dumps(rows))
        leave_world()
        return
    check_out(options.out)
    machine = environment(choose_device(options.device, 0))
    rows, missing = [], []
    with progress() as log, tempfile.TemporaryDirectory(prefix="fastpsl-bench-") as scratch:
        for num in numbers_of_ranks(options):
            log(f"{counted(num, 'rank')}, at most {options.timeout_s:g} s")
            try:
                rows += start_ranks(options, num, Path(scratch) / f"ranks-{num}.json")
            except RuntimeError as error:
                missing.append({"what": counted(num, "rank"), "reason": str(error)})
    if not rows:
        raise ValueError("; ".join(f"{line['what']}: {line['reason']}" for line in missing))
    if max((row["num_ranks"] for row in rows), default=1) == 1:
        reason = "there is one here" if machine["gpu"] else "no GPU was at hand"
        missing.append({"what": "2 GPUs and more", "reason": reason})
    with Beton(options.data or str(sample_paths().train)) as data:
        about = data_record(data, options.data)
    publish(
        options.out, "scaling", machine, "recipe stage num_ranks cores_used", data=about,
        settings={
            "repeats": options.repeats, "steps": options.steps, "batch_size": options.batch_size,
            "backbone": options.backbone,
            "decoder": options.decoder, "step": options.compile, "graph": options.graph,
        },
        rows=rows, ratios=efficiencies(rows), not_measured=missing,
    )  # fmt: skip


if __name__ == "__main__":
    run_program(main)
