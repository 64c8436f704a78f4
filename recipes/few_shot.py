"""Few-shot classification by class means on frozen features, nothing learned: UIC on miniImageNet's test classes (uic.txt, Table 6).

Paper, 5-way 5-shot, AlexNet after UIC with 3,000 classes: conv3, conv4, conv5, conv5 max-pooled; pictures of 84 px enlarged to 256, middle 224:
48.79, 53.03, 62.46, 65.05 %; as they are: 52.43, 54.76, 54.40, 52.85 %. Here: not yet run on miniImageNet.
--data: the 20 test classes of 600 pictures: test.csv beside images/, a folder per class, or a beton; larger pictures are made 84 x 84 first.

    torchrun --nproc-per-node=8 recipes/few_shot.py --checkpoint runs/uic_alexnet-001 --data miniImageNet/test.csv
    torchrun --nproc-per-node=8 recipes/few_shot.py --checkpoint runs/uic_alexnet-001 --data miniImageNet/test.csv --size-px 84
    torchrun recipes/few_shot.py            # random weights on the embedded sample's held-out pictures, seconds on two cores

The paper says neither how many episodes nor queries. Here 15 queries a class, as is usual, and 10,000 episodes: 95 % intervals of the sample
are ±0.47 points with 1,000, so ±0.6 with the usual 600, more than some differences in the table, and ±0.15 with 10,000. The features, 4.4 GB
at 224 px, stay in the run's folder and serve again: other ways, shots and queries cost no pass. Options of training have no effect here.
"""

import time
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

from typing_extensions import override

from fastpsl.engine.distributed import join_world
from fastpsl.engine.launch import EXIT_FINISHED, launch
from fastpsl.engine.recipe import Evaluation
from fastpsl.engine.resume import open_folder
from fastpsl.evaluation.features import extract
from fastpsl.evaluation.options import EvaluationOptions
from fastpsl.evaluation.result import data_record, result_line, write_result
from fastpsl.pipelines.data.dataset import require_labels
from fastpsl.pipelines.data.open import open_data
from fastpsl.pipelines.sample.betons import sample_paths
from fastpsl.plots.block_bars import draw_accuracies
from fastpsl.transfer.few_shot import MAX_POOL, Accuracy, classes_of, draw_episodes, few_shot_works, num_right

PAPER: dict[str, Any] = {"ways": 5, "shots": 5, "size_px": 224, "source_px": 84}
SAMPLE: dict[str, Any] = {"episodes": 1000, "batch_size": 32, "size_px": 84}


@dataclass(frozen=True, kw_only=True)
class Options(EvaluationOptions):
    sample_backbone = "alexnet"

    block: tuple[str, ...] = ("B3", "B4", "B5", "B5_max_pool")
    """Blocks whose flattened maps the features are, each scored by itself: B1, B2, … or conv1, conv2, …; _max_pool behind it: after a pool of 3, stride 2."""
    ways: int
    """Classes of an episode."""
    shots: int
    """Pictures of each class whose mean stands for it."""
    queries: int = 15
    """Further pictures of each class, which are classified."""
    episodes: int = 10_000
    """Episodes, drawn from --seed."""
    source_px: int
    """Side to which pictures are shrunk first; --size-px above it enlarges them again."""

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("ways", 2), ("shots", 1), ("queries", 1), ("episodes", 2), ("source_px", 1)):
            if getattr(self, name) < least:
                raise ValueError(
                    f"--{name.replace('_', '-')} {getattr(self, name)}: it must be {least} or more"
                )
        if self.val is not None:
            raise ValueError(f"--val {self.val}: nothing is learned; give the test classes as --data alone")
        if self.whole:
            raise ValueError("--whole: pictures are always seen as --source-px has them; leave it out")


def run(options: Options) -> int:
    started = time.monotonic()
    world = join_world(options.device, timeout_s=10 * options.timeout_s)
    weights = options.pretrained()
    with ExitStack() as stack:
        data = stack.enter_context(closing(open_data(options.data or sample_paths().test)))
        require_labels(data, "few-shot classification")
        num_each = options.shots + options.queries
        classes_of(data, options.ways, num_each)  # before the work
        works = few_shot_works(options, weights, data, options.block, options.source_px, world)
        folder = stack.enter_context(open_folder("few_shot", options, world))
        files = extract(works, [folder / f"{each.name}.npy" for each in works], world, overwrite=True)
        if world.rank == 0:
            members = classes_of(data, options.ways, num_each, files[0].record["bad"])
            drawn = draw_episodes(
                members, options.episodes, options.ways, options.shots, options.queries, options.seed
            )
            num_queries, backbone = options.ways * options.queries, weights.record["backbone"]
            title = f"{options.ways}-way {options.shots}-shot, {options.episodes:,} episodes of {num_queries} queries, {backbone}"
            print(f"{title}; {data.num_samples:,} pictures of {len(members)} classes", flush=True)
            accuracies = {}
            for each, file in zip(works, files, strict=True):
                right = num_right(file.features(), drawn, world.device)
                accuracy = accuracies[each.name] = Accuracy.of(right, num_queries)
                print(f"{each.name}: {accuracy.mean:.2f} ± {accuracy.interval:.2f} %", flush=True)
            path = write_result(
                folder, recipe="few_shot", protocol="few_shot",
                numbers={f"{what}_{name}": value for name, found in accuracies.items() for what, value in
                         zip(("accuracy", "interval"), found, strict=True)},
                settings=options.as_dict() | {
                    "distance": "squared Euclidean to class means", "view": repr(works[0].view),
                    "features": [file.record["digest"] for file in files],
                },
                checkpoint=weights.record, data=data_record(data, None),
                seconds=time.monotonic() - started, cut=bool(weights.record.get("cut")),
            )  # fmt: skip
            print(result_line(path))
            title += f", {weights.record['path'] or 'random weights'}"
            bars = {name.replace(MAX_POOL, "\nmax-pool"): found for name, found in accuracies.items()}
            print(f"chart {draw_accuracies(bars, folder / 'result.png', title, 100 / options.ways)}")
    return EXIT_FINISHED


RECIPE = Evaluation("few_shot", __doc__, Options, PAPER, SAMPLE, run, whose="default")

if __name__ == "__main__":
    launch(RECIPE)
