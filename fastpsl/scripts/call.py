"""Run a script within the user's own program, such as a notebook: errors are raised, and nothing is left.

After the call the process is as it was before: signal handlers, the process group, torch's flags and its
default dtype. So are the random numbers of the CPU, and of this process's GPU where CUDA was in use. Most of
these belong to the process and not to a thread, so it makes one such call at a time. Warnings go the
program's own way.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from fastpsl.console.interrupts import imports_undisturbed
from fastpsl.console.progress import operation
from fastpsl.console.terminal import own_rank, require_address_space
from fastpsl.console.words import words_of_python
from fastpsl.engine.distributed import leave_world
from fastpsl.engine.gpu_failures import compiler_failed, explained
from fastpsl.engine.run import Run
from fastpsl.files.paths import FORMS, require_path
from fastpsl.kernels.tf32 import no_tf32
from fastpsl.scripts.recipe_process import error_line, note_failure

Answer = TypeVar("Answer")
_calling = threading.Lock()


def _forget_call() -> None:
    """Let a forked process call, too, since the thread that calls is not in it."""
    global _calling
    _calling = threading.Lock()


os.register_at_fork(after_in_child=_forget_call)


def call(name: str, work: Callable[[list[Run]], Answer]) -> Answer:
    """Return `work`'s result, and leave the process as it was."""
    calling = _calling
    if not calling.acquire(blocking=False):
        raise ValueError(
            f"{name}: this process trains or evaluates already, and all of its threads share torch's random "
            "state: wait until that is done, or start another process"
        )
    opened: list[Run] = []

    def close() -> None:
        for run in opened:
            run.close()

    with ExitStack() as stack:
        stack.callback(calling.release)
        if dist.is_available() and dist.is_initialized():
            raise ValueError(
                f"{name}: torch.distributed has a process group already, and the call makes its own: call "
                "torch.distributed.destroy_process_group() before"
            )
        stack.enter_context(imports_undisturbed())
        stack.enter_context(tensors_on_cpu())
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
        devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
        stack.enter_context(torch.random.fork_rng(devices=devices))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(no_tf32())
        stack.callback(leave_world)
        stack.enter_context(words_of_python())
        stack.callback(close)
        try:
            require_address_space()
            with operation(f"{name}: at work"):
                return work(opened)
        except (ValueError, OSError) as error:
            reason = error_line(error, opened)
            note_failure(opened, own_rank(), reason)
            raise ValueError(reason) from None
        except Exception as error:
            if compiler_failed(error) and any(run.stop_signal.stop_requested for run in opened):
                note_failure(opened, own_rank(), "interrupted", "preempted")
                raise KeyboardInterrupt from error  # Ctrl-C also interrupts the compiler
            explanation = explained(error, opened)
            note_failure(opened, own_rank(), explanation or f"{type(error).__name__}: {error}")
            if explanation:
                raise ValueError(explanation) from error
            raise


@contextmanager
def user_errors() -> Iterator[None]:
    """Raise ValueError and OSError as ValueError in one line, and name options as Python does."""
    with imports_undisturbed(), words_of_python():
        try:
            yield
        except (ValueError, OSError) as error:
            raise ValueError(error_line(error, ())) from None


@contextmanager
def tensors_on_cpu() -> Iterator[None]:
    """Make tensors without a device on the CPU, whatever `torch.set_default_device` says for this thread."""
    is_usual = torch.get_default_device().type == "cpu"
    with nullcontext() if is_usual else torch.device("cpu"):
        yield


def require_data(name: str, value: Any) -> None:
    """Raise ValueError unless `value` can be the path of data; None is allowed."""
    if value is not None:
        require_path(name, value, FORMS)
