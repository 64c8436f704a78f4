"""Learning from N labelled images of each class, for each N given, on frozen features (no paper's table).

Each of --draws shuffles the training images by --seed and takes the first N of each class. A logistic
regression (scikit-learn's) learns from each frozen block, averaged over all positions and of unit length. Its
strength is chosen by cross-validation within the images drawn; with fewer than 3 of a class, C is 1. Beside
it stands an untrained network of the same kind.

    fastpsl eval few-labels runs/photos --labels-per-class 1 5 10 50
    fastpsl eval few-labels runs/a runs/b timm/resnet50.a1_in1k --pixels --labels-per-class 5 \\
        --data photos/train --val photos/val

Without --labels-per-class, `fastpsl eval few-labels` is `fastpsl eval semi-supervised`: fine-tuning on 1 % or
10 % of the images, as papers have it.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from typing_extensions import override
from tyro.conf import Positional, arg

from fastpsl import engine, evaluation, plots
from fastpsl.console.terminal import EXIT_FINISHED
from fastpsl.engine.options import MACHINE
from fastpsl.evaluation.options import FloorOptions
from fastpsl.files.workers import default_num_threads
from fastpsl.scripts.launch import launch
from fastpsl.scripts.recipe import Evaluation

PAPER: dict[str, Any] = {"labels_per_class": (1, 5, 10, 50), "batch_size": 256, "size_px": None}
SAMPLE: dict[str, Any] = {"batch_size": 32, "size_px": 96}


@dataclass(frozen=True, kw_only=True)
class Options(FloorOptions):
    size_from_run: ClassVar[bool] = False  # each RUN's images have a size of their own

    more_runs: Positional[Annotated[tuple[str, ...], arg(metavar="[RUN ...]")]] = field(
        default=(), metadata=MACHINE
    )
    """More RUNs, scored on the same images and drawn beside each other."""
    labels_per_class: tuple[int, ...]
    """Images of each class to learn from, drawn by --seed (`eval blocks` takes the first of the data)."""
    draws: int = 5
    """Number of draws, whose mean is the score."""
    classifier: Literal["linear", "finetune"] = "linear"
    """linear: logistic regression on frozen blocks; finetune: the whole network, as semi-supervised."""
    block: str | None = None
    """The block to judge by, such as B4; by default the best in cross-validation at the largest number."""
    pixels: bool = False
    """Score the pixels of the middle square at 32 px, too, each standardised."""
    size_px: int | None  # type: ignore[assignment]  # until a RUN is there
    """Side of the images; by default that of each RUN's or of timm's model, else 224."""
    epochs: int | None = None
    """For finetune: epochs; by default those of semi-supervised."""
    lr: float | None = None
    """For finetune: first learning rate for a batch of 256; by default that of semi-supervised."""

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        evaluation.check_draws(self.labels_per_class, self.draws)


def run(options: Options) -> int:
    evaluation.require_val(options)
    world = engine.join_world(options.device, timeout_s=10 * options.timeout_s)
    with ExitStack() as stack:
        train, val = engine.open_both(options)
        assert val is not None
        for data in (train, val):
            stack.enter_context(closing(data))
        draws = evaluation.draw_few(train, options.labels_per_class, options.draws, options.seed)
        workers = options.workers or default_num_threads()
        scorer = evaluation.FewLabelScorer(draws, val, options.block, workers, world)
        # All of them now, so that a wrong one is named before the work.
        networks = [*evaluation.contenders(options, options.more_runs, with_pixels=options.pixels)]
        shared = evaluation.find_shared(draws.pool, val, world)
        folder = stack.enter_context(engine.open_folder("few-labels", options, world))
        if world.rank == 0:
            lines = evaluation.draw_lines(draws, train, val)
            print("\n".join([*lines, *filter(None, [shared.line()])]), flush=True)
        curves, floors, tuning = {}, {}, {"epochs": options.epochs, "lr": options.lr}
        for name, path, own, weights in networks:
            started, place = time.monotonic(), folder / path
            untrained, why_not = scorer.score_untrained(own, weights, place / "untrained")
            if options.classifier == "finetune" and name != evaluation.PIXELS:
                scores = evaluation.fine_tuned(own, weights, draws, val, place, world, **tuning)
            else:
                scores = scorer.score(own, weights, place)
            if scores is None:  # on other ranks
                continue
            curves[name], floors[name] = scores.curve(), untrained and untrained.curve()
            print("\n".join(evaluation.few_label_lines(name, scores, untrained, why_not, own.size_px)))
            written = evaluation.write_result(
                place, recipe="few_labels", protocol=f"few_labels/{options.classifier}",
                numbers=evaluation.with_floor(scores.numbers, untrained and untrained.numbers),
                settings=own.as_dict() | scores.settings() | {
                    "untrained_block": untrained and untrained.block, "shared_images": shared.num,
                },
                checkpoint=weights.record, data=evaluation.data_record(train, val),
                seconds=time.monotonic() - started,
            )  # fmt: skip
            print(evaluation.result_line(written), flush=True)
        if world.rank == 0:
            title = f"few labels, {options.draws} draws, scored on {val.num_samples:,} images"
            place, chance = folder / "result.png", 100 / val.num_classes
            print(f"chart {plots.draw_shots(curves, chance, place, title, untrained=floors)}")
    return EXIT_FINISHED


RECIPE = Evaluation("few_labels", __doc__, Options, PAPER, SAMPLE, run, source="default")

if __name__ == "__main__":
    launch(RECIPE)
