"""The weights that a training begins with, `--init`: of a run, of a file, or published ones."""

from pathlib import Path
from typing import Any

from fastpsl.console.words import number_of
from fastpsl.models.backbone import Backbone
from fastpsl.models.foreign_weights import Misfit, first_three
from fastpsl.models.names import is_module, is_own
from fastpsl.models.weights import WeightsFile, open_weights, words_of_input
from fastpsl.pipelines.views import Input


def open_initial(source: str) -> WeightsFile:
    """Read the weights that `--init` names.

    Raises:
        ValueError: There are none, or they cannot be read.
    """
    return open_weights(Path(source))


def recorded_backbone(source: str) -> str | None:
    """Return the backbone that the weights record, if its name alone makes it.

    It is None for weights that record none, and for those that `begin_with` refuses with a reason.
    """
    try:
        name = open_initial(source).backbone
    except ValueError:
        return None
    return None if name is None or is_own(name) or is_module(name) else name


def begin_with(source: str, backbone: Backbone, name: str, input: Input, *, partial: bool) -> dict[str, Any]:
    """Fill a backbone with the weights that `--init` names.

    Args:
        source: The value of --init.
        backbone: The backbone, which is filled in place.
        name: The backbone's name.
        input: What the recipe shows the backbone, which weights without a record are taken to expect.
        partial: Whether to take the tensors that fit alone.

    Returns:
        The record of the weights: path, sha256, kind, backbone, recipe, run_step, input, left_out, recorded
        (whether the file tells its input) and not_taken.

    Raises:
        ValueError: The weights cannot be read, do not fit, or expect other channels.
    """
    weights = open_initial(source)
    recorded = weights.input
    if recorded is not None and recorded.channels != input.channels and not partial:
        raise ValueError(
            f"--init {source}: its weights read {recorded.channels}, and the recipe shows {input.channels}; "
            f"give weights that were trained on {input.channels}"
        )
    try:
        loaded = weights.load(name, recorded or input, backbone, partial=partial)
    except Misfit as error:
        raise ValueError(f"--init: {error}; or --init-partial, which takes the tensors that fit") from None
    record = loaded.record
    return {
        "path": source, **{key: record[key] for key in ("sha256", "kind", "run_step", "input", "left_out")},
        "backbone": str(weights.backbone or name), "recipe": (record["science"] or {}).get("recipe"),
        "recorded": recorded is not None, "not_taken": record.get("not_taken", []),
    }  # fmt: skip


def lines_of(record: dict[str, Any]) -> list[str]:
    """Return what tells people the weights of `begin_with`, and what was not taken of them."""
    steps = None if record["run_step"] is None else number_of(record["run_step"], "step")
    whose = ", ".join(filter(None, (record["kind"], record["recipe"], steps)))
    why = "" if record["recorded"] else ", as usual for it, because the file does not tell"
    left_out = f"; left out: {', '.join(record['left_out'])}" if record["left_out"] else ""
    input = words_of_input(Input.from_dict(record["input"]))
    digest = f"sha256 {record['sha256'][:8]}…"
    lines = [f"begins with {record['path']} ({whose}; {digest}), {input}{why}{left_out}"]
    if missed := record["not_taken"]:
        lines.append(f"--init-partial: {number_of(len(missed), 'tensor')} not taken: {first_three(missed)}")
    return lines
