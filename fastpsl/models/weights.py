"""Backbones with weights: from checkpoints, exported files and other projects' files, or random."""

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from fastpsl.console.words import number_of
from fastpsl.models.backbone import Backbone
from fastpsl.models.checkpoint import FORMAT, CheckpointManager
from fastpsl.models.factory import make_backbone
from fastpsl.models.foreign_weights import (
    first_three,
    read_weights,
    read_weights_sidecar,
    recognise,
    sha256_of_file,
)
from fastpsl.models.given import Given
from fastpsl.models.names import is_module, is_own, is_timm, module_not_given, not_given
from fastpsl.pipelines.views import Input


@dataclass
class Pretrained:
    """A backbone with weights.

    Attributes:
        backbone: The backbone.
        input: The input that the weights expect.
        record: The "checkpoint" of result.json: path, sha256, kind, backbone, run_step, science, input, cut,
            left_out.
    """

    backbone: Backbone
    input: Input
    record: dict[str, Any]

    def science(self) -> dict[str, Any]:
        """Return what must not change on resume, for Experiment.science: the weights, but not their path."""
        return {
            "weights": self.record["sha256"],
            "backbone": self.record["backbone"],
            "input": self.record["input"],
        }

    @override
    def __str__(self) -> str:
        record = self.record
        input_text = (
            f"{self.input.channels}, mean {_numbers(self.input.mean)}, std {_numbers(self.input.std)}"
        )
        if record["kind"] == "random":
            return f"{record['backbone']}, random weights; input {input_text}"
        text = f"{record['path']}: {record['backbone']} ({record['kind']}"
        if record["run_step"] is not None:
            text += f", {number_of(record['run_step'], 'step')}"
        text += ", its training was cut short, so no result is comparable)" if record["cut"] else ")"
        left_out = f"; left out: {', '.join(record['left_out'])}" if record["left_out"] else ""
        return f"{text}; input {input_text}{left_out}"


def load_pretrained(path: Path, backbone: str | None = None, input: Input | None = None) -> Pretrained:
    """Load a backbone from a file or a run's folder.

    Checkpoints and exported files record their backbone and input, and the arguments must agree with the
    record. Files of other projects have no such record and require both arguments. A record may name a file
    of Python code, which runs only if `backbone` names it as well.

    Args:
        path: A checkpoint, a run's folder (its newest readable checkpoint is read), a file of `fastpsl
            export`, or another project's file.
        backbone: The backbone's name.
        input: The input that the weights expect.

    Raises:
        ValueError: The file is unreadable, lacks a tensor of the backbone, or holds another backbone or
            tensors that belong to no head. Or it names a Python file, and `backbone` does not.
    """
    path = Path(path)
    path, state = newest_checkpoint(path) if path.is_dir() else (path, read_weights(path))
    try:
        if isinstance(state.get("backbone"), dict) and "science" in state:
            return _from_checkpoint(path, state, backbone, input)
        record = read_weights_sidecar(path)
        if record is not None:
            return _from_export(path, state, record, backbone, input)
    except (KeyError, TypeError, AttributeError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(
            f"{path} does not say what it holds ({' '.join(reason.split())[:200]}): make it again (a "
            "recipe, fastpsl export), or give its tensors alone, with --backbone and the --input flags"
        ) from error
    return _from_other_project(path, state, backbone, input)


def recorded_input(path: Path) -> Input | None:
    """Return the input that a checkpoint or an exported file records.

    It is None for other projects' files, and for those that `load_pretrained` refuses with a reason.
    """
    try:
        path, state = newest_checkpoint(path) if path.is_dir() else (path, read_weights(path))
        if isinstance(state.get("backbone"), dict) and "science" in state:
            return _input(state["input"])
        record = read_weights_sidecar(path)
        return None if record is None else _input(record["input"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def random_weights(backbone: str, seed: int, input: Input | None = None) -> Pretrained:
    """Build a backbone with weights that depend on `seed` alone.

    They are not the start of a training of this seed, which draws by `torch_seed`. BatchNorm keeps torch's
    running statistics of 0 and 1, so in eval mode it normalises nothing.

    torch's random state does not change.
    """
    input = input or Input()
    if is_module(backbone):
        raise ValueError(
            "--random-weights with a module, whose weights are its own: give --backbone NAME or FILE.py:CLASS"
        )
    backbone = str(backbone)  # without the weights of a module
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = make_backbone(backbone, num_channels=input.num_channels)
    record = _record(None, sha256_of_tensors(network.state_dict()), "random", backbone, input)
    return Pretrained(network, input, record)


def newest_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Read the newest readable checkpoint of a run's folder, or of its folder of checkpoints.

    Warns about each newer checkpoint that cannot be read.
    """
    for place in (folder / "checkpoints", folder):
        newest = CheckpointManager(place).newest()
        if newest is not None:
            path, state, problems = newest
            for problem in problems:
                warnings.warn(f"passed over, {path} is read instead: {problem}", stacklevel=2)
            return path, state
    raise ValueError(f"{folder} holds no checkpoint: give a run's folder, or a file of weights")


def sha256_of_tensors(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of all names, shapes, dtypes and values, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _from_checkpoint(
    path: Path, state: dict[str, Any], backbone: str | None, input: Input | None
) -> Pretrained:
    try:
        json.dumps([state.get(key) for key in ("format", "science", "input", "position", "num_stages")])
    except (ValueError, RecursionError) as error:  # an entry holds itself
        raise TypeError(error) from None
    if state.get("format") != FORMAT:
        raise ValueError(
            f"{path} is a checkpoint of format {state.get('format')}, and this version reads {FORMAT}; use "
            "the version of fastpsl that wrote it"
        )
    science = state["science"]
    input_record = _input(state["input"])
    name = _checked_name(path, science.get("backbone"), backbone, input_record, input)
    network = make_backbone(name, num_channels=input_record.num_channels)
    fill(network, state["backbone"], name, f"{path}, a checkpoint of {science.get('recipe', 'fastpsl')},")
    record = _record(path, sha256_of_file(path), "fastpsl", name, input_record)
    record |= {"run_step": state["position"]["run_step"], "science": science, "cut": was_cut_short(state)}
    return Pretrained(network, input_record, record)


def _from_export(
    path: Path, state: dict[str, Any], sidecar: dict[str, Any], backbone: str | None, input: Input | None
) -> Pretrained:
    input_record = _input(sidecar["input"])
    name = _checked_name(path, sidecar["backbone"], backbone, input_record, input)
    network = make_backbone(name, num_channels=input_record.num_channels)
    # `recognise` translates the names, because timm names VGG's tensors differently.
    fill(network, recognise(path, state, network.state_dict()).tensors, name, f"{path}, exported by fastpsl,")
    record = _record(path, sha256_of_file(path), "export", name, input_record)
    record |= {key: sidecar.get(key) for key in ("run_step", "science", "cut")}
    record["left_out"] = sidecar.get("left_out", [])
    return Pretrained(network, input_record, record)


def _from_other_project(
    path: Path, state: dict[str, Any], backbone: str | None, input: Input | None
) -> Pretrained:
    if backbone is None or input is None:
        raise ValueError(
            f"{path} is no checkpoint of fastpsl, so what it is must be told: give --backbone, "
            "--input-channels, --input-mean and --input-std (for ImageNet's usual: RGB, 0.485 0.456 "
            "0.406, 0.229 0.224 0.225)"
        )
    network = make_backbone(backbone, num_channels=input.num_channels)
    recognised = recognise(path, state, network.state_dict())
    fill(network, recognised.tensors, backbone, f"{path}, read as {recognised.kind}'s,")
    # timm and torchvision have the same names for a ResNet, but torchvision publishes no safetensors.
    of_timm = recognised.kind == "torchvision" and (path.suffix == ".safetensors" or is_timm(backbone))
    record = _record(path, sha256_of_file(path), "timm" if of_timm else recognised.kind, backbone, input)
    return Pretrained(network, input, record | {"left_out": recognised.left_out})


def _input(record: Any) -> Input:
    """Parse an input record, and raise TypeError with one line if it is invalid."""
    try:
        return Input.from_dict(record)
    except ValueError as error:
        raise TypeError(error) from None


def _checked_name(
    path: Path, name: str | None, argument: str | None, file_input: Input, argument_input: Input | None
) -> str:
    """Return the backbone's name.

    A Python file is always that of the argument, because the path in a file may be a stranger's, or an old
    one. So is a program's module. The names and shapes of their tensors are checked later.
    """
    if name is None and argument is None:
        raise ValueError(f"{path} does not say which backbone it holds: give --backbone")
    if name is not None and (is_own(name) or is_module(name)):
        if argument is None or not (is_own(argument) or isinstance(argument, Given)):
            raise module_not_given(path, name) if is_module(name) else not_given(path, name)
        name = argument
    if name is not None and argument is not None and name != argument:
        raise ValueError(
            f"{path} is a checkpoint of another backbone: {name}, not {argument}; leave out --backbone"
        )
    if argument_input is not None:
        for field in ("channels", "mean", "std"):
            expected, value = getattr(file_input, field), getattr(argument_input, field)
            if value != expected:
                raise ValueError(
                    f"{path} was trained on input {field} {expected}, not {value}: leave out "
                    f"--input-{field}, the checkpoint brings its own"
                )
    chosen = name if name is not None else argument
    assert chosen is not None
    return chosen


def fill(backbone: nn.Module, tensors: Mapping[str, Any], name: str, source: str) -> None:
    """Load all tensors of a backbone's state dict, which must have exactly its names and shapes.

    `source` is the subject of error messages, such as "FILE, exported by fastpsl,".
    """
    wanted = backbone.state_dict()
    missing = [key for key in wanted if key not in tensors]
    if missing:
        raise ValueError(
            f"{source} lacks {len(missing)} of the {len(wanted)} tensors of {name} ({first_three(missing)}): "
            f"give the --backbone that it holds, or another file"
        )
    mismatches = [key for key in wanted if tuple(tensors[key].shape) != tuple(wanted[key].shape)]
    if mismatches:
        raise ValueError(
            f"{source} has {mismatches[0]} of shape {tuple(tensors[mismatches[0]].shape)}, and {name} "
            f"needs {tuple(wanted[mismatches[0]].shape)} ({len(mismatches)} differ): give the --backbone "
            "and --input-channels that it holds"
        )
    unfit = [
        key
        for key in wanted
        if (tensor := tensors[key]).layout != torch.strided
        or (tensor.is_meta or tensor.is_quantized or tensor.is_complex())
    ]
    if unfit:
        raise ValueError(
            f"{source} has {unfit[0]} as a sparse, quantized, complex or meta tensor: save it as a dense "
            "tensor of real numbers"
        )
    extra = [key for key in tensors if key not in wanted]
    if extra:
        raise ValueError(
            f"{source} holds {len(extra)} tensors that {name} has not ({first_three(extra)}): give the "
            "--backbone that it holds"
        )
    backbone.float().load_state_dict(dict(tensors))  # whatever torch's default dtype made it


def was_cut_short(state: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint's training stopped before its plan's end: steps or stages are missing."""
    summaries = state["position"]["summaries"]
    short = any(summary["num_steps"] < summary["num_steps_planned"] for summary in summaries)
    return short or len(summaries) < state["num_stages"]


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:g}" for value in values)


def _record(path: Path | None, sha256: str, kind: str, backbone: str, input: Input) -> dict[str, Any]:
    return {
        "path": None if path is None else str(path), "sha256": sha256, "kind": kind,
        "backbone": str(backbone), "input": input.as_dict(), "run_step": None, "science": None,
        "cut": False, "left_out": [],
    }  # fmt: skip
