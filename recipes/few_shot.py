"""Few-shot classification by class means on frozen features (UIC, Table 6). Nothing is learned.

Paper, 5-way 5-shot on miniImageNet's test classes, AlexNet after UIC with 3,000 classes, on conv3, conv4,
conv5 and max-pooled conv5: 48.79, 53.03, 62.46 and 65.05 %. These are for images of 84 px, enlarged to 256
and cropped to 224; 52.43, 54.76, 54.40 and 52.85 % are for images as they are. Here: not yet run on
miniImageNet.
Give the 20 test classes of 600 images as --data: test.csv beside images/, a folder per class, or a .beton
file. Larger images are first resized to 84 x 84.

    fastpsl eval few-shot runs/uic-alexnet-001 --gpus 8 \\
        --data miniImageNet/test.csv        # and with --size-px 84
    fastpsl eval few-shot        # random weights, the sample's validation images, seconds on two cores

The paper states neither the number of episodes nor of queries. Here a class has 15 queries, as is usual, and
there are 10,000 episodes. The 95 % interval on the sample is ±0.47 points with 1,000 episodes. That
means ±0.6 with the usual 600, more than some differences in the table, and ±0.15 with 10,000. The
features (4.4 GB at 224 px) stay in the run's folder and serve other ways, shots and queries. Options of
training have no effect here.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any, ClassVar

from typing_extensions import override

from fastpsl import engine, evaluation, pipelines, plots, transfer
from fastpsl.console.terminal import EXIT_FINISHED
from fastpsl.evaluation.options import EvaluationOptions
from fastpsl.scripts.launch import launch
from fastpsl.scripts.recipe import Evaluation

PAPER: dict[str, Any] = {"ways": 5, "shots": 5, "size_px": 224, "source_px": 84}
SAMPLE: dict[str, Any] = {"episodes": 1000, "batch_size": 32, "size_px": 84}


@dataclass(frozen=True, kw_only=True)
class Options(EvaluationOptions):
    sample_backbone = "alexnet"
    without: ClassVar[dict[str, str]] = {
        "val": "nothing is learned; give the test classes as --data alone",
        "whole": "images are always seen as --source-px has them; leave it out",
    }

    block: tuple[str, ...] = ("B3", "B4", "B5", "B5_max_pool")
    """Blocks scored one by one on flattened maps: B1 or conv1, …; _max_pool pools by 3 with stride 2."""
    ways: int
    """Classes per episode."""
    shots: int
    """Images of each class; their mean represents it."""
    queries: int = 15
    """Further images of each class, which are classified."""
    episodes: int = 10_000
    """Number of episodes, drawn from --seed."""
    source_px: int
    """Side to which images are shrunk first; a larger --size-px enlarges them again."""

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("ways", 2), ("shots", 1), ("queries", 1), ("episodes", 2), ("source_px", 1)):
            if (value := getattr(self, name)) < least:
                raise ValueError(f"--{name.replace('_', '-')} {value}: it must be {least} or more")


def run(options: Options) -> int:
    started = time.monotonic()
    world = engine.join_world(options.device, timeout_s=10 * options.timeout_s)
    weights = options.pretrained()
    with ExitStack() as stack:
        data = stack.enter_context(
            closing(engine.open_given(options, options.data or pipelines.sample_paths().test))
        )
        pipelines.require_labels(data, "few-shot classification")
        num_each = options.shots + options.queries
        transfer.classes_of(data, options.ways, num_each)  # checks the data before the work
        works = transfer.few_shot_works(options, weights, data, options.block, options.source_px, world)
        folder = stack.enter_context(engine.open_folder("few-shot", options, world))
        files = evaluation.extract(
            works, [folder / f"{work.name}.npy" for work in works], world, overwrite=True
        )
        if world.rank == 0:
            members = transfer.classes_of(data, options.ways, num_each, files[0].record["bad"])
            episodes = transfer.draw_episodes(
                members, options.episodes, options.ways, options.shots, options.queries, options.seed
            )
            num_queries, backbone = options.ways * options.queries, weights.record["backbone"]
            title = f"{options.ways}-way {options.shots}-shot, {options.episodes:,} episodes "
            title += f"of {num_queries} queries, {backbone}"
            print(f"{title}; {data.num_samples:,} images of {len(members)} classes", flush=True)
            accuracies = {}
            for work, file in zip(works, files, strict=True):
                right = transfer.num_hits(file.features(), episodes, world.device)
                accuracy = accuracies[work.name] = transfer.Accuracy.of(right, num_queries)
                print(f"{work.name}: {accuracy.mean:.2f} ± {accuracy.interval:.2f} %", flush=True)
            path = evaluation.write_result(
                folder, recipe="few_shot", protocol="few_shot",
                numbers={f"{what}_{name}": value for name, accuracy in accuracies.items() for what, value in
                         zip(("accuracy", "interval"), accuracy, strict=True)},
                settings=options.as_dict() | {
                    "distance": "squared Euclidean to class means", "view": repr(works[0].view),
                    "features": [file.record["digest"] for file in files],
                },
                checkpoint=weights.record, data=evaluation.data_record(data, None),
                seconds=time.monotonic() - started,
            )  # fmt: skip
            print(evaluation.result_line(path))
            title += f", {weights.record['path'] or 'random weights'}"
            bars = {n.replace(transfer.MAX_POOL, "\nmax-pool"): value for n, value in accuracies.items()}
            print(f"chart {plots.draw_accuracies(bars, folder / 'result.png', title, 100 / options.ways)}")
    return EXIT_FINISHED


RECIPE = Evaluation("few_shot", __doc__, Options, PAPER, SAMPLE, run, source="default")

if __name__ == "__main__":
    launch(RECIPE)
