"""What pseudo-labels cost between two epochs, on the host: the next order, empty classes, the exchange, NMI.

    python bench/labels.py              ImageNet's size: 1.3 million labels, 10,000 classes

`order`: a balanced order of classes whose sizes are far apart. `split`: all images in one class, the worst
case. `exchange`: the end of an epoch that leaves no class empty, on one rank: what it wrote becomes the next
labels. `together`: a repeat's sum of these three. `nmi`: of two labellings, as each epoch's labels are
compared with the last one's, and with true ones where there are some. Interleaved, the first round not
counted. Writes a JSON.
"""

import argparse
import copy
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # bench/ is a folder of programs, not installed
from bench.program import check_out, progress, run_program
from bench.schema import RUNS, environment, save_result, spread
from fastpsl.kernels.empty_classes import split_empty
from fastpsl.pipelines.loader.order import balanced_order, num_steps, step_indices
from fastpsl.tasks.pseudo_labels.scores import nmi
from fastpsl.tasks.pseudo_labels.store import LabelStore

TOGETHER = ("order", "split", "exchange")


def uneven_labels(num_samples: int, num_classes: int, seed: int) -> np.ndarray:
    """Return int32 [N]: the largest classes have many times the images of the smallest."""
    return (num_classes * np.random.default_rng(seed).random(num_samples) ** 2).astype(np.int32)


def written_epoch(num_samples: int, batch_size: int) -> LabelStore:
    """Return a store to which an epoch of training has written.

    It has two classes, because the number of classes changes the cost of a split and of the order, not of the
    exchange.
    """
    store = LabelStore(num_samples, 2, torch.device("cpu"), 0)
    store.set(np.arange(num_samples) % 2, 0)
    order, logits = store.order(0), torch.eye(2)[torch.arange(batch_size) % 2]
    for step in range(num_steps(num_samples, batch_size, train=True)):
        store.write(torch.from_numpy(step_indices(order, step, batch_size, 0, 1)), logits)
    return store


def seconds(work: Callable[[], object]) -> float:
    """Return the seconds that `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--num-samples", type=int, default=1_300_000)
    parser.add_argument("--num-clusters", type=int, default=10_000)
    parser.add_argument("--batch-size", type=int, default=256, help="of what is written")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RUNS / "labels.json")
    options = parser.parse_args()
    check_out(options.out)
    num_samples, num_classes = options.num_samples, options.num_classes
    machine = environment()
    labels, others = (uneven_labels(num_samples, num_classes, seed) for seed in (0, 1))
    one_class = np.zeros(num_samples, np.int32)
    times_by_name: dict[str, list[float]] = {name: [] for name in (*TOGETHER, "nmi")}
    with progress() as log:
        log("writing an epoch's labels")
        written = written_epoch(num_samples, options.batch_size)
        for repeat in range(options.repeats + 1):
            log(f"repeat {repeat} of {options.repeats}" if repeat else "warming up")
            store = copy.deepcopy(written)  # because the end of an epoch empties it
            works: dict[str, Callable[[], object]] = {
                "order": partial(balanced_order, labels, 0, repeat),
                "split": partial(split_empty, one_class, num_classes, 0, repeat),
                "exchange": partial(store.end_epoch, 1),
                "nmi": partial(nmi, labels, others),
            }
            for name in works if repeat % 2 else reversed(works):
                took = seconds(works[name])
                if repeat:
                    times_by_name[name].append(took)
    times_by_name["together"] = [
        sum(times) for times in zip(*(times_by_name[name] for name in TOGETHER), strict=True)
    ]
    rows = [{"measured": name, "unit": "s", **spread(times)} for name, times in times_by_name.items()]
    for row in rows:
        print(f"{row['measured']:9} {row['median']:.3f} s", flush=True)
    save_result(
        options.out, "labels", machine,
        data={"name": "random labels", "num_samples": num_samples, "num_classes": num_classes},
        settings={"repeats": options.repeats, "batch_size": options.batch_size},
        rows=rows,
    )  # fmt: skip
    print(options.out)


if __name__ == "__main__":
    run_program(main)
