"""What smaller images in early stages gain: loader and step by size, and trainings of about the same time.

    python bench/photos.py photos.beton --num 1200
    python bench/stage_sizes.py --data photos.beton                     two minutes on two cores
    python bench/stage_sizes.py --trainings sizes --seeds 0 1 2         half an hour of one core

The first measures SimCLR's views and its step over the whole network, end to end. The trainings are those of
SimCLR's sample preset, with one size, and with sizes that rise by stage and more epochs. They are scored by
kNN on 1,000 further images of the sample's kind, at the last size. Both are trained by PSL's plan, and by
psl_f, in which blocks of earlier stages go on to learn. Their time is that of the CPU, over all
threads, which other work on the machine changes least. What is in the folder of the trainings is kept, so a
stopped command goes on with the next one.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch comes: see throughput.py

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # bench/ is a folder of programs, not installed

import fastpsl
from bench.program import check_positive, in_turn, options_of, progress, run_program
from bench.recipe_stages import LongEpochs, recipe_options, stage_experiment
from bench.schema import RUNS, data_record, environment, save_result, spread
from fastpsl.engine.distributed import choose_device, join_world
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.embedded.draw_sample import VERSION, draw_part, sample_paths

# What a training adds to the preset. The epochs are those that take about the same time.
ARMS: tuple[dict[str, Any], ...] = (
    {"plan": "psl", "size_px": (48,), "epochs": (6, 6, 6)},
    {"plan": "psl", "size_px": (24, 36, 48), "epochs": (12, 8, 7)},
    {"plan": "psl_f", "size_px": (48,), "epochs": (6, 6, 5)},
    {"plan": "psl_f", "size_px": (24, 36, 48), "epochs": (12, 8, 6)},
)
SIZE_PX = 48  # of all scores
NUM_VAL, FIRST_VAL = 1000, 10_000  # the sample's own images come before


@dataclass(frozen=True, kw_only=True)
class Options:
    data: str | None = None  # A dataset file. Default: the embedded sample.
    sizes: tuple[int, ...] = (64, 96, 128, 160, 224)  # Sides of the crops, in pixels.
    backbone: str = "resnet18"
    batch_size: int = 16
    workers: int = 1  # Decoding threads.
    device: Literal["auto", "cpu", "cuda"] = "auto"
    repeats: int = 3
    seconds: float = 2.0  # Length of a timed region; whole steps, one at least.
    trainings: Path | None = None  # Train instead, each arm with each seed, in this folder.
    seeds: tuple[int, ...] = (0, 1, 2)
    out: Path = RUNS / "stage_sizes.json"

    def check(self) -> None:
        """Raise ValueError if an option is out of range."""
        check_positive(self, "batch_size", "workers", "repeats", "seconds")
        if not self.sizes or min(self.sizes) < 1 or not self.seeds:
            raise ValueError("--sizes and --seeds: give one or more, sizes above 0")


def speeds(options: Options, log: Callable[[str], None]) -> list[dict[str, Any]]:
    """Return the rows of loaders and steps, of all sizes in turn."""
    world = join_world(options.device, timeout_s=600.0)
    data = Beton(options.data or str(sample_paths().train))
    work = dict[tuple[str, int], Callable[[], float]]()
    for size_px in options.sizes:
        of_size = recipe_options(
            "simclr", is_sample=False, batch_size=options.batch_size, backbone=options.backbone,
            size_px=size_px, device=options.device, workers=options.workers,
        )  # fmt: skip
        experiment, number = stage_experiment("simclr", "E", of_size, world)
        bench = LongEpochs(experiment, number, of_size, data, world, seconds=options.seconds)
        work["loader", size_px] = partial(bench.loader_alone, "turbo")
        work["step", size_px] = bench.step_alone
    for key, run in work.items():
        log(f"warming up: {key}")
        run()
    rates = {key: list[float]() for key in work}
    for key in in_turn(work, options.repeats, log):
        rates[key].append(work[key]())
    return [
        {"measured": what, "sizes": str(size_px), "unit": "images/s", **spread(values)}
        for (what, size_px), values in rates.items()
    ]


def trainings(options: Options, folder: Path, log: Callable[[str], None]) -> list[dict[str, Any]]:
    """Return a row of kNN accuracies for each arm, with the seconds of its trainings."""
    val = folder / "val.beton"
    if not val.exists():
        folder.mkdir(parents=True, exist_ok=True)
        draw_part(val, folder / "val_32.beton", FIRST_VAL, NUM_VAL, VERSION)
    done = [list[dict[str, float]]() for _ in ARMS]
    for seed in options.seeds:
        for arm, results in zip(ARMS, done, strict=True):
            name = "-".join(map(str, (arm["plan"], *arm["size_px"])))
            log(f"seed {seed}: {name}")
            results.append(training(options, folder / f"{name}-s{seed}", val, arm, seed))
    return [
        {
            "measured": "kNN on B5", "plan": arm["plan"], "sizes": " ".join(map(str, arm["size_px"])),
            "epochs": list(arm["epochs"]), "unit": "%", "cpu_s": [each["cpu_s"] for each in results],
            **spread([each["knn"] for each in results]),
        }
        for arm, results in zip(ARMS, done, strict=True)
    ]  # fmt: skip


def training(options: Options, out: Path, val: Path, arm: dict[str, Any], seed: int) -> dict[str, float]:
    """Return the accuracy of a training and its CPU seconds, which stay in its folder."""
    record = out / "done.json"
    if not record.exists():
        shutil.rmtree(out, ignore_errors=True)
        common: dict[str, Any] = {"workers": options.workers, "device": options.device}
        train, started = sample_paths().train, time.process_time()
        trained = fastpsl.pretrain(
            "simclr", train, val="none", preset="sample", seed=seed, out=out, tensorboard=False, **common,
            **arm,
        )  # fmt: skip
        cpu_s = time.process_time() - started
        result = fastpsl.evaluate.knn(
            trained.checkpoint,
            data=train,
            val=val,
            size_px=SIZE_PX,
            k=20,
            block="B5",
            out=out / "knn",
            **common,
        )
        record.write_text(json.dumps({"cpu_s": round(cpu_s, 1), "knn": result["top1_k20"]}))
    found: dict[str, float] = json.loads(record.read_text())
    return found


def main() -> None:
    options = options_of(Options, __doc__)
    machine = environment()
    with progress() as log:
        rows = trainings(options, options.trainings, log) if options.trainings else speeds(options, log)
    measured = recipe_options("simclr", is_sample=True, batch_size=1, backbone=options.backbone)
    settings: dict[str, Any] = {
        "workers": options.workers, "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "precision": measured.resolved_precision(choose_device(options.device, 0)),
    }  # fmt: skip
    if options.trainings:
        settings |= {"repeats": len(options.seeds), "seeds": list(options.seeds), "num_val": NUM_VAL}
    else:
        settings |= {"repeats": options.repeats, "seconds": options.seconds}
        settings |= {"backbone": options.backbone, "batch_size": options.batch_size}
    data = data_record(Beton(options.data or str(sample_paths().train)), options.data)
    save_result(options.out, "stage_sizes", machine, data=data, settings=settings, rows=rows)
    for row in rows:
        arm = f"{row['sizes']} px" + (f", {row['plan']}" if "plan" in row else "")
        print(f"{row['measured']} {arm}: {row['median']:.4g} {row['unit']} {row['values']}")
    print(options.out)


if __name__ == "__main__":
    run_program(main)
