"""The model card of exported weights: README.md as the Hugging Face Hub shows it."""

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from fastpsl.console.words import number_of
from fastpsl.models.markdown import block, code, plain, table_row
from fastpsl.models.weights import Pretrained

# Values of a command that have a slash and name no file.
_NO_FILES = ("timm/",)
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

    Args:
        pretrained: The weights.
        record: The record of `export`.
        architecture: timm's name of the network.
        results: Records of result.json files of these weights.
        folder: The name of the exported folder.
    """
    science = record["science"] or {}
    config = _config_of_run(Path(pretrained.record["path"]))
    recipe = science.get("recipe")
    kind = plain(record["source"]["kind"])
    trained = f"trained by the recipe {code(str(recipe))} of fastpsl" if recipe else f"of {kind}"
    title = f"# {plain(folder)}"
    about = (
        f"A {plain(record['backbone'])} without classifier, {trained}. timm calls the network "
        f"{code(architecture)}."
    )
    sections = [_header(recipe), title, about]
    if record["cut"]:
        sections.append("**The training was cut short: these weights are of a trial and worth nothing.**")
    return (
        "\n\n".join(
            [
                *sections,
                "## How to load it",
                _how_to_load(pretrained, folder),
                "## Input",
                f"{pretrained.input.in_words()}. The training's crops had {pretrained.input.size_px} px.",
                "## Training",
                *_training(science, config, record),
                "## Evaluations",
                _table(results) if results else "None is recorded here.",
                "",
            ]
        ).rstrip("\n")
        + "\n"
    )


def results_of(sha256: str, results: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the records of result.json files whose checkpoint has this SHA-256."""
    return [record for record in results if (record.get("checkpoint") or {}).get("sha256") == sha256]


def _header(recipe: str | None) -> str:
    self_supervised = [] if recipe in (None, "supervised") else ["- self-supervised-learning"]
    return "\n".join(
        [
            "---",
            "library_name: timm",
            "pipeline_tag: image-feature-extraction",
            "# license: fill it in; without one, nobody may use the weights",
            "# datasets: fill in the Hub's names of the training images, as a list",
            "tags:",
            "- timm",
            "- fastpsl",
            "- image-feature-extraction",
            *self_supervised,
            "---",
        ]
    )


def _how_to_load(pretrained: Pretrained, folder: str) -> str:
    lines = _HOW_TO_LOAD.format(folder=json.dumps(folder, ensure_ascii=False)[1:-1])
    if pretrained.input.channels == "RGB":
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


def without_folders(word: str) -> str:
    """Return a word of a command with each file's name alone, because names of folders are private."""
    option, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
    if value.startswith(_NO_FILES):
        return word
    return option + equals + (PurePath(value).name or value)


def _config_of_run(checkpoint: Path) -> dict[str, Any]:
    """Return config.json of the run that wrote a checkpoint, or {} for weights without a run."""
    try:
        config = json.loads((checkpoint.parent.parent / "config.json").read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) and "command" in config else {}


def _table(results: Sequence[Mapping[str, Any]]) -> str:
    rows = ["| protocol | result | validation images | |", "|---|---|---|---|"]
    for result in sorted(results, key=lambda result: (str(result["protocol"]), str(result.get("date")))):
        numbers = ", ".join(f"{name} {value:g}" for name, value in result["numbers"].items())
        remark = "cut short: not comparable" if result["cut"] else ""
        cells = (result["protocol"], numbers, result["data"].get("num_val") or "", remark)
        rows.append(table_row(plain(str(cell)) for cell in cells))
    return "\n".join(rows)
