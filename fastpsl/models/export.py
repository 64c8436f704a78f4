"""The work of `fastpsl export`: write a backbone in another library or format."""

import json
import os
import shlex
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import Any, NamedTuple

from fastpsl.console.markdown import block, code, plain, table_row
from fastpsl.console.words import hint, number_of, pasted
from fastpsl.files.atomic import sync_folder, write_atomically
from fastpsl.files.digest import sha256_of_bytes
from fastpsl.files.json_records import NoRecord
from fastpsl.files.run_folder import CONFIG as RUN_CONFIG
from fastpsl.files.system_errors import UnreadableError, input_errors, output_errors
from fastpsl.models.foreign_weights import read_weights_sidecar
from fastpsl.models.initial_weights import load_pretrained
from fastpsl.models.names import EXPORTS, TIMM, is_timm
from fastpsl.models.onnx_file import onnx_bytes
from fastpsl.models.state_dict_files import TARGETS, Renamed, detectron2_config, key_table, renamed
from fastpsl.models.weights import Pretrained
from fastpsl.pipelines.interface.reading import PLAIN
from fastpsl.pipelines.views import CHANNELS, SHORTER_OF_SIZE, Input

# Values of a command that have a slash and name no file.
_NO_FILES = ("timm/", "hf://", "https://")
_HEADER = """---
library_name: timm
pipeline_tag: image-feature-extraction
# license: fill it in; without one, nobody may use the weights
# datasets: fill in the Hub's names of the training images, as a list
tags:
- timm
- fastpsl
- image-feature-extraction
"""
_HOW_TO_LOAD = """import timm

model = timm.create_model("hf-hub:YOU/{folder}", pretrained=True, num_classes=0)  # or "local-dir:{folder}"
"""
_TRANSFORM = """transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
features = model.eval()(transform(image)[None])  # of a PIL image"""


def model_card(
    pretrained: Pretrained,
    record: Mapping[str, Any],
    architecture: str,
    results: Sequence[Mapping[str, Any]],
    folder: str,
) -> str:
    """Return the text of README.md: a YAML header, how to load, the input, the training and the results.

    The license is left to be filled in. Folders of this machine are left out.
    """
    science = record["science"] or {}
    config = _config_of_run(Path(pretrained.record["path"]))
    recipe = science.get("recipe")
    kind = plain(record["source"]["kind"])
    trained = f"trained by the recipe {code(str(recipe))} of fastpsl" if recipe else f"of {kind}"
    title, input = f"# {plain(folder)}", pretrained.input.in_words()
    if pretrained.input.channels not in CHANNELS:  # a name by the file
        input = plain(input)
    about = f"A {plain(record['backbone'])} without classifier, {trained}. timm calls the network "
    about += f"{code(architecture)}."
    sections = [_header(recipe), title, about]
    if record["cut"]:
        sections.append("**The training was cut short: these weights are of a trial and worth nothing.**")
    sections += [
        "## How to load it",
        _loading(pretrained, folder),
        "## Input",
        f"{input}. The training's crops had {pretrained.input.size_px} px.",
        "## Training",
        *_training(science, config, record),
        *_teacher(science, config),
        "## Evaluations",
        _table(results) if results else "None is recorded here.",
    ]
    return "\n\n".join(sections) + "\n"


def results_of(sha256: str, results: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the records of result.json files whose checkpoint has this SHA-256."""
    return [record for record in results if (record.get("checkpoint") or {}).get("sha256") == sha256]


def _header(recipe: str | None) -> str:
    return _HEADER + ("" if recipe in (None, "supervised") else "- self-supervised-learning\n") + "---"


def _loading(pretrained: Pretrained, folder: str) -> str:
    lines = _HOW_TO_LOAD.format(folder=json.dumps(folder, ensure_ascii=False)[1:-1])
    if pretrained.input.channels == "RGB" and pretrained.input.reading == PLAIN:
        return block(lines + _TRANSFORM, "python")
    num = pretrained.input.num_channels
    lines += f"features = model.eval()(images)  # [batch, {num}, height, width], made as below"
    return (
        f"{block(lines, 'python')}\n\nNo transform of timm makes this network's input; the next section "
        "defines it."
    )


def _training(science: Mapping[str, Any], config: Mapping[str, Any], record: Mapping[str, Any]) -> list[str]:
    source = record["source"]
    steps = "" if record["run_step"] is None else f", after {number_of(record['run_step'], 'step')}"
    origin = f"From {code(source['name'])}{steps}, SHA-256 {code(source['sha256'])}."
    command = config.get("command")
    parts = [origin]
    if command:
        words = " ".join(shlex.quote(without_folders(str(word))) for word in command)
        parts.append(f"The command, without the folders of its files:\n\n{block(words)}")
    if science:
        settings = json.dumps(science, indent=1)
        parts.append(f"The settings that determine the result:\n\n{block(settings, 'json')}")
    return parts


def _teacher(science: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the section about the network that a distillation learned from, with its license."""
    if "teacher" not in science:
        return
    source = (config.get("options") or {}).get("teacher")
    source = without_folders(source) if isinstance(source, str) else ""
    about = ", ".join(code(str(science.get(key))) for key in ("teacher_backbone", "teacher"))
    license = ""
    if is_timm(source):
        from fastpsl.models.timm_backbone import license_of

        license = license_of(source)
    where = f": see {code(source)}" if source else " here"
    told = f"Its license, as timm has it: {plain(license)}" if license else f"License not known{where}"
    name = code(source) if source else "a network"
    yield "## Teacher"
    yield (
        f"It learned the features of {name} (backbone and SHA-256: {about}). "
        f"{told}. Some licenses, DINOv3's among them, bind models that were made with a network's outputs."
    )


def without_folders(word: str) -> str:
    """Return a word of a command with each file's name alone, because names of folders are private."""
    option, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
    if value.startswith(_NO_FILES):
        return word.partition("?")[0]  # a query may hold a secret
    return option + equals + (PurePath(value).name or value)


def _config_of_run(checkpoint: Path) -> dict[str, Any]:
    """Return config.json of the run that wrote a checkpoint, or {} for weights without a run."""
    folder = Path(os.path.abspath(checkpoint)).parent.parent  # a name alone has no parents
    with input_errors(folder):
        try:
            config: dict[str, Any] = RUN_CONFIG.of(folder)
        except (FileNotFoundError, NotADirectoryError, NoRecord):
            return {}
    return config if "command" in config else {}


def _table(results: Sequence[Mapping[str, Any]]) -> str:
    rows = ["| protocol | result | validation images | |", "|---|---|---|---|"]
    for result in sorted(results, key=lambda result: (str(result["protocol"]), str(result.get("date")))):
        numbers = ", ".join(f"{name} {value:g}" for name, value in result["numbers"].items())
        remark = "cut short: not comparable" if result["cut"] else ""
        cells = (result["protocol"], numbers, result["data"].get("num_val") or "", remark)
        rows.append(table_row(plain(str(cell)) for cell in cells))
    return "\n".join(rows)


# timm reads the configuration first, so it is the last to be put in its place.
WEIGHTS, CARD, CONFIG = FILES = ("model.safetensors", "README.md", "config.json")


class Architecture(NamedTuple):
    """A network of timm, by timm's name and the attributes that its `pretrained_cfg` has."""

    name: str
    num_features: int
    first_conv: str
    classifier: str
    arguments: Mapping[str, Any] = MappingProxyType({})


ARCHITECTURES = {
    "resnet18": Architecture("resnet18", 512, "conv1", "fc"),
    "resnet34": Architecture("resnet34", 512, "conv1", "fc"),
    "resnet50": Architecture("resnet50", 2048, "conv1", "fc"),
    "vgg16": Architecture("vgg16_bn", 512, "features.0", "head.fc"),
}


def check_folder(folder: Path, overwrite: bool) -> None:
    """Check that a folder is new, or with `overwrite`, that no file of others would be replaced in it."""
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file, and --to hf writes a folder: choose another name")
    if not overwrite:
        raise ValueError(f"{folder}: exists already; give --overwrite, or choose another name")
    present = [name for name in FILES if os.path.lexists(folder / name)]
    if present and not _is_ours(folder / WEIGHTS):
        raise ValueError(
            f"{folder / present[0]} is no file of an export to hf, so it is not replaced: choose another "
            "folder"
        )


def write_hf_folder(
    folder: Path,
    pretrained: Pretrained,
    tensors: Renamed,
    record: dict[str, Any],
    results: Sequence[Mapping[str, Any]],
) -> list[str]:
    """Write the folder beside its place and rename it, or replace our files in an existing folder.

    At any moment, timm finds the old model, the new one or none.
    """
    place = folder.resolve()  # "." has no name
    architecture = _architecture(pretrained, record["backbone"])
    own_results = results_of(pretrained.record["sha256"], results)
    files = {
        WEIGHTS: TARGETS["hf"].write(tensors.tensors, record),
        CARD: model_card(pretrained, record, architecture.name, own_results, place.name).encode(),
        CONFIG: (json.dumps(_config(architecture, pretrained.input, record), indent=2) + "\n").encode(),
    }
    with (
        output_errors(folder),
        tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{place.name}.") as beside,
    ):
        new = Path(beside) / place.name
        new.mkdir()
        for name, data in files.items():
            write_atomically(new / name, data)
        if place.exists():
            # Without a configuration, timm loads nothing, and so never new weights with an old configuration.
            (place / CONFIG).unlink(missing_ok=True)
            for name in files:
                os.replace(new / name, place / name)
            sync_folder(place)
        else:
            os.rename(new, place)
            sync_folder(place.parent)
    size = sum(map(len, files.values())) / 1e6
    evaluations = f"{len(own_results)} evaluation{'' if len(own_results) == 1 else 's'}"
    hint = "" if results else " (--results RUNS finds them)"
    return [
        f"{folder}: {len(tensors.names)} tensors, {size:,.1f} MB, for hf; the input record is in {CONFIG}",
        f"  timm.create_model({json.dumps(f'local-dir:{folder}')}, pretrained=True, num_classes=0) loads it",
        f"  {CARD}, the model card, has {evaluations}{hint}; fill in its license",
        f"  hf upload YOU/NAME {pasted(folder)} shares it",
    ]


def _architecture(pretrained: Pretrained, name: str) -> Architecture:
    if not is_timm(name):
        return ARCHITECTURES[name]
    network: Any = pretrained.backbone.network
    config = network.pretrained_cfg
    arguments: dict[str, Any] = dict(pretrained.backbone.sizes)  # type: ignore[arg-type, call-overload]
    if config.get("fixed_input_size"):
        # timm would build the network for another size, and interpolate the positions that were learned.
        arguments["img_size"] = config["input_size"][-1]
    first, classifier = config["first_conv"], config["classifier"]
    return Architecture(name.removeprefix(TIMM), network.num_features, first, classifier, arguments)


def _is_ours(weights: Path) -> bool:
    try:
        return weights.exists() and (read_weights_sidecar(weights) or {}).get("to") == "hf"
    except UnreadableError:
        raise
    except ValueError:
        return False


def _config(architecture: Architecture, input: Input, record: dict[str, Any]) -> dict[str, Any]:
    """Return config.json as timm reads it, with the record of `export` beside what timm looks for."""
    arguments = dict(architecture.arguments)
    if input.num_channels != 3:
        arguments["in_chans"] = input.num_channels
    return {
        "architecture": architecture.name,
        "num_classes": 0,
        "num_features": architecture.num_features,
        "global_pool": "avg",
        **({"model_args": arguments} if arguments else {}),
        "pretrained_cfg": {
            "tag": "fastpsl", "custom_load": False,
            "input_size": [input.num_channels, input.size_px, input.size_px], "fixed_input_size": False,
            "interpolation": "bilinear", "crop_pct": 1 / SHORTER_OF_SIZE, "crop_mode": "center",
            "mean": list(input.mean), "std": list(input.std), "num_classes": 0, "pool_size": None,
            "first_conv": architecture.first_conv, "classifier": architecture.classifier,
        },
        "fastpsl": record,
    }  # fmt: skip


FORMAT = 1
# The endings by which readers recognise their files; empty for any, and of the folder.
ENDINGS = {name: target.ending for name, target in TARGETS.items()} | {"onnx": (".onnx",)}


def export(
    checkpoint: str | Path | Pretrained,
    to: str,
    out: Path,
    *,
    overwrite: bool = False,
    backbone: str | None = None,
    input: Input | None = None,
    results: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Write a backbone to `out`, and its input record and origin to OUT.json.

    safetensors and ONNX files hold that record in their metadata instead, and a folder of "hf" in its
    config.json. torchvision, timm and Detectron2 have no MLP, so they get the ResNet-50 of resnet50_mlp, B1
    to B5.
    """
    if to not in EXPORTS:
        raise ValueError(f"--to {to}: {hint(to, EXPORTS)}allowed are {', '.join(EXPORTS)}")
    if to == "hf":
        check_folder(out, overwrite)
    else:
        _check_files(to, out, overwrite)
    pretrained = (
        checkpoint if isinstance(checkpoint, Pretrained) else load_pretrained(checkpoint, backbone, input)
    )
    if to == "onnx":
        data, lines = onnx_bytes(pretrained, _record(pretrained, to))
        with output_errors(out):
            write_atomically(out, data)
        lines = [f"{_size(out, data)}, for onnx; the input record is in its metadata", *lines]
        return "\n".join([str(pretrained), *lines])
    tensors = renamed(pretrained, to)
    record = _record(pretrained, to)
    if tensors.left_out:
        record |= {"backbone": "resnet50", "left_out": tensors.left_out}
    if to == "hf":
        lines = write_hf_folder(out, pretrained, tensors, record, results)
    else:
        lines = _write_state_dict(to, out, tensors, record) + _how_to_load(to, out, pretrained, record)
    if tensors.left_out:
        lines.insert(1, f"  left out: {', '.join(tensors.left_out)}, which {to} has not")
    if pooled := _pooled(to, pretrained, record):
        lines.append(f"  our pooled features: {pooled}")
    table = key_table(list(zip(tensors.names, tensors.tensors, strict=True)))
    return "\n".join([str(pretrained), *lines, *table])


def _write_state_dict(to: str, out: Path, tensors: Renamed, record: dict[str, Any]) -> list[str]:
    data = TARGETS[to].write(tensors.tensors, record)
    json_path = _json_path(to, out)
    with output_errors(out):
        if json_path is not None:
            record["sha256"] = sha256_of_bytes(data)
            write_atomically(json_path, (json.dumps(record, indent=1) + "\n").encode())
        write_atomically(out, data)
    where = "its metadata" if json_path is None else str(json_path)
    num = len(tensors.names)
    lines = [f"{_size(out, data, f'{num} tensors, ')}, for {to}; the input record is in {where}"]
    return lines + ([f"  for {record['model']}"] if "model" in record else [])


def _how_to_load(to: str, out: Path, pretrained: Pretrained, record: Mapping[str, Any]) -> list[str]:
    """Return a line of Python that makes the library's network of ten classes with these weights."""
    name, channels = record["backbone"], pretrained.input.num_channels
    file, library_name = json.dumps(str(out)), "vgg16_bn" if name == "vgg16" else name.removeprefix(TIMM)
    if to == "torchvision" and channels == 3 and "model" not in record:
        model = f"model = torchvision.models.{library_name}(num_classes=10)"
        return [f"  {model}; model.load_state_dict(torch.load({file}), strict=False)"]
    if to == "timm":
        arguments = dict(pretrained.backbone.sizes) if is_timm(name) else {}  # type: ignore[arg-type, call-overload]
        overlay = f"file={file}"
        if channels != 3:  # timm 1.0.15 would convert the filters from RGB, or drop them
            arguments["in_chans"], overlay = channels, f"{overlay}, first_conv=None"
        more = "".join(f", {key}={value!r}" for key, value in arguments.items())
        made = f'timm.create_model("{library_name}", pretrained=True, num_classes=10{more}'
        return [f"  {made}, pretrained_cfg_overlay=dict({overlay}))"]
    return []


def _pooled(to: str, pretrained: Pretrained, record: Mapping[str, Any]) -> str:
    """Return code with the library's `model` that gives our pooled features; empty where there is none."""
    name = record["backbone"]
    if to in ("timm", "hf"):
        backbone: Any = pretrained.backbone
        whole = "model(x), with num_classes=0"
        return backbone.pooled_by_timm() if is_timm(name) else whole
    if to == "torchvision" and "model" not in record:
        return f"model(x), with model.{'classifier[6]' if name == 'vgg16' else 'fc'} = torch.nn.Identity()"
    return ""


def _size(out: Path, data: bytes, what: str = "") -> str:
    return f"{out}: {what}{len(data) / 1e6:,.1f} MB"


def _json_path(to: str, out: Path) -> Path | None:
    """Return where the record goes, or None where the file itself holds it."""
    return None if to in ("safetensors", "onnx") else out.with_name(f"{out.name}.json")


def _check_files(to: str, out: Path, overwrite: bool) -> None:
    if out.is_dir():
        raise ValueError(f"{out} is a folder: name a file in it, such as {out / f'model{_ending(to)}'}")
    if ENDINGS[to] and out.suffix not in ENDINGS[to]:
        endings = " or *".join(ENDINGS[to])
        reader = f"{to} tells its files" if to in TARGETS else "readers of ONNX tell their files"
        raise ValueError(f"{out}: {reader} by their ending; call it *{endings}")
    for path in (out, _json_path(to, out)):
        if path is not None and path.exists() and not overwrite:
            raise ValueError(f"{path}: exists already; remove it, give --overwrite, or choose another name")


def _ending(to: str) -> str:
    return (*ENDINGS[to], ".pth")[0]


def _record(pretrained: Pretrained, to: str) -> dict[str, Any]:
    record = pretrained.record
    details = {
        "format": FORMAT,
        "to": to,
        "backbone": record["backbone"],
        "input": pretrained.input.as_dict(),
        # Only the file's name, because exported files are shared and folder names are private.
        "source": {"name": Path(record["path"]).name, "sha256": record["sha256"], "kind": record["kind"]},
        **{name: record[name] for name in ("run_step", "science", "cut")},
        "left_out": [],
    }
    if "path" in (origin := (record["science"] or {}).get("initial_weights") or {}):
        origin = origin | {"path": without_folders(origin["path"])}
        details["science"] = record["science"] | {"initial_weights": origin}
    if to == "torchvision" and record["backbone"] == "resnet18_cifar":
        details["model"] = (
            f"torchvision.models.resnet18() with conv1 = torch.nn.Conv2d({pretrained.input.num_channels}, "
            "64, 3, padding=1, bias=False) and maxpool = torch.nn.Identity()"
        )
    if to == "detectron2":
        details["detectron2"] = detectron2_config(record["backbone"], pretrained.input)
    return details
