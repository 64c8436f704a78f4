"""A folder for the Hub: what timm reads, how files are replaced, the model card and its Markdown."""

import json
import os
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode
from PIL import Image
from torch import nn

from fastpsl.console.markdown import block, code, plain, table_row
from fastpsl.console.terminal import escaped
from fastpsl.models import export as module
from fastpsl.models.export import export, model_card, results_of, without_folders
from fastpsl.models.initial_weights import load_pretrained
from fastpsl.models.weights import Pretrained
from fastpsl.pipelines.views import Input
from tests.models.test_export import SEEN, assert_same_features, checkpoint
from tests.slow import slow

EXPORT_PAGE = Path(__file__).resolve().parents[2] / "docs" / "how_to" / "weights.md"
FILES = ["README.md", "config.json", "model.safetensors"]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.socket.connect", refuse)


def refuse(*_: object) -> None:
    raise AssertionError("a connection to the network")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def from_folder(timm: Any) -> Callable[[Path], Any]:
    """Return a function that has timm load a folder."""
    return lambda folder: timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0)


def test_timm_loads_the_folder_and_its_transform(
    run: tuple[Path, nn.Module], tmp_path: Path, timm: Any, from_folder: Any
) -> None:
    out = tmp_path / "resnet18"
    output = export(run[0], "hf", out)
    assert names(tmp_path) == ["resnet18"] and names(out) == FILES
    model = from_folder(out)
    assert_same_features(run[1], model)
    settings = timm.data.resolve_model_data_config(model)
    assert (tuple(settings["mean"]), tuple(settings["std"])) == (SEEN.mean, SEEN.std)
    assert tuple(settings["input_size"]) == (3, 48, 48) and settings["crop_pct"] == 224 / 256
    assert f'timm.create_model("local-dir:{out}", pretrained=True, num_classes=0)' in output
    assert "has 0 evaluations (--results RUNS finds them)" in output
    # Ours reads the weights, too.
    result = load_pretrained(out / "model.safetensors")
    assert result.input == SEEN and result.record["run_step"] == 5
    assert out.stat().st_mode & 0o777 == 0o777 & ~current_umask()


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_the_hubs_way_loads_it_from_the_cache(
    run: tuple[Path, nn.Module], tmp_path: Path, timm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0" * 40
    place = tmp_path / "models--someone--resnet18"
    (place / "snapshots").mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    export(run[0], "hf", place / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    name = "hf-hub:someone/resnet18"
    model = timm.create_model(name, pretrained=True, num_classes=0, cache_dir=str(tmp_path))
    assert_same_features(run[1], model)


def test_a_step_of_fine_tuning_as_documented(
    run: tuple[Path, nn.Module], tmp_path: Path, timm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    export(run[0], "hf", Path("resnet18-rotation"))
    (code,) = re.findall(r"```python\n(import timm\n.*?)```", EXPORT_PAGE.read_text(), re.DOTALL)
    Path("snippet.py").write_text(code)
    names = runpy.run_path("snippet.py")
    model = names["model"]
    assert torch.equal(model.conv1.weight, run[1].state_dict()["conv1.weight"])
    noise = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    image = names["transform"](Image.fromarray(noise))
    images, labels = torch.stack([image, -image]), torch.tensor([3, 9])
    model.eval()  # two images make poor statistics
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3)
    before = nn.functional.cross_entropy(model(images), labels)
    before.backward()
    optimiser.step()
    assert nn.functional.cross_entropy(model(images), labels) < before


@pytest.mark.parametrize(("channels", "num"), [("L", 1), slow("Sobel", 3), slow("SobelXY", 2)])
def test_networks_of_other_channels_keep_their_first_convolution(
    channels: str, num: int, tmp_path: Path, from_folder: Any
) -> None:
    network = checkpoint(tmp_path, "resnet18", Input.usual(channels, 48))
    export(tmp_path, "hf", tmp_path / "hf")
    assert_same_features(network, from_folder(tmp_path / "hf"), channels=num)
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "No transform of timm makes this network's input" in card and "create_transform" not in card
    assert Input.usual(channels, 48).in_words() in card


@pytest.mark.slow
@pytest.mark.parametrize(("name", "num_features"), [("resnet34", 512), ("resnet50", 2048), ("vgg16", 512)])
def test_other_networks(name: str, num_features: int, tmp_path: Path, from_folder: Any) -> None:
    """The number of features is the published one."""
    network = checkpoint(tmp_path, name)
    export(tmp_path, "hf", tmp_path / "hf")
    assert_same_features(network, from_folder(tmp_path / "hf"))
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["num_features"] == num_features


@pytest.mark.slow
def test_the_mlp_is_left_out(tmp_path: Path, from_folder: Any) -> None:
    network = checkpoint(tmp_path, "resnet50_mlp")
    assert "left out: mlp.*, which hf has not" in export(tmp_path, "hf", tmp_path / "hf")
    assert_same_features(nn.Sequential(*network.blocks()[:5]), from_folder(tmp_path / "hf"))  # type: ignore[operator]


def assert_whole(folder: Path, network: nn.Module) -> None:
    assert json.loads((folder / "config.json").read_text())["architecture"] == "resnet18"
    assert "library_name: timm" in (folder / "README.md").read_text()
    state = load_pretrained(folder / "model.safetensors").backbone.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("name", ["nin3", "resnet18_cifar"])
def test_what_timm_has_not_is_refused(name: str, tmp_path: Path) -> None:
    checkpoint(tmp_path, name)
    with pytest.raises(ValueError, match=f"hf has no {name}: --to safetensors writes it"):
        export(tmp_path, "hf", tmp_path / "hf")
    assert names(tmp_path) == ["checkpoints"]


def test_overwriting_replaces_our_files_and_no_others(run: tuple[Path, nn.Module], tmp_path: Path) -> None:
    out = tmp_path / "hf"
    export(run[0], "hf", out)
    with pytest.raises(ValueError, match=r"hf: exists already; give --overwrite"):
        export(run[0], "hf", out)
    (out / "notes.txt").write_text("mine")
    (out / "README.md").write_text("old")
    (out / "config.json").unlink()  # as after an interruption
    export(run[0], "hf", out, overwrite=True)
    assert names(tmp_path) == ["hf"] and names(out) == sorted([*FILES, "notes.txt"])
    assert (out / "notes.txt").read_text() == "mine" and "timm" in (out / "README.md").read_text()
    assert_whole(out, run[1])


def test_an_empty_folder_needs_overwrite(
    run: tuple[Path, nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hf").mkdir()
    monkeypatch.chdir(tmp_path / "hf")
    with pytest.raises(ValueError, match="exists already"):
        export(run[0], "hf", Path())
    export(run[0], "hf", Path(), overwrite=True)
    assert names(tmp_path) == ["hf"] and "# hf\n" in (tmp_path / "hf" / "README.md").read_text()
    assert names(tmp_path / "hf") == FILES


@pytest.mark.parametrize("name", FILES)
def test_others_files_of_the_same_name_are_not_replaced(
    name: str, run: tuple[Path, nn.Module], tmp_path: Path
) -> None:
    """A run's folder, say, has a config.json, too."""
    (tmp_path / name).write_text("another's")
    with pytest.raises(ValueError, match=f"{name} is no file of an export to hf, so it is not replaced"):
        export(run[0], "hf", tmp_path, overwrite=True)
    assert names(tmp_path) == [name] and (tmp_path / name).read_text() == "another's"


def test_a_file_is_no_folder(run: tuple[Path, nn.Module], tmp_path: Path) -> None:
    (tmp_path / "hf").write_text("")
    with pytest.raises(ValueError, match="hf is a file, and --to hf writes a folder"):
        export(run[0], "hf", tmp_path / "hf", overwrite=True)


@pytest.mark.parametrize(
    ("number", "error"), [(1, KeyboardInterrupt()), (2, OSError(28, "No space left on device"))]
)
def test_a_new_folder_is_whole_or_absent(
    number: int,
    error: BaseException,
    run: tuple[Path, nn.Module],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stop_at(number, "write_atomically", module, error, monkeypatch)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else ValueError) as excinfo:
        export(run[0], "hf", tmp_path / "hf")
    if isinstance(error, OSError):
        assert str(excinfo.value) == (
            f"{tmp_path / 'hf'}: cannot be written (No space left on device); free some space or choose "
            "another disk"
        )
    assert names(tmp_path) == []


@pytest.mark.parametrize("number", [0, 2])
def test_an_interrupted_replacement_is_no_mixture(
    number: int, run: tuple[Path, nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "hf"
    export(run[0], "hf", out)
    with monkeypatch.context() as patch:
        # Only the moves into the folder, not those of the files beside it.
        patch.setattr(module, "os", Counted(number))
        with pytest.raises(KeyboardInterrupt):
            export(run[0], "hf", out, overwrite=True)
    assert names(tmp_path) == ["hf"]
    assert "config.json" not in names(out)  # without which timm loads nothing
    export(run[0], "hf", out, overwrite=True)
    assert_whole(out, run[1])


class Counted:
    """The module os, whose `replace` is interrupted at its call of a number."""

    def __init__(self, number: int):
        self.left = number

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def replace(self, old: Path, new: Path) -> None:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        os.replace(old, new)


def stop_at(number: int, function: str, module: Any, error: BaseException, patch: pytest.MonkeyPatch) -> None:
    right, calls = getattr(module, function), iter(range(100))

    def stopping(*arguments: Any) -> None:
        if next(calls) == number:
            raise error
        right(*arguments)

    patch.setattr(module, function, stopping)


def test_a_place_that_cannot_be_written_is_named(run: tuple[Path, nn.Module], tmp_path: Path) -> None:
    out = tmp_path / "no" / "hf"
    with pytest.raises(ValueError) as excinfo:
        export(run[0], "hf", out)
    assert str(excinfo.value) == (
        f"{out}: cannot be written (No such file or directory); choose a folder that can be written"
    )


RECORD: dict[str, Any] = {
    "backbone": "nin3",
    "source": {"name": "step-00000005.pt", "sha256": "abc", "kind": "fastpsl"},
    "run_step": 1005,
    "science": {"recipe": "rotation_rv50", "lr": 0.03},
    "cut": False,
}


@pytest.fixture(scope="module")
def card_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    checkpoint(folder, "nin3")
    command = ["/secret/recipes/rotation_rv50.py", "--data", "/secret/client/train-*.beton", "--lr", "0.03"]
    (folder / "config.json").write_text(json.dumps({"options": {}, "science": {}, "command": command}))
    return folder


@pytest.fixture
def pretrained(card_run: Path) -> Pretrained:
    return load_pretrained(card_run)


def result(sha256: str, protocol: str, cut: bool = False) -> dict[str, Any]:
    return {
        "checkpoint": {"sha256": sha256}, "protocol": protocol,
        "numbers": {"top1_B4": 34.25, "top1_B5": 30.0}, "data": {"num_val": 5000}, "cut": cut,
    }  # fmt: skip


def test_the_header_is_yaml_without_a_license(pretrained: Pretrained) -> None:
    card = model_card(pretrained, RECORD, "resnet18", [], "mine")
    before, header, text = card.split("---\n", 2)
    assert before == "" and text.startswith("\n# mine\n")
    assert pytest.importorskip("yaml").safe_load(header) == {
        "library_name": "timm",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["timm", "fastpsl", "image-feature-extraction", "self-supervised-learning"],
    }
    assert "# license: fill it in" in header
    assert "self-supervised" not in model_card(
        pretrained, RECORD | {"science": {"recipe": "supervised"}}, "resnet18", [], "mine"
    )


def test_it_says_how_the_weights_came_about_without_folders(pretrained: Pretrained, card_run: Path) -> None:
    card = model_card(pretrained, RECORD, "resnet18", [], "mine")
    assert "\nrotation_rv50.py --data 'train-*.beton' --lr 0.03\n" in card
    assert "secret" not in card and str(card_run) not in card
    assert "From `step-00000005.pt`, after 1,005 steps, SHA-256 `abc`." in card
    assert '"recipe": "rotation_rv50"' in card
    assert "RGB in [0, 1], minus mean 0.4 0.5 0.6, divided by std 0.2 0.25 0.3" in card
    assert 'timm.create_model("hf-hub:YOU/mine", pretrained=True, num_classes=0)' in card
    assert "cut short" not in card and "None is recorded here." in card
    card = model_card(pretrained, RECORD | {"cut": True}, "resnet18", [], "mine")
    assert "**The training was cut short" in card


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("timm/resnet18.a1_in1k", "timm has it: apache-2.0"),
        ("hf://ORG/NAME", "License not known: see `hf://ORG/NAME`"),
        ("/secret/theirs.pth", "License not known: see `theirs.pth`"),
        ("https://x.org/a/theirs.pth?token=secret", "License not known: see `https://x.org/a/theirs.pth`"),
        ("timm/resnet18.nope", "License not known: see `timm/resnet18.nope`"),
        (None, "License not known here"),
        (5, "License not known here"),
    ],
)
def test_a_student_names_its_teacher_and_its_license(
    source: object, told: str, pretrained: Pretrained, tmp_path: Path
) -> None:
    checkpoint(tmp_path, "nin3")
    config = {"options": {"teacher": source}, "science": {}, "command": ["fastpsl", "train", "distill"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    science = {"recipe": "distill", "teacher": "abc", "teacher_backbone": "net.py:Net"}
    card = model_card(load_pretrained(tmp_path), RECORD | {"science": science}, "resnet18", [], "mine")
    section = card.partition("## Teacher")[2].partition("## Evaluations")[0]
    assert told in section and "`net.py:Net`, `abc`" in section and "secret" not in section
    assert "## Teacher" not in model_card(pretrained, RECORD, "resnet18", [], "mine")


def test_others_weights_have_no_run(pretrained: Pretrained, card_run: Path) -> None:
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


HOSTILE = [
    "plain words", "top1_B4", "_a_ __b__ *c* **d** ~~e~~", "`a` ``b`` ```c```", "[a](http://b.c) ![d](e)",
    "<script>alert(1)</script> <http://a.b> <!-- c -->", "&lt; &amp; &#65; &", "a\\*b\\", "a|b \\| c",
    "http://a.b/c?d=e www.a.b a@b.c", "# a", "- a", "> a", "1. a", "===", "---", "    a",
    "$a$ $$b$$", "[^1]: a", "| a | b |", "ünï 中 \U0001f984", "```\n# heading\n```", "a\n\n# b\n- c\n<b>",
    "a\r\nb\tc\x1b[2J\u2028d", "\udcff", "`", " a ", "",
]  # fmt: skip
WORD = "<b>`\n```\n~~~\n# owned\n<script>x |"


def parsed(text: str) -> SyntaxTreeNode:
    return SyntaxTreeNode(MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text))


def shown(text: str) -> str:
    """Return a text as it can be seen on one line: without characters that cannot be seen."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def content(node: SyntaxTreeNode) -> str:
    """Return the text of a node that holds text alone, and fail for any other mark."""
    (inline,) = node.children
    assert {child.type for child in inline.children} <= {"text", "text_special"}, inline.pretty()
    return " ".join("".join(child.content for child in inline.children).split())


@pytest.mark.parametrize("text", HOSTILE)
def test_a_text_is_shown_as_it_is(text: str) -> None:
    (paragraph,) = parsed(f"A {plain(text)} z").children
    assert content(paragraph) == shown(f"A {text} z") and paragraph.type == "paragraph"
    (table,) = parsed(f"| a | b |\n|---|---|\n{table_row(['x' + plain(text), code(text)])}\n").children
    (row,) = table.children[1].children
    cell, coded = row.children
    assert content(cell) == shown(f"x{text}")
    (span,) = coded.children[0].children
    assert span.type == "code_inline" and shown(span.content) == shown(text)
    (fence, after) = parsed(f"{block(text, 'bash')}\n\nafter").children
    assert fence.type == "fence" and fence.info == "bash" and content(after) == "after"
    lines = fence.content.split("\n")[:-1]
    assert [shown(line) for line in lines] == [shown(line) for line in text.split("\n")]


def test_words_of_a_run_stay_words_in_the_model_card(tmp_path: Path) -> None:
    checkpoint(tmp_path, "nin3")
    config = {"options": {}, "science": {}, "command": ["simclr.py", "--note", WORD]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    record: dict[str, Any] = RECORD | {"science": {"recipe": WORD, WORD: WORD}, "backbone": WORD}
    record["source"] = {"name": WORD, "sha256": WORD, "kind": WORD}
    hostile = result("abc", WORD) | {"numbers": {WORD: 1.0}, "data": {"num_val": WORD}}
    pretrained = load_pretrained(tmp_path)
    pretrained.input = Input(f"{WORD}.\x1b", (0.5,), (0.2,))
    card = model_card(pretrained, record, WORD, [hostile], WORD)
    assert escaped(card) == card
    nodes = list(parsed(card.split("---\n", 2)[2]).walk())
    assert not [node for node in nodes if node.type in ("html_block", "html_inline", "link", "image")]
    headings = [node.children[0].content for node in nodes if node.type == "heading"]
    assert headings[1:] == ["How to load it", "Input", "Training", "Evaluations"]
    fences = [node.content for node in nodes if node.type == "fence"]
    assert "# owned" in fences[-2] and json.loads(fences[-1])[WORD] == WORD
    (body,) = (node for node in nodes if node.type == "tbody")
    assert [len(row.children) for row in body.children] == [4]
