"""Backbones with weights: from checkpoints, exported files and other projects' files, or random."""

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from fastpsl.console.words import number_of
from fastpsl.files.digest import sha256, sha256_of_file
from fastpsl.files.json_records import COUNT, RECORD, TEXT, WHOLE, Form, Kind, NoRecord, maybe, parse
from fastpsl.models.backbone import Backbone, unusable
from fastpsl.models.checkpoint import FORMAT, CheckpointManager, bytes_of
from fastpsl.models.factory import make_backbone
from fastpsl.models.foreign_weights import (
    COUNTER,
    MisfitError,
    first_three,
    read_weights,
    read_weights_sidecar,
    recognise,
    unclear,
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
        record: The "checkpoint" of result.json: path, sha256, kind, backbone, run_step, science, input,
            assumed (whether nobody tells the input), cut, left_out.
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
        input_text = words_of_input(self.input, _TOLD_BY if record.get("assumed") else "")
        if record["kind"] == "random":
            return f"{record['backbone']}, random weights; input {input_text}"
        text = f"{record['path']}: {record['backbone']} ({record['kind']}"
        if record["run_step"] is not None:
            text += f", {number_of(record['run_step'], 'step')}"
        text += ", its training was cut short, so no result is comparable)" if record["cut"] else ")"
        left_out = f"; left out: {', '.join(record['left_out'])}" if record["left_out"] else ""
        return f"{text}; input {input_text}{left_out}"


_SPARE_NUMBERS = 1 << 24  # of a network that is built to name the tensors that a file lacks


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights that has been read, and what it records.

    Attributes:
        source: The file, or the name of the weights.
        state: The tensors by name; of another project, what its file holds.
        kind: "fastpsl" for a checkpoint, "export", "timm" for weights that timm publishes, and "" for another
            project's file.
        backbone: The recorded backbone, or None.
        input: The recorded input, or None.
        more: Further entries of `Pretrained.record`.
        digest: The SHA-256 of weights that are no file of this machine.
    """

    source: Path | str
    state: Mapping[str, Any]
    kind: str
    backbone: str | None = None
    input: Input | None = None
    more: Mapping[str, Any] = field(default_factory=dict)
    digest: str | None = None

    @property
    def sha256(self) -> str:
        """The SHA-256 of the file, or of the tensors."""
        return self.digest or sha256_of_file(Path(self.source))

    def load(
        self,
        backbone: str | None,
        input: Input | None,
        network: Backbone | None = None,
        *,
        partial: bool = False,
        usual: Input | None = None,
    ) -> Pretrained:
        """Return a backbone with these weights, as `load_pretrained` describes it.

        Args:
            backbone: The backbone's name.
            input: The input that the weights expect.
            network: The backbone to fill; None for a new one.
            partial: Whether to take the tensors that fit. The record lists the others as "not_taken".
            usual: The input of weights that tell none, unless it is timm's; None for ImageNet's usual.

        Raises:
            MisfitError: Not all tensors fit. The network may have some of them.
        """
        known, usual = self._checked_input(input), usual or Input()
        name = backbone if partial and network is not None and backbone else self._checked_name(backbone)
        if network is None and backbone is None:
            self.check_room()
        network = network or make_backbone(name, num_channels=(known or usual).num_channels)
        input = known or usual_input(network, usual)
        kind, left_out, not_taken = self._fill(network, name, partial)
        record = record_of(self.source, self.sha256, kind, name, input) | dict(self.more)
        record["assumed"] = known is None
        if left_out is not None:
            record["left_out"] = left_out
        if partial:
            record["not_taken"] = not_taken
        return Pretrained(network, input, record)

    def check_room(self) -> None:
        """Raise MisfitError if the file has too few bytes for the numbers of the backbone that it records."""
        if self.backbone is None or is_own(self.backbone) or is_module(self.backbone):
            return
        with torch.device("meta"):
            network = make_backbone(self.backbone, num_channels=self.input.num_channels if self.input else 3)
        num, num_bytes = sum(map(Tensor.numel, network.state_dict().values())), bytes_of(self.state.values())
        if num > num_bytes + _SPARE_NUMBERS:
            raise MisfitError(
                f"{self.source} says that it holds {self.backbone}, which has {num:,} numbers, and has "
                f"{num_bytes:,} bytes of tensors: give another file"
            )

    def _fill(self, network: Backbone, name: str, partial: bool) -> tuple[str, list[str] | None, list[str]]:
        """Fill the network; return the kind, what was left out if it is no checkpoint, and what misfits."""
        if self.kind == "fastpsl":
            recipe = self.more["science"].get("recipe", "fastpsl")
            said = f"{self.source}, a checkpoint of {recipe},"
            return self.kind, None, fill(network, self.state, name, said, partial)
        # `recognise` translates the names, because timm names VGG's tensors differently.
        found = recognise(Path(self.source), self.state, network.state_dict(), partial)
        said = (
            f"{self.source}, exported by fastpsl,"
            if self.kind == "export"
            else f"{self.source}, read as {self.kind or found.kind}'s,"
        )
        not_taken = fill(network, found.tensors, name, said, partial) + found.unknown
        if self.kind == "export":
            return self.kind, None, not_taken
        # timm and torchvision have the same names for a ResNet, but torchvision publishes no safetensors.
        of_timm = found.kind == "torchvision" and (
            str(self.source).endswith(".safetensors") or is_timm(name) or self.kind == "timm"
        )
        return "timm" if of_timm else found.kind, found.left_out, not_taken

    def _checked_name(self, argument: str | None) -> str:
        """Return the backbone's name.

        A Python file is always that of the argument, because the path in a file may be a stranger's, or an
        old one. So is a program's module. The names and shapes of their tensors are checked later.
        """
        path, name = self.source, self.backbone
        if name is None and argument is None:
            raise ValueError(
                f"{path} does not say which backbone it holds: give --backbone, such as resnet50"
            )
        if name is not None and (is_own(name) or is_module(name)):
            if argument is None or not (is_own(argument) or isinstance(argument, Given)):
                raise module_not_given(path, name) if is_module(name) else not_given(path, name)
            name = argument
        if self.kind != "timm" and name is not None and argument is not None and name != argument:
            raise ValueError(
                f"{path} is a checkpoint of another backbone: {name}, not {argument}; leave out --backbone"
            )
        return argument or str(name)

    def _checked_input(self, argument: Input | None) -> Input | None:
        """Return the recorded input, or else the argument, which must agree with it."""
        if self.input is None or argument is None:
            return self.input or argument
        for name in ("channels", "mean", "std"):
            expected, value = getattr(self.input, name), getattr(argument, name)
            if value != expected:
                raise ValueError(
                    f"{self.source} was trained on input {name} {expected}, not {value}: leave out "
                    f"--input-{name}, the checkpoint brings its own"
                )
        return self.input


def open_weights(path: Path) -> WeightsFile:
    """Read a checkpoint, a run's newest one, a file of `fastpsl export` or another project's file.

    Raises:
        ValueError: There is none, or it cannot be read.
    """
    path, state = newest_checkpoint(path) if path.is_dir() else (path, read_weights(path))
    if isinstance(state.get("backbone"), dict) and "science" in state:
        return _checkpoint(path, state)
    record = read_weights_sidecar(path)
    if record is None:
        return WeightsFile(path, state, "")
    more = {key: record.get(key) for key in ("run_step", "science", "cut")}
    more["left_out"] = record.get("left_out", [])
    return WeightsFile(path, state, "export", record.get("backbone"), _input(path, record["input"]), more)


def _are_stages(value: Any) -> bool:
    return isinstance(value, list) and not any(map(_STAGE.why_not, value))


_STAGE = Form("stage", {"num_steps": COUNT, "num_steps_planned": COUNT})
# The part of a checkpoint that is no tensors.
_CHECKPOINT = Form("checkpoint", {
    "format": WHOLE, "science": RECORD, "science.backbone": maybe(TEXT), "science.recipe": maybe(TEXT),
    "input": RECORD, "position": RECORD, "position.run_step": COUNT,
    "position.summaries": Kind("a list of stages", _are_stages), "num_stages": COUNT,
})  # fmt: skip


def _checkpoint(path: Path, state: dict[str, Any]) -> WeightsFile:
    try:
        plain = {key: state.get(key) for key in ("format", "science", "input", "position", "num_stages")}
        record = parse(path, json.dumps(plain).encode())
        why = _CHECKPOINT.why_not(record)
    except TypeError as error:
        why = str(error)
    except NoRecord as error:
        why = error.why
    tensors = state["backbone"]
    if strange := [name for name, each in tensors.items() if not isinstance(each, Tensor)]:
        why = why or f"holds other things than tensors ({first_three(strange)})"
    if why:
        raise unclear(path, why)
    if record["format"] != FORMAT:
        raise ValueError(
            f"{path} is a checkpoint of format {record['format']}, and this version reads {FORMAT}; use "
            "the version of fastpsl that wrote it"
        )
    science = record["science"]
    more = {"run_step": record["position"]["run_step"], "science": science, "cut": was_cut_short(record)}
    return WeightsFile(path, tensors, "fastpsl", science.get("backbone"), _input(path, record["input"]), more)


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
    record = record_of(None, sha256_of_tensors(network.state_dict()), "random", backbone, input)
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
    digest = sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def usual_input(network: nn.Module, otherwise: Input) -> Input:
    """Return the input that a model of timm is usually trained on, if that has the channels of `otherwise`.

    For other networks, return `otherwise`.
    """
    config = getattr(getattr(network, "network", None), "pretrained_cfg", None)
    return input_of_timm(config) if config and otherwise.channels == "RGB" else otherwise


def input_of_timm(config: Mapping[str, Any]) -> Input:
    """Return the input of a model by timm's `pretrained_cfg`."""
    return Input("RGB", tuple(config["mean"]), tuple(config["std"]), config["input_size"][1])


def _input(path: Path, record: Any) -> Input:
    try:
        return Input.from_dict(record)
    except ValueError as error:
        raise unclear(path, str(error)) from None


def fill(
    backbone: nn.Module, tensors: Mapping[str, Any], name: str, source: str, partial: bool = False
) -> list[str]:
    """Load all tensors of a backbone's state dict, which must have exactly its names and shapes.

    With `partial`, load those that fit. `source` is the subject of error messages, such as "FILE, exported by
    fastpsl,". What is `unusable` is refused.

    Returns:
        The names that are missing, of another shape or left over; none without `partial`.
    """
    wanted = backbone.state_dict()
    missing = [key for key in wanted if key not in tensors]
    mismatches = [
        key for key in wanted if key in tensors and tuple(tensors[key].shape) != tuple(wanted[key].shape)
    ]
    extra = [key for key in tensors if key not in wanted]
    fitting = [key for key in wanted if key in tensors and key not in mismatches]
    if all(key.endswith(COUNTER) for key in fitting):
        raise ValueError(
            f"{source} has none of the {len(wanted)} tensors of {name} ({first_three([*wanted])}): give the "
            "--backbone that it holds, or another file"
        )
    if missing and not partial:
        raise MisfitError(
            f"{source} lacks {len(missing)} of the {len(wanted)} tensors of {name} ({first_three(missing)}): "
            f"give the --backbone that it holds, or another file"
        )
    if mismatches and not partial:
        shapes = [f"{key} {tuple(tensors[key].shape)} for {tuple(wanted[key].shape)}" for key in mismatches]
        raise MisfitError(
            f"{source} has {number_of(len(mismatches), 'tensor')} of other shapes than {name} "
            f"({first_three(shapes)}): give the --backbone and --input-channels that it holds"
        )
    unfit = [
        key
        for key in fitting
        if (tensor := tensors[key]).layout != torch.strided
        or (tensor.is_meta or tensor.is_quantized or tensor.is_complex())
    ]
    if unfit:
        raise ValueError(
            f"{source} has {unfit[0]} as a sparse, quantized, complex or meta tensor: save it as a dense "
            "tensor of real numbers"
        )
    if extra and not partial:
        raise MisfitError(
            f"{source} holds {len(extra)} tensors that {name} has not ({first_three(extra)}): give the "
            "--backbone that it holds"
        )
    backbone = backbone.float()
    # What float32 cannot hold becomes infinite.
    if bad := unusable(backbone, {key: tensors[key].float() for key in fitting}):
        raise ValueError(f"{source} has {bad}: give weights of a training that did not diverge")
    backbone.load_state_dict({**wanted, **{key: tensors[key] for key in fitting}})
    return missing + mismatches + extra


def was_cut_short(state: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint's training stopped before its plan's end: steps or stages are missing."""
    summaries = state["position"]["summaries"]
    short = any(summary["num_steps"] < summary["num_steps_planned"] for summary in summaries)
    return short or len(summaries) < state["num_stages"]


# The ways to give another input than the usual one. Trainings have no such options.
_TOLD_BY = "--input-channels, --input-mean and --input-std give others"
TOLD_BY_EXPORT = "a file of fastpsl export tells others"


def words_of_input(input: Input, told_by: str = "") -> str:
    """Return the channels of an input and their statistics, for people.

    `told_by` says how to give another input; "" if this one is no assumption.
    """
    mean, std = (" ".join(f"{value:g}" for value in values) for values in (input.mean, input.std))
    words = f"{input.channels}, mean {mean}, std {std} {input.reading.in_words()}".rstrip()
    return f"{words} (usual for it: the file does not tell; {told_by})" if told_by else words


def record_of(path: Path | str | None, sha256: str, kind: str, backbone: str, input: Input) -> dict[str, Any]:
    """Return the `Pretrained.record` of weights of no training that is known."""
    return {
        "path": None if path is None else str(path), "sha256": sha256, "kind": kind,
        "backbone": str(backbone), "input": input.as_dict(), "run_step": None, "science": None,
        "assumed": False, "cut": False, "left_out": [],
    }  # fmt: skip
