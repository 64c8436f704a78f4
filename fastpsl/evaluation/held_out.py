"""The held-out scores of a run as its result."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastpsl.engine.options import RunOptions
from fastpsl.engine.run import Run
from fastpsl.engine.task import Task
from fastpsl.evaluation.result import data_record, write_result
from fastpsl.pipelines.data.subset import Subset


def require_held_out(options: RunOptions) -> None:
    """ValueError where there is nothing to score on."""
    if options.data is not None and options.val is None:
        raise ValueError("an evaluation scores held-out images: give --val besides --data")


def refuse_val(options: RunOptions) -> None:
    """ValueError where held-out images are given to a protocol that finds them in --data."""
    if options.val is not None:
        raise ValueError(
            f"--val {options.val}: the protocol says which part of --data is scored; leave it out"
        )


def overridden(values: Mapping[str, Any], epochs: int | None, lr: float | None) -> dict[str, Any]:
    """A protocol's values with --epochs and --lr in the place of its own, where they were given. ValueError for none at all."""
    if epochs is not None and epochs < 1:
        raise ValueError(f"--epochs {epochs}: it must be 1 or more")
    asked = {"epochs": epochs, "lr": lr}
    return dict(values) | {name: value for name, value in asked.items() if value is not None}


def scores(run: Run) -> dict[str, float]:
    """Percent: the held-out top1… and top5… of the run's last stage."""
    held_out: Mapping[str, float] = run.position.summaries[-1]["held_out"]
    return {name: 100 * value for name, value in held_out.items() if name.startswith(("top1", "top5"))}


def write_held_out(
    task: Task,
    run: Run,
    *,
    recipe: str,
    protocol: str,
    constants: Mapping[str, Any],
    checkpoint: Mapping[str, Any],
) -> Path:
    """result.json of a finished run: its scores, options, views and `constants` of the protocol; `checkpoint` as in `Pretrained.record`."""
    level = run.position.summaries[-1]["level"]
    views = {
        "train_view": task.views(level),
        "held_out_view": task.held_out_views(level),
    }
    settings = {name: " and ".join(map(repr, specs)) for name, specs in views.items()} | dict(constants)
    return write_run(
        run, recipe=recipe, protocol=protocol, numbers=scores(run), settings=settings, checkpoint=checkpoint
    )


def write_run(
    run: Run,
    *,
    recipe: str,
    protocol: str,
    numbers: Mapping[str, float],
    settings: Mapping[str, Any],
    checkpoint: Mapping[str, Any],
) -> Path:
    """result.json of a finished run: `numbers`, and beside its options, data, seconds and whether it was cut, `settings` and
    `checkpoint` as in `result.write_result`.
    """
    summaries = run.position.summaries
    # Whoever compares results needs to know the data that a part was taken of.
    whole = {"whole_train": run.data.train.data.digest()} if isinstance(run.data.train, Subset) else {}
    return write_result(
        run.folder,
        recipe=recipe,
        protocol=protocol,
        numbers=numbers,
        settings=run.options.as_dict() | dict(settings),
        checkpoint=checkpoint,
        data=data_record(run.data.train, run.data.val) | whole,
        seconds=sum(summary["seconds"] for summary in summaries),
        cut=bool(checkpoint.get("cut")) or any(s["num_steps"] < s["num_steps_planned"] for s in summaries),
    )
