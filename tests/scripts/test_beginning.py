"""A training that begins with weights: --init and --plan continue."""

import copy
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from torch import Tensor, nn

import fastpsl
from fastpsl import cli
from fastpsl.engine.distributed import World
from fastpsl.engine.experiment import Experiment
from fastpsl.engine.first_learning import knn_of_blocks
from fastpsl.engine.online_probe import TEMPERATURE, K, look_images
from fastpsl.evaluation.options import EvaluationOptions
from fastpsl.files.digest import sha256_of_file
from fastpsl.models.export import export
from fastpsl.models.factory import make_backbone
from fastpsl.models.initial_weights import open_initial
from fastpsl.models.weights import sha256_of_tensors
from fastpsl.pipelines.datasets.open import open_data
from fastpsl.pipelines.embedded.draw_sample import sample_paths
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.views import Input, center_view
from fastpsl.scripts.beginning import _least_bytes, begun, with_first_learning
from fastpsl.scripts.recipe_files import find_recipe
from tests.engine.tiny import one_process
from tests.files.test_remote_http import serving
from tests.programs import digests, newest_checkpoint
from tests.threaded_world import results_of_threads

RECIPE: Any = find_recipe("simclr_r50")
VALUES = {
    "data": sample_paths().train_32, "size_px": 32, "batch_size": 16, "workers": 1, "tensorboard": False,
    "warmup_epochs": 0, "preset": "small", "max_steps_per_stage": 2, "checkpoint_steps": 1,
}  # fmt: skip


def pretrain(out: Path, recipe: str = "simclr", **options: Any) -> fastpsl.Trained:
    return fastpsl.pretrain(recipe, out=out, **{**VALUES, **options})


def start(world: World | None = None, **values: Any) -> tuple[Experiment, dict[str, Any], list[str]]:
    options = RECIPE.from_values({**VALUES, **values}, lambda line: None)
    return begun(RECIPE, options, world or one_process())


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of a ResNet-34 (the recipe has a ResNet-50), whose BatchNorms have seen images."""
    return pretrain(tmp_path_factory.mktemp("source") / "run", backbone="resnet34", epochs=1).folder


@pytest.fixture(scope="module")
def weights(source: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = newest_checkpoint(source)["backbone"]
    return tensors


def same(one: Any, other: Any, names: Sequence[str] | None = None) -> bool:
    return all(torch.equal(one[name], other[name]) for name in names or other)


def other_input(source: Path, path: Path, **values: Any) -> Path:
    """Write a checkpoint of the run whose network was shown other images."""
    state = newest_checkpoint(source)
    torch.save(state | {"input": state["input"] | values}, path)
    return path


def test_a_run_begins_with_the_tensors_and_statistics_of_its_source(
    source: Path, weights: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mean, std = (0.25, 0.5, 0.75), (0.5, 0.25, 0.125)
    file = other_input(source, tmp_path / "other.pt", mean=list(mean), std=list(std))
    experiment, origin, (line,) = start(init=file)
    assert experiment.backbone.name == "resnet34" and same(experiment.backbone.state_dict(), weights)
    views, data = experiment.views(experiment.stages[0]), open_data(sample_paths().train_32)
    with Loader(data, views, batch_size_per_rank=3, train=True) as loader:
        batch = next(batches := loader.epoch(0))
        batches.close()
    plain = batch.inputs(experiment.task.views(1), torch.float32)
    for view, images, usual in zip(views, batch.inputs(views, torch.float32), plain, strict=True):
        for channel, (m, s) in enumerate(zip(mean, std, strict=True)):
            pixels = usual[:, channel] * (0.229, 0.224, 0.225)[channel] + (0.485, 0.456, 0.406)[channel]
            torch.testing.assert_close(images[:, channel], (pixels - m) / s, rtol=1e-4, atol=1e-4)
        assert (view.mean, view.std) == (mean, std)
    data.close()

    run = pretrain(tmp_path / "run", init=file, max_steps_per_stage=1, plan="end_to_end")
    told = capsys.readouterr().err
    assert line in told and "begins with" in line and sha256_of_file(file)[:8] in line and "2 steps" in line
    config, state = json.loads((run.folder / "config.json").read_text()), newest_checkpoint(run.folder)
    assert config["science"]["initial_weights"] == origin["initial_weights"]
    about = {"path": str(file), "sha256": sha256_of_file(file), "kind": "fastpsl", "backbone": "resnet34"}
    assert about.items() <= state["science"]["initial_weights"].items()
    assert (state["input"]["mean"], state["input"]["std"]) == (list(mean), list(std))
    assert fastpsl.load(run).input.mean == mean and run.backbone == "resnet34"
    other = pretrain(tmp_path / "usual", init=source, max_steps_per_stage=1, plan="end_to_end")
    sheets = [np.asarray(Image.open(each.folder / "contact-sheet-G3.png"), int) for each in (run, other)]
    assert abs(sheets[0] - sheets[1]).max() <= 1  # people see the image, whatever the network sees

    config_of = ["--config", str(run.folder), "--out", str(tmp_path / "again")]
    again = RECIPE.parse(config_of, log=lambda line: None)
    assert (again.init, again.backbone) == (str(file), "resnet34")
    assert not any("sha256 was" in line for line in begun(RECIPE, again, one_process())[2])
    other_input(source, file, mean=[0.0, 0.0, 0.0])
    assert sum("sha256 was" in line for line in begun(RECIPE, again, one_process())[2]) == 1


def test_the_run_wins_where_it_resumes(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = other_input(source, tmp_path / "a.pt", mean=[0.1, 0.2, 0.3])
    whole = pretrain(tmp_path / "whole", init=file, epochs=1)
    shutil.copytree(whole.folder, tmp_path / "cut")
    (tmp_path / "cut" / "checkpoints" / "step-00000002.pt").unlink()
    begun_with = newest_checkpoint(whole.folder)["science"]["initial_weights"]
    capsys.readouterr()
    for absent in (file, tmp_path / "absent.pt"):
        file.unlink(missing_ok=True)
        again = pretrain(tmp_path / "cut", init=absent, epochs=1)
        assert f"init {absent} is not read" in capsys.readouterr().err
        state = newest_checkpoint(again.folder)
        assert state["science"]["initial_weights"] == begun_with and state["input"]["mean"] == [0.1, 0.2, 0.3]
        assert digests(state["backbone"]) == digests(newest_checkpoint(whole.folder)["backbone"])
    assert RECIPE.parse(["--config", str(tmp_path / "cut")], log=lambda line: None).init == str(file)


def test_blocks_below_stay_as_they_came(source: Path, weights: dict[str, Tensor], tmp_path: Path) -> None:
    run = pretrain(tmp_path / "run", init=source, plan="continue", first_learning="B3", epochs=(1, 1), lr=0.1)
    state = newest_checkpoint(run.folder)["backbone"]
    backbone = make_backbone("resnet34")
    changed = [name for name in weights if not torch.equal(weights[name], state[name])]
    below = {
        id(each) for block in backbone.blocks()[:2] for each in block.state_dict(keep_vars=True).values()
    }
    names = [name for name, each in backbone.state_dict(keep_vars=True).items() if id(each) in below]
    assert len(names) > 20 and same(state, weights, names) and any("running_mean" in name for name in names)
    assert len(changed) > 0.9 * (len(weights) - len(names))
    config = json.loads((run.folder / "config.json").read_text())
    assert (config["options"]["plan"], config["science"]["first_learning"]) == ("continue", "B3")
    assert [summary["level"] for summary in run.summaries] == [1, 3]
    assert RECIPE.parse(
        ["--config", str(run.folder), "--plan", "sl"], log=lambda line: None
    ).first_learning is None  # fmt: skip


def test_a_module_s_look_at_the_start_is_that_of_its_weights(
    source: Path, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    values: dict[str, Any] = {"first_learning": "5", "partition": ["B5"], "epochs": 1, "probe_every": 1}
    by_name = pretrain(tmp_path / "name", init=source, plan="continue", **values)
    (expected,) = (summary["knn_at_start"] for summary in by_name.summaries)
    science = json.loads((by_name.folder / "config.json").read_text())["science"]
    assert (science["first_learning"], science["partition"]) == ("B5", ["5"])
    for plan, more in {"continue": values, "end_to_end": {"epochs": 1, "probe_every": 1}}.items():
        given = pretrain(tmp_path / plan, backbone=fastpsl.load(source), plan=plan, **more)
        assert [summary["knn_at_start"] for summary in given.summaries] == [expected]
        if plan == "continue":
            assert same(newest_checkpoint(given.folder)["backbone"], weights, ["layer3.5.bn2.running_mean"])
    kept = pretrain(tmp_path / "kept", init=source, plan="continue", learning_batchnorm="eval", **values)
    own = newest_checkpoint(kept.folder)["backbone"]
    assert same(own, weights, [name for name in weights if "running_" in name])
    assert not same(own, weights, ["layer4.2.bn2.weight"])
    assert json.loads((kept.folder / "config.json").read_text())["science"]["learning_batchnorm"] == "eval"


def test_the_first_block_that_learns_is_above_the_best_knn(source: Path) -> None:
    """Of the features of each block, computed one image at a time, and votes counted by a loop."""
    paths = sample_paths()
    values = {**VALUES, "data": paths.train_32, "val": paths.test_32, "max_steps_per_stage": 4}
    values |= {"init": source, "plan": "continue"}
    options = RECIPE.from_values(values, lambda line: None)
    experiment, _, _ = begun(RECIPE, options, one_process())
    data = experiment.open_data(options, one_process())
    before = sha256_of_tensors(experiment.backbone.state_dict())
    found = knn_of_blocks(experiment, data)
    assert sha256_of_tensors(experiment.backbone.state_dict()) == before
    network, features = copy.deepcopy(experiment.backbone).eval(), list[list[list[np.ndarray]]]()
    labels = []
    for part in look_images(experiment, data):
        assert part is not None
        labels.append(part.labels())
        features.append([[] for _ in network.blocks()])
        view = center_view(experiment.views(experiment.stages[0])[0].input(), 32)
        with Loader(part, [view], batch_size_per_rank=1, train=False) as loader, torch.no_grad():
            for batch in loader.epoch(0):
                (image,) = batch.inputs([view], torch.float32)
                for rows, block in zip(features[-1], network.blocks(), strict=True):
                    image = block(image)
                    vector = image.mean((2, 3))[0]
                    rows.append((vector / vector.norm()).numpy())
    data.close()
    for accuracy, train, val in zip(found, *features, strict=True):
        right = 0
        for vector, label in zip(val, labels[1], strict=True):
            similar = np.array([vector @ other for other in train], np.float64)
            votes = np.zeros(8)
            for place in np.argsort(-similar, kind="stable")[:K]:
                votes[labels[0][place]] += np.exp(similar[place] / TEMPERATURE)
            right += int(votes.argmax() == label)
        assert accuracy == pytest.approx(right / len(val), abs=1.5 / len(val))  # a tie may go either way
    best = 1 + found.index(max(found))
    wanted = {1: min(best + 1, 5), 3: min(best + 1, 3)}  # each stage has a block
    for num_stages, first in wanted.items():
        given = replace(options, epochs=(1,) * num_stages)
        chosen, (line,) = with_first_learning(RECIPE, given, one_process())
        assert chosen == replace(given, first_learning=f"B{first}")
        assert f"the best is B{best}" in line and f"; B{first} is the first that learns" in line
        assert with_first_learning(RECIPE, chosen, one_process()) == (chosen, [])


def test_a_chosen_block_is_recorded_and_kept(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without classes it is the last. A dry run tells it and writes nothing; a resume does not look again."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for i, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (32, 32, 32, 3), np.uint8)):
        Image.fromarray(pixels).save(photos / f"{i}.png")
    words = ["train", "simclr", "--data", photos, "--init", source, "--plan", "continue", "--epochs", 1]
    words += ["--size-px", 32, "--batch-size", 16, "--workers", 1, "--preset", "paper", "--warmup-epochs", 0]
    words += ["--out", tmp_path / "run", "--max-steps-per-stage", 1]
    told = "no kNN of the blocks, because the training images have no classes; B5 is the first that learns"

    def said(*more: object) -> str:
        with pytest.raises(SystemExit) as end:
            cli.main([*map(str, words), *map(str, more)])
        printed = capsys.readouterr()
        assert end.value.code == 0, printed.err
        return printed.out + printed.err

    assert told in said("--dry-run") and not (tmp_path / "run").exists()
    assert told in said() and (record := json.loads((tmp_path / "run" / "config.json").read_text()))
    assert record["options"]["first_learning"] == record["science"]["first_learning"] == "B5"
    for more in (
        ("--max-steps-per-stage", 2),
        ("--resume", tmp_path / "run/checkpoints/step-00000001.pt", "--out", tmp_path / "b"),
    ):
        again = said(*more)
        assert "resuming" in again and "is the first that learns" not in again


def test_what_fits_in_part_is_taken_if_that_is_asked_for(
    source: Path, weights: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = {**weights, "fc.weight": torch.zeros(2, 2), "conv1.weight": torch.zeros(64, 3, 3, 3)}
    theirs["layer9.weight"] = theirs.pop("layer4.0.bn1.weight")
    torch.save(theirs, tmp_path / "theirs.pth")
    torch.save(dict(weights), tmp_path / "fits.pth")
    foreign: dict[str, Any] = {"init": tmp_path / "fits.pth", "backbone": "resnet34"}
    experiment, origin, lines = start(**foreign)
    assert same(experiment.backbone.state_dict(), weights) and "the file does not tell" in lines[0]
    assert origin["initial_weights"]["kind"] == "torchvision"
    foreign["init"] = tmp_path / "theirs.pth"
    with pytest.raises(ValueError, match=r"1 tensors .*\(layer9.weight\).* or --init-partial"):
        start(**foreign)
    experiment, origin, lines = start(**foreign, init_partial=True)
    missed = ["layer4.0.bn1.weight", "conv1.weight", "layer9.weight"]
    assert origin["initial_weights"]["not_taken"] == missed and "3 tensors not taken" in lines[1]
    assert origin["initial_weights"]["left_out"] == ["fc.*"]
    state, fresh = experiment.backbone.state_dict(), start(backbone="resnet34")[0].backbone.state_dict()
    assert same(state, weights, [name for name in weights if name not in missed])
    assert same(state, fresh, missed[:2])
    # Weights that read RGB begin a recipe of Sobel's edges, but for the filters that meet the image.
    script: Any = find_recipe("deepcluster_alexnet")
    values = {"data": sample_paths().train_32, "init": source, "backbone": "resnet34", "init_partial": True}
    experiment, origin, _ = begun(script, script.from_values(values, print), one_process())
    assert origin["initial_weights"]["not_taken"] == ["conv1.weight"]
    assert same(
        experiment.backbone.state_dict(), weights, [name for name in weights if name != "conv1.weight"]
    )
    for partial in (True, False):  # it is not proposed where it would take nothing
        with pytest.raises(ValueError, match="has none of the 39 tensors of alexnet .* or another file$"):
            start(init=tmp_path / "theirs.pth", backbone="alexnet", init_partial=partial)


def test_what_cannot_be_begun_with_is_one_line(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = tmp_path / "net.py"
    network.write_text(
        "import torch.nn as nn\nclass Net(nn.Module):\n    channels = (4, 8)\n    def __init__(self):\n"
        "        super().__init__()\n        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 3)\n"
        "    def blocks(self):\n        return [self.a, self.b]\n"
    )
    own = pretrain(tmp_path / "own", backbone=f"{network}:Net", epochs=1, max_steps_per_stage=1).folder
    grey = other_input(source, tmp_path / "grey.pt", channels="L", mean=[0.5], std=[0.5])
    common = "train simclr --no-tensorboard --size-px 32 --batch-size 16 --workers 1 --dry-run --val none"
    refused = {
        f"--init {tmp_path}/absent": "no such file",
        f"--init {source} --backbone resnet18": "resnet34, not resnet18",
        f"--init {grey}": "its weights read L, and the recipe shows RGB",
        f"--init {own}": "which would run; give --backbone",
        "--init timm/resnet5O": "timm/resnet5O: timm",
        "--init-partial": "--init-partial without --init",
        "--init=": "--init without a name",
        f"--init {source} --plan continue --first-learning=": "give one of B1 to B5",
        f"--init {source} --backbone resnet18 --init-partial --plan continue --first-learning 4 --epochs 1": (
            "blocks that stay need all"
        ),
        "--plan continue --first-learning B3": "--plan continue without --init",
        "--learning-batchnorm eval": "--learning-batchnorm eval without --init",
        f"--init {source} --backbone resnet18 --init-partial --learning-batchnorm eval": "stay need all",
        f"--init {source} --first-learning B3": "it is for --plan continue",
        f"--init {source} --plan continue --first-learning B6": "give one of B1 to B5",
        f"--init {source} --plan continue --first-learning B4 --epochs 1 1 1": "for 2 blocks: give at most 2",
        f"--init {source} --plan continue --first-learning B4 --epochs 1 --partition 3-5": "within 4 to 5",
        f"--init {source} --plan continue --frozen-batchnorm train": "--frozen-batchnorm train with --plan",
    }
    capsys.readouterr()
    for words, message in refused.items():
        with pytest.raises(SystemExit, match="2"):
            cli.main([*common.split(), *words.split(), "--data", str(sample_paths().train_32)])
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error, (words, error)
    experiment, _, _ = start(init=own, backbone=f"{network}:Net", epochs=1)
    assert same(experiment.backbone.state_dict(), newest_checkpoint(own)["backbone"])


@pytest.mark.parametrize(
    ("recipe", "plan", "name"),
    [
        ("jigsaw_r50", "psl", "resnet50"),
        ("rotation_rv50", "continue", "revnet50"),
        ("deepcluster_alexnet", "end_to_end", "alexnet"),
        ("sslpp_context", "psl_f", "nin4"),
        ("mocov2_r50", "sl", "timm/resnet10t"),
    ],
)
def test_plans_and_backbones_begin_with_weights(recipe: str, plan: str, name: str, tmp_path: Path) -> None:
    script: Any = find_recipe(recipe)
    network = make_backbone(name, num_channels=2 if recipe == "deepcluster_alexnet" else 3)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            torch.nn.init.normal_(part.running_mean)  # type: ignore[arg-type]
    torch.save(network.state_dict(), tmp_path / "x.pth")
    values = {"data": sample_paths().train_32, "init": tmp_path / "x.pth", "plan": plan, "epochs": 2}
    values |= {"backbone": name, "first_learning": "B2" if plan == "continue" else None}
    experiment, origin, _ = begun(script, script.from_values(values, print), one_process())
    assert same(experiment.backbone.state_dict(), network.state_dict())
    assert experiment.stages[0].first_learning == (2 if plan == "continue" else 1)
    assert origin["initial_weights"]["backbone"] == name


def test_all_ranks_begin_with_equal_weights(source: Path, tmp_path: Path, weights: dict[str, Tensor]) -> None:
    """Whatever a rank finds under the name: the weights are rank 0's."""
    files = [other_input(source, tmp_path / "0.pt"), tmp_path / "1.pt"]
    state = newest_checkpoint(source)
    torch.save(state | {"backbone": {name: tensor + 1 for name, tensor in weights.items()}}, files[1])

    def first_weights(rank: int, num_ranks: int) -> dict[str, Tensor]:
        world = World(rank, num_ranks, rank, num_ranks, torch.device("cpu"))
        tensors: dict[str, Tensor] = start(world, init=files[rank])[0].backbone.state_dict()
        return tensors

    assert all(same(each, weights) for each in results_of_threads(first_weights, 2))


@pytest.mark.parametrize(
    ("name", "mean", "size_px"),
    [("timm/test_resnet", (0.5, 0.5, 0.5), 160), ("resnet18", Input().mean, None)],
)
def test_trainings_and_evaluations_assume_the_same_input(
    tmp_path: Path, name: str, mean: tuple[float, ...], size_px: int | None
) -> None:
    """Of a file that tells none: timm's of a model of timm, else ImageNet's usual; one line tells it."""
    torch.save(make_backbone(name).state_dict(), tmp_path / "x.pth")
    words = f"mean {' '.join(map(str, mean))}, std "
    _, origin, (line,) = start(init=tmp_path / "x.pth", backbone=name)
    assert words in line and line.endswith(
        "(usual for it: the file does not tell; a file of fastpsl export tells others)"
    )
    assert not origin["initial_weights"]["recorded"]
    with pytest.warns(UserWarning, match="input_channels, input_mean and input_std give others") as told:
        model = fastpsl.load(tmp_path / "x.pth", name)
    assert words in str(told[0].message) and told[0].filename == __file__
    assert model.input.as_dict() | {"size_px": 0} == origin["initial_weights"]["input"] | {"size_px": 0}
    values = {"checkpoint": tmp_path / "x.pth", "data": sample_paths().train_32, "val": sample_paths().test}
    options = find_recipe("knn").from_values({**values, "backbone": name}, lambda line: None)
    assert options.pretrained().input == model.input and options.size_px == (size_px or 224)
    assert EvaluationOptions(checkpoint="timm/test_resnet.r160_in1k").recorded_size() == {"size_px": 160}


# Published weights, by a server of this machine.


def test_weights_of_timm_bring_their_statistics(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    network = timm.create_model("test_resnet", num_classes=3)
    torch.save(network.state_dict(), tmp_path / "theirs.pth")
    create = timm.create_model

    def create_from_file(name: str, **arguments: Any) -> Any:
        overlay = {"file": str(tmp_path / "theirs.pth"), "num_classes": 3, "mean": (0.1, 0.2, 0.3)}
        if arguments.get("pretrained"):
            arguments["pretrained_cfg_overlay"] = overlay
        return create(name, **arguments)

    monkeypatch.setattr(timm, "create_model", create_from_file)
    experiment, origin, (line,) = start(init="timm/test_resnet.r160_in1k")
    assert experiment.backbone.name == "timm/test_resnet" and "mean 0.1 0.2 0.3" in line
    seen = experiment.input_record(experiment.stages[0])
    assert (seen["mean"], seen["size_px"]) == ([0.1, 0.2, 0.3], VALUES["size_px"])  # timm's are of 160 px
    assert same(
        network.state_dict(), experiment.backbone.state_dict(), list(experiment.backbone.state_dict())
    )
    assert origin["initial_weights"]["path"] == "timm/test_resnet.r160_in1k"
    for name in ("timm/test_resnet.absent", "timm/test_resnet51", "timm/vit_tiny_patch16_384.absent"):
        with pytest.raises(ValueError, match="has no (such weights|model)"):
            start(init=name)
    monkeypatch.setattr(timm, "create_model", create)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="^timm/resnet18.a1_in1k: timm could not fetch it"):
        open_initial("timm/resnet18.a1_in1k")


def test_weights_from_elsewhere(
    source: Path, weights: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fastpsl.load(source).export(tmp_path / "ours.safetensors", to="safetensors")
    network = timm.create_model("test_resnet", num_classes=0).state_dict()
    ours, theirs = (tmp_path / "ours.safetensors").read_bytes(), safetensors.torch.save(network)
    given = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.5], "input_size": [3, 160, 160]}
    config = {"architecture": "test_resnet", "pretrained_cfg": given}
    files = {
        "a/ours/model.safetensors": ours, "a/theirs/model.safetensors": theirs,
        "a/bad/model.safetensors": theirs, "a/theirs/config.json": json.dumps(config).encode(),
        "a/bad/config.json": b"{}",
    }  # fmt: skip
    usual = [0.485, 0.456, 0.406]
    with serving({name: (data, len(data)) for name, data in files.items()}) as server:
        for place, name, mean, tensors in (
            ("a/ours", "resnet34", usual, weights),
            ("a/ours/model.safetensors", "resnet34", usual, weights),
            ("a/theirs", "timm/test_resnet", [0.1, 0.2, 0.3], network),
        ):
            experiment, origin, _ = start(init=(address := f"{server.address}/{place}"))
            assert same(experiment.backbone.state_dict(), tensors), place
            about = origin["initial_weights"]
            assert (about["path"], about["backbone"], about["input"]["mean"]) == (address, name, mean)
            model = fastpsl.load(address)
            assert (model.record["path"], model.backbone.name, [*model.input.mean]) == (address, name, mean)
            export(address, "timm", tmp_path / "out.pth", overwrite=True)
            assert same(torch.load(tmp_path / "out.pth"), tensors, list(tensors)), place
        num_sent = server.num_sent
        start(init=f"{server.address}/a/ours")
        assert server.num_sent - num_sent < len(ours)  # it has been fetched before
        for place, words in (("a/bad", "does not say which model of timm"), ("absent.pth", "no such file")):
            with pytest.raises(ValueError, match=words):
                start(init=f"{server.address}/{place}")


def test_checkpoints_that_do_not_fit_are_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bound is below the sizes that the files have, so that no run is refused that fits."""
    values: dict[str, Any] = {"backbone": "resnet18", "epochs": (1, 1, 1), "keep_checkpoints": 2}
    experiment = start(**values)[0]
    least = [_least_bytes(experiment, stage) for stage in experiment.stages]
    needed = least[1] + 2 * least[2]

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed - 1))
    with pytest.raises(ValueError, match="MB free, and 3 checkpoints need at least .*; give out on another"):
        pretrain(tmp_path / "no" / "run", **values)
    assert not (tmp_path / "no").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed))
    run = pretrain(tmp_path / "run", **values)
    sizes = [path.stat().st_size for path in sorted(run.folder.glob("checkpoints/*.pt"))]
    assert len(sizes) == 2 and all(size > bound for size, bound in zip(sizes, least[1:], strict=True))
    assert sizes[1] < 1.2 * least[2]  # it is a bound of use
