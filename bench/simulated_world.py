"""One rank of 1, 8, 64 and 256: what it holds, what it hands to the others, and what takes it time.

    python bench/simulated_world.py --folder /scratch    some minutes; 70 MB of tables, removed at the end

Each part is the real code, in a process of its own, as one rank of a world whose other ranks do not exist:
PyTorch's process group "fake" returns at once, with this rank's own values for those of all others. So bytes
and memory are those of a real world, and times are those of one rank without any waiting. Nothing is said of
a network. `tests/tasks/test_many_ranks.py` has worlds whose ranks all exist.

`start, random` and `start, quasi_random`: a loader is made on an open data set and yields its first batch.
`labels`: a pseudo-label epoch of ImageNet's size; its order, and the exchange at its end. `nt_xent`: loss and
gradient of a step. `moco`: the images that are sent to be encoded, keys and queue of a step, with an
encoder that only copies. `gradients`: a step of each stage of jigsaw with ResNet-50 through
DistributedDataParallel. `resume`: rank 0 writes 100 MB, and each rank reads them.

`memory`: the largest anonymous memory beyond that before the part. `handed over`: the bytes that the rank
gives to collectives. `received`: the bytes that it holds after them. `calls`: collectives. Writes a JSON.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # bench/ is a folder of programs, not installed
from bench.large_set import peak_memory
from bench.program import check_out, check_positive, progress, run_program
from bench.recipe_stages import recipe_options, stage_experiment
from bench.scale_arithmetic import STAGES
from bench.schema import RUNS, environment, save_result, spread
from bench.sparse_set import write_sparse_set
from fastpsl.engine.distributed import World, leave_world
from fastpsl.engine.experiment import make_train_step
from fastpsl.engine.options import PretrainOptions
from fastpsl.engine.resume import find_checkpoint, open_folder
from fastpsl.kernels.crops import ShorterSideCrop
from fastpsl.models.checkpoint import CheckpointManager
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.datasets.subset import Synthetic
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.loader.order import num_steps, step_indices
from fastpsl.pipelines.views import ViewSpec
from fastpsl.tasks.contrastive.moco import MoCo
from fastpsl.tasks.contrastive.nt_xent import nt_xent
from fastpsl.tasks.pseudo_labels.store import LabelStore

WORLDS = (1, 8, 64, 256)
NUM_SAMPLES, NUM_CLASSES = 1_281_167, 1000
BATCH_SIZE, WIDTH, QUEUE_SIZE, SIDE_PX = 64, 128, 65_536, 224  # per rank, and of keys
CHECKPOINT_BYTES = 100_000_000
UNITS = {"memory": "MiB", "handed over": "bytes", "received": "bytes", "calls": "calls"}  # others: s
Figures = dict[str, float]


@contextmanager
def counted_collectives(figures: Figures) -> Iterator[None]:
    """Count the calls of torch.distributed's functions in the block, and the bytes in and out."""
    counts: Counter[str] = Counter()

    def count(given: Tensor, got: Tensor) -> None:
        counts.update({"calls": 1, "handed over": given.nbytes, "received": got.nbytes})

    def in_place(call: Callable[..., Any], tensor: Tensor, *arguments: Any, **options: Any) -> Any:
        count(tensor, tensor)
        return call(tensor, *arguments, **options)

    def into(
        call: Callable[..., Any], output: Tensor, tensor: Tensor, *arguments: Any, **options: Any
    ) -> Any:
        count(tensor, output)
        return call(output, tensor, *arguments, **options)

    wrappers: dict[str, Callable[..., Any]] = {
        "all_reduce": in_place, "broadcast": in_place, "all_gather_into_tensor": into,
        "all_to_all_single": into,
    }  # fmt: skip
    modules = dist, dist.distributed_c10d  # the latter's own functions call each other
    originals = {name: getattr(dist, name) for name in wrappers}
    for name, wrapper in wrappers.items():
        for module in modules:
            setattr(module, name, partial(wrapper, originals[name]))
    try:
        yield
    finally:
        for name, original in originals.items():
            for module in modules:
                setattr(module, name, original)
        figures.update(counts)


@contextmanager
def timed(figures: Figures, name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    figures[name] = time.perf_counter() - start


def start(order: str, source: str, world: World, figures: Figures) -> None:
    view = ViewSpec(ShorterSideCrop(8, 8))
    with Beton(source) as data, peak_memory() as growth:
        with timed(figures, "seconds"):
            loader = Loader(
                data, [view], batch_size_per_rank=BATCH_SIZE, rank=world.rank, world=world.size, order=order,
                lanes=max(64, world.size), decoder="synthetic", num_threads=1,
            )  # fmt: skip
            batches = loader.epoch(0)
            next(batches)
        batches.close()
        loader.close()
    figures["memory"] = growth[0]


def labels(world: World, figures: Figures) -> None:
    first = (NUM_CLASSES * np.random.default_rng(0).random(NUM_SAMPLES) ** 2).astype(np.int32)
    logits = torch.randn(BATCH_SIZE, NUM_CLASSES, generator=torch.Generator().manual_seed(0))
    with peak_memory() as growth:
        store = LabelStore(NUM_SAMPLES, NUM_CLASSES, world.device, 0)
        store.set(first, 0)
        with timed(figures, "order"):
            order = store.order(0)
        for step in range(num_steps(NUM_SAMPLES, BATCH_SIZE * world.size, train=True)):
            indices = step_indices(order, step, BATCH_SIZE, world.rank, world.size)
            store.write(torch.from_numpy(indices), logits)
        with counted_collectives(figures), timed(figures, "end of the epoch"):
            store.end_epoch(1)
    figures["memory"] = growth[0]


def contrastive(world: World, figures: Figures) -> None:
    random = torch.Generator().manual_seed(0)
    first, second = (torch.randn(BATCH_SIZE, WIDTH, generator=random).requires_grad_() for _ in range(2))
    valid = torch.ones(BATCH_SIZE, dtype=torch.bool)
    with peak_memory() as growth, counted_collectives(figures), timed(figures, "seconds"):
        nt_xent(first, second, valid, 0.1).loss.backward()
    figures["memory"] = growth[0]


def moco(world: World, figures: Figures) -> None:
    task = MoCo(
        seed=0, batch_size=BATCH_SIZE * world.size, queue_size=QUEUE_SIZE, momentum=0.999, temperature=0.2,
        key_group=32, width=WIDTH, size_px=SIDE_PX,
    )  # fmt: skip
    task.key_encoder = lambda images, group_size: images.flatten(1)[:, :WIDTH].contiguous()  # type: ignore[assignment]
    task.queue, task.slot = torch.zeros(QUEUE_SIZE, WIDTH), torch.zeros((), dtype=torch.int64)
    task.num_filled = 0
    images = torch.zeros(BATCH_SIZE, 3, SIDE_PX, SIDE_PX)
    indices = torch.arange(BATCH_SIZE)
    batch = Batch(images=[], draws=[], indices=indices, labels=indices, epoch=0, step=0, ops=[])
    batch = batch.with_extra(0, task.batch_tensors(0, 0, BATCH_SIZE * world.size))
    with peak_memory() as growth, counted_collectives(figures), timed(figures, "seconds"):
        task.warm_up(None, None, [images, images], batch)  # type: ignore[arg-type]  # the encoder needs none
    figures["memory"] = growth[0]


def gradients(stage: str, world: World, figures: Figures) -> None:
    """Count the buckets of DistributedDataParallel in a second step, because the first has only one."""
    options = recipe_options(
        "jigsaw", is_sample=False, batch_size=2 * world.size, device="cpu", precision="fp32"
    )
    experiment, number = stage_experiment("jigsaw", stage, options, world)
    train_step = make_train_step(experiment, number, options, world)
    counts: Counter[str] = Counter()

    def count(state: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        counts.update({"calls": 1, "handed over": bucket.buffer().nbytes, "received": bucket.buffer().nbytes})
        future: torch.futures.Future[Tensor] = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    if world.size > 1:
        train_step.forward.register_comm_hook(None, count)  # type: ignore[operator]
    with Loader(
        Synthetic(2 * world.size), train_step.views, batch_size_per_rank=2, rank=world.rank, world=world.size,
        decoder="synthetic", num_threads=1,
    ) as loader:  # fmt: skip
        for epoch in range(2):
            counts.clear()
            train_step.step([next(loader.epoch(epoch))], 0.0)
    figures.update(counts)


def resume(source: str, world: World, figures: Figures) -> None:
    """Write a checkpoint as rank 0, and find it as one of the ranks."""
    folder = Path(tempfile.mkdtemp(dir=Path(source).parent))
    options = PretrainOptions(out=folder)
    position = {"stage": 0, "step": 1, "run_step": 1, "first_epoch": 0, "seconds": 1.0, "summaries": []}
    state = {"backbone": {"weights": torch.zeros(CHECKPOINT_BYTES // 4)}, "learner": {}, "task": {}}
    checkpoints = CheckpointManager(folder / "checkpoints")
    with timed(figures, "write, rank 0 alone"):
        checkpoints.save(1, {"science": {}, "machine": {}, "position": position, **state})
    with peak_memory() as growth, counted_collectives(figures), timed(figures, "read, each rank"):  # noqa: SIM117
        with open_folder("simulated", options, world) as found:
            find_checkpoint(options, world, found, {}, {})
    figures["memory"] = growth[0]


def measure(part: str, num_ranks: int, source: str) -> Figures:
    """Return the figures of one part of one world; rank 0 stands for all, since it alone does more."""
    world = World(0, num_ranks, 0, num_ranks, torch.device("cpu"))
    if num_ranks > 1:
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=num_ranks)
    figures: Figures = {}
    try:
        parts(source)[part](world, figures)
    finally:
        leave_world()
    return figures


def parts(source: str) -> dict[str, Callable[[World, Figures], None]]:
    """Return name → the function that measures it."""
    return {
        "start, random": partial(start, "random", source),
        "start, quasi_random": partial(start, "quasi_random", source),
        "labels": labels,
        "nt_xent": contrastive,
        "moco": moco,
        **{f"gradients, {stage}": partial(gradients, stage) for stage in STAGES},
        "resume": partial(resume, source),
    }


def in_a_process(part: str, num_ranks: int, source: str) -> Figures:
    """Measure in a new process, with one thread."""
    command = [sys.executable, __file__, "--data", source, "--measure", part, "--worlds", str(num_ranks)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        raise ValueError(f"{part}, {num_ranks} ranks: {process.stderr.strip().splitlines()[-1]}")
    figures: Figures = json.loads(process.stdout)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--worlds", type=int, nargs="+", default=WORLDS)
    parser.add_argument("--parts", nargs="+", default=list(parts("")), help="of what is measured")
    parser.add_argument("--folder", help="where tables and checkpoints are written meanwhile")
    parser.add_argument("--data", default="", help="shards that bench/sparse_set.py wrote, as a glob")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--measure", choices=list(parts("")), help="print one measurement of --data")
    parser.add_argument("--out", type=Path, default=RUNS / "simulated_world.json")
    options = parser.parse_args()
    if options.measure:
        torch.set_num_threads(1)
        print(json.dumps(measure(options.measure, options.worlds[0], options.data)))
        return
    check_out(options.out)
    check_positive(options, "repeats")
    machine = environment()
    found: dict[tuple[str, int, str], list[float]] = {}
    with progress() as log, tempfile.TemporaryDirectory(prefix="fastpsl-", dir=options.folder) as scratch:
        source = write_sparse_set(Path(scratch), NUM_SAMPLES, 8)
        for _ in range(options.repeats):
            for part in options.parts:
                for num_ranks in options.worlds:
                    log(f"{part}, {num_ranks} ranks")
                    for name, value in in_a_process(part, num_ranks, source).items():
                        found.setdefault((part, num_ranks, name), []).append(value)
    rows = [
        {
            "measured": name,
            "part": part,
            "num_ranks": num_ranks,
            "unit": UNITS.get(name, "s"),
            **spread(values),
        }
        for (part, num_ranks, name), values in found.items()
        if min(values) > 0  # one rank hands nothing over
    ]
    for row in rows:
        print(
            f"{row['part']:20} {row['num_ranks']:4} {row['measured']:20} {row['median']:14,.3f} {row['unit']}"
        )
    save_result(
        options.out, "simulated_world", machine,
        data={"name": "tables and holes", "num_samples": NUM_SAMPLES, "num_classes": NUM_CLASSES},
        settings={
            "repeats": options.repeats, "batch_size_per_rank": BATCH_SIZE, "width": WIDTH,
            "queue_size": QUEUE_SIZE, "size_px": SIDE_PX, "checkpoint_bytes": CHECKPOINT_BYTES,
        },
        rows=rows,
        notes=["the other ranks do not exist: no time of a network, and no waiting for another rank"],
    )  # fmt: skip
    print(options.out)


if __name__ == "__main__":
    run_program(main)
