"""A folder that timm loads and the Hugging Face Hub shows: weights, configuration and model card."""

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from fastpsl.files.atomic import output_errors, sync_folder, write_atomically
from fastpsl.models.model_card import model_card, results_of
from fastpsl.models.names import TIMM, is_timm
from fastpsl.models.state_dict_files import TARGETS, Renamed
from fastpsl.models.weight_files import read_weights_sidecar
from fastpsl.models.weights import Pretrained
from fastpsl.pipelines.views import SHORTER_OF_SIZE, Input

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
    """Check that a folder is new, or with `overwrite`, that no file of others would be replaced in it.

    Raises:
        ValueError: It exists and must not be written to.
    """
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

    Args:
        folder: The folder, which `check_folder` has passed.
        pretrained: The backbone.
        tensors: Its tensors under timm's names.
        record: The record for the metadata of the weights and for config.json's entry "fastpsl".
        results: Records of result.json files, of which the card shows those of this checkpoint.

    Returns:
        Lines for the terminal.

    Raises:
        ValueError: safetensors is missing, or the folder cannot be written.
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
        f'  timm.create_model("local-dir:{folder}", pretrained=True, num_classes=0) loads it',
        f"  {CARD}, the model card, has {evaluations}{hint}; fill in its license",
        f"  hf upload YOU/NAME {folder} shares it",
    ]


def _architecture(pretrained: Pretrained, name: str) -> Architecture:
    if not is_timm(name):
        return ARCHITECTURES[name]
    network: Any = pretrained.backbone.network
    config, sizes = network.pretrained_cfg, pretrained.backbone.sizes
    return Architecture(
        name.removeprefix(TIMM),
        network.num_features,
        config["first_conv"],
        config["classifier"],
        sizes,  # type: ignore[arg-type]
    )


def _is_ours(weights: Path) -> bool:
    try:
        return (read_weights_sidecar(weights) or {}).get("to") == "hf"
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
            "tag": "fastpsl",
            "custom_load": False,
            "input_size": [input.num_channels, input.size_px, input.size_px],
            "fixed_input_size": False,
            "interpolation": "bilinear",
            "crop_pct": 1 / SHORTER_OF_SIZE,
            "crop_mode": "center",
            "mean": list(input.mean),
            "std": list(input.std),
            "num_classes": 0,
            "pool_size": None,
            "first_conv": architecture.first_conv,
            "classifier": architecture.classifier,
        },
        "fastpsl": record,
    }
