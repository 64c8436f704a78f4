"""How long a checkpoint holds up the training, and the bytes of the state by recipe.

    python bench/checkpoint.py    ResNet-50 of SimCLR and MoCo; the bytes of the recipes' states

`call` is the time that the training waits for a checkpoint, `step` that of the step after it.

    none            no checkpoint
    synchronous     serialised in memory and written, as fastpsl once did
    thread          copied, and written beside the step, as it does now
    thread, first   the same with new memory for the copy

`state` counts the bytes of the tensors of a state after a step. Interleaved, the first round not counted.
Writes a JSON.
"""

import argparse
import io
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch comes: see throughput.py

import torch

# bench/ and recipes/ are folders of programs, not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bench.program import check_out, check_positive, progress, run_program
from bench.recipe_stages import recipe_options, stage_experiment
from bench.schema import RUNS, environment, save_result, spread
from fastpsl.engine.distributed import World
from fastpsl.engine.last_step import LastStep, Snapshot
from fastpsl.engine.run import Position
from fastpsl.engine.stage_bench import StageBench
from fastpsl.files.atomic import write_atomically
from fastpsl.models.checkpoint import CheckpointManager
from fastpsl.pipelines.datasets.subset import Synthetic
from fastpsl.tasks.contrastive.moco import MoCo

IMAGENET, MANY = 1_281_167, 100_000_000
COUNTED = (
    *(("simclr", IMAGENET), ("moco", IMAGENET), ("jigsaw", IMAGENET), ("rotation", IMAGENET)),
    *(("uic_r50", IMAGENET), ("uic_r50", MANY), ("deepcluster", IMAGENET), ("deepcluster", MANY)),
    *(("sslpp_colorization", IMAGENET), ("sslpp_rotation", IMAGENET), ("sslpp_iic", IMAGENET)),
)
HOW = ("none", "synchronous", "thread", "thread, first")
WORLD = World(0, 1, 0, 1, torch.device("cpu"))


class Training:
    """A recipe's end-to-end stage on noise, with the paper's values but for the batch."""

    def __init__(self, recipe: str, num_images: int, batch_size: int):
        self.options = recipe_options(recipe, is_sample=False, batch_size=batch_size, decoder="synthetic")
        self.experiment, number = stage_experiment(recipe, "E", self.options, WORLD)
        data = Synthetic(num_images)
        self.bench = StageBench(self.experiment, number, self.options, data, WORLD)
        self.bench._warmed_up = True
        if isinstance(task := self.experiment.task, MoCo):
            task.num_filled = task.queue_size  # noise will do, and to fill it takes 65,536 images

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds of the training."""
        return {
            "backbone": self.experiment.backbone.state_dict(),
            "learner": self.bench.train_step.state_dict(),
            "task": dict(self.experiment.task.state_dict()),
        }

    def count(self) -> dict[str, int]:
        """Return the bytes of each part of the state after a step without images."""
        train_step = self.bench.train_step
        train_step.scaler.scale(torch.zeros(()))
        for _, parameter in train_step.module.learning_parameters():
            parameter.grad = torch.zeros_like(parameter)
        train_step.scaler.step(train_step.optimiser)
        train_step.scaler.update()
        return {name: sum(tensor.nbytes for tensor in tensors(part)) for name, part in self.state().items()}


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors of a state."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors(part)


class Timed:
    """A training's steps with and without checkpoints in `folder`, and their seconds by (what, how)."""

    def __init__(self, training: Training, folder: Path):
        self.training, self.folder = training, folder
        self.seconds: dict[tuple[str, str], list[float]] = {}
        checkpoints = CheckpointManager(folder)
        run: Any = SimpleNamespace(
            position=Position(), world=WORLD, owns_process=False, options=training.options,
            checkpoints=checkpoints, save=checkpoints.save,
        )  # fmt: skip
        self.last_step = LastStep(run)

    def once(self, how: str) -> None:
        """Time a checkpoint and the step after it."""
        batches = iter([self.training.bench.synthetic_batch()])
        start = time.perf_counter()
        if how == "synchronous":
            buffer = io.BytesIO()
            torch.save({"format": 1, **self.training.state()}, buffer)
            write_atomically(self.folder / "step-00000000.pt", buffer.getbuffer())
        elif how != "none":
            if how == "thread, first":
                self.last_step._snapshot = Snapshot()
            self.last_step.save(self.training.state())
        saved = time.perf_counter()
        self.training.bench._step(batches)
        stepped = time.perf_counter()
        self.last_step.wait()
        if how != "none":
            self.seconds.setdefault(("call", how), []).append(saved - start)
        self.seconds.setdefault(("step", how), []).append(stepped - saved)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipes", nargs="+", default=["simclr", "moco"], help="those that are timed")
    parser.add_argument("--batch-size", type=int, default=4, help="of the timed steps")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path, default=RUNS / "checkpoint.json")
    options = parser.parse_args()
    check_out(options.out)
    check_positive(options, "batch_size", "repeats")
    machine = environment()
    rows, ratios = [], []
    with progress() as log, tempfile.TemporaryDirectory(dir=options.out.parent) as folder:
        for recipe, num_images in COUNTED:
            log(f"counting {recipe}, {num_images:,} images")
            parts = Training(recipe, num_images, 8).count()
            row = {"measured": "state", "unit": "MB", "recipe": recipe, "how": None, "num_images": num_images}
            parts_of = {f"{name}_bytes": num for name, num in parts.items()}
            num_bytes = sum(parts.values())
            rows.append({**row, "num_bytes": num_bytes, **parts_of, **spread([num_bytes / 1e6])})
        for recipe in options.recipes:
            timed = Timed(Training(recipe, IMAGENET, options.batch_size), Path(folder))
            for repeat in range(options.repeats + 1):
                log(f"{recipe}, repeat {repeat} of {options.repeats}" if repeat else f"{recipe}, warming up")
                for how in HOW if repeat % 2 else reversed(HOW):
                    timed.once(how)
            num_bytes = sum(tensor.nbytes for tensor in tensors(timed.training.state()))
            labels = {"recipe": recipe, "num_images": IMAGENET, "num_bytes": num_bytes}
            seconds = {key: values[1:] for key, values in timed.seconds.items()}
            rows += [
                {"measured": what, "unit": "ms", "how": how, **labels, **spread([1000 * s for s in values])}
                for (what, how), values in sorted(seconds.items())
            ]
            alone = seconds["step", "none"]
            ratios += [
                {"what": "step / step without a checkpoint", "recipe": recipe, "how": how,
                 **spread([s / a for s, a in zip(seconds["step", how], alone, strict=True)])}
                for how in HOW[1:]
            ]  # fmt: skip
    for row in rows:
        print(
            f"{row['measured']:6} {row['recipe']:18} {row['how'] or '':14} {row['median']:8.1f} {row['unit']}"
        )
    save_result(
        options.out, "checkpoint", machine,
        data={"name": "synthetic", "num_samples": IMAGENET},
        settings={"repeats": options.repeats, "batch_size": options.batch_size},
        rows=rows, ratios=ratios,
        not_measured=[{"what": "on a GPU", "reason": "there was none"}],
    )  # fmt: skip
    print(options.out)


if __name__ == "__main__":
    run_program(main)
