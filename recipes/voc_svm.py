"""Linear SVMs on frozen features for the classes in VOC2007's images (PSL, section 4.4.2, Table 9).

Paper, mAP of the best of ResNet-50's five blocks: ImageNet labels 87.5 %, Jigsaw 64.5 %, with PSL 67.2 %,
Rotation 63.5 %, with PSL 65.9 %. The protocol is VISSL's, which succeeds that of PSL's source [23]; for the
source's costs give --costs fsb. Here: not yet run on VOC2007.

    fastpsl eval svm runs/jigsaw-001 --data VOCdevkit      # and with --low-shot
    fastpsl eval svm            # random weights on synthetic images, a minute on two cores

The features take minutes on a GPU. The SVMs take about 2 core hours (low-shot 1), and more where they
converge slowly, in --workers processes of 1.5 GB. See
https://fastpsl.github.io/fastpsl/evaluate/svm.html. The same command with --out continues an
interrupted run.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from typing_extensions import override

from fastpsl import engine, evaluation, pipelines, plots
from fastpsl.console.terminal import EXIT_FINISHED
from fastpsl.evaluation.options import OF_VOC, VocOptions
from fastpsl.files.workers import default_num_threads
from fastpsl.scripts.launch import launch
from fastpsl.scripts.recipe import Evaluation
from fastpsl.transfer import svm

PAPER: dict[str, Any] = {"shots": (1, 2, 4, 8, 16, 32, 64, 96), "size_px": 224, "batch_size": 256}
SAMPLE: dict[str, Any] = {"shots": (1, 2, 4, 8, 16), "size_px": 96, "batch_size": 32}


@dataclass(frozen=True, kw_only=True)
class Options(VocOptions):
    without: ClassVar[dict[str, str]] = {
        **OF_VOC,
        "whole": "the protocol squashes whole images to squares; leave it out",
    }
    costs: Literal["vissl", "fsb"] = "vissl"
    """Costs to choose from: vissl, eleven from 0.01 to 1000; fsb, the ten powers of ten from 1e-7 to 100."""
    low_shot: bool = False
    """Learn from a few images of each class instead, five times."""
    shots: tuple[int, ...]
    """For --low-shot: numbers of positives of a class, each scored by itself."""

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.shots or min(self.shots) < 1 or len(set(self.shots)) < len(self.shots):
            raise ValueError(
                f"--shots {' '.join(map(str, self.shots))}: give numbers of 1 or more, each once"
            )


def run(options: Options) -> int:
    started = time.monotonic()
    world, weights = engine.join_world(options.device, timeout_s=10 * options.timeout_s), options.pretrained()
    blocks, shots = svm.blocks_of(weights.backbone, svm.VISSL), options.shots if options.low_shot else ()
    with ExitStack() as stack:
        root = options.data or pipelines.drawn_voc()
        train, test = (
            stack.enter_context(closing(data))
            for data in pipelines.open_train_and_test(root, svm.VISSL.train, svm.VISSL.test, "boxes")
        )
        classes = svm.Classes.of(train, test, svm.VISSL, shots)
        folder = stack.enter_context(engine.open_folder("svm", options, world))
        files = [
            evaluation.extract(
                svm.extractions(options, weights, data, svm.VISSL, world),
                [folder / f"{name}_{block}.npy" for block in blocks], world, overwrite=True,
            )
            for name, data in (("train", train), ("test", test))
        ]  # fmt: skip
        outcomes = svm.solve(
            folder, dict(zip(blocks, zip(*files, strict=True), strict=True)), classes, svm.VISSL,
            svm.COSTS[options.costs], shots, options.seed,
            options.workers or default_num_threads(), world,
        )  # fmt: skip
        if outcomes is not None:
            numbers, record = svm.numbers_of(outcomes, shots), weights.record
            print("\n".join(svm.score_lines(numbers, classes, outcomes, shots)))
            protocol = "svm/low_shot" if shots else "svm/vissl"
            path = evaluation.write_result(
                folder, recipe="voc_svm", protocol=protocol, numbers=numbers,
                settings=options.as_dict()
                | svm.constants_of(svm.VISSL, options.costs)
                | svm.details_of(outcomes),
                checkpoint=record,
                data=evaluation.data_record(train, test),
                seconds=time.monotonic() - started,
            )  # fmt: skip
            title = f"{protocol}, {record['backbone']}, {record['path'] or 'random weights'}"
            rest = classes.frequency, folder / "result.png", title
            if shots:
                words = "mAP, %", "positives of a class", "classes' frequency"
                chart = plots.draw_shots(svm.curves_of(numbers, blocks, shots), *rest, words=words)
            else:
                chart = plots.draw_precisions(numbers, blocks, classes.names, *rest)
            print(f"{evaluation.result_line(path)}\nchart {chart}")
    return EXIT_FINISHED


RECIPE = Evaluation("voc_svm", __doc__, Options, PAPER, SAMPLE, run, source="default")

if __name__ == "__main__":
    launch(RECIPE)
