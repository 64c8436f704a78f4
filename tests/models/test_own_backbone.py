"""A module from the user's file: trained, resumed and read again; each breach of its contract is one line."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fastpsl
from fastpsl import cli
from fastpsl.files.digest import sha256_of_file
from fastpsl.models.backbone import Backbone
from fastpsl.models.factory import make_backbone
from fastpsl.models.foreign_weights import safetensors_bytes
from fastpsl.models.initial_weights import load_pretrained
from fastpsl.models.weights import random_weights
from fastpsl.pipelines.views import Input
from fastpsl.scripts.recipe_files import find_recipe
from tests.programs import ROOT, digests, newest_checkpoint, run
from tests.recipes.in_process import refused, start

SOUND = """
from torch import nn

class Net(nn.Module):
    channels = (4, 6, 8)

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.middle = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.last = nn.Conv2d(6, 8, 3, padding=1)

    def blocks(self):
        return [nn.Sequential(self.stem, self.norm), self.middle, self.last]

def small():
    return Net()

class Plain(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3))

def resnext():
    from torchvision.models.resnet import Bottleneck, ResNet
    return ResNet(Bottleneck, [1, 1, 1, 1], groups=4, width_per_group=4)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with net.py."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(SOUND)
    return tmp_path


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("maker", ["Net", "small"])
@pytest.mark.parametrize("num_channels", [3, 1, 2])
def test_blocks_are_the_modules_own(maker: str, num_channels: int) -> None:
    torch.manual_seed(0)
    backbone = make_backbone(f"net.py:{maker}", num_channels=num_channels)
    network: nn.Module = backbone.network  # type: ignore[assignment]
    assert backbone.name == f"net.py:{maker}" and backbone.channels == (4, 6, 8)
    assert backbone.block_names == ("B1", "B2", "B3") and backbone.min_px == 1
    assert backbone.training and network.get_submodule("norm").training
    assert int(network.get_submodule("norm").num_batches_tracked) == 0  # type: ignore[arg-type]
    assert next(iter(backbone.state_dict())) == "stem.weight"
    images = torch.randn(2, num_channels, 17, 9)
    expected = images
    for name in ("stem", "norm", "middle", "last"):
        expected = network.get_submodule(name)(expected)
    assert torch.equal(backbone.eval()(images), backbone(images)) and backbone(images).shape == expected.shape


def test_a_backbone_keeps_its_own_values(here: Path) -> None:
    (here / "mine.py").write_text(
        "from net import Net\nfrom fastpsl.models import Backbone\n"
        "class Mine(Net, Backbone):\n"
        "    name, block_names, min_px = 'other', ('a', 'b', 'c'), 70\n"
    )
    backbone = make_backbone(f"{here}/mine.py:Mine")  # it imports the file beside it
    assert isinstance(backbone, Backbone) and backbone.name == f"{here}/mine.py:Mine"
    assert backbone.block_names == ("a", "b", "c") and backbone.min_px == 70


# A change of SOUND, and words of the message.
BREACHES = {
    "no blocks": ("def blocks", "def parts", "no method blocks()"),
    "a list instead of a method": (
        "    def blocks",
        "    blocks = nn.ModuleList()\n\n    def parts",
        "no method blocks()",
    ),
    "blocks that fail": ("return [", "raise KeyError('x')\n        return [", "blocks() failed: 'x'"),
    "no block": ("return [", "return []\n        return [", "one torch.nn.Module or more"),
    "no modules": ("self.last]", "max]", "one torch.nn.Module or more"),
    "no channels": ("channels =", "widths =", "channels are None; give a tuple of 3 whole numbers"),
    "broken channels": ("(4, 6, 8)", "(4., 6., 8.)", "(4.0, 6.0, 8.0); give a tuple of 3 whole numbers"),
    "other channels": ("(4, 6, 8)", "(4, 7, 8)", "B2 returned [2, 6, 16, 16] for 2 images; its channels say"),
    "too few names": ("channels =", "block_names = ('a',)\n    channels =", "3 blocks and 1 block_names"),
    "an object in its state": (
        "    def blocks",
        "    def get_extra_state(self):\n        return {}\n\n    def blocks",
        "_extra_state of its state_dict() is no dense tensor",
    ),
    "no size": ("channels =", "min_px = 0\n    channels =", "min_px is 0"),
    "vectors": ("self.last]", "nn.Sequential(self.last, nn.Flatten())]", "B3 returned [2, 2048]"),
    "a failing block": ("self.middle, self.last]", "self.last, self.middle]", "B2 failed on images of 64"),
    "new layers each time": ("self.last]", "nn.Conv2d(6, 8, 3)]", "weight of B3 is no parameter of the"),
    "a block twice": ("self.last]", "self.middle]", "middle.weight is in B2 and in B3"),
    "a layer in no block": (
        "self.norm)",
        "nn.Identity())",
        "2 of its parameters are in no block, such as norm",
    ),
    "no block has any": ("return [", "return [nn.Identity()] * 3\n        return [", "are in no block"),
    "needs arguments": ("def __init__(self)", "def __init__(self, depth)", "Net() failed ("),
    "a wrong import": ("from torch", "from torchh", "cannot be run (ModuleNotFoundError: No module named"),
    "a wrong line": ("class Net", "class class Net", "cannot be run (SyntaxError: "),
    "an exit": ("class Net", "raise SystemExit(3)\nclass Net", "cannot be run (SystemExit: 3)"),
    "no class": ("class Net", "class Other", "has no class or function Net; its classes are Other"),
    "a function of a number": (
        SOUND,
        "def Net(): return 1",
        "Net() returned a int; let it return a torch.nn.Module",
    ),
    "no parameters": (
        SOUND,
        "from torch import nn\nclass Net(nn.ReLU):\n    channels = (3,)\n    def blocks(self): return [self]",
        "it has no parameters",
    ),
}


@pytest.mark.parametrize("kind", BREACHES)
def test_each_breach_is_one_line(kind: str, here: Path) -> None:
    old, new, words = BREACHES[kind]
    assert old in SOUND
    (here / "net.py").write_text(SOUND.replace(old, new, 1))
    with pytest.raises(ValueError) as excinfo:
        make_backbone("net.py:Net")
    text = str(excinfo.value)
    assert "\n" not in text and text.startswith("--backbone net.py:Net: ") and words in text, text


# What stands for the norm of SOUND, and the parameters without a gradient: their number and the first.
WITHOUT_GRADIENT = {
    "a layer that is not used": ("Idle(self.norm)", 2, "norm.weight"),
    "layers without gradients": ("Quiet(self.norm)", 4, "stem.weight"),
}
LAYERS = """
from torch import nn
import torch

class Idle(nn.Sequential):
    def forward(self, images):
        return images

class Quiet(nn.Sequential):
    @torch.no_grad()
    def forward(self, images):
        return super().forward(images)

class Cut(nn.Sequential):
    def forward(self, images):
        return super().forward(images.detach())

class InTraining(nn.Sequential):
    def forward(self, images):
        if not self.training:
            return images
        return super().forward(nn.functional.dropout(images, 0.5))
"""


def state_of(backbone: nn.Module) -> list[object]:
    tensors = [*backbone.parameters(), *backbone.buffers()]
    return [
        [tensor.tolist() for tensor in tensors],
        [(each.requires_grad, each.grad) for each in backbone.parameters()],
        [part.training for part in backbone.modules()],
        torch.get_rng_state().tolist(),
    ]


@pytest.mark.parametrize("kind", WITHOUT_GRADIENT)
def test_parameters_without_a_gradient_are_named(kind: str, here: Path) -> None:
    layer, num, first = WITHOUT_GRADIENT[kind]
    (here / "net.py").write_text(LAYERS + SOUND.replace("self.norm)", f"{layer})"))
    backbone: Any = make_backbone("net.py:Net")
    backbone.blocks()[1].requires_grad_(False)
    before = state_of(backbone)
    told = f"^--backbone net.py:Net: {num} of its parameters get no gradient, such as {first} of B1, and .*$"
    with pytest.raises(ValueError, match=told):
        backbone.require_gradients({1, 2})
    backbone.require_gradients({2, 3})  # of stages in which the first block does not learn
    assert state_of(backbone) == before


def test_layers_of_training_alone_learn(here: Path) -> None:
    (here / "net.py").write_text(LAYERS + SOUND.replace("self.norm)", "InTraining(self.norm))"))
    backbone: Any = make_backbone("net.py:Net")
    before = state_of(backbone)
    backbone.require_gradients({1, 2, 3})
    assert state_of(backbone) == before


@pytest.mark.slow
def test_two_ranks_refuse_parameters_without_a_gradient_in_a_line(here: Path) -> None:
    """Found before the first stage; where only a step shows it, at the first one; one rank trains."""
    changes = {
        "idle": (LAYERS + SOUND.replace("self.norm)", "Idle(self.norm))"), "such as norm.weight of B1"),
        "cut": (
            LAYERS + SOUND.replace("self.last]", "Cut(self.last)]"),
            "6 of the stage's parameters get no",
        ),
    }
    arguments = (
        *("--batch-size", 8, "--workers", 1, "--size-px", 32, "--max-steps-per-stage", 2),
        *("--no-tensorboard", "--plan", "end_to_end", "--preset", "sample"),
    )
    recipe = ROOT / "recipes" / "simclr_r50.py"
    for name, (code, words) in changes.items():
        (here / f"{name}.py").write_text(code)
        done = run(recipe, "--backbone", here / f"{name}.py:Net", *arguments, "--out", here / name, ranks=2)
        assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr, done.stderr
    done = run(recipe, "--backbone", here / "idle.py:Net", *arguments, "--out", here / "one")
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("here")
def test_names_without_a_class_and_without_convolution() -> None:
    for name in ("net.py", "net.py:", ":Net.py"):
        with pytest.raises(ValueError, match=r"give FILE.py:CLASS, such as my_net.py:MyNet"):
            make_backbone(name)
    for name in ("net.pyc:Net", "net:Net"):
        with pytest.raises(ValueError, match=r"allowed are .*, timm/NAME .* or FILE.py:CLASS"):
            make_backbone(name)
    Path("net.py").write_text(
        "from torch import nn\nclass Net(nn.Module):\n    channels = (3,)\n    def __init__(self):\n"
        "        super().__init__()\n        self.norm = nn.BatchNorm2d(3)\n"
        "    def blocks(self):\n        return [self.norm]\n"
    )
    assert make_backbone("net.py:Net").num_blocks == 1
    with pytest.raises(ValueError, match="it has no convolution that could read 2 channels"):
        make_backbone("net.py:Net", num_channels=2)


def test_weights_of_a_file_that_has_moved(here: Path) -> None:
    small = ("--epochs", 1, 1, 1, "--max-steps-per-stage", 1, "--batch-size", 8, "--workers", 1)
    arguments = (*small, "--size-px", 32, "--no-tensorboard", "--out", here / "out")
    outcome = start("simclr_r50", "--backbone", "net.py:Net", *arguments)
    assert outcome.code == 0, outcome.err
    state = newest_checkpoint(here / "out")
    loaded = load_pretrained(here / "out", "net.py:Net")
    assert loaded.record["backbone"] == state["science"]["backbone"] == "net.py:Net"
    assert torch.equal(loaded.backbone.state_dict()["last.weight"], state["backbone"]["last.weight"])
    shutil.move(here / "net.py", here / "other.py")
    refused(start("simclr_r50", "--backbone", "net.py:Net", *arguments), "there is no file net.py")
    with pytest.raises(ValueError, match=r"there is no file net.py; give --backbone NEW_PATH/net.py:Net"):
        load_pretrained(here / "out", "net.py:Net")
    again = load_pretrained(here / "out", f"{here}/other.py:Net")
    assert again.record["backbone"] == f"{here}/other.py:Net"
    assert torch.equal(again.backbone.state_dict()["last.weight"], state["backbone"]["last.weight"])
    with pytest.raises(ValueError, match="give --backbone net.py:Net if you trust it"):
        load_pretrained(here / "out", "resnet18")
    # As if edited within the second of the last reading: neither its time nor its size tells.
    status = (here / "other.py").stat()
    (here / "other.py").write_text(SOUND.replace("(4, 6, 8)", "(4, 6, 9)").replace("(6, 8", "(6, 9"))
    os.utime(here / "other.py", ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(ValueError, match=r"of other shapes than .* \(last.weight \(8, 6, 3, 3\)"):
        load_pretrained(here / "out", "other.py:Net")


@pytest.mark.parametrize(("maker", "plan"), [("Plain", "end_to_end"), ("resnext", "psl")])
def test_a_module_without_blocks_and_torchvisions_by_command(maker: str, plan: str, here: Path) -> None:
    name = f"net.py:{maker}"
    words: list[Any] = ["--backbone", name, "--max-steps-per-stage", 1, "--batch-size", 8, "--workers", 1]
    words += ["--size-px", 32, "--no-tensorboard", "--out", here / "out"]
    if plan == "end_to_end":
        refused(
            start("simclr_r50", *words), "give --plan end_to_end, or write two lines in its class `blocks"
        )
    outcome = start("simclr_r50", *words, "--plan", plan)
    assert outcome.code == 0, outcome.err
    trained = newest_checkpoint(here / "out")["backbone"]
    assert trained.keys() == load_pretrained(here / "out", name).backbone.state_dict().keys()
    for block in ("B1", "final"):
        scored = start(
            "knn", here / "out", "--backbone", name, "--block", block, "--out", here / block, "--k", 5
        )
        assert scored.code == 0, scored.err
    if maker == "Plain":  # its first block is its last
        results = [json.loads((here / block / "result.json").read_text()) for block in ("B1", "final")]
        assert results[0]["numbers"] == results[1]["numbers"]


@pytest.fixture
def given(here: Path) -> dict[str, Path]:
    """Write files that name net.py:Net, which leaves a mark when it runs: weights of each kind, by ending."""
    tensors = make_backbone("net.py:Net").state_dict()
    (here / "net.py").write_text(f"open('ran', 'w')\n{SOUND}")
    input = Input.usual("RGB", 32).as_dict()
    record = {"backbone": "net.py:Net", "input": input, "run_step": 1, "science": {}, "cut": False}
    state = {"format": 1, "science": {"backbone": "net.py:Net"}, "input": input, "backbone": tensors}
    torch.save({**state, "num_stages": 1, "position": {"run_step": 1, "summaries": []}}, here / "a.pt")
    torch.save(tensors, here / "a.pth")
    digest = sha256_of_file(here / "a.pth")
    (here / "a.pth.json").write_text(json.dumps(record | {"sha256": digest, "to": "torchvision"}))
    (here / "a.safetensors").write_bytes(safetensors_bytes(tensors, record))
    return {path.suffix: path for path in here.glob("a.*") if path.suffix != ".json"}


@pytest.mark.parametrize("ending", [".pt", ".pth", ".safetensors"])
def test_weights_that_name_code_run_it_only_if_the_user_does(
    ending: str, given: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = given[ending]
    line = f"{path} names net.py:Net, which would run; give --backbone net.py:Net if you trust it"
    with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
        load_pretrained(path)
    with pytest.raises(ValueError, match="give backbone net.py:Net if you trust it$"):
        fastpsl.load(path)
    with pytest.raises(SystemExit, match="2"):
        cli.main(["export", str(path), "out.safetensors", "--to", "safetensors"])
    assert capsys.readouterr().err == f"fastpsl export: {line}\n"
    assert not Path("ran").exists()
    assert load_pretrained(path, "net.py:Net").record["backbone"] == "net.py:Net" and Path("ran").exists()
    own = fastpsl.Trained(path, path, [], "net.py:Net")  # as from a call that named it
    assert fastpsl.load(own).record["backbone"] == "net.py:Net"


@pytest.mark.usefixtures("given")
def test_a_config_that_names_code_runs_it_only_if_the_user_does(here: Path) -> None:
    script: Any = find_recipe("simclr_r50")
    options = script.with_paper(backbone="net.py:Net").as_dict()
    (here / "config.json").write_text(
        json.dumps({"options": options, "science": {"recipe": "simclr_r50"}, "command": []})
    )
    words = ["--config", "config.json"]
    with pytest.raises(ValueError, match=r"^--config config.json names net.py:Net, which would run; give"):
        script.parse(words, log=lambda line: None)
    assert script.parse([*words, "--backbone", "net.py:Net"]).backbone == "net.py:Net"
    assert script.parse([*words, "--backbone", "resnet50"]).backbone == "resnet50"  # the paper's
    assert not Path("ran").exists()


def test_the_documented_module_is_sound(here: Path) -> None:
    (code,) = re.findall(
        r"```python\n(from torch import nn\n.*?)```",
        (ROOT / "docs/how_to/own_backbone.md").read_text(),
        re.DOTALL,
    )
    (here / "my_net.py").write_text(code)
    assert make_backbone("my_net.py:MyNet", num_channels=1).channels == (16, 32, 64)


@pytest.mark.usefixtures("here")
def test_random_weights_depend_on_the_seed_alone() -> None:
    states = [
        random_weights("net.py:Net", seed, Input.usual("RGB", 32)).record["sha256"] for seed in (1, 1, 2)
    ]
    assert states[0] == states[1] != states[2]


@pytest.mark.nightly
@pytest.mark.parametrize("maker", ["Net", "Plain", "resnext"])
def test_two_ranks_train_and_resume_it(maker: str, here: Path) -> None:
    arguments = (
        *("--backbone", here / f"net.py:{maker}", "--batch-size", 8, "--workers", 1, "--size-px", 32),
        *("--no-tensorboard", "--checkpoint-steps", 1, "--plan", "end_to_end"),
    )
    recipe = ROOT / "recipes" / "simclr_r50.py"
    out, states = here / "out", []
    for _ in range(2):
        done = run(recipe, *arguments, "--max-steps-per-stage", 4, "--out", out, ranks=2)
        assert done.returncode == 0, done.stderr
        states.append(digests(newest_checkpoint(out)))
        for path in sorted((out / "checkpoints").iterdir())[1:]:
            path.unlink()  # the same command resumes from the step before
    assert states[0] == states[1]
