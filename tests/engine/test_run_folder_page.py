"""docs/reference/run_folder.md names every file that runs and evaluations leave, and every field in them."""

import json
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fastpsl
from fastpsl.engine.options import SGDOptions
from fastpsl.evaluation.options import EvaluationOptions
from fastpsl.pipelines.sample.betons import sample_paths
from fastpsl.tasks.pseudo_labels.file import write_labels
from fastpsl.tasks.pseudo_labels.scores import label_figures
from tests.api_runs import pretrain
from tests.programs import ROOT

PAGE = (ROOT / "docs" / "reference" / "run_folder.md").read_text()
NAMED = {word for code in re.findall(r"`([^`\n]+)`", PAGE) for word in re.split(r"[\s,:]+", code)}
# The numbers in names of files: steps, levels and blocks.
EXAMPLES = {"step-00000002.pt": "step-00000090.pt", "contact-sheet-G3.png": "contact-sheet-G1.png"}
SHARED = {field.name for field in (*fields(SGDOptions), *fields(EvaluationOptions))}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = pretrain(tmp_path_factory.mktemp("page") / "run", probe_every=1, tensorboard=True)
    paths = sample_paths()
    values: dict[str, Any] = {
        "data": paths.train_32,
        "val": paths.test_32,
        "size_px": 32,
        "batch_size": 32,
        "workers": 1,
    }
    fastpsl.evaluate.knn(run, out=run.folder / "knn", k=(1,), **values)
    return run.folder


def keys(value: Any) -> Iterator[str]:
    """Yield the keys of an object and of the objects in it.

    The values of options and protocols and the numbers of an evaluation have names of their own.
    """
    for each in value if isinstance(value, list) else ():
        yield from keys(each)
    for key, inner in value.items() if isinstance(value, dict) else ():
        yield key
        if key not in ("options", "science", "settings", "numbers", "val"):
            yield from keys(inner)


def objects(path: Path) -> list[Any]:
    text = path.read_text()
    return [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else [json.loads(text)]


def test_every_file_is_named(folder: Path) -> None:
    files = {path.name for path in folder.rglob("*") if path.is_file()}
    files = {EXAMPLES.get(name, name) for name in files if not name.startswith("events.out.tfevents")}
    features = {f"{name}{end}" for name in ("train", "val") for end in (".json", "-labels.npy")}
    assert files - features <= NAMED, files - features - NAMED
    assert {"tensorboard/", "B4.json", "B4-labels.npy"} <= NAMED and features <= files


def test_every_field_of_a_json_file_is_named(folder: Path) -> None:
    paths = [path for path in folder.rglob("*") if path.suffix in (".json", ".jsonl")]
    names = {path.name for path in paths}
    assert {"config.json", "metrics.jsonl", "probe.jsonl", "result.json", "train.json"} <= names
    for path in paths:
        found = {key for each in objects(path) for key in keys(each)}
        assert found <= NAMED, (path.name, found - NAMED)
    assert SHARED <= NAMED, SHARED - NAMED
    config = json.loads((folder / "config.json").read_text())
    assert set(config["science"]) - set(config["options"]) <= NAMED


def test_every_part_of_a_checkpoint_is_named(folder: Path) -> None:
    (path,) = (folder / "checkpoints").iterdir()
    state = torch.load(path, weights_only=True)
    found = {*state, *state["position"], *state["train_step"], *state["choices"], *state["input"]}
    assert found <= NAMED, found - NAMED
    assert {"world_size", "device"} <= state["machine"].keys() & NAMED


def test_figures_and_files_of_pseudo_labels_are_named(tmp_path: Path) -> None:
    labels = np.array([0, 1, 1])
    assert label_figures(labels, labels, labels, 2, 0).keys() <= NAMED

    class Data:
        num_samples, split = 3, ""

        def digest(self) -> str:
            return "0"

    path = write_labels(tmp_path / "labels.npz", labels, 2, Data(), "a test")  # type: ignore[arg-type]
    with np.load(path) as file:
        assert set(file.files) <= NAMED
