"""The modes of steps: --compile, and --fold-frozen."""

import copy
import gc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._dynamo.backends.debugging import aot_eager
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
from torch.nn.parallel import DistributedDataParallel
from typing_extensions import override

from fastpsl.engine import step_modes
from fastpsl.engine.plan import Stage, make_plan
from fastpsl.engine.step_modes import OFF, choose_fold, choose_step, make_runner
from fastpsl.engine.train_step import TrainStep
from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.kernels.jigsaw import JigsawTiles
from fastpsl.models.backbone import Backbone
from fastpsl.models.resnet import ResNet
from fastpsl.models.revnet import RevNet
from fastpsl.pipelines.loader.augment import TORCH
from fastpsl.pipelines.views import ViewSpec
from fastpsl.tasks.contrastive.moco import KeyEncoder
from tests.engine.steps import VIEWS, make_step
from tests.engine.test_trainer import fit
from tests.engine.tiny import TinyNet, noise_batch
from tests.programs import newest_checkpoint
from tests.slow import slow

CUDA = torch.device("cuda", 0)
STAGES = make_plan("psl", (1, 1, 1))
captured, launched = partial(choose_step, captured=True), partial(choose_step, captured=False)


class Capture:
    """A backend that records each graph's inputs and runs the graph by autograd without generating code."""

    def __init__(self) -> None:
        self.inputs: list[list[Any]] = []

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        self.inputs.append(inputs)
        compiled: Callable[..., Any] = aot_eager(graph, inputs)
        return compiled


def make_train_step(
    stage: Stage, backend: Any = None, precision: str = "fp32", network: Callable[[], nn.Module] = TinyNet
) -> TrainStep:
    torch.manual_seed(0)
    net = network().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    train_step = make_step(stage, backbone=net, precision=precision)
    if backend is not None:
        train_step.module.blocks.runner = make_runner("on", backend)
    return train_step


def values(train_step: TrainStep) -> Tensor:
    """Return all weights and running statistics as a vector."""
    state = train_step.module.state_dict()
    assert not any("_orig_mod" in name for name in state)
    return torch.cat([value.flatten().double() for value in state.values()])


@pytest.mark.parametrize("precision", ["fp32", slow("bf16")])
def test_every_stage_has_concrete_sizes_and_the_values_of_eager(precision: str) -> None:
    """S1 to S3 run in one process with validation passes, because symbolic sizes made compiled S2 slow."""
    for stage in STAGES:
        backend = Capture()
        eager, compiled = make_train_step(stage, None, precision), make_train_step(stage, backend, precision)
        for train_step in (eager, compiled):
            for seed in range(3):
                train_step.step([noise_batch(VIEWS, 4, seed)] * 2, lr=0.1, num_batches=2)
            # Validation batches have another size and mode, and are not compiled.
            train_step.evaluate([noise_batch(VIEWS, 3)], VIEWS, lambda: False)
        # Frozen blocks and learning blocks are compiled once each.
        assert len(backend.inputs) == (2 if stage.first_learning > 1 else 1)
        for inputs in backend.inputs:
            assert all(isinstance(value, Tensor) for value in inputs)
            assert not any(isinstance(n, torch.SymInt) for value in inputs for n in value.shape)
        assert torch.equal(values(eager), values(compiled))


@pytest.mark.slow
def test_other_sizes_are_compiled_anew_and_not_made_symbolic() -> None:
    """MoCo needs this: groups of keys pass through the same blocks as the queries."""
    backend = Capture()
    runner, blocks = make_runner("on", backend), nn.ModuleList(TinyNet().blocks())
    for size, side in ((4, 32), (2, 32), (4, 48)):
        runner(blocks, torch.randn(size, 3, side, side))  # type: ignore[arg-type]
    assert len(backend.inputs) == 3
    assert all(isinstance(value, Tensor) for inputs in backend.inputs for value in inputs)


def test_stages_do_not_share_torchs_limit_and_beyond_it_nothing_falls_back() -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    limit, block = torch._dynamo.config.recompile_limit, nn.ReLU()
    for size in range(1, limit + 3):
        make_runner("on", backend)([block], torch.ones(size, 1))
    assert len(graphs) == limit + 2
    runner = make_runner("on", backend)
    with pytest.raises(FailOnRecompileLimitHit):
        for size in range(1, limit + 3):
            runner([block], torch.ones(size, 1))


class HostLooks(nn.Module):
    """A block that depends on a value on the host, which a graph cannot contain."""

    @override
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if float(x.sum()) > 0 else x


def test_a_block_that_breaks_the_graph_raises() -> None:
    with pytest.raises(TorchDynamoException):
        make_runner("on", Capture())([HostLooks()], torch.ones(2, 2))


def test_a_copy_of_a_compiled_blocks_runs_its_own_blocks() -> None:
    blocks = make_train_step(STAGES[1], Capture()).module.blocks
    images = torch.randn(4, 3, 32, 32)
    expected = blocks(images)
    other = copy.deepcopy(blocks)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    assert not torch.allclose(other(images), expected)
    other.runner = step_modes.run_blocks
    changed = other(images)
    other.runner = blocks.runner
    assert torch.equal(other(images), changed)


def test_keys_are_compiled_with_the_blocks() -> None:
    results = []
    for backend in (None, capture := Capture()):
        train_step = make_train_step(STAGES[1], backend)
        encoder = KeyEncoder(train_step.module.blocks, train_step.module.head, 0.9)
        results.append(encoder(torch.ones(4, 3, 32, 32).cumsum(3), 4))
    assert torch.equal(*results) and len(capture.inputs) == 2


class Wide(Backbone):
    """A backbone with blocks of 1.3 MB, for which DDP needs several buckets (the first holds 1 MiB)."""

    name = "wide"
    channels = (192,) * 5

    def __init__(self) -> None:
        super().__init__()
        inputs = (3, *self.channels)
        self.parts = nn.ModuleList(
            nn.Sequential(nn.Conv2d(inputs[i], 192, 3, stride=4 if i == 0 else 1, padding=1), nn.ReLU())
            for i in range(5)
        )

    @override
    def blocks(self) -> list[nn.Module]:
        return list(self.parts)


@pytest.fixture
def process_group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    gc.collect()
    dist.destroy_process_group()


def test_inside_ddp_graphs_end_where_buckets_do(process_group: None) -> None:
    """Otherwise all gradients would arrive at once, and none could be reduced during the backward pass."""
    results = []
    for backend in (None, capture := Capture()):
        train_step = make_train_step(STAGES[2], backend, network=Wide)
        train_step.forward = DistributedDataParallel(train_step.module, gradient_as_bucket_view=True)
        for seed in range(2):
            train_step.step([noise_batch(VIEWS, 2, seed)], lr=0.1)
        results.append(values(train_step))
        del train_step
    # The frozen blocks, and at least two parts of the learning blocks.
    assert len(capture.inputs) >= 3
    assert torch.equal(*results)


@pytest.mark.nightly
def test_by_inductor_too() -> None:
    """The real compiler sums in another order. Tolerance: 1e-4 of the largest change in three steps."""
    start = values(make_train_step(STAGES[1]))
    results = []
    for backend in (None, "inductor"):
        train_step = make_train_step(STAGES[1], backend)
        for seed in range(3):
            train_step.step([noise_batch(VIEWS, 4, seed)], lr=0.1)
        results.append(values(train_step))
    changed = (results[0] - start).abs().max()
    assert changed > 0.01 and (results[0] - results[1]).abs().max() < 1e-4 * changed


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that there is a GPU, as far as the checks before a stage need."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(step_modes.shutil, "which", lambda name: name)


def test_auto_is_what_was_measured(a_gpu: None) -> None:
    end_to_end = make_plan("end_to_end", (1, 1, 1))[0]
    backbone = ResNet("resnet50")
    modes = [launched("auto", backbone, s, CUDA, "fp16", 224).mode for s in (*STAGES, end_to_end)]
    assert modes == ["fused", "off", "off", "off"]
    assert "1.4 times" in launched("auto", backbone, STAGES[0], CUDA, "fp16", 224).reason
    modes = [captured("auto", backbone, s, CUDA, "fp16", 224).mode for s in (*STAGES, end_to_end)]
    assert modes == ["fused"] * 4
    for network, precision in ((ResNet("resnet18"), "fp16"), (backbone, "fp32")):
        assert captured("auto", network, STAGES[0], CUDA, precision, 224).mode == "fused"
    others = (
        launched("auto", backbone, STAGES[0], CUDA, "fp32", 224),
        captured("auto", backbone, STAGES[0], torch.device("cpu"), "fp32", 224),
        captured("auto", backbone, Stage("linear", 1, 6, 5, 1), CUDA, "fp16", 224),
        captured("auto", RevNet(), STAGES[0], CUDA, "fp16", 224),
        launched("auto", backbone, STAGES[0], CUDA, "fp16", 64),
        launched("auto", ResNet("resnet18"), STAGES[0], CUDA, "fp16", 224),
    )
    assert [choice.mode for choice in others] == ["off"] * 6
    assert all(choice.reason for choice in others) and "on 64 px" in others[4].reason
    assert launched("fused", backbone, STAGES[1], CUDA, "fp16", 224).mode == "fused"
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(backbone)
    assert launched("fused", synchronised, STAGES[1], CUDA, "fp16", 224, sync_batchnorm=True).mode == "fused"


def test_a_gain_is_of_its_mode_blocks_and_size(a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_modes, "GAINS", {("resnet18", 1, 3, 64): 1.25})
    backbone = ResNet("resnet18")
    result = launched("auto", backbone, STAGES[0], CUDA, "bf16", 64, sync_batchnorm=True)
    assert result.mode == "fused" and "1.25" in result.reason and "minute" not in result.reason
    for stage, side_px in ((STAGES[0], 224), (STAGES[1], 64)):
        assert launched("auto", backbone, stage, CUDA, "bf16", side_px).mode == "off"


def test_eager_is_possible_wherever_it_is_asked_for() -> None:
    assert captured("off", RevNet(), STAGES[0], torch.device("cpu"), "fp32", 64) == OFF


def test_the_size_is_what_the_network_reads() -> None:
    """For jigsaw's images of 225 px, it is the tiles' size."""
    crop = RandomResizedCrop(225)
    assert ViewSpec(crop).side_px == 225 and ViewSpec(crop, (JigsawTiles(3, 75, 64),)).side_px == 64


class NoNorms(Backbone):
    """A backbone of one block, without a BatchNorm to fuse or beyond torch.fx."""

    name, channels = "none", (3,)

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    @override
    def blocks(self) -> list[nn.Module]:
        return [self.block]


@pytest.mark.parametrize(
    ("asked", "backbone", "device", "more", "says"),
    [
        ("on", RevNet, "cpu", {}, "--compile on: RevNet"),
        ("on", TinyNet, "cpu", {"sync_batchnorm": True}, "SyncBatchNorm"),
        ("fused", TinyNet, "cpu", {}, "--compile fused: its kernels need CUDA"),
        ("fused", RevNet, "cuda", {}, "--compile fused: RevNet recomputes"),
        ("fused", lambda: NoNorms(nn.Conv2d(3, 3, 1)), "cuda", {}, "have no BatchNorm of maps"),
        ("fused", lambda: NoNorms(nn.Sequential(nn.BatchNorm2d(3), HostLooks())), "cuda", {},
         r"torch\.fx cannot follow"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line(
    asked: Any, backbone: Any, device: str, more: dict[str, Any], says: str, a_gpu: None
) -> None:
    with pytest.raises(ValueError, match=says) as excinfo:
        launched(asked, backbone(), STAGES[0], torch.device(device), "fp32", 224, **more)
    assert "--compile off" in str(excinfo.value) and "\n" not in str(excinfo.value)


@pytest.mark.parametrize(
    ("asked", "block", "norms", "precision", "captured", "folds", "reason"),
    [
        ("auto", ResNet, "eval", "fp16", True, True, "pass over their maps once"),
        ("auto", ResNet, "eval", "bf16", True, True, "pass over their maps once"),
        ("auto", ResNet, "eval", "fp32", True, False, "captured steps in half precision"),
        ("auto", ResNet, "eval", "fp16", False, False, "captured steps in half precision"),
        ("auto", ResNet, "train", "fp16", True, False, "--frozen-batchnorm train normalises by each batch"),
        ("auto", RevNet, "eval", "fp16", True, False, "RevNet's BatchNorms stand before"),
        ("auto", None, "eval", "fp16", True, False, "no block is frozen"),
        ("off", ResNet, "eval", "fp16", True, False, "asked for"),
        ("on", ResNet, "eval", "fp32", False, True, "asked for"),
        ("on", None, "eval", "fp16", True, False, "no block is frozen"),
    ],
)
def test_auto_folds_what_is_captured_in_half_precision_and_refuses_nothing(
    asked: Any, block: Any, norms: str, precision: str, captured: bool, folds: bool, reason: str
) -> None:
    frozen = [block().blocks()[1]] if block else []
    choice = choose_fold(asked, frozen, norms, precision, captured=captured)
    assert choice.mode == ("on" if folds else "off") and reason in choice.reason


def test_what_is_missing_is_named(a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_modes.importlib.util, "find_spec", lambda name: None)
    for mode in ("on", "fused"):
        with pytest.raises(ValueError, match="pip install triton"):
            captured(mode, TinyNet(), STAGES[0], CUDA, "fp32", 224)  # type: ignore[arg-type]
    monkeypatch.setattr(step_modes.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=r"C\+\+ compiler"):
        launched("on", TinyNet(), STAGES[0], torch.device("cpu"), "fp32", 224)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    with pytest.raises(ValueError, match=r"compute capability 7\.5 and above"):
        launched("on", TinyNet(), STAGES[0], CUDA, "fp32", 224)


def stopped_in_mid_stage(out: Path, **options: Any) -> None:
    assert not fit(out, **options, stop_at=0)[0]


@pytest.mark.slow
def test_a_resumed_stage_goes_on_as_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    modes = []

    def make_noted_runner(mode: str) -> Any:
        modes.append(mode)
        return make_runner(mode, Capture())

    monkeypatch.setattr(step_modes, "make_runner", make_noted_runner)
    stopped_in_mid_stage(tmp_path, compile="on", augment_backend="torch")
    choices = newest_checkpoint(tmp_path)["choices"]
    del choices["decoder"]  # tests/engine/test_run.py
    assert choices == {"compile": "on", "augment_backend": TORCH.path, "fold_frozen": "off"}
    modes.clear()
    # "auto" means eager on a CPU, which the next stages use because they start anew.
    fit(tmp_path, max_steps_per_stage=2)
    assert modes == ["on", "off", "off"]
    modes.clear()
    capsys.readouterr()
    stopped_in_mid_stage(tmp_path / "other", compile="on")
    fit(tmp_path / "other", max_steps_per_stage=2, compile="off", fold_frozen="on")
    assert modes == ["on", "off", "off", "off"]
    output = " ".join(capsys.readouterr().err.split())
    assert "began with compile on and goes on with off, as this command has it" in output
    assert "began with fold_frozen off and goes on with on" in output


def test_a_kept_choice_that_cannot_be_here_is_made_anew(tmp_path: Path) -> None:
    stopped_in_mid_stage(tmp_path)
    path = max((tmp_path / "checkpoints").iterdir())
    state = torch.load(path, weights_only=True)
    torch.save(state | {"choices": {"compile": "fused", "augment_backend": "fused"}}, path)
    finished, _ = fit(tmp_path, max_steps_per_stage=2)
    assert finished
    assert newest_checkpoint(tmp_path)["choices"]["compile"] == "off"
