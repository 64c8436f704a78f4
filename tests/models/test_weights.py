"""Loaded weights: from checkpoints, runs' folders, other projects' files and seeds, with their records."""

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from typing_extensions import override

from fastpsl.engine.experiment import Experiment
from fastpsl.engine.optim.schedules import step_drops
from fastpsl.engine.options import PretrainOptions
from fastpsl.engine.run import Run, RunData
from fastpsl.engine.trainer import pretrain
from fastpsl.evaluation.options import EvaluationOptions
from fastpsl.kernels.crops import ShorterSideCrop
from fastpsl.kernels.filters import Sobel, gradient_size
from fastpsl.kernels.geometry import Flip
from fastpsl.kernels.jigsaw import JigsawTiles
from fastpsl.kernels.lab import Lightness
from fastpsl.kernels.normalise import normalise
from fastpsl.models.factory import make_backbone
from fastpsl.models.foreign_weights import safetensors_bytes
from fastpsl.models.initial_weights import load_pretrained, recorded_backbone
from fastpsl.models.weights import fill, random_weights, was_cut_short
from fastpsl.pipelines.datasets.open import open_data
from fastpsl.pipelines.embedded.draw_sample import sample_paths
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.views import Input, ViewSpec, center_view, train_view
from fastpsl.scripts.command_line import parse
from tests.engine.test_trainer import tiny_experiment
from tests.engine.tiny import one_process
from tests.programs import newest_checkpoint

USUAL = Input()
INPUT_FLAGS = [
    "--input-channels", "RGB", "--input-mean", "0.485", "0.456", "0.406", "--input-std", "0.229", "0.224",
    "0.225",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run of two stages with ResNet-18, each cut short after one step."""
    out = tmp_path_factory.mktemp("run")
    options = PretrainOptions(
        data=str(sample_paths().train_32), out=out, batch_size=8, epochs=(2, 2), max_steps_per_stage=1,
        tensorboard=False, workers=1,
    )  # fmt: skip
    run = Run("jigsaw_tiny", RunData(options, one_process()), {"backbone": "resnet18"})
    task, backbone = tiny_experiment().task, make_backbone("resnet18")
    try:
        assert pretrain(
            Experiment(
                task, backbone, options.stages(task.num_levels, backbone.num_blocks), step_drops(0.05, (1,))
            ),
            run,
        )
    finally:
        run.close()
    return out


@pytest.fixture(scope="module")
def torchvision_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write torchvision's ResNet-18 to a file."""
    path = tmp_path_factory.mktemp("theirs") / "resnet18.pth"
    torch.manual_seed(2)
    torch.save(torchvision.models.resnet18().state_dict(), path)
    return path


def error_line(path: Path, *arguments: Any) -> str:
    with pytest.raises(ValueError) as excinfo:
        load_pretrained(path, *arguments)
    assert "\n" not in str(excinfo.value)
    return str(excinfo.value)


def test_a_runs_folder_gives_its_newest_checkpoint(trained: Path) -> None:
    result = load_pretrained(trained)
    newest = max((trained / "checkpoints").glob("step-*.pt"))
    saved = newest_checkpoint(trained)
    for name, tensor in result.backbone.state_dict().items():
        assert torch.equal(tensor, saved["backbone"][name]), name
    record = result.record
    assert record["path"] == str(newest)
    assert record["sha256"] == hashlib.sha256(newest.read_bytes()).hexdigest()
    assert (record["kind"], record["backbone"], record["run_step"]) == ("fastpsl", "resnet18", 2)
    assert record["science"] == saved["science"] and record["science"]["recipe"] == "jigsaw_tiny"
    assert record["cut"] is True
    assert result.input == Input(size_px=30) and record["input"]["channels"] == "RGB"
    assert json.loads(json.dumps(record)) == record
    says = "resnet18 (fastpsl, 2 steps, its training was cut short, so no result is comparable); input RGB"
    assert says in str(result)
    assert load_pretrained(newest).record == load_pretrained(trained / "checkpoints").record == record


def test_a_damaged_checkpoint_is_passed_over_in_a_folder_and_refused_alone(
    trained: Path, tmp_path: Path
) -> None:
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    paths = sorted((trained / "checkpoints").glob("step-*.pt"))
    (checkpoints / paths[0].name).symlink_to(paths[0])
    damaged = checkpoints / paths[-1].name
    damaged.write_bytes(paths[-1].read_bytes()[:-1000])
    with pytest.warns(UserWarning, match="passed over, .* is no readable checkpoint"):
        assert load_pretrained(tmp_path).record["run_step"] == 1
    assert "is no readable file of weights" in error_line(damaged)
    damaged.write_bytes(b"")
    assert "is no readable file of weights" in error_line(damaged)


def test_a_flipped_bit_is_found(torchvision_file: Path, tmp_path: Path) -> None:
    data = bytearray(torchvision_file.read_bytes())
    data[len(data) // 2] ^= 1
    path = tmp_path / "flipped.pth"
    path.write_bytes(data)
    assert "checksum" in error_line(path, "resnet18", USUAL)


def test_a_checkpoint_keeps_to_what_it_says(trained: Path, tmp_path: Path) -> None:
    assert "another backbone: resnet18, not resnet50" in error_line(trained, "resnet50")
    assert load_pretrained(trained, "resnet18", replace(USUAL, size_px=96)).input.size_px == 30
    other = replace(USUAL, mean=(0.5, 0.5, 0.5))
    line = error_line(trained, None, other)
    assert "trained on input mean (0.485, 0.456, 0.406), not (0.5, 0.5, 0.5)" in line
    state = newest_checkpoint(trained)
    for change, words in (
        ({"backbone": {"conv1.weight": torch.zeros(1)}}, "has none of the 120 tensors of resnet18"),
        ({"backbone": state["backbone"] | {"x": torch.zeros(1)}}, "1 tensors that resnet18 has not (x)"),
        ({"science": {}}, "does not say which backbone it holds: give --backbone"),
        ({"input": {"mean": [0.5]}}, "it needs channels, mean, std and size_px"),
        ({"format": 99}, "is a checkpoint of format 99"),
    ):
        torch.save({**state, **change}, tmp_path / "changed.pt")
        assert words in error_line(tmp_path / "changed.pt")


@pytest.mark.parametrize(
    ("position", "num_stages", "cut"),
    [
        ([(15, 15), (15, 15)], 2, False),
        ([(15, 15)], 2, True),
        ([(15, 15), (3, 15)], 2, True),
        ([(30, 30)], 1, False),
        ([], 1, True),
    ],
)
def test_was_cut_short(position: list[tuple[int, int]], num_stages: int, cut: bool) -> None:
    summaries = [{"num_steps": num_steps, "num_steps_planned": planned} for num_steps, planned in position]
    assert was_cut_short({"position": {"summaries": summaries}, "num_stages": num_stages}) is cut


def test_foreign_weights_must_be_told(torchvision_file: Path) -> None:
    for arguments in ((), (None, USUAL)):
        assert "give --backbone, such as resnet50" in error_line(torchvision_file, *arguments)
    assumed = load_pretrained(torchvision_file, "resnet18")
    assert assumed.input == Input() == USUAL and assumed.record["assumed"]
    assert str(assumed).endswith(
        "input RGB, mean 0.485 0.456 0.406, std 0.229 0.224 0.225 (usual for it: the file does not tell; "
        "--input-channels, --input-mean and --input-std give others); left out: fc.*"
    )
    assert not load_pretrained(torchvision_file, "resnet18", USUAL).record["assumed"]
    input_record = Input("Sobel", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 96)
    result = load_pretrained(torchvision_file, "resnet18", input_record)
    assert result.input == input_record and result.record["left_out"] == ["fc.*"]
    assert (result.record["kind"], result.record["science"]) == ("torchvision", None)
    assert result.record["sha256"] == hashlib.sha256(torchvision_file.read_bytes()).hexdigest()
    found = result.backbone.state_dict()["conv1.weight"]
    assert torch.equal(found, torch.load(torchvision_file)["conv1.weight"])


def test_files_from_before_pytorch_1_6_are_read(torchvision_file: Path, tmp_path: Path) -> None:
    torch.save(torch.load(torchvision_file), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert load_pretrained(tmp_path / "old.pth", "resnet18", USUAL).record["kind"] == "torchvision"


def test_timms_safetensors_are_read(torchvision_file: Path, tmp_path: Path) -> None:
    save_file = pytest.importorskip("safetensors.torch").save_file
    path = tmp_path / "model.safetensors"
    save_file(torch.load(torchvision_file), path, metadata={"format": "pt"})
    assert load_pretrained(path, "resnet18", USUAL).record["kind"] == "timm"
    assert "does not say which backbone it holds" in error_line(path)
    path.write_bytes(path.read_bytes()[:-100])
    assert "is no readable safetensors file" in error_line(path, "resnet18", USUAL)


def test_a_model_of_timm_has_its_usual_input(tmp_path: Path) -> None:
    """EfficientNet-Lite's mean and deviation are not ImageNet's."""
    timm = pytest.importorskip("timm")
    torch.save(timm.create_model("tf_efficientnet_lite0").state_dict(), tmp_path / "lite0.pth")
    loaded = load_pretrained(tmp_path / "lite0.pth", "timm/tf_efficientnet_lite0")
    assert loaded.input == Input("RGB", (0.5,) * 3, (0.5,) * 3, 224)
    given = Input("RGB", (0.1,) * 3, (0.2,) * 3, 64)
    assert load_pretrained(tmp_path / "lite0.pth", "timm/tf_efficientnet_lite0", given).input == given


def test_odd_values_in_a_file_are_named(trained: Path, torchvision_file: Path, tmp_path: Path) -> None:
    """Names that are no strings, dicts that hold themselves, tensors without plain numbers or as settings."""
    path, state, tensors = tmp_path / "odd.pt", newest_checkpoint(trained), torch.load(torchvision_file)
    name, loop, science = "conv1.weight", {}, dict(state["science"])  # type: ignore[var-annotated]
    loop["model"] = science["loop"] = loop
    numbers = torch.zeros(3)
    for odd, words in (
        ({0: numbers}, "no strings (0)"),
        (tensors | {None: numbers}, "no strings (None)"),
        (loop, "deeper lists"),
        (tensors | {name: tensors[name].to_sparse()}, f"{name} as a sparse"),
        (tensors | {name: tensors[name].to("meta")}, "meta tensor"),
        (tensors | {name: tensors[name].to(torch.complex64)}, "complex"),
        *((state | {key: numbers}, "Tensor is not JSON") for key in ("format", "input", "position")),
        (state | {"science": science}, "deeper lists"),
    ):
        torch.save(odd, path)
        assert words in error_line(path, "resnet18", USUAL)
        if odd.get("position") is not None:
            assert words in error_line(path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float8_e4m3fn])
def test_weights_that_compute_no_numbers_are_refused(
    dtype: torch.dtype, torchvision_file: Path, tmp_path: Path
) -> None:
    """NaN, infinity, what float32 cannot hold and a variance below 0; the first three tensors are named."""
    path, tensors = tmp_path / "odd.pt", torch.load(torchvision_file)
    values = {"bn1.running_var": -1.0, "bn1.running_mean": math.nan, "conv1.weight": math.nan}
    if dtype == torch.float64:
        values |= {"conv1.weight": -1e39, "layer1.0.conv1.weight": math.inf}
    for name, value in values.items():
        one = tensors[name].clone()
        one.view(-1)[-1] = 1.0
        one = one.to(dtype)
        one.view(-1)[-1:] = torch.tensor([value], dtype=torch.float64).to(dtype)
        torch.save(tensors | {name: one}, path)
        assert f"below 0, in 1 tensor ({name}): give" in error_line(path, "resnet18", USUAL)
    torch.save({name: torch.full_like(tensor, math.nan).to(dtype) for name, tensor in tensors.items()
                if tensor.is_floating_point()}, path)  # fmt: skip
    line = error_line(path, "resnet18", USUAL)
    assert "in 100 tensors (conv1.weight, bn1.weight, bn1.bias, …): give" in line


def test_a_mask_may_be_infinite_where_the_networks_own_is() -> None:
    network = nn.Sequential(nn.Linear(2, 2))
    network.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    state = network.state_dict()
    assert fill(network, dict(state), "net", "file") == []
    for name, value in (("mask", [math.inf, 0.0]), ("0.bias", [math.inf, 0.0])):
        with pytest.raises(ValueError, match=rf"in 1 tensor \({name}\)"):
            fill(network, state | {name: torch.tensor(value)}, "net", "file")


class Opens:
    @override
    def __reduce__(self) -> tuple[Any, ...]:
        return open, ("should-not-be-there", "w")


def test_what_is_no_file_of_weights_is_said_in_a_line(tmp_path: Path) -> None:
    assert "no such file" in error_line(tmp_path / "absent.pt")
    assert "holds no checkpoint" in error_line(tmp_path)
    path = tmp_path / "x.pt"
    torch.save([torch.zeros(2)], path)
    assert "holds a list, not a dict of tensors" in error_line(path)
    path.write_text("not at all")
    assert "is no readable file of weights" in error_line(path)
    torch.save({"state_dict": {"conv1.weight": torch.zeros(2)}, "args": Opens()}, path)
    line = error_line(path)
    assert "objects besides tensors" in line and "torch.save(model.state_dict(), 'weights.pt')" in line
    assert not Path("should-not-be-there").exists()


def test_random_weights_are_a_function_of_the_seed() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, same, other = (random_weights("resnet18", seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert one.record["sha256"] == same.record["sha256"] != other.record["sha256"]
    assert torch.equal(
        one.backbone.state_dict()["layer4.1.conv2.weight"],
        same.backbone.state_dict()["layer4.1.conv2.weight"],
    )
    assert (one.record["kind"], one.record["path"], one.record["cut"]) == ("random", None, False)
    assert one.science() != other.science() and one.science()["backbone"] == "resnet18"
    assert str(one).startswith("resnet18, random weights; input RGB")
    with pytest.raises(ValueError, match="did you mean resnet50.*allowed are alexnet, .*, resnet50, "):
        random_weights("resnet51", 0)


@pytest.mark.usefixtures("published_widths")
def test_lightness_has_one_channel_from_the_loader_to_the_network() -> None:
    grey = Input("L", (0.5,), (0.25,), 32)
    result = random_weights("resnet18", 0, grey)
    assert result.backbone.get_submodule("conv1").weight.shape == (64, 1, 7, 7)
    paths = sample_paths()
    data = open_data(paths.test_32)
    view = center_view(grey, 24)
    try:
        with Loader(data, [view], batch_size_per_rank=4, train=False, num_threads=1) as loader:
            batches = loader.epoch(0)
            batch = next(batches)
            (inputs,) = batch.inputs([view], torch.float32)
            batches.close()
    finally:
        data.close()
    assert inputs.shape == (4, 1, 24, 24)
    assert torch.equal(inputs, normalise(Lightness()(batch.images[0], {}), (0.5,), (0.25,), torch.float32))
    assert result.backbone(inputs).shape == (4, 512, 1, 1)


def test_the_evaluations_views() -> None:
    middle, crop = center_view(USUAL, 224), train_view(USUAL, 224)
    assert (middle.crop, middle.ops) == (ShorterSideCrop(256, 224, where="center"), ())
    assert crop.ops == (Flip(),) and crop.crop.size_px == 224
    assert center_view(USUAL, 96).crop == ShorterSideCrop(110, 96, where="center")
    sobel = Input("Sobel", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 96)
    images = torch.randint(0, 256, (3, 3, 9, 9), dtype=torch.uint8)
    view = center_view(sobel, 96)
    expected = normalise(gradient_size(images / 255), sobel.mean, sobel.std, torch.float32)
    draws = [{"apply": torch.ones(3, dtype=torch.bool)}]
    assert torch.allclose(view.apply(images, draws, torch.float32), expected)
    assert [type(op) for op in train_view(sobel, 96).ops] == [Flip, Sobel]
    assert train_view(sobel, 96).input() == sobel == center_view(sobel, 96).input()


def test_a_view_says_what_the_network_sees() -> None:
    crop = ShorterSideCrop(64, 48)
    record = ViewSpec(crop, (Flip(), JigsawTiles(3, 16, 8, 4))).input_record()
    assert record == {
        "channels": "RGB", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "size_px": 48,
    }  # fmt: skip
    assert Input.from_dict(record) == Input(size_px=48)
    assert ViewSpec(crop, (Sobel(0.2),)).input().channels == "RGB"
    assert ViewSpec(crop, (Sobel(1.0),)).input().channels == "Sobel"
    assert ViewSpec(crop, (Lightness(),), (0.5,), (0.2,)).input() == Input("L", (0.5,), (0.2,), 48)
    with pytest.raises(ValueError, match="give 1 value each"):
        ViewSpec(crop, (Lightness(),))
    with pytest.raises(ValueError, match="give 3 values each"):
        ViewSpec(crop, (), (0.5,), (0.2,))
    for wrong, words in (
        ({"channels": "Lab"}, "allowed are RGB, L, Sobel"),
        ({"std": (0.1, 0.0, 0.1)}, "std above 0"),
        ({"std": (0.1, math.nan, 0.1)}, "std above 0"),
        ({"mean": (0.1, math.nan, 0.1)}, "std above 0"),
        ({"mean": (-math.inf, 0.1, 0.1)}, "std above 0"),
        ({"std": (0.1, 1e-50, 0.1)}, "std above 0"),
        ({"mean": (-1e300, 0.1, 0.1)}, "std above 0"),
        ({"channels": "ops.Edges", "mean": (), "std": ()}, "give 1 value each"),
        ({"size_px": 0}, "1 px or more"),
    ):
        with pytest.raises(ValueError, match=words):
            Input(**wrong)  # type: ignore[arg-type]
    for name, value in (("size_px", math.inf), ("mean", [10**400] * 3)):
        with pytest.raises(ValueError, match="it needs channels"):
            Input.from_dict(record | {name: value})


def options(*words: object) -> EvaluationOptions:
    parsed: EvaluationOptions = parse(EvaluationOptions, [str(word) for word in words])
    return parsed


def test_options_find_the_weights(trained: Path, torchvision_file: Path) -> None:
    assert options(trained).pretrained().record["kind"] == "fastpsl"
    result = options(torchvision_file, "--backbone", "resnet18", *INPUT_FLAGS, "--size-px", 96).pretrained()
    assert result.input == replace(USUAL, size_px=96)
    assert options("--random-weights", "--backbone", "resnet18", "--seed", 3).pretrained().record == (
        random_weights("resnet18", 3).record
    )
    # Options that locate the weights may change on resume. Pretrained.science() has the weights themselves.
    assert {"size_px", "seed"} <= options().science().keys()
    assert not {"checkpoint", "backbone", "input_mean"} & options().science().keys()


def test_options_that_find_none_are_refused(torchvision_file: Path) -> None:
    for words, message in (
        ((), "give either RUN or --random-weights"),
        ((torchvision_file, "--random-weights"), "give either"),
        (("--random-weights",), "--random-weights needs --backbone"),
        ((torchvision_file, "--input-mean", "0.5"), "belong together"),
    ):
        with pytest.raises(ValueError, match=message):
            options(*words).pretrained()
    with pytest.raises(ValueError, match="--size-px 0"):
        options("--size-px", 0)


def test_an_input_of_0_to_255_is_refused() -> None:
    with pytest.raises(ValueError, match="divide both by 255"):
        Input("RGB", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
    with pytest.raises(ValueError, match="divide both by 255"):
        Input("RGB", (0.5, 0.5, 0.5), (58.395, 57.12, 57.375))


@pytest.mark.parametrize(
    "change",
    [
        {"position": {"run_step": -1, "summaries": []}}, {"position": {"run_step": 10**400, "summaries": []}},
        {"position": {"run_step": 1, "summaries": [5]}}, {"position": {"run_step": 1}}, {"num_stages": "1"},
        {"science": {"backbone": 5}}, {"science": {"recipe": ["x"]}}, {"format": True},
        {"backbone": {"conv1.weight": "words"}},
    ],
)  # fmt: skip
def test_a_checkpoint_with_a_value_of_another_kind_is_named(
    change: dict[str, Any], trained: Path, tmp_path: Path
) -> None:
    torch.save(newest_checkpoint(trained) | change, tmp_path / "odd.pt")
    assert error_line(tmp_path / "odd.pt").startswith(f"{tmp_path / 'odd.pt'} does not say what it holds")


def test_a_damaged_record_beside_weights_is_named(torchvision_file: Path) -> None:
    json_path = torchvision_file.with_name(f"{torchvision_file.name}.json")
    for text in ("[" * 200_000, "{nonsense"):
        json_path.write_text(text)
        assert error_line(torchvision_file).startswith(f"{json_path} does not say what it holds")
    json_path.unlink()


def test_a_record_makes_no_network_that_its_tensors_cannot_fill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, published_widths: None
) -> None:
    def record(**values: Any) -> Path:
        told = {"backbone": "vgg16", "input": Input("L", (0.5,), (0.25,), 32).as_dict()} | values
        path = tmp_path / "w.safetensors"
        path.write_bytes(safetensors_bytes({"w": torch.zeros(1).expand(1 << 20).clone()}, told))
        return path

    made = list[torch.device]()
    make = make_backbone

    def noted(*name: Any, **options: Any) -> Any:
        made.append(torch.empty(0).device)
        return make(*name, **options)

    monkeypatch.setattr("fastpsl.models.weights.make_backbone", noted)
    with pytest.raises(ValueError, match=r"holds vgg16, which has 134,\d+,\d+ numbers, and has 4,194,304 by"):
        load_pretrained(record())
    assert [device.type for device in made] == ["meta"]
    assert recorded_backbone(str(tmp_path / "w.safetensors"), 1.0) is None
    wide = {"channels": "my.Op", "mean": [0.5] * 9999, "std": [0.5] * 9999, "size_px": 32}
    with pytest.raises(ValueError, match="input of 9,999 channels: give at most 1,000"):
        load_pretrained(record(input=wide))
