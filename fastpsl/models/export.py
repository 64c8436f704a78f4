"""The work of `fastpsl export`: write a backbone in another library or format."""

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastpsl.files.atomic import output_errors, write_atomically
from fastpsl.models.hf_folder import check_folder, write_hf_folder
from fastpsl.models.names import EXPORTS, TIMM, is_timm
from fastpsl.models.onnx_file import onnx_bytes
from fastpsl.models.state_dict_files import TARGETS, Renamed, detectron2_config, renamed
from fastpsl.models.tensor_table import key_table
from fastpsl.models.weight_files import sha256_of_bytes
from fastpsl.models.weights import Pretrained, load_pretrained
from fastpsl.pipelines.views import Input

FORMAT = 1
# The endings by which readers recognise their files; empty for any, and of the folder.
ENDINGS = {name: target.ending for name, target in TARGETS.items()} | {"onnx": (".onnx",)}


def export(
    checkpoint: Path | Pretrained,
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

    Args:
        checkpoint: Any source that `load_pretrained` reads, or the weights themselves.
        to: "torchvision", "timm", "detectron2", "safetensors", "onnx" or "hf".
        out: The file to write; of "hf", the folder.
        overwrite: Whether to replace existing files.
        backbone: The backbone's name, where `checkpoint` does not record it.
        input: The input that the weights expect, where `checkpoint` does not record it.
        results: Records of result.json files. The model card of "hf" shows those of this checkpoint.

    Returns:
        Lines for the terminal: the source, the files and a table of renamed tensors.

    Raises:
        ValueError: The library lacks this backbone or needs another file ending, `out` exists, or a package
            is missing.
    """
    if to not in EXPORTS:
        near = difflib.get_close_matches(to.lower(), EXPORTS, n=2)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(f"--to {to}: allowed are {', '.join(EXPORTS)}{hint}")
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
    if to == "torchvision" and record["backbone"] == "resnet18_cifar":
        details["model"] = (
            f"torchvision.models.resnet18() with conv1 = torch.nn.Conv2d({pretrained.input.num_channels}, "
            "64, 3, padding=1, bias=False) and maxpool = torch.nn.Identity()"
        )
    if to == "detectron2":
        details["detectron2"] = detectron2_config(record["backbone"], pretrained.input)
    return details
