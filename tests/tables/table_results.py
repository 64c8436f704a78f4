"""Write results and runs by hand, and read printed commands, for the tests of tables."""

import dataclasses
import json
import shlex
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fastpsl.commands.features import TSNE, Retrieve
from fastpsl.commands.labels import Clusters, MakeLabels
from fastpsl.commands.train import split
from fastpsl.evaluation.result import write_result
from fastpsl.kernels.permutations import permutation_set
from fastpsl.models.checkpoint import CheckpointManager
from fastpsl.scripts.command_line import parse
from fastpsl.scripts.recipe_files import EVAL, TRAIN, find_recipe
from fastpsl.tables.data_sets import Digests
from fastpsl.tables.matching import Missing, Place
from fastpsl.tables.paper_file import TABLES
from fastpsl.tables.report import Report, make_report
from fastpsl.tables.results import index_runs
from fastpsl.tables.rows import CLUSTERS, COUPLED, VISSL, Evaluation, Weights
from fastpsl.tables.rows import TSNE as OF_TSNE
from fastpsl.tables.scales import SCALES, Scale, plain
from fastpsl.tasks.jigsaw import permutations_digest
from fastpsl.transfer.classification import task as multilabel_protocols

PAPER, TINY = SCALES["paper"], SCALES["tiny"]
PSL = Weights("resnet50", "jigsaw_r50", "psl")
END_TO_END = Weights("resnet50", "jigsaw_r50", "end_to_end")
DIGESTS = {"train": "a" * 32, "val": "b" * 32}
RAW = Weights("alexnet", "uic_alexnet", "end_to_end")
TUNED = replace(RAW, variant="tuned", base=RAW)
IIC = Weights("resnet34_iic", "sslpp_iic", "end_to_end")
ROTATION = Weights("nin4", "sslpp_rotation", "end_to_end")
BLOCKS = {"top1_B1": 10.0, "top1_B2": 20.0, "top1_B3": 30.0, "top1_B4": 40.0, "top1_B5": 35.0}


def put(
    runs: Path,
    weights: Weights = PSL,
    evaluation: Evaluation = VISSL,
    numbers: dict[str, float] = BLOCKS,
    *,
    scale: Scale = TINY,
    seed: int = 0,
    name: str = "",
    data: dict[str, str] = DIGESTS,
    science: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """Write a result.json as an evaluation does, and return its path.

    `name` is the folder below `runs`; by default one that tells nothing. Besides "train" and "val", `data`
    may have the digest of other images that the weights learned from: "pretrain", or "own" even if they
    learned from labels. `science`, `settings` and `changes` replace values; those of "checkpoint" are merged.
    """
    folder = runs / (name or f"run-{sum(1 for _ in runs.rglob('result.json'))}")
    folder.mkdir(parents=True)
    trained = None
    if weights.recipe:
        learned = data["train"] if weights.with_labels else data.get("pretrain", data["train"])
        learned = data.get("own", learned)
        trained = science_of(weights, scale, seed, learned) | (science or {})
    checkpoint = {
        "path": str(runs / "gone" / "checkpoints" / "step-00000001.pt"),
        "sha256": "c" * 64,
        "science": trained,
        "input": {"channels": scale.channels(weights)},
    }
    checkpoint |= {"kind": "fastpsl" if weights.recipe else "random", "backbone": weights.backbone}
    data_record: dict[str, Any] = {"num_train": 480, "num_val": 160, **data}
    for learned_from in ("pretrain", "own"):
        data_record.pop(learned_from, None)
    all_settings = scale.evaluation_settings(evaluation) | {"seed": seed}
    if evaluation == CLUSTERS:
        data_record |= {"num_val": None, "val": None}
        all_settings["labels"] = str(runs / "gone" / "labels.npz")
    if evaluation == OF_TSNE or "mini_imagenet" in evaluation.reads:  # of validation pictures alone
        data_record |= {"train": data_record["val"], "num_train": 160, "val": None, "num_val": None}
    record = {
        "recipe": evaluation.recipe, "protocol": evaluation.protocol, "numbers": numbers,
        "settings": all_settings | (settings or {}), "checkpoint": checkpoint | changes.pop("checkpoint", {}),
        "data": data_record, "seconds": 1.0, "cut": False,
    }  # fmt: skip
    return write_result(folder, **{**record, **changes})


def science_of(weights: Weights, scale: Scale, seed: int, digest: str) -> dict[str, Any]:
    """Return the science of the run that trains the weights from the images with this digest."""
    science = scale.training_science(weights) | {"seed": seed, "data_digest": digest, "precision": "fp32"}
    if weights.recipe and weights.recipe.startswith("sslpp_") and weights.recipe != "sslpp_iic":
        science["pseudo_labels"] = {"source": "none"}
    if isinstance(weights.labels, Weights):
        of_labels = science_of(weights.labels, scale, seed, digest)
        science["pseudo_labels"] = of_labels | {"source": "iic", "num_classes": of_labels["num_clusters"]}
    elif weights.labels == COUPLED:
        science["pseudo_labels"] = {"source": COUPLED, "num_classes": science["num_clusters"]}
    elif weights.labels:
        science["pseudo_labels"] = {"source": weights.labels, **scale.label_science(weights.labels)}
        science["pseudo_labels"] |= {} if weights.labels == "true" else {"seed": seed}
    if weights.base:
        science |= {"fine_tune": "d" * 64, "fine_tuned": science_of(weights.base, scale, seed, digest)}
    return science


GIVEN = {"train": "T.beton", "val": "V.beton", "pretrain": "P.beton"}


def report(
    runs: Path,
    table: str = "psl/5",
    scale: Scale = TINY,
    asked: Digests | None = None,
    given: Mapping[str, str] = GIVEN,
    num_images: Mapping[str, int] = MappingProxyType({}),
) -> Report:
    place = Place(runs, 1, given, num_images)
    return make_report(TABLES[table], scale, index_runs(runs), asked or {}, place)


def ours(made: Report, method: str) -> list[str]:
    return [str(cell.ours) for cell in made.cells[method]]


def parsed(command: str) -> tuple[str, Any]:
    """Return the recipe and the options of a printed command, by the recipe's own parser.

    An evaluation takes what its command lacks from its run. Trainings that differ in folders alone are parsed
    once.
    """
    program, *words = shlex.split(command)
    (verb, short, *_), flags = split(words)  # without --gpus
    assert program == "fastpsl" and verb in ("train", "eval")
    place, name = flags.index("--out") + 1, {**TRAIN, **EVAL}[short]
    out, flags[place] = Path(flags[place]), "folder"
    return name, replace(_parsed(name, *flags), out=out)


@cache
def _parsed(name: str, *flags: str) -> Any:
    return find_recipe(name).parse(flags)


def put_trained(folder: Path, data: str, val: str, input: dict[str, Any]) -> None:
    """Write what evaluations read of a run: its data and the input of its network."""
    position = {"run_step": 1, "summaries": []}
    state = {"backbone": {}, "science": {}, "input": input, "position": position, "num_stages": 1}
    CheckpointManager(folder / "checkpoints").save(1, state)
    (folder / "config.json").write_text(json.dumps({"options": {"data": data, "val": val}}))


COMMANDS = {"clusters": Clusters, "labels": MakeLabels, "retrieve": Retrieve, "tsne": TSNE}


def parsed_command(command: str) -> Any:
    """Return the options of a printed `fastpsl clusters`, labels, retrieve or tsne."""
    program, name, *words = shlex.split(command)
    assert program == "fastpsl"
    return parse(COMMANDS[name], words, prog="fastpsl")


def effective(options: Any) -> dict[str, Any]:
    """Return the options as result.json records them, with the values of the protocol that they name."""
    constants = options.constants() if hasattr(options, "constants") else {}
    if isinstance(constants, multilabel_protocols.MultiLabelProtocol):
        constants = multilabel_protocols.constants_of(constants, options.layers)
    elif dataclasses.is_dataclass(constants):
        constants = dataclasses.asdict(constants)  # type: ignore[arg-type]
    values = options.as_dict() | constants | {"batch_size": options.batch_size}
    return {name: plain(value) for name, value in values.items()}


@cache
def of_made_permutations(num_pieces: int, counts: tuple[int, ...]) -> str:
    return permutations_digest(permutation_set(num_pieces, counts).permutations)


def missing_of(runs: Path, weights: Weights, table: str = "psl/5", scale: Scale = TINY) -> list[Missing]:
    return [missing for missing in report(runs, table, scale).missing if missing.weights == weights]


def commands_of(made: Report, method: str, seed: int = 0) -> list[str]:
    """Return the commands of a method that a seed misses."""
    return [
        command
        for missing in made.missing
        if made.method_of(missing.weights) == method and missing.seed == seed
        for command in missing.commands
    ]


def put_run(
    runs: Path,
    name: str,
    *,
    state: str = "finished",
    checkpoint: bool = True,
    cut: bool = False,
    options: dict[str, Any] | None = None,
    **science: Any,
) -> Path:
    """Write the folder of a training run, and return it."""
    folder = runs / name
    (folder / "checkpoints").mkdir(parents=True)
    of_run = TINY.training_science(PSL) | {"seed": 0, "data_digest": DIGESTS["train"]} | science
    (folder / "config.json").write_text(json.dumps({"options": options or {}, "science": of_run}))
    (folder / "status.json").write_text(json.dumps({"state": state}))
    steps = {"num_steps": 1 if cut else 5, "num_steps_planned": 5}
    if state == "finished":
        (folder / "results.json").write_text(json.dumps([steps]))
    if checkpoint:
        (folder / "checkpoints" / "step-00000005.pt").write_bytes(b"")
    return folder
