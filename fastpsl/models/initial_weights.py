"""The weights that a training begins with, `--init`: of a run, of a file, or published ones."""

import fcntl
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastpsl.console.progress import operation
from fastpsl.console.words import number_of
from fastpsl.files.atomic import atomic_file
from fastpsl.files.caches import cache_folder
from fastpsl.files.remote.address import is_remote, open_stream, read_whole, remote_objects
from fastpsl.files.system_errors import output_errors
from fastpsl.models.backbone import Backbone
from fastpsl.models.foreign_weights import MisfitError, first_three, sha256_of_bytes
from fastpsl.models.names import TIMM, is_module, is_own, is_timm
from fastpsl.models.weights import WeightsFile, open_weights, sha256_of_tensors, words_of_input
from fastpsl.pipelines.views import Input

_MAX_CONFIG = 1 << 20  # bytes


def open_initial(source: str) -> WeightsFile:
    """Read the weights that `--init` names: a path, timm/NAME[.TAG], or the address of a file or a folder.

    A folder elsewhere is as the Hugging Face Hub has it for models of timm.

    Raises:
        ValueError: There are none, or they cannot be read.
    """
    if is_timm(source):
        from fastpsl.models.timm_backbone import published

        name, tensors, config = published(source)
        digest = sha256_of_tensors(tensors)
        return WeightsFile(source, tensors, "timm", name, _input_of(config), digest=digest)
    if not is_remote(source):
        return open_weights(Path(source))
    is_file = bool(Path(source).suffix)
    weights = open_weights(_fetched(source if is_file else f"{source}/model.safetensors"))
    weights = replace(weights, source=source, digest=weights.sha256)
    if is_file or weights.kind:  # with our record, a folder's file says all
        return weights
    try:
        config = json.loads(read_whole(f"{source}/config.json", _MAX_CONFIG) or b"{}")
        name, input = TIMM + config["architecture"], _input_of(config["pretrained_cfg"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{source}/config.json does not say which model of timm it is ({type(error).__name__}: {error}); "
            "give the address of a file of weights, and --backbone"
        ) from None
    return replace(weights, kind="timm", backbone=name, input=input)


def _input_of(config: Mapping[str, Any]) -> Input:
    """Return the input of a model by timm's `pretrained_cfg`."""
    return Input("RGB", tuple(config["mean"]), tuple(config["std"]), config["input_size"][1])


def _fetched(address: str) -> Path:
    """Return a copy of a file elsewhere, in the cache; of several processes, one downloads it."""
    found = remote_objects(address, "the address of one file of weights")
    if len(found) > 1:
        raise ValueError(f"{address}: {len(found)} files match; give the address of one file of weights")
    (remote,) = found
    digest = sha256_of_bytes(f"{remote.address} {remote.num_bytes} {remote.version}".encode())
    folder = cache_folder() / "weights" / digest[:16]
    path = folder / remote.name
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "lock", "w") as lock, operation(f"{address}: downloading it"):
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                with open_stream(remote) as stream, atomic_file(path) as file:
                    shutil.copyfileobj(stream, file, 1 << 20)
    return path


def recorded_backbone(source: str) -> str | None:
    """Return the backbone that the weights record, if its name alone makes it.

    It is None for weights that record none, and for those that `begin_with` refuses with a reason.

    Raises:
        ValueError: They are elsewhere and cannot be fetched, or timm has no model of their name.
    """
    if is_timm(source):
        from fastpsl.models.timm_backbone import model_of

        return model_of(source)
    try:
        name = open_initial(source).backbone
    except ValueError:
        if is_remote(source):
            raise  # another try would wait as long
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
    config = getattr(getattr(backbone, "network", None), "pretrained_cfg", None)
    if recorded is None and config and input.channels == "RGB":
        input = replace(_input_of(config), size_px=input.size_px)
    if recorded is not None and recorded.channels != input.channels and not partial:
        raise ValueError(
            f"--init {source}: its weights read {recorded.channels}, and the recipe shows {input.channels}; "
            f"give weights that were trained on {input.channels}"
        )
    try:
        loaded = weights.load(name, recorded or input, backbone, partial=partial)
    except MisfitError as error:
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
    why = "" if record["recorded"] else " (usual for it: the file does not tell)"
    left_out = f"; left out: {', '.join(record['left_out'])}" if record["left_out"] else ""
    input = words_of_input(Input.from_dict(record["input"]))
    digest = f"sha256 {record['sha256'][:8]}…"
    lines = [f"begins with {record['path']} ({whose}; {digest}), {input}{why}{left_out}"]
    if missed := record["not_taken"]:
        lines.append(f"--init-partial: {number_of(len(missed), 'tensor')} not taken: {first_three(missed)}")
    return lines
