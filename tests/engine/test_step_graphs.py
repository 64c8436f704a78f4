"""Steps that are captured as CUDA graphs: --graph."""

import copy
import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typing_extensions import override

from fastpsl.engine import experiment as experiment_module
from fastpsl.engine import step_modes
from fastpsl.engine.distributed import World
from fastpsl.engine.plan import make_plan
from fastpsl.engine.stage_blocks import StageBlocks, StepMetrics
from fastpsl.engine.step_modes import (
    GraphChoice,
    StageChoices,
    StepChoice,
    StepGraphs,
    choose_graph,
    reason_of,
)
from fastpsl.engine.train_step import TrainStep
from fastpsl.engine.trainer import pretrain
from fastpsl.pipelines.loader.batch import Batch
from tests.engine.exact_signals import train_until
from tests.engine.steps import VIEWS, Brightness, make_step
from tests.engine.test_trainer import tiny_experiment
from tests.engine.tiny import noise_batch, one_process, tiny_run
from tests.fake_cuda import DEVICE, fake_cuda
from tests.programs import digests, newest_checkpoint
from tests.step_recorder import Recorder, differences, plain_capture, record_steps

CUDA = torch.device("cuda", 0)
CAPTURED = GraphChoice(True, "asked for")
GPU = World(0, 1, 0, 1, DEVICE)


def train_step_of(
    task: Brightness, world: World | None = None, graph: GraphChoice = CAPTURED, choices: Any = None
) -> TrainStep:
    torch.manual_seed(0)
    choices = choices or StageChoices(graph=graph)
    return make_step(make_plan("psl", (1, 1, 1))[0], task, world=world, choices=choices)


# What a step must not do. Each is planted in a task, and must be found.


class Planted(Brightness):
    """A task with a fault in its loss, which gets the loss, the batch and the number of the step."""

    def __init__(self, fault: Callable[["Planted", Tensor, Batch], Tensor]):
        self.fault, self.number = fault, 0
        self.queue, self.label, self.seen = torch.zeros(8, device=DEVICE), torch.zeros(3, device=DEVICE), 0

    @override
    def batch_tensors(self, epoch: int, step: int, num_images: int) -> dict[str, Tensor]:
        self.number = step  # outside the step, where it may change
        return {}

    @override
    def loss(self, blocks: nn.Module, head: nn.Module, inputs: Any, batch: Batch) -> tuple[Tensor, Any]:
        loss, metrics = super().loss(blocks, head, inputs, batch)
        return self.fault(self, loss, batch), metrics


def counter_in_a_slice(task: Planted, loss: Tensor, batch: Batch) -> Tensor:
    task.queue[task.number % 4 : task.number % 4 + 1] = loss.detach()
    return loss


def replaced_tensor(task: Planted, loss: Tensor, batch: Batch) -> Tensor:
    task.label = task.label + loss.detach()
    return loss + task.label.sum()


def copy_from_the_host(task: Planted, loss: Tensor, batch: Batch) -> Tensor:
    number = torch.tensor([float(task.number)]).pin_memory()
    return loss + number.to(DEVICE, non_blocking=True).sum()


def python_value(task: Planted, loss: Tensor, batch: Batch) -> Tensor:
    task.seen += 1
    return loss


FAULTS: dict[str, Callable[[Planted, Tensor, Batch], Tensor]] = {
    "rate": lambda task, loss, batch: loss * (0.1 * task.number),
    "counter_in_a_slice": counter_in_a_slice,
    "replaced_tensor": replaced_tensor,
    "growing_list": lambda task, loss, batch: loss + torch.stack([loss] * (task.number + 1)).sum() * 0,
    "copy_from_the_host": copy_from_the_host,
    "number_on_the_host": lambda task, loss, batch: loss + float(task.number),
    "python_value": python_value,
    "read_value": lambda task, loss, batch: loss * loss.item(),
    "branch": lambda task, loss, batch: loss * 2 if loss > 0 else loss,
    "boolean_index": lambda task, loss, batch: loss + batch.labels[batch.indices >= 0].sum(),
    "out_of_reach": lambda task, loss, batch: loss * batch.epoch,
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_fault_in_a_loss_is_found(fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_modes, "capture", plain_capture)
    with fake_cuda() as cuda:
        train_step, recorder = train_step_of(Planted(fault), GPU), Recorder()
        cuda.launched = recorder.launched  # type: ignore[method-assign]
        steps = record_steps(train_step, recorder)
        try:
            for number in range(2):
                train_step.step([replace(noise_batch(VIEWS, 4), step=number).to(DEVICE)], lr=0.1)
        except Exception as error:  # noqa: BLE001  (fake tensors have no values)
            assert "out of reach" in str(error) or "DataDependent" in type(error).__name__ or steps == []
            return
        assert differences(*steps)


def test_an_operation_that_draws_is_named() -> None:
    """It draws other numbers in each replay, as dropout does, if it draws on the device."""
    with fake_cuda():
        draws = lambda task, loss, batch: loss + torch.rand(3, device=DEVICE).sum()
        train_step = train_step_of(Planted(draws), GPU)
        steps = record_steps(train_step, Recorder())
        train_step.step([noise_batch(VIEWS, 4).to(DEVICE)], lr=0.1)
    assert [text.split(" at ")[0] for text in steps[0].random] == ["rand"]


def test_a_step_without_a_fault_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_cuda():
        train_step = train_step_of(Planted(lambda task, loss, batch: loss), GPU)
        steps = record_steps(train_step, Recorder())
        for number in range(3):
            train_step.step([noise_batch(VIEWS, 4, number).to(DEVICE)], lr=0.1 * number)
        assert not differences(steps[1], steps[2])


# The static batches and the order of launched steps, captures and replays.


def test_steps_are_launched_captured_and_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two variants each have three launched steps, a capture and replays; batches lie at one place."""
    done, places = list[str](), set[int]()

    def compute(batches: Any, num_batches: int) -> StepMetrics:
        (batch,) = batches
        places.add(batch.images[0].data_ptr())
        done.append(f"{batch.variant}: {batch.labels.tolist()}")
        return StepMetrics((), batch.labels.float())

    def capture(compute: Callable[[], StepMetrics], *_: Any) -> Callable[[], StepMetrics]:
        done.append("capture")
        return compute

    monkeypatch.setattr(step_modes, "capture", capture)
    graphs = StepGraphs(CAPTURED, one_process())
    steps: Any = SimpleNamespace(compute=compute)
    expected = []
    for number, variant in enumerate((0, 0, 1, 0, 0, 1, 1, 1, 0, 1)):
        batch = replace(noise_batch(VIEWS, 2, number), labels=torch.full((2,), number), variant=variant)
        metrics = graphs.step([batch.of_step()], 1, steps)
        assert metrics.values.tolist() == [number, number]
        expected += ["capture"] * (number in (4, 7)) + [f"{variant}: [{number}, {number}]"]
    assert done == expected and len(places) == 1


class Failing(Brightness):
    """A task whose step fails once, as if it could not be captured; in the middle of its second batch."""

    fails = False

    @override
    def loss(self, blocks: nn.Module, head: nn.Module, inputs: Any, batch: Batch) -> tuple[Tensor, Any]:
        if self.fails:
            self.fails = False
            raise self.error
        return super().loss(blocks, head, inputs, batch)

    error: BaseException = RuntimeError("operation not permitted when stream is capturing")


def failing_capture(compute: Callable[[], StepMetrics], *_: Any) -> Any:
    Failing.fails = True
    try:
        compute()
    finally:
        Failing.fails = False


def make_steps(train_step: TrainStep, batches: list[Batch]) -> None:
    for batch in batches:
        train_step.step([batch], lr=0.1)


def weights_of(train_step: TrainStep) -> list[Tensor]:
    return [value.clone() for value in train_step.module.state_dict().values()]


def test_a_failed_capture_is_told_once_and_its_steps_are_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_modes, "capture", failing_capture)
    plain, fallen = train_step_of(Failing(), graph=step_modes.LAUNCHED), train_step_of(Failing())
    batches = [noise_batch(VIEWS, 4, seed) for seed in range(6)]
    make_steps(plain, batches)
    make_steps(fallen, batches[:3])
    with pytest.warns(UserWarning) as told:
        make_steps(fallen, batches[3:4])
    text = str(told.pop(UserWarning).message)
    assert "in StageModule, at test_step_graphs.py:" in text and "not permitted" in text
    assert "launched" in text and "\n" not in text
    make_steps(fallen, batches[4:])
    assert all(map(torch.equal, weights_of(plain), weights_of(fallen)))
    must = train_step_of(Failing(), graph=CAPTURED._replace(must=True))
    make_steps(must, batches[:3])
    with pytest.raises(ValueError, match="--graph on: this stage's step cannot be captured.*use --graph off"):
        make_steps(must, batches[3:4])


def out_of_memory(compute: Callable[[], StepMetrics], *_: Any) -> Any:
    raise torch.OutOfMemoryError("20 GiB")


def test_steps_that_cannot_be_captured_take_the_mode_for_launched_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Fused BatchNorms are faster than eager ones where steps are captured, and in S1 alone launched."""
    modes = list[str]()

    def noted_runner(mode: str) -> Any:
        modes.append(mode)
        return step_modes.run_blocks

    monkeypatch.setattr(step_modes, "capture", out_of_memory)
    monkeypatch.setattr(step_modes, "make_runner", noted_runner)
    choices = StageChoices(StepChoice("fused", "captured"), CAPTURED, launched=StepChoice("off", "launched"))
    train_step = train_step_of(Brightness(), choices=choices)
    batches = [noise_batch(VIEWS, 4, seed) for seed in range(5)]
    make_steps(train_step, batches[:3])
    assert modes == ["fused"]
    with pytest.warns(UserWarning, match="its memory does not fit"):
        make_steps(train_step, batches[3:4])
    make_steps(train_step, batches[4:])
    assert modes == ["fused", "off"] and train_step.step_choice == choices.launched


def test_a_loaded_state_is_captured_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading replaces the optimiser's tensors, to which a graph of before would go on writing."""
    captured = list[Any]()

    def capture(compute: Callable[[], StepMetrics], *_: Any) -> Any:
        captured.append(compute)
        return compute

    monkeypatch.setattr(step_modes, "capture", capture)
    batches = [noise_batch(VIEWS, 4, seed) for seed in range(10)]
    used, fresh = train_step_of(Brightness()), train_step_of(Brightness())
    start, weights = used.state_dict(), weights_of(used)
    start = copy.deepcopy(start)
    make_steps(used, batches[:5])
    assert len(captured) == 1
    used.module.load_state_dict(dict(zip(used.module.state_dict(), weights, strict=True)))
    for train_step in (used, fresh):
        train_step.load_state_dict(copy.deepcopy(start))
        make_steps(train_step, batches[5:])
    assert len(captured) == 3 and all(map(torch.equal, weights_of(used), weights_of(fresh)))


def test_the_host_is_at_most_two_replays_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    queued, ended, ahead = 0, 0, list[int]()

    class Event:
        def __init__(self, *, blocking: bool):
            assert blocking, "the host would spin"

        def record(self) -> None:
            self.number = queued

        def synchronize(self) -> None:
            nonlocal ended
            ended = max(ended, self.number)

    def replay() -> StepMetrics:
        nonlocal queued
        queued += 1
        ahead.append(queued - ended)
        return StepMetrics((), torch.zeros(1, 2))

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    graphs = StepGraphs(CAPTURED, World(0, 1, 0, 1, CUDA))
    for _ in range(300):
        graphs._replayed(replay)
    assert max(ahead) == 2


@pytest.mark.parametrize("ending_fails", [True, False])
@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), torch.OutOfMemoryError("20 GiB"), ValueError("operation not permitted")]
)
def test_a_failed_capture_is_ended_and_its_first_error_is_raised(
    error: BaseException, ending_fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch leaves its stream, its allocator and its generator in the capture."""
    calls = list[object]()

    @contextmanager
    def capturing(graph: Any, **_: Any) -> Iterator[None]:
        try:
            yield
        finally:
            if ending_fails:
                raise RuntimeError("capture_end")

    generator = SimpleNamespace(clone_state=lambda: "as before", graphsafe_set_state=calls.append)
    cuda: dict[str, Any] = {
        "CUDAGraph": object, "graph": capturing, "default_generators": [generator],
        "current_stream": lambda device: "stream", "set_stream": calls.append,
    }  # fmt: skip
    for name, value in cuda.items():
        monkeypatch.setattr(torch.cuda, name, value)
    for name in ("endAllocateToPool", "releasePool"):  # a later torch may lack them
        monkeypatch.setattr(torch._C, f"_cuda_{name}", lambda *place: calls.append(place), raising=False)

    def fail() -> StepMetrics:
        raise error

    with pytest.raises(type(error)) as raised:
        step_modes.capture(fail, torch.device("cuda", 0), (0, 7))
    assert raised.value is error and calls == ["stream", (0, (0, 7)), (0, (0, 7)), "as before"]
    if isinstance(error, torch.OutOfMemoryError):
        assert "memory does not fit" in reason_of(error)


def test_what_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", raising=False)
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    assert choose_graph("auto", gpu, 1, "").value == choose_graph("on", gpu, 1, "").value == "on"
    assert choose_graph("on", gpu, 1, "").must and not choose_graph("auto", gpu, 1, "").must
    for choice in (
        choose_graph("off", gpu, 1, ""), choose_graph("auto", cpu, 1, ""), choose_graph("auto", gpu, 2, ""),
        choose_graph("auto", cpu, 2, ""), choose_graph("auto", gpu, 2, "images of many sizes"),
        choose_graph("auto", gpu, 1, "images of many sizes"),
    ):  # fmt: skip
        assert choice.value == "off" and choice.reason
    for device, num_ranks, why_not in ((cpu, 1, ""), (gpu, 2, ""), (gpu, 1, "images of many sizes")):
        with pytest.raises(ValueError, match="--graph on: .*; use --graph off, or auto"):
            choose_graph("on", device, num_ranks, why_not)
    monkeypatch.setenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
    assert choose_graph("on", gpu, 2, "").must
    on_two = choose_graph("auto", gpu, 2, "")
    assert on_two.captures and not on_two.must and "on all 2 ranks" in on_two.reason
    assert not choose_graph("auto", gpu, 2, "images of many sizes").captures


# Whole runs.


def captured_on_the_cpu(monkeypatch: pytest.MonkeyPatch, capture: Any = plain_capture) -> None:
    monkeypatch.setattr(step_modes, "capture", capture)
    monkeypatch.setattr(experiment_module, "choose_graph", lambda *_: CAPTURED)


def fit_captured(out: Path, stop_at: int | None = None) -> None:
    """Train three stages of seven steps, with a skipped one in each, until a signal after `stop_at` steps."""
    run = tiny_run(out, batch_size=96, epochs=(2, 2, 2), max_steps_per_stage=7, probe_every=1)
    experiment = tiny_experiment()
    spoil(experiment.task)
    train_until(stop_at, experiment, run)


def spoil(task: Any) -> None:
    """Make the loss of every fifth step of a task infinite, by a tensor of the batch."""
    loss = task.loss

    def spoiled(blocks: StageBlocks, head: nn.Module, inputs: Any, batch: Batch) -> Any:
        value, metrics = loss(blocks, head, inputs, batch)
        return value * batch.extra["factor"] if head.training else value, metrics

    task.loss = spoiled
    task.batch_tensors = lambda epoch, step, num: {"factor": torch.tensor(torch.inf if step == 3 else 1.0)}


def test_a_captured_run_is_a_launched_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bit for bit, through stages, validations, probes, skipped steps, and resumes of either by the other."""
    monkeypatch.setattr("fastpsl.plots.charts.draw_probes", lambda *_: None)  # it takes seconds
    fit_captured(tmp_path / "launched")
    fit_captured(tmp_path / "launched first", stop_at=9)
    with monkeypatch.context() as patch:
        captured_on_the_cpu(patch)
        fit_captured(tmp_path / "captured")
        fit_captured(tmp_path / "captured first", stop_at=9)
        fit_captured(tmp_path / "launched first")
    fit_captured(tmp_path / "captured first")
    expected = digests(newest_checkpoint(tmp_path / "launched"))
    for name in ("captured", "launched first", "captured first"):
        assert digests(newest_checkpoint(tmp_path / name)) == expected, name
    losses = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("launched", "captured")]
    assert losses[0] == losses[1]
    assert capsys.readouterr().err.count("1 of steps") == 4 * 3


def test_a_stages_graphs_are_freed_at_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By counts of references alone, before the validation pass and the next stage need the memory."""

    class Graph:
        def __call__(self) -> StepMetrics:
            return StepMetrics(("loss", "accuracy"), torch.ones(3, 2))

    alive, counts = weakref.WeakSet[Graph](), list[int]()

    def capture(compute: Callable[[], StepMetrics], *_: Any) -> Graph:
        counts.append(len(alive))
        graph = Graph()
        alive.add(graph)
        return graph

    captured_on_the_cpu(monkeypatch, capture)
    gc.disable()
    try:
        with closing(tiny_run(tmp_path, batch_size=96, max_steps_per_stage=5, val=None)) as run:
            assert pretrain(tiny_experiment(), run)
        assert counts == [0, 0, 0] and not alive
    finally:
        gc.enable()
