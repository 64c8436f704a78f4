"""k nearest neighbours on frozen features, without any training.

Weighted vote: each of the k training images that are most similar by cosine adds exp(similarity / T) to its
class. K and T are MMSelfSup's; VISSL has k 200 and T 0.1. Majority vote: each has one vote, and of equal
classes the nearer one wins. The search is exact for any number of images. PSL has no such table. Here: not
yet run on ImageNet.

    fastpsl eval knn runs/jigsaw-001 --gpus 8 \\
        --data 'imagenet/train-*.beton' --val imagenet/val.beton
    fastpsl eval knn            # random weights on the embedded sample, seconds on two cores

SSL++ (Tables V and VI) reports majority votes on NIN's blocks for CIFAR-10. It does not state the
distance; here it is the cosine. One pass over the images serves all blocks. Here: not yet run.

    fastpsl eval knn runs/sslpp-rotation-001 --data cifar10-train.beton \\
        --val cifar10-test.beton --size-px 32 --whole --block B2 B3 B4 --vote majority --k 1 3 5 10 15 20

The features stay in the run's folder and are used again for other k. Beside the network stands an untrained
one of the same kind.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any, Literal

from typing_extensions import override

from fastpsl import engine, evaluation, plots
from fastpsl.console.terminal import EXIT_FINISHED
from fastpsl.evaluation.options import FloorOptions
from fastpsl.scripts.launch import launch
from fastpsl.scripts.recipe import Evaluation

PAPER: dict[str, Any] = {"k": (10, 20, 100, 200), "temperature": 0.07, "batch_size": 256}
SAMPLE: dict[str, Any] = {"k": (1, 5, 10, 20), "temperature": 0.07, "batch_size": 32, "size_px": 96}


@dataclass(frozen=True, kw_only=True)
class Options(FloorOptions):
    block: tuple[str, ...] = ("final",)
    """Blocks scored one by one on their average-pooled outputs: B1, B2, …, or final, the last."""
    k: tuple[int, ...]
    """Numbers of neighbours, each scored by itself; one search serves all."""
    temperature: float
    """Temperature of the weighted vote."""
    vote: Literal["weighted", "majority", "both"] = "both"
    """The votes to report."""

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.k or min(self.k) < 1:
            raise ValueError(
                f"--k {' '.join(map(str, self.k))}: give one or more numbers of neighbours, each 1 or more"
            )
        self._require_positive("temperature")


def run(options: Options) -> int:
    started = time.monotonic()
    evaluation.require_val(options)
    world = engine.join_world(options.device, timeout_s=10 * options.timeout_s)
    weights = options.pretrained()
    with ExitStack() as stack:
        train, val = engine.open_both(options)
        assert val is not None
        for data in (train, val):
            stack.enter_context(closing(data))
        shared = evaluation.find_shared(train, val, world)
        ks = evaluation.fitting_neighbours(train, val, options.k, PAPER["k"], shared)
        knn = evaluation.BlockNeighbours(
            train, val, options.block, ks, options.temperature, shared, world
        )  # fmt: skip
        works = knn.works(options, weights)
        blocks, record = [f"B{work.block}" for work in works["train"]], weights.record
        folder = stack.enter_context(engine.open_folder("knn", options, world))
        scores = knn.score(works, folder)
        floor, why_not = knn.score_untrained(options, weights, folder / "untrained")
        if world.rank == 0:
            lines = evaluation.score_lines(
                [*scores.values()], blocks, options.vote, record["backbone"], shared, floor
            )
            print("\n".join([*lines, *evaluation.no_floor_lines(why_not)]))
            numbers = evaluation.all_numbers(scores, options.vote)
            floor = {name: value for name, value in floor.items() if name in numbers}
            path = evaluation.write_result(
                folder, recipe="knn", protocol=f"knn/{options.vote}",
                numbers=evaluation.with_floor(numbers, floor),
                settings=options.as_dict() | {
                    "k": ks, "similarity": "cosine", "features": [work.digest() for work in works["train"]],
                    "each_without_itself": shared.are_all, "shared_images": shared.num,
                },
                checkpoint=record, data=evaluation.data_record(train, val),
                seconds=time.monotonic() - started,
            )  # fmt: skip
            print(evaluation.result_line(path))
            for end, block_score in scores.items():
                sheet = plots.draw_neighbours(
                    folder / f"neighbours{end}.png", val, train, *block_score.shown(options.seed),
                    works["val"][0].loader, whole=options.whole,
                )  # fmt: skip
                print(f"neighbours {sheet}")
    return EXIT_FINISHED


RECIPE = Evaluation("knn", __doc__, Options, PAPER, SAMPLE, run, source="default")

if __name__ == "__main__":
    launch(RECIPE)
