"""Failures of a GPU are one line with a remedy and exit code 2. Summaries report the peak memory."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.distributed import DistNetworkError
from typing_extensions import override

from fastpsl.console.terminal import EXIT_CRASHED
from fastpsl.engine import gpu, gpu_failures
from fastpsl.engine.distributed import choose_device
from fastpsl.engine.options import PretrainOptions
from fastpsl.engine.reporter import summary_line
from fastpsl.engine.train_step import TrainStep
from fastpsl.pipelines.embedded.draw_sample import sample_paths
from fastpsl.scripts.launch import launch
from tests.engine.test_trainer import tiny_experiment
from tests.engine.tiny import runs_closed, tiny_recipe
from tests.slow import slow

Launched = Callable[..., tuple[int, str]]


@pytest.fixture
def launched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Launched:
    """Return a function that runs a recipe whose third step fails; it returns the exit code and the line."""

    def failed(error: Exception, **options: Any) -> tuple[int, str]:
        with pytest.MonkeyPatch.context() as patch:
            code = code_of(tmp_path, error, patch, **options)
        lines = capsys.readouterr().err.splitlines()
        (line,) = (x for x in lines if x.startswith("tiny: "))
        assert not any("Traceback" in x for x in lines)
        return code, line

    return failed


def code_of(
    out: Path, error: Exception, monkeypatch: pytest.MonkeyPatch, fails_at: int | None = 3, **options: Any
) -> int:
    """Run a recipe whose step number `fails_at` raises `error`, and return its exit code."""
    paths, step, steps = sample_paths(), TrainStep.step, list[int]()

    def failing(self: TrainStep, *arguments: Any) -> Any:
        steps.append(1)
        result = step(self, *arguments)  # after the batch was read, so that the data are not to blame
        if len(steps) == fails_at:
            raise error
        return result

    def parse() -> PretrainOptions:
        values: dict[str, Any] = {"batch_size": 32, "epochs": (2, 2, 2), "workers": 1, "device": "cpu"}
        values |= options
        return PretrainOptions(data=str(paths.train_32), val=str(paths.test_32), out=out, **values)

    monkeypatch.setattr(TrainStep, "step", failing)
    with runs_closed(monkeypatch), pytest.raises(SystemExit) as excinfo:
        launch(tiny_recipe(parse, lambda options: tiny_experiment()))
    assert isinstance(excinfo.value.code, int)
    return excinfo.value.code


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 3.00 GiB for an array"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried "
            "to allocate 9 bytes."
        ),
    ],
)  # fmt: skip
def test_out_of_the_machines_memory_is_one_line(error: Exception, tmp_path: Path, launched: Launched) -> None:
    code, line = launched(error)
    assert code == 2 and "out of this machine's memory (" in line and "allocate" in line
    assert "lower --prefetch-batches" in line and f"--out {tmp_path} starts anew" in line


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
    ],
)
def test_out_of_memory_in_a_step_says_where_and_what_takes_less(
    error: Exception, tmp_path: Path, launched: Launched
) -> None:
    code, line = launched(error)
    where = "out of GPU memory in stage 1, step 2, with 32 images per pass on each GPU in fp32"
    less = "--accumulate 2 (the same batch, 16 images per pass), --precision fp16, or --batch-size 16 with"
    assert code == 2 and where in line and less in line
    status = json.loads((tmp_path / "status.json").read_text())
    assert status["state"] == "failed" and "out of GPU memory" in status["reason"]
    assert type(error).__name__ in (tmp_path / "error.txt").read_text()


def test_an_error_of_ours_keeps_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code_of(tmp_path, RuntimeError("shapes differ"), monkeypatch) == 1
    assert "Traceback" in capsys.readouterr().err


def test_what_cannot_be_given_is_not_offered() -> None:
    class Whole(PretrainOptions):
        @override
        def __post_init__(self) -> None:
            if self.accumulate > 1:
                raise ValueError("another loss")

    lowered = list(gpu_failures._less(Whole(batch_size=32), "fp16", 1))
    assert lowered == ["--graph off", "or --batch-size 16 with the learning rate in proportion"]
    for batch_size in (3, 1):
        odd = list(gpu_failures._less(PretrainOptions(batch_size=batch_size, graph="off"), "fp16", 1))
        assert odd == ["or --batch-size 1 with the learning rate in proportion"]
    first, _ = gpu_failures._less(PretrainOptions(batch_size=32, graph="off"), "fp16", 4)
    assert first == "--accumulate 2 (the same batch, 4 images per pass)"


def test_the_last_of_several_runs_is_the_one_that_goes_on(tmp_path: Path) -> None:
    runs: list[Any] = [
        SimpleNamespace(folder=tmp_path / name, checkpoints=SimpleNamespace(paths=lambda paths=paths: paths))
        for name, paths in (("a", []), ("b c", [Path("step-1.pt"), Path("step-2.pt")]))
    ]
    hint = f"; the same command with --out '{tmp_path / 'b c'}' goes on from step-2.pt"
    assert gpu_failures.resume_hint(runs) == hint and gpu_failures.resume_hint([]) == ""


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (RuntimeError("Triton Error [CUDA]: device kernel image is invalid"), "update the driver"),
        (RuntimeError("CUDA error: no kernel image is available for execution\non the device"),
         "--device cpu"),
        (torch._dynamo.exc.BackendCompilerFailed("inductor", RuntimeError("no such\nop"), None),
         "--compile off"),
    ],
)  # fmt: skip
def test_drivers_and_compilers_are_named(error: Exception, says: str) -> None:
    line = gpu_failures.explained(error, [])
    assert line is not None and says in line and "\n" not in line
    assert gpu_failures.explained(RuntimeError("shapes differ"), []) is None


# Errors of torch 2.11 and 2.15, NCCL 2.2x, Gloo and DALI. torch's advice follows the first line.
ADVICE = (
    "\nSearch for `cudaErrorX' in https://docs.nvidia.com for more."
    "\nCUDA kernel errors might be asynchronously reported"
)


def cuda_error(words: str) -> RuntimeError:
    kind: Any = getattr(torch, "AcceleratorError", RuntimeError)
    error: RuntimeError = kind(f"CUDA error: {words}{ADVICE}")
    return error


FAULTS = [
    (cuda_error("an illegal memory access was encountered"), "CUDA_LAUNCH_BLOCKING=1"),
    (cuda_error("device-side assert triggered"), "CUDA_LAUNCH_BLOCKING=1"),
    (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), "CUDA_LAUNCH_BLOCKING=1"),
    (RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"), "CUDA_LAUNCH_BLOCKING=1"),
    (RuntimeError("CUDA runtime API error cudaErrorIllegalAddress (700):\nan illegal memory access"),
     "CUDA_LAUNCH"),
    (RuntimeError("CUDA driver version is insufficient for CUDA runtime version"),
     "install a torch for the CUDA"),
    (RuntimeError("NCCL error in: NCCLUtils.cpp:94, unhandled system error"), "NCCL_DEBUG=INFO"),
    (RuntimeError("NCCL error: invalid usage\nDuplicate GPU detected : rank 1 and rank 0"),
     "NCCL_DEBUG=INFO"),
]  # fmt: skip


@pytest.mark.parametrize(("error", "remedy"), FAULTS, ids=lambda value: str(value)[:40])
def test_a_device_that_fails_is_one_line_with_a_remedy(error: Exception, remedy: str) -> None:
    line = gpu_failures.explained(error, [])
    assert line is not None and remedy in line and "\n" not in line
    assert "Search for" not in line and "asynchronously" not in line


# Errors of one of two ranks on a machine, after the other was killed, was stopped, or never started.
LOST = [*map(RuntimeError, [
    (
        "[/__w/gloo/gloo/transport/tcp/pair.cc:545] Read error [::1]:2701: reset by peer. This is "
        "typically caused by bugs in the application"
    ),
    (
        "[../third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 40000ms for recv "
        "operation to complete"
    ),
    "[../third_party/gloo/gloo/transport/tcp/pair.cc:537] Connection closed by peer [::1]:1234",
    "NCCL error in: ProcessGroupNCCL.cpp, remote process exited or there was a network error",
    "wait timeout after 40000ms, keys: /default_pg/0//cpu//0/1",
]), DistNetworkError("Connection reset by peer")]  # fmt: skip


@pytest.mark.parametrize("error", LOST, ids=lambda error: str(error)[-30:])
def test_a_lost_rank_is_told_as_one_by_the_rank_that_lost_it(
    error: Exception, tmp_path: Path, launched: Launched
) -> None:
    code, line = launched(error, checkpoint_steps=1)
    assert code == EXIT_CRASHED and "look for its error in the log" in line
    assert line.startswith("tiny: a rank other than 0 has gone or hangs (")
    assert "gloo" not in line and "bugs in" not in line
    assert line.endswith(f"--out {tmp_path} goes on from step-00000002.pt")
    assert "Traceback" in (tmp_path / "error.txt").read_text()


def test_words_of_other_errors_are_no_faults() -> None:
    for words in (
        "Expected all tensors to be on the same device, but found cuda:0 and cpu!",
        "the file holds Xid and busy or unavailable",
        "CUDA error: uncorrectable ECC error encountered",
    ):
        assert gpu_failures.explained(RuntimeError(words), []) is None


@pytest.mark.parametrize("number", [0, *map(slow, (5, 6))])
def test_a_fault_in_a_run_leaves_its_last_checkpoint_whole(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launched: Launched
) -> None:
    error, remedy = FAULTS[number]
    code, line = launched(error, checkpoint_steps=1)
    assert code == 2 and remedy in line
    assert line.endswith(f"--out {tmp_path} goes on from step-00000002.pt")
    assert "Traceback" in (tmp_path / "error.txt").read_text()
    status = json.loads((tmp_path / "status.json").read_text())
    assert status == {"state": "failed", "stage": 1, "step": 2, "reason": line.removeprefix("tiny: ")}
    # Another folder is needed, because this process still holds the lock of the first.
    newest = max((tmp_path / "checkpoints").iterdir())
    again = tmp_path / "again"
    assert code_of(again, error, monkeypatch, fails_at=None, resume=str(newest), max_steps_per_stage=3) == 0
    assert json.loads((again / "status.json").read_text())["state"] == "finished"


def test_a_device_that_answers_no_more_is_not_asked_for_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> None:
        raise cuda_error("unknown error")

    monkeypatch.setattr(torch.cuda, "mem_get_info", gone)
    assert gpu_failures._in_use(torch.device("cuda", 0)) == ""


@pytest.mark.parametrize(
    ("words", "cuda", "told", "remedy"),
    [
        ("The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver",
         "13.2",
         "too old (found version 11040)", "update it, or install a torch for the CUDA that it serves"),
        ("Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU", "13.2",
         "Found no NVIDIA driver on your system)", "nvidia-smi and CUDA_VISIBLE_DEVICES"),
        ("No CUDA GPUs are available", "13.2",
         "No CUDA GPUs are available", "nvidia-smi and CUDA_VISIBLE_DEVICES"),
        ("Unexpected error from cudaGetDeviceCount(). Error 802: system not yet initialized", "13.2",
         "system not yet initialized", "nvidia-smi and CUDA_VISIBLE_DEVICES"),
        ("", None, "is built for the CPU", "install one with CUDA"),
    ],
)  # fmt: skip
def test_why_there_is_no_cuda_is_told(
    words: str, cuda: str | None, told: str, remedy: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def init() -> None:
        raise RuntimeError(words)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    with pytest.raises(ValueError) as excinfo:
        choose_device("cuda", 0)
    line = str(excinfo.value)
    assert told in line and remedy in line and "Please" not in line and line.endswith("or give --device cpu")
    # With "auto", a warning reports that there is a driver.
    driver = tmp_path / "version"
    monkeypatch.setattr(gpu, "_DRIVER_FILE", driver)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert choose_device("auto", 0) == torch.device("cpu")
    driver.touch()
    with pytest.warns(UserWarning, match="the CPU computes, though there is an NVIDIA driver") as warned:
        choose_device("auto", 0)
    assert remedy in str(warned[0].message)
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert choose_device("auto", 0) == torch.device("cpu")


def test_a_summary_says_its_memory() -> None:
    summary = {"stage": "S1", "level": 1, "num_steps": 2, "num_steps_planned": 2, "seconds": 3.0}
    summary |= {"loss_start": None, "loss_end": None, "val": {}, "chance": None}
    assert "GPU" not in summary_line(summary)
    summary |= {"peak_allocated_bytes": 5 * 2**29, "device_used_bytes": 3 * 2**30}
    assert summary_line(summary).endswith(", GPU memory 2.5 GiB at most (3.0 GiB with all else)")
