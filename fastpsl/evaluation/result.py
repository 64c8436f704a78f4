"""Write result.json: the numbers of an evaluation and what is needed to repeat it."""

import json
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from fastpsl.engine.distributed import own_commit, package_versions
from fastpsl.engine.options import NO_VAL, RunOptions
from fastpsl.engine.run import Run
from fastpsl.engine.task import Task
from fastpsl.evaluation.result_file import FORMAT, NAME, read_result
from fastpsl.files.atomic import write_atomically
from fastpsl.pipelines.datasets.subset import Subset
from fastpsl.pipelines.interface.dataset import Dataset
from fastpsl.pipelines.views import Input
from fastpsl.scripts.recipe import require_given_classes


def write_result(
    folder: Path,
    *,
    recipe: str,
    protocol: str,
    numbers: Mapping[str, float],
    settings: Mapping[str, Any],
    checkpoint: Mapping[str, Any],
    data: Mapping[str, Any],
    seconds: float,
    cut: bool = False,
) -> Path:
    """Write folder/result.json and return its path.

    Args:
        folder: An existing folder.
        recipe: Name of the recipe or command.
        protocol: Name of the protocol, such as "linear/vissl".
        numbers: Results in percent, such as top1_B4.
        settings: Every option and constant of the protocol, as plain values.
        checkpoint: `Pretrained.record`; its science is None for weights from elsewhere.
        data: The result of `data_record`.
        seconds: Duration.
        cut: Whether `--max-steps-per-stage` cut this evaluation short. Such numbers mean nothing, as those of
            a checkpoint whose training was cut.
    """
    record = {
        "format": FORMAT, "protocol": protocol, "recipe": recipe,
        "numbers": {name: round(value, 4) for name, value in numbers.items()}, "settings": dict(settings),
        "checkpoint": dict(checkpoint), "data": dict(data), "cut": cut or bool(checkpoint.get("cut")),
        "seconds": round(seconds, 1), "commit": own_commit(), "packages": package_versions(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }  # fmt: skip
    path = folder / NAME
    write_atomically(path, (json.dumps(record, indent=1) + "\n").encode())
    return path


def with_floor(numbers: Mapping[str, float], floor: Mapping[str, float] | None) -> dict[str, float]:
    """Return the numbers of a result, and with "untrained_" those of the floor."""
    return {**numbers, **{f"untrained_{name}": value for name, value in (floor or {}).items()}}


def data_record(train: Dataset, val: Dataset | None) -> dict[str, Any]:
    """Return the "data" of result.json: digests and sizes of the training and validation data."""
    return {
        "train": train.digest(),
        "val": val.digest() if val is not None else None,
        "num_train": train.num_samples,
        "num_val": val.num_samples if val is not None else None,
    }


def result_line(path: Path) -> str:
    """Return the line that names a result, with a remark if the evaluation itself was cut short.

    The line of the weights tells that their training was.
    """
    record = read_result(path)
    cut = record["cut"] and not record["checkpoint"].get("cut")
    return f"result {path}" + (", not comparable: --max-steps-per-stage cut the evaluation" if cut else "")


def require_val(options: RunOptions) -> None:
    """Raise ValueError if there are no validation images, or their classes are not the training's."""
    if (options.data is not None and options.val is None) or options.val == NO_VAL:
        raise ValueError("an evaluation scores validation images: give --val besides --data")
    require_given_classes(options)


def overridden(values: Mapping[str, Any], epochs: int | None, lr: float | None) -> dict[str, Any]:
    """Return a protocol's `values`, with --epochs and --lr in their place where given.

    Raises:
        ValueError: `epochs` is below 1.
    """
    if epochs is not None and epochs < 1:
        raise ValueError(f"--epochs {epochs}: it must be 1 or more")
    options = {"epochs": epochs, "lr": lr}
    return dict(values) | {name: value for name, value in options.items() if value is not None}


def scores(run: Run) -> dict[str, float]:
    """Return the validation scores top1… and top5… of the run's last stage, in percent."""
    val: Mapping[str, float] = run.position.summaries[-1]["val"]
    return {name: 100 * value for name, value in val.items() if name.startswith(("top1", "top5"))}


def num_scored(run: Run) -> int:
    """Return the number of validation images that `scores` are of."""
    assert run.data.val is not None
    num: int = run.position.summaries[-1].get("num_val_images", run.data.val.num_samples)
    return num


def write_val(
    task: Task,
    run: Run,
    *,
    recipe: str,
    protocol: str,
    constants: Mapping[str, Any],
    checkpoint: Mapping[str, Any],
    floor: Mapping[str, float] | None = None,
) -> Path:
    """Write result.json of a finished run: its scores, options, views and the protocol's constants.

    `checkpoint` is the record of the weights, `Pretrained.record`. `floor` has an untrained network's scores.
    """
    level = run.position.summaries[-1]["level"]
    views = {"train_view": task.views(level), "val_view": task.val_views(level)}
    input = Input.from_dict(checkpoint["input"])
    settings = {
        name: " and ".join(repr(spec.seen_by(input)) for spec in specs) for name, specs in views.items()
    } | dict(constants)
    numbers = with_floor(scores(run), floor)
    return write_run(
        run, recipe=recipe, protocol=protocol, numbers=numbers, settings=settings, checkpoint=checkpoint
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
    """Write result.json of a finished run: the arguments, and its options, data, seconds and cut.

    `numbers` are in percent, and `checkpoint` is the record of the weights, `Pretrained.record`.
    """
    summaries = run.position.summaries
    shared = {"shared_images": summaries[-1].get("shared_images")}
    # Results on parts of data can be compared only if the whole data is known, too.
    whole = {"whole_train": run.data.train.data.digest()} if isinstance(run.data.train, Subset) else {}
    return write_result(
        run.folder, recipe=recipe, protocol=protocol, numbers=numbers,
        settings=run.options.as_dict() | dict(settings) | shared, checkpoint=checkpoint,
        data=data_record(run.data.train, run.data.val) | whole,
        seconds=sum(summary["seconds"] for summary in summaries),
        cut=any(summary["num_steps"] < summary["num_steps_planned"] for summary in summaries),
    )  # fmt: skip
