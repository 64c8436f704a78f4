"""Weights in: a backbone from our checkpoint, from an exported file, from others' files, or random; and what it is."""

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from fastpsl.models.backbone import Backbone
from fastpsl.models.checkpoint import FORMAT, CheckpointManager
from fastpsl.models.factory import make_backbone
from fastpsl.models.foreign_weights import first_three, recognise
from fastpsl.models.weight_files import read_weights, read_weights_sidecar, sha256_of_file
from fastpsl.pipelines.input_record import Input


@dataclass
class Pretrained:
    """A backbone with weights, what it expects to see, and where it comes from.

    record: the "checkpoint" of result.json: path, sha256, kind, backbone, run_step, science, input, cut, left_out.
    """

    backbone: Backbone
    input: Input
    record: dict[str, Any]

    def science(self) -> dict[str, Any]:
        """What must not change on resume, for Job.science: the weights themselves, not where their file lies."""
        return {
            "weights": self.record["sha256"],
            "backbone": self.record["backbone"],
            "input": self.record["input"],
        }

    @override
    def __str__(self) -> str:
        record = self.record
        seen = f"{self.input.channels}, mean {_numbers(self.input.mean)}, std {_numbers(self.input.std)}"
        if record["kind"] == "random":
            return f"{record['backbone']}, random weights; input {seen}"
        what = f"{record['path']}: {record['backbone']} ({record['kind']}"
        if record["run_step"] is not None:
            what += f", {record['run_step']:,} steps"
        what += ", its training was cut short)" if record["cut"] else ")"
        left_out = f"; left out: {', '.join(record['left_out'])}" if record["left_out"] else ""
        return f"{what}; input {seen}{left_out}"


def load_pretrained(path: Path, backbone: str | None = None, input: Input | None = None) -> Pretrained:
    """A fastpsl checkpoint, a run's folder (its newest readable checkpoint), a file of `fastpsl export`, or a foreign file.

    The first three say themselves what they are, and what is told besides must agree. Foreign weights must be told:
    `backbone` and `input` are required. ValueError where the file is unreadable, lacks a tensor of the backbone, or holds
    another backbone or tensors that are no head.
    """
    path = Path(path)
    path, state = newest_checkpoint(path) if path.is_dir() else (path, read_weights(path))
    try:
        if isinstance(state.get("backbone"), dict) and "science" in state:
            return _ours(path, state, backbone, input)
        told = read_weights_sidecar(path)
        if told is not None:
            return _exported(path, state, told, backbone, input)
    except (KeyError, TypeError, AttributeError) as error:  # _input's, too
        what = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(
            f"{path} does not say what it holds ({' '.join(what.split())[:200]}): make it again (a recipe, fastpsl export), or give its "
            f"tensors alone, with --backbone and the --input flags"
        ) from error
    return _foreign(path, state, backbone, input)


def random_weights(backbone: str, seed: int, input: Input | None = None) -> Pretrained:
    """A new backbone, its weights a function of `seed` alone; torch's random state is left as it was."""
    input = input or Input()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        made = make_backbone(backbone, num_channels=input.num_channels)
    record = _record(None, sha256_of_tensors(made.state_dict()), "random", backbone, input)
    return Pretrained(made, input, record)


def newest_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The newest readable checkpoint of a run's folder (or of its folder of checkpoints), and what it holds."""
    for place in (folder / "checkpoints", folder):
        found = CheckpointManager(place).newest()
        if found is not None:
            path, state, problems = found
            for problem in problems:
                warnings.warn(f"passed over, {path} is read instead: {problem}", stacklevel=2)
            return path, state
    raise ValueError(f"{folder} holds no checkpoint: give a run's folder, or a file of weights")


def sha256_of_tensors(state: Mapping[str, Tensor]) -> str:
    """Of names, shapes, types and values, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _ours(path: Path, state: dict[str, Any], backbone: str | None, input: Input | None) -> Pretrained:
    if state.get("format") != FORMAT:
        raise ValueError(
            f"{path} is a checkpoint of format {state.get('format')}, and this version reads {FORMAT}"
        )
    science = state["science"]
    found = _input(state["input"])
    name = _agreed(path, science.get("backbone"), backbone, found, input)
    made = make_backbone(name, num_channels=found.num_channels)
    fill(made, state["backbone"], name, f"{path}, a checkpoint of {science.get('recipe', 'fastpsl')},")
    record = _record(path, sha256_of_file(path), "fastpsl", name, found)
    record |= {"run_step": state["position"]["run_step"], "science": science, "cut": was_cut(state)}
    return Pretrained(made, found, record)


def _exported(
    path: Path, state: dict[str, Any], told: dict[str, Any], backbone: str | None, input: Input | None
) -> Pretrained:
    found = _input(told["input"])
    name = _agreed(path, told["backbone"], backbone, found, input)
    made = make_backbone(name, num_channels=found.num_channels)
    # timm has other names for VGG's.
    fill(made, recognise(path, state, made.state_dict()).tensors, name, f"{path}, exported by fastpsl,")
    record = _record(path, sha256_of_file(path), "export", name, found)
    record |= {key: told.get(key) for key in ("run_step", "science", "cut")}
    record["left_out"] = told.get("left_out", [])
    return Pretrained(made, found, record)


def _foreign(path: Path, state: dict[str, Any], backbone: str | None, input: Input | None) -> Pretrained:
    if backbone is None or input is None:
        raise ValueError(
            f"{path} is no checkpoint of fastpsl, so what it is must be told: give --backbone, --input-channels, "
            f"--input-mean and --input-std (for ImageNet's usual: RGB, 0.485 0.456 0.406, 0.229 0.224 0.225)"
        )
    made = make_backbone(backbone, num_channels=input.num_channels)
    found = recognise(path, state, made.state_dict())
    fill(made, found.tensors, backbone, f"{path}, read as {found.kind}'s,")
    # The two have the same names for a ResNet; torchvision publishes no safetensors.
    is_timm = found.kind == "torchvision" and path.suffix == ".safetensors"
    record = _record(path, sha256_of_file(path), "timm" if is_timm else found.kind, backbone, input)
    return Pretrained(made, input, record | {"left_out": found.left_out})


def _input(record: Any) -> Input:
    """TypeError in one line where the record is none."""
    try:
        return Input.from_dict(record)
    except ValueError as error:
        raise TypeError(error) from None


def _agreed(path: Path, name: str | None, asked: str | None, found: Input, told: Input | None) -> str:
    """The backbone's name; ValueError where what the file says and what was asked for differ."""
    if name is None and asked is None:
        raise ValueError(f"{path} does not say which backbone it holds: give --backbone")
    if name is not None and asked is not None and name != asked:
        raise ValueError(
            f"{path} is a checkpoint of another backbone: {name}, not {asked}; leave out --backbone"
        )
    if told is not None:
        for what in ("channels", "mean", "std"):
            if getattr(told, what) != getattr(found, what):
                raise ValueError(
                    f"{path} was trained on input {what} {getattr(found, what)}, not {getattr(told, what)}: "
                    f"leave out --input-{what}, the checkpoint brings its own"
                )
    chosen = name if name is not None else asked
    assert chosen is not None
    return chosen


def fill(backbone: nn.Module, tensors: Mapping[str, Any], name: str, source: str) -> None:
    """Load `tensors`, which must be the backbone's, all of them, and of its shapes; else ValueError with the first few."""
    wanted = backbone.state_dict()
    missing = [key for key in wanted if key not in tensors]
    if missing:
        raise ValueError(
            f"{source} lacks {len(missing)} of the {len(wanted)} tensors of {name} ({first_three(missing)}): "
            f"give the --backbone that it holds, or another file"
        )
    wrong = [key for key in wanted if tuple(tensors[key].shape) != tuple(wanted[key].shape)]
    if wrong:
        raise ValueError(
            f"{source} has {wrong[0]} of shape {tuple(tensors[wrong[0]].shape)}, and {name} needs "
            f"{tuple(wanted[wrong[0]].shape)} ({len(wrong)} differ): give the --backbone and --input-channels that it holds"
        )
    extra = [key for key in tensors if key not in wanted]
    if extra:
        raise ValueError(
            f"{source} holds {len(extra)} tensors that {name} has not ({first_three(extra)}): give the --backbone"
        )
    backbone.load_state_dict(dict(tensors))


def was_cut(state: Mapping[str, Any]) -> bool:
    """Whether a checkpoint's training did not go through its whole plan: steps left out of a stage, or stages to come."""
    summaries = state["position"]["summaries"]
    short = any(summary["num_steps"] < summary["num_steps_planned"] for summary in summaries)
    return short or len(summaries) < state.get("num_stages", 1)  # older checkpoints do not say how many


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:g}" for value in values)


def _record(path: Path | None, sha256: str, kind: str, backbone: str, input: Input) -> dict[str, Any]:
    return {
        "path": None if path is None else str(path),
        "sha256": sha256,
        "kind": kind,
        "backbone": backbone,
        "input": input.as_dict(),
        "run_step": None,
        "science": None,
        "cut": False,
        "left_out": [],
    }
