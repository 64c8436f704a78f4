"""Tests that need a GPU."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel
from typing_extensions import override

from bench.recipe_stages import recipe_options, stage_experiment
from fastpsl.doctor.proof import STEP_BOUNDS
from fastpsl.engine.distributed import World
from fastpsl.engine.experiment import place_backbone
from fastpsl.engine.gpu import peak_memory, reset_peak_memory
from fastpsl.engine.gpu_failures import explained
from fastpsl.engine.plan import Stage, make_plan
from fastpsl.engine.reporter import Reporter
from fastpsl.engine.stage_bench import StageBench
from fastpsl.engine.step_modes import LAUNCHED, GraphChoice, StageChoices, StepChoice
from fastpsl.engine.train_step import TrainStep
from fastpsl.kernels.permutations import permutation_set
from fastpsl.models.factory import make_backbone
from fastpsl.models.fold_batchnorm import ConvReLU, folded
from fastpsl.models.resnet import ResNet
from fastpsl.pipelines.datasets.subset import Synthetic
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.tasks.jigsaw import Jigsaw
from tests.engine.steps import VIEWS, Brightness, make_step
from tests.engine.tiny import TinyNet, noise_batch

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda", 0)
WORLD = World(0, 1, 0, 1, DEVICE)
STAGES = make_plan("psl", (60, 60, 60))


@pytest.fixture(autouse=True)
def plain_float32() -> Iterator[None]:
    """Turn TF32 off, because it has only as many bits as fp16."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


class NoSync:
    """A context in which the host raises an error if it waits for the device."""

    def __enter__(self) -> None:
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")

    def __exit__(self, *_: object) -> None:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_ten_steps_without_a_hidden_sync(precision: str, published_widths: None) -> None:
    """The loader is included."""
    counts = (500, 1000, 2000)
    task = Jigsaw(
        permutation_set(9, counts).permutations, counts, shorter_px=256, cell_px=75, tile_px=64,
        permutations_per_image=1, embedding_width=1000,
    )  # fmt: skip
    backbone = ResNet("resnet50").to(memory_format=torch.channels_last)
    train_step = make_step(STAGES[1], task, backbone, precision=precision, world=WORLD)
    with Loader(Synthetic(2000), task.views(2), batch_size_per_rank=16, device=DEVICE) as loader:
        batches = loader.epoch(0)
        train_step.step([next(batches)], 0.01)  # the first step makes buffers
        with NoSync():
            for _ in range(10):
                train_step.step([next(batches)], 0.01)
        batches.close()


def stage_bench(recipe: str, **values: Any) -> StageBench:
    """Build S2 of a recipe with its sample's values and a backbone of five convolutions."""
    options = recipe_options(
        recipe, is_sample=True, batch_size=16, backbone="resnet18", device="cuda", precision="fp16", **values
    )
    experiment, number = stage_experiment(recipe, "S2", options, WORLD)
    experiment = replace(experiment, backbone=TinyNet())
    place_backbone(experiment, options, WORLD)
    return StageBench(experiment, number, options, Synthetic(1000), WORLD)


@pytest.mark.parametrize("recipe", ["jigsaw", "rotation", "simclr", "moco"])
@pytest.mark.parametrize(("mode", "graph"), [("off", "off"), ("off", "on"), ("fused", "on"), ("on", "on")])
def test_no_task_and_no_mode_waits(recipe: str, mode: str, graph: str) -> None:
    """Covers momentum copies and queues. The capture is in the bench's warm-up."""
    bench = stage_bench(recipe, compile=mode, graph=graph, fold_frozen="on" if mode == "on" else "off")
    assert bench.train_step.graph_choice.value == graph
    check_that_no_step_waits(bench, num_first=4)


def check_that_no_step_waits(bench: StageBench, num_first: int) -> None:
    batches = itertools.repeat(bench.synthetic_batch())
    for _ in range(num_first):
        bench._step(batches)
    with NoSync():
        for _ in range(10):
            bench._step(batches)
    assert weights_of(bench.train_step).isfinite().all()


@pytest.mark.parametrize(
    "recipe", ["sslpp_colorization", "sslpp_context", "sslpp_rotation", "sslpp_aet", "sslpp_iic"]
)
def test_no_task_of_small_images_waits(recipe: str) -> None:
    options = recipe_options(recipe, is_sample=True, batch_size=48, device=DEVICE.type, precision="fp16")
    experiment, number = stage_experiment(recipe, "E", options, WORLD)
    check_that_no_step_waits(StageBench(experiment, number, options, Synthetic(1000), WORLD), num_first=2)


def test_the_log_waits_for_no_step_under_way(tmp_path: Path) -> None:
    bench = stage_bench("jigsaw")
    batches = itertools.repeat(bench.synthetic_batch())
    report = Reporter(
        tmp_path, WORLD, batch_size=16, log_steps=2, resumed_run_step=0, tensorboard=False, wandb=False,
        config={},
    )  # fmt: skip
    report.stage_begins(bench.stage, 0, 100, 10)
    with NoSync():
        for number in range(1, 10):
            metrics = bench.train_step.step([next(batches)], 0.01)
            report.step(number, number, 0.01, metrics)
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 8
    report.close()


def on_device(size: int, seed: int) -> Batch:
    return noise_batch(VIEWS, size, seed).to(DEVICE)


def train(
    stage: Stage, mode: str, precision: str, accumulate: int = 1, steps: int = 3,
    graph: GraphChoice = LAUNCHED, world: World = WORLD,
) -> tuple[Tensor, TrainStep]:  # fmt: skip
    """Train some steps, and return weights with running statistics and the step."""
    torch.manual_seed(0)
    backbone = TinyNet().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    choices = StageChoices(StepChoice(mode, "asked for"), graph)
    train_step = make_step(stage, backbone=backbone, precision=precision, world=world, choices=choices)
    train_step.scaler.load_state_dict(train_step.scaler.state_dict() | {"scale": 1024.0})
    for seed in range(steps):
        batches = [on_device(16, accumulate * seed + part) for part in range(accumulate)]
        train_step.step(batches, 0.1, accumulate)
    return weights_of(train_step), train_step


def weights_of(train_step: TrainStep) -> Tensor:
    """Return all weights and running statistics as a vector."""
    return torch.cat([value.flatten().double() for value in train_step.module.state_dict().values()])


@pytest.mark.parametrize("precision", STEP_BOUNDS)
@pytest.mark.parametrize("mode", ["fused", "on"])
@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_other_modes_equal_eager(stage: Stage, mode: str, precision: str) -> None:
    before, _ = train(stage, "off", precision, steps=0)
    eager, _ = train(stage, "off", precision)
    other, train_step = train(stage, mode, precision)
    largest = (eager - before).abs().max()
    assert (eager - other).abs().max() < STEP_BOUNDS[precision] * largest
    val = train_step.evaluate([on_device(5, 9)], VIEWS, lambda: False)
    assert val is not None and val["loss"] > 0
    train_step.step([on_device(16, 10)], 0.1)


CAPTURED = GraphChoice(True, "asked for", must=True)


@pytest.mark.parametrize("precision", STEP_BOUNDS)
@pytest.mark.parametrize("mode", ["off", "fused", "on"])
@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_captured_steps_are_launched_ones(stage: Stage, mode: str, precision: str) -> None:
    """Three are launched, three replayed; then come a validation pass, another rate and a skipped step."""
    before, _ = train(stage, mode, precision, steps=0)
    ends = []
    for graph in (LAUNCHED, CAPTURED):
        _, train_step = train(stage, mode, precision, 2, 6, graph)
        val = train_step.evaluate([on_device(5, 9)], VIEWS, lambda: False)
        assert val is not None and val["loss"] > 0
        train_step.step([on_device(16, 20), on_device(16, 21)], 0.05, 2)
        kept = [value.clone() for value in train_step.module.state_dict().values()]
        scale = train_step.scaler.get_scale()
        train_step.scaler.load_state_dict(train_step.scaler.state_dict() | {"scale": 2.0**127})
        with NoSync():
            metrics = train_step.step([on_device(16, 22), on_device(16, 23)], 0.05, 2)
        if precision == "fp16":  # elsewhere the scale is 1 again after each step, and nothing overflows
            assert float(metrics.values[-1, 0]) == 1 == float(train_step.num_skipped)
            assert all(map(torch.equal, kept, train_step.module.state_dict().values()))
        train_step.scaler.load_state_dict(train_step.scaler.state_dict() | {"scale": scale})
        ends.append(weights_of(train_step))
    assert (ends[0] - ends[1]).abs().max() < 2 * STEP_BOUNDS[precision] * (ends[0] - before).abs().max()


@pytest.mark.parametrize(
    ("recipe", "values"),
    [
        ("moco", {}), ("simclr", {}), ("uic", {}), ("deepcluster", {}), ("sslpp_iic", {"num_heads": 2}),
        ("sslpp_colorization", {}), ("rotation", {"backbone": "revnet50"}),
        ("rotation", {"backbone": "timm/resnet18"}), ("rotation", {"backbone": "timm/vit_tiny_patch16_224"}),
    ],
    ids=str,
)  # fmt: skip
def test_captured_losses_are_launched_ones(recipe: str, values: dict[str, Any]) -> None:
    losses = []
    for graph in ("off", "on"):
        stage = "S2" if recipe in ("moco", "simclr", "rotation") else "E"
        usual: dict[str, Any] = {"batch_size": 16, "device": "cuda", "precision": "fp16", "graph": graph}
        options = recipe_options(recipe, is_sample=True, **usual | values)
        experiment, number = stage_experiment(recipe, stage, options, WORLD)
        place_backbone(experiment, options, WORLD)
        bench = StageBench(experiment, number, options, Synthetic(1000), WORLD)
        for _ in range(experiment.task.num_warm_up_batches(bench.stage)):
            bench.train_step.warm_up(experiment.task.warm_up, bench.synthetic_batch())
        of_run = []
        for step in range(10):
            torch.manual_seed(step)  # dropout
            batch = replace(noise_batch(bench.views, 16, step), epoch=step // 5, step=step)
            of_run.append(bench.train_step.step([batch.to(DEVICE)], 1e-3).values[0].tolist())
        losses.append([total / count for total, count in of_run])
    assert losses[1] == pytest.approx(losses[0], rel=0.02, abs=0.02)


def test_a_step_that_cannot_be_captured_is_launched_and_random_numbers_go_on() -> None:
    class Reading(Brightness):
        @override
        def loss(self, *arguments: Any) -> Any:
            value, metrics = super().loss(*arguments)
            return value * (1.0 if float(value) else 2.0), metrics

    choices = StageChoices(graph=CAPTURED._replace(must=False))
    train_step = make_step(STAGES[0], Reading(), world=WORLD, choices=choices)
    for seed in range(3):
        train_step.step([on_device(16, seed)], 0.1)
    with pytest.warns(UserWarning, match="cannot be captured as a CUDA graph"):
        train_step.step([on_device(16, 3)], 0.1)
    assert float(train_step.step([on_device(16, 4)], 0.1).values[0, 0]) > 0
    assert len(torch.rand(100, device=DEVICE).unique()) > 90
    refused = make_step(STAGES[0], Reading(), world=WORLD, choices=StageChoices(graph=CAPTURED))
    with pytest.raises(ValueError, match="--graph on: "):
        for seed in range(4):
            refused.step([on_device(16, seed)], 0.1)


def test_memory_of_a_stages_graph_is_given_back() -> None:
    _, train_step = train(STAGES[0], "off", "fp16", steps=3, graph=CAPTURED)
    torch._C._cuda_clearCublasWorkspaces()
    before = torch.cuda.memory_allocated(DEVICE)
    for seed in range(3):
        train_step.step([on_device(16, seed)], 0.1)
    train_step.release()
    torch._C._cuda_clearCublasWorkspaces()  # of the stream of captures
    torch.cuda.empty_cache()
    assert torch.cuda.memory_allocated(DEVICE) <= before


def doubled(group: dist.ProcessGroup | None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Exchange gradients that are doubled before, as if another rank had the same ones and nobody divided."""
    bucket.buffer().mul_(2)
    return allreduce_hook(group, bucket)  # type: ignore[arg-type]


def test_the_exchange_of_gradients_lies_in_the_graph(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """DDP's hook doubles the gradients, as a loss does that is doubled: a graph without it would not.

    NCCL has a group of one rank. The world says two, because one has no DDP.
    """
    monkeypatch.setenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
    store = f"file://{tmp_path}/start"
    dist.init_process_group("cpu:gloo,cuda:nccl", init_method=store, rank=0, world_size=1)
    monkeypatch.setattr(DistributedDataParallel, "__init__", with_hook(DistributedDataParallel.__init__))
    try:
        single, _ = train(STAGES[0], "off", "fp32", steps=14)
        monkeypatch.setattr(Brightness, "factor", 2.0)
        alone, _ = train(STAGES[0], "off", "fp32", steps=14)
        monkeypatch.setattr(Brightness, "factor", 1.0)
        two = replace(WORLD, size=2)
        together, train_step = train(STAGES[0], "off", "fp32", steps=14, graph=CAPTURED, world=two)
        apart = (alone - single).abs().max()
        assert (alone - together).abs().max() < 0.1 * apart < (single - together).abs().max()
        train_step.release()
        del train_step
    finally:
        dist.destroy_process_group()


def with_hook(begin: Any) -> Any:
    def begin_with_hook(parallel: DistributedDataParallel, *arguments: Any, **values: Any) -> None:
        begin(parallel, *arguments, **values)
        parallel.register_comm_hook(None, doubled)

    return begin_with_hook


def test_half_steps_that_are_not_finite_change_nothing() -> None:
    _, train_step = train(STAGES[0], "off", "fp16")
    before = [p.detach().clone() for p in train_step.module.parameters()]
    scale, skipped = train_step.scaler.get_scale(), float(train_step.num_skipped)
    train_step.module.task.factor = float("nan")  # type: ignore[attr-defined]
    batch = on_device(16, 7)
    with NoSync():
        train_step.step([batch], lr=0.1)
    assert all(torch.equal(a, b) for a, b in zip(before, train_step.module.parameters(), strict=True))
    assert float(train_step.num_skipped) == skipped + 1 and train_step.scaler.get_scale() == scale / 2


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_folded_blocks_in_half(name: str) -> None:
    torch.manual_seed(0)
    backbone = ResNet(name).to(DEVICE).to(memory_format=torch.channels_last).eval()
    for part in backbone.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_var.uniform_(0.3, 2.0)  # type: ignore[union-attr]
            part.running_mean.normal_(0.0, 0.3)  # type: ignore[union-attr]
    images = torch.randn(8, 3, 64, 64, device=DEVICE).contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), torch.autocast("cuda", torch.float16):
        plain = result = images
        for block in backbone.blocks()[:2]:
            folded_block = folded(block, torch.float16)
            plain, result = block(plain), folded_block(result)
            by_cudnn = [part.by_cudnn for part in folded_block.modules() if isinstance(part, ConvReLU)]
            assert by_cudnn and all(by_cudnn)
            assert result.dtype == torch.float16 and result.is_contiguous(memory_format=torch.channels_last)
            assert float((plain.float() - result.float()).norm() / plain.float().norm()) < 0.003


def peak_of_a_step(name: str, stage: Stage) -> int:
    torch.cuda.empty_cache()
    backbone = make_backbone(name).to(memory_format=torch.channels_last)
    train_step = make_step(stage, backbone=backbone, precision="fp16", world=WORLD)
    batch = on_device(1024, 0)
    train_step.step([batch], 0.01)
    reset_peak_memory(DEVICE)
    train_step.step([batch], 0.01)
    return peak_memory(DEVICE)["peak_allocated_bytes"]


def test_revnet_takes_less_memory(published_widths: None) -> None:
    """It recomputes what ResNet-50 stores. At 1,024 images of 32 px 0.85 of ResNet-50's memory was seen."""
    (stage,) = make_plan("end_to_end", (1,))
    resnet, revnet = peak_of_a_step("resnet50", stage), peak_of_a_step("revnet50", stage)
    assert revnet < 0.95 * resnet


def test_out_of_memory_is_one_line() -> None:
    free, _ = torch.cuda.mem_get_info(DEVICE)
    with pytest.raises(torch.OutOfMemoryError) as excinfo:
        torch.empty(2 * free + 2**40, dtype=torch.uint8, device=DEVICE)
    assert "out of GPU memory" in (explained(excinfo.value, []) or "")
