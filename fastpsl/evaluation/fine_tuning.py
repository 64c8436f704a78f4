"""Trainings within evaluations: of copies on few labels, and on blocks of an untrained network."""

import contextlib
import copy
import io
import shutil
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from fastpsl.engine.distributed import World, share, wait_for_all
from fastpsl.engine.run import Run
from fastpsl.evaluation.few_labels import Draws, write_label_list
from fastpsl.evaluation.logistic import Scores, mean_and_deviation
from fastpsl.evaluation.options import EvaluationOptions, ProbeOptions, with_weights
from fastpsl.evaluation.result import scores
from fastpsl.evaluation.result_file import NAME, read_result
from fastpsl.evaluation.untrained import Floor, Work, no_floor_lines, score_floor
from fastpsl.files.digest import sha256_of_bytes, sha256_of_json
from fastpsl.models.weights import Pretrained
from fastpsl.pipelines.interface.dataset import Dataset
from fastpsl.scripts.recipe_files import find_recipe
from fastpsl.scripts.recipe_process import train

# Options of an evaluation that a fine-tuning has of its own.
_OWN = {"out", "resume", "config", "batch_size", "checkpoint"}


def fine_tuned(
    options: EvaluationOptions,
    weights: Pretrained,
    draws: Draws,
    val: Dataset,
    folder: Path,
    world: World,
    **values: Any,
) -> Scores | None:
    """Train a copy of the weights further on each draw, and return the validation scores on rank 0.

    A batch is min(256, images), rounded down to equal parts for the ranks. Each run is below `folder`, and
    its checkpoints are removed when it has finished. What has finished is not run again.

    Args:
        options: The options of the evaluation.
        weights: The network.
        draws: The images to learn from.
        val: The images to score.
        folder: The folder of the result.
        world: The ranks that share the work.
        **values: Options of semi_supervised, such as epochs.
    """
    script = find_recipe("semi_supervised")
    shared = {f.name: getattr(options, f.name) for f in fields(EvaluationOptions) if f.name not in _OWN}
    shared |= {name: value for name, value in values.items() if value is not None}
    numbers = dict[str, float]()
    for num, each in draws.images.items():
        scored = []
        for draw, images in enumerate(each):
            batch = min(script.paper["batch_size"], len(images))
            batch -= batch % world.size if batch >= world.size else 0
            tuned = script.with_paper(**shared, batch_size=batch)
            digests = weights.record["sha256"], draws.pool.digest(), val.digest()
            digest = sha256_of_json(tuned.science() | {"digests": digests, "images": images.tolist()})
            place = folder / f"tuned-{num}-{draw}-{digest[:16]}"
            if not share(world, (place / NAME).exists() if world.rank == 0 else None):
                if world.rank == 0:
                    folder.mkdir(parents=True, exist_ok=True)
                    write_label_list(place.with_suffix(".txt"), images)
                wait_for_all(world)
                tuned = replace(tuned, out=place, label_list=place.with_suffix(".txt"))
                _run(script, with_weights(tuned, copy.deepcopy(weights)), world)
            wait_for_all(world)
            scored.append(read_result(place / NAME)["numbers"]["top1"] / 100)
            if world.rank == 0:
                shutil.rmtree(place / "checkpoints", ignore_errors=True)
        numbers[f"top1_{num}"], numbers[f"sd_{num}"] = mean_and_deviation(scored)
    return Scores("", numbers, {}, {}) if world.rank == 0 else None


class ProbeFloor:
    """The floor of classifiers on frozen blocks: those of the same network before any training, with --floor.

    Attributes:
        numbers: Its numbers, on rank 0.
        why_not: Why there are none, or "".
    """

    def __init__(self, recipe: str, options: ProbeOptions, weights: Pretrained):
        self.recipe, self.options, self.weights = recipe, options, weights
        self.numbers, self.why_not = dict[str, float](), ""

    def train(self, run: Run) -> bool:
        """Train the untrained network's classifiers in a folder of the run, or read their cached numbers.

        Returns False after a signal.
        """
        if not self.options.floor:
            return True
        prepare, place = partial(self._work, run), run.folder / "untrained"
        try:
            floor, self.why_not = score_floor(self.weights, self.options.seed, prepare, place, run.world)
        except KeyboardInterrupt:
            return False
        self.numbers = floor.numbers if floor else {}
        return True

    def _work(self, run: Run, network: Pretrained) -> Work:
        own = replace(self.options, floor=False, resume="auto", config=None)
        sets = [data for data in (run.data.train, run.data.val) if data is not None]
        wanted = own.science() | {
            "recipe": self.recipe, "precision": run.precision, "weights": network.science(),
            "max_steps_per_stage": own.max_steps_per_stage, "digests": [data.digest() for data in sets],
            "labels": [sha256_of_bytes(data.labels().tobytes()) for data in sets],
        }  # fmt: skip

        def score(place: Path) -> Floor | None:
            run.reporter.log("the same network before any training, by the same protocol:")
            # It prints the paths of its files, which are removed afterwards.
            with contextlib.redirect_stdout(io.StringIO()):
                _run(find_recipe(self.recipe), with_weights(replace(own, out=place), network), run.world)
            return None if run.world.rank else Floor("", read_result(place / NAME)["numbers"])

        return Work(wanted, tuple(scores(run)) if run.world.rank == 0 else (), score)

    def lines(self) -> list[str]:
        """Return the numbers as a line for people, or why there are none."""
        top1 = [f"{name[5:]} {value:.1f}" for name, value in self.numbers.items() if name.startswith("top1_")]
        told = [f"untrained: {', '.join(top1)} %"] if top1 else []
        return told + no_floor_lines(self.why_not)


def _run(script: Any, options: Any, world: World) -> None:
    opened = list[Run]()
    try:
        if not train(script, options, opened, owns_process=False, world=world):
            raise KeyboardInterrupt
    finally:
        for run in opened:
            run.close()
