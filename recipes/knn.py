"""k nearest neighbours on frozen features: what they are worth without any training.

Weighted: each of the k most similar training images (by cosine) adds exp(similarity / T) to its class, with the K and T of
MMSelfSup; VISSL has k 200 and T 0.1. Majority: one vote each; of equal classes the nearer wins. Exact, for any number of images.
Here: not yet run on ImageNet. PSL itself has no such table.

    torchrun --nproc-per-node=8 recipes/knn.py --checkpoint runs/jigsaw_r50-001 \\
        --data 'imagenet/train-*.beton' --val imagenet/val.beton
    torchrun recipes/knn.py            # random weights on the embedded sample, seconds on two cores

SSL++ (sslpp.txt, Tables V and VI) has the majority's scores of NIN's blocks on CIFAR-10; which distance is not said, here it is the
cosine. All blocks come from one pass over the pictures. Here: not yet run.

    torchrun recipes/knn.py --checkpoint runs/sslpp_rotation-001 --data cifar10-train.beton --val cifar10-test.beton \\
        --size-px 32 --whole --block B2 B3 B4 --vote majority --k 1 3 5 10 15 20

Options of training have no effect here. The features stay in the run's folder and serve again: other values of k cost nothing.
"""

import time
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any, Literal

from typing_extensions import override

from fastpsl.engine.distributed import join_world
from fastpsl.engine.launch import EXIT_FINISHED, launch
from fastpsl.engine.recipe import Evaluation
from fastpsl.engine.resume import open_folder
from fastpsl.engine.run_data import open_both
from fastpsl.evaluation.features import Extraction, extract
from fastpsl.evaluation.held_out import require_held_out
from fastpsl.evaluation.knn_score import require_neighbours, score, score_lines
from fastpsl.evaluation.options import EvaluationOptions
from fastpsl.evaluation.result import data_record, result_line, write_result
from fastpsl.plots.neighbours import draw_neighbours

PAPER: dict[str, Any] = {"k": (10, 20, 100, 200), "temperature": 0.07, "batch_size": 256, "size_px": 224}
SAMPLE: dict[str, Any] = {"k": (1, 5, 10, 20), "temperature": 0.07, "batch_size": 32, "size_px": 96}


@dataclass(frozen=True, kw_only=True)
class Options(EvaluationOptions):
    block: tuple[str, ...] = ("final",)
    """Whose average-pooled outputs the features are, each block scored by itself: B1, B2, …, or final, the last."""
    k: tuple[int, ...]
    """Numbers of neighbours, each scored by itself; one search serves all."""
    temperature: float
    """Of the weighted vote."""
    vote: Literal["weighted", "majority", "both"] = "both"
    """Whose scores are reported."""

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.k or min(self.k) < 1:
            raise ValueError(f"--k {' '.join(map(str, self.k))}: give numbers of neighbours from 1")
        if self.temperature <= 0:
            raise ValueError(f"--temperature {self.temperature}: it must be above 0")


def run(options: Options) -> int:
    started = time.monotonic()
    require_held_out(options)
    world = join_world(options.device, timeout_s=10 * options.timeout_s)
    weights = options.pretrained()
    with ExitStack() as stack:
        train, val = open_both(options)
        assert val is not None
        for data in (train, val):
            stack.enter_context(closing(data))
        require_neighbours(train, val, options.k)
        works = {
            name: Extraction.for_blocks(options, weights, data, options.block, world, "float16")
            for name, data in (("train", train), ("val", val))
        }
        blocks = [f"B{work.block}" for work in works["train"]]
        ends = [f"_{block}" for block in blocks] if len(blocks) > 1 else [""]
        folder = stack.enter_context(open_folder("knn", options, world))
        banks, queries = (
            extract(these, [folder / f"{name}{end}.npy" for end in ends], world, overwrite=True)
            for name, these in works.items()
        )
        pairs = zip(banks, queries, strict=True)
        scores = [score(*pair, options.k, options.temperature, world) for pair in pairs]
        if world.rank == 0:
            named, record = dict(zip(ends, scores, strict=True)), weights.record
            print("\n".join(score_lines(scores, blocks, options.vote, record["backbone"])))
            path = write_result(
                folder,
                recipe="knn",
                protocol=f"knn/{options.vote}",
                numbers={
                    name + end: value
                    for end, found in named.items()
                    for name, value in found.numbers(options.vote).items()
                },
                settings=options.as_dict()
                | {"similarity": "cosine", "features": [bank.record["digest"] for bank in banks]},
                checkpoint=record,
                data=data_record(train, val),
                seconds=time.monotonic() - started,
                cut=bool(record.get("cut")),
            )
            print(result_line(path))
            for end, found in named.items():
                sheet = draw_neighbours(
                    folder / f"neighbours{end}.png", val, train, *found.shown(options.seed), works["val"][0].loader,
                    whole=options.whole,
                )  # fmt: skip
                print(f"neighbours {sheet}")
    return EXIT_FINISHED


RECIPE = Evaluation("knn", __doc__, Options, PAPER, SAMPLE, run, whose="default")

if __name__ == "__main__":
    launch(RECIPE)
