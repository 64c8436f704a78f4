"""The model card: what it says, of whom, and what it keeps private."""

import json
from pathlib import Path
from typing import Any

import pytest

from fastpsl.models.export import model_card, results_of, without_folders
from fastpsl.models.weights import Pretrained, load_pretrained
from tests.models.test_export import checkpoint

yaml = pytest.importorskip("yaml")

RECORD: dict[str, Any] = {
    "backbone": "nin3",
    "source": {"name": "step-00000005.pt", "sha256": "abc", "kind": "fastpsl"},
    "run_step": 1005,
    "science": {"recipe": "rotation_rv50", "lr": 0.03},
    "cut": False,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    checkpoint(folder, "nin3")
    command = ["/secret/recipes/rotation_rv50.py", "--data", "/secret/client/train-*.beton", "--lr", "0.03"]
    (folder / "config.json").write_text(json.dumps({"options": {}, "science": {}, "command": command}))
    return folder


@pytest.fixture
def pretrained(run: Path) -> Pretrained:
    return load_pretrained(run)


def result(sha256: str, protocol: str, cut: bool = False) -> dict[str, Any]:
    return {
        "checkpoint": {"sha256": sha256},
        "protocol": protocol,
        "numbers": {"top1_B4": 34.25, "top1_B5": 30.0},
        "data": {"num_val": 5000},
        "cut": cut,
    }


def test_the_header_is_yaml_without_a_license(pretrained: Pretrained) -> None:
    card = model_card(pretrained, RECORD, "resnet18", [], "mine")
    before, header, text = card.split("---\n", 2)
    assert before == "" and text.startswith("\n# mine\n")
    assert yaml.safe_load(header) == {
        "library_name": "timm",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["timm", "fastpsl", "image-feature-extraction", "self-supervised-learning"],
    }
    assert "# license: fill it in" in header
    assert "self-supervised" not in model_card(
        pretrained, RECORD | {"science": {"recipe": "supervised"}}, "resnet18", [], "mine"
    )


def test_it_says_how_the_weights_came_about_without_folders(pretrained: Pretrained, run: Path) -> None:
    card = model_card(pretrained, RECORD, "resnet18", [], "mine")
    assert "\nrotation_rv50.py --data 'train-*.beton' --lr 0.03\n" in card
    assert "secret" not in card and str(run) not in card
    assert "From `step-00000005.pt`, after 1,005 steps, SHA-256 `abc`." in card
    assert '"recipe": "rotation_rv50"' in card
    assert "RGB in [0, 1], minus mean 0.4 0.5 0.6, divided by std 0.2 0.25 0.3" in card
    assert 'timm.create_model("hf-hub:YOU/mine", pretrained=True, num_classes=0)' in card
    assert "cut short" not in card and "None is recorded here." in card
    assert "**The training was cut short" in model_card(
        pretrained, RECORD | {"cut": True}, "resnet18", [], "mine"
    )


def test_others_weights_have_no_run(pretrained: Pretrained, run: Path) -> None:
    pretrained.record["path"] = "/nowhere/moco.pth.tar"
    others = RECORD | {"science": None, "run_step": None, "source": RECORD["source"] | {"kind": "moco"}}
    card = model_card(pretrained, others, "resnet18", [], "mine")
    assert "A nin3 without classifier, of moco." in card
    assert "From `step-00000005.pt`, SHA-256 `abc`." in card
    assert "The command" not in card and "settings" not in card and "self-supervised" not in card


def test_results_of_these_weights_alone(pretrained: Pretrained) -> None:
    mine = [result("abc", "linear|vissl"), result("abc", "knn", cut=True)]
    chosen = results_of("abc", [result("abd", "knn"), *mine, {"checkpoint": None}])
    assert chosen == mine
    card = model_card(pretrained, RECORD, "resnet18", chosen, "mine")
    assert card.endswith(
        "| protocol | result | validation images | |\n|---|---|---|---|\n"
        "| knn | top1_B4 34.25, top1_B5 30 | 5000 | cut short: not comparable |\n"
        "| linear\\|vissl | top1_B4 34.25, top1_B5 30 | 5000 |  |\n"
    )


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("runs/secret/x.pt", "x.pt"),
        ("--data=/secret/train-*.beton", "--data=train-*.beton"),
        ("/", "/"),
        ("timm/resnet18", "timm/resnet18"),
        ("--backbone=timm/resnet18", "--backbone=timm/resnet18"),
        ("--lr", "--lr"),
        ("", ""),
    ],
)
def test_without_folders(word: str, expected: str) -> None:
    assert without_folders(word) == expected
