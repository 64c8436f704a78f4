"""From a recipe's options to a finished, preempted or failed run: exit codes, status.json, the one line for people."""

import errno
import json
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

from fastpsl.engine.address_space import require_address_space
from fastpsl.engine.distributed import join_world, leave_world, own_rank
from fastpsl.engine.gpu_failures import compiler_failed, explained, goes_on, of_another_rank
from fastpsl.engine.last_step import EXIT_PREEMPTED
from fastpsl.engine.recipe import Evaluation, Options, Recipe
from fastpsl.engine.reporter import summary_line
from fastpsl.engine.run import Run
from fastpsl.engine.seed import torch_seed
from fastpsl.engine.terminal import escaped, people_read, plain
from fastpsl.engine.trainer import pretrain
from fastpsl.pipelines.doing import doing
from fastpsl.pipelines.files.atomic import output_errors, write_atomically
from fastpsl.plots.training_curve import draw_curve

EXIT_FINISHED, EXIT_CRASHED, EXIT_USER_ERROR = 0, 1, 2
_AGAIN = "the same command starts again, or goes on where it had come to"


def launch(script: Recipe[Any] | Evaluation[Any], arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a script and leave the process: 0 finished, 2 user error, 75 preempted (resume it), 1 crashed.

    Errors are as in `run_script`.

    Args:
        arguments: Of the script; None for those of this process.
    """
    opened: list[Run] = []

    def work() -> int:
        options = script.parse(arguments)
        return _train(script, options, opened) if isinstance(script, Recipe) else script.run(options)

    run_script(script.name, work, opened)


def run_script(recipe: str, work: Callable[[], int], opened: Sequence[Run] = ()) -> NoReturn:
    """Leave the process with `work`'s exit code, or with that of its error.

    ValueError, OSError and what a GPU refused (`gpu_failures`) are the user's (one line, no traceback). A rank that lost another
    one says so in a line, and has crashed. Whatever else is ours, with its traceback. `opened`: the runs that `work` opens, whose status says how they ended.
    """

    def lose(name: str, error: OSError) -> None:
        if name == "stdout":
            print(
                f"{recipe}: stdout cannot be written ({error.strerror}); the run goes on without it",
                file=sys.stderr,
            )

    with people_read(lose):
        _run_script(recipe, work, opened)


def _run_script(recipe: str, work: Callable[[], int], opened: Sequence[Run]) -> NoReturn:
    rank = own_rank()
    _say_warnings_in_one_line(recipe, rank)
    try:
        require_address_space()
        with doing(recipe):
            code = work()
    except (ValueError, OSError) as error:
        code = EXIT_USER_ERROR
        reason = _in_one_line(error, opened)
        _report_failure(opened, rank, f"{recipe}: {reason}", reason)
    except KeyboardInterrupt:  # before the run has its own handler
        code = EXIT_PREEMPTED
        _report_failure(opened, rank, f"{recipe}: interrupted; {_AGAIN}", "interrupted")
    except Exception as error:  # noqa: BLE001  (reported in full; the process ends here)
        if compiler_failed(error) and any(run.stop_signal.stop_requested for run in opened):
            # A terminal's Ctrl-C goes to the compiler that torch.compile calls, too.
            _report_failure(
                opened, rank, f"{recipe}: interrupted; {_AGAIN}", "stopped by a signal", "preempted"
            )
            _leave_at_once(EXIT_PREEMPTED)
        told = explained(error, opened)
        code = EXIT_USER_ERROR if told and not of_another_rank(error) else EXIT_CRASHED
        reason = told or f"{type(error).__name__}: {error}"
        _report_failure(opened, rank, f"{recipe}: {told}" if told else traceback.format_exc(), reason)
    sys.stdout.flush()
    sys.stderr.flush()
    if code in (EXIT_USER_ERROR, EXIT_CRASHED):
        _leave_at_once(code)
    leave_world()
    sys.exit(code)


def _in_one_line(error: ValueError | OSError, opened: Sequence[Run]) -> str:
    """What was wrong; of a file that could not be written, which one, what to do, and where the same command goes on."""
    folders = [run.folder for run in opened]
    if isinstance(error, OSError) and _is_of_output(error, folders):
        path = Path(os.fsdecode(error.filename)) if isinstance(error.filename, (str, bytes)) else None
        try:
            with output_errors(path or (folders or [Path("a file")])[-1]):
                raise error
        except ValueError as told:
            return f"{told}{goes_on(opened)}"
    return " ".join(str(error).split())


def _is_of_output(error: OSError, folders: Sequence[Path]) -> bool:
    """Whether it came of writing: full and read-only disks, and whatever befell a file in one of the `folders`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
        return True
    named = isinstance(error.filename, str) and not isinstance(error, FileNotFoundError)
    return named and any(Path(error.filename).is_relative_to(folder) for folder in folders)


def _leave_at_once(code: int) -> NoReturn:
    """Peers may be gone: a process group that waits for them must not keep us."""
    sys.stdout.flush()
    sys.stderr.flush()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        os._exit(code)
    leave_world()
    sys.exit(code)


def _say_warnings_in_one_line(recipe: str, rank: int) -> None:
    """Each once, by rank 0: the loaders of all stages and ranks would say the same."""
    said, show = set[str](), warnings.showwarning

    def show_once(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
        if category is not UserWarning:
            show(message, category, *rest, **more)
        elif rank == 0 and str(message) not in said:
            said.add(str(message))
            print(escaped(f"{recipe}: warning: {' '.join(str(message).split())}"), file=sys.stderr)

    warnings.showwarning = show_once


def _train(recipe: Recipe[Options], options: Options, opened: list[Run]) -> int:
    """Train, and return the exit code. The run is added to `opened`."""
    world = join_world(options.device, timeout_s=10 * options.timeout_s)
    torch.manual_seed(torch_seed(options.seed))  # initial weights
    experiment = recipe.build(options)
    run = Run(recipe.name, experiment.open_data(options, world), experiment.science)
    opened.append(run)
    finished = pretrain(experiment, run)
    if world.rank == 0:
        _say_the_end(run, finished)
        lines = experiment.finish(run) if finished else ()
        if finished:
            run.write_status("finished", "")
        for line in lines:
            print(line)
    run.close()
    return EXIT_FINISHED if finished else EXIT_PREEMPTED


def _say_the_end(run: Run, finished: bool) -> None:
    assert run.reporter.screen
    run.reporter.screen.close()
    if not finished:
        run.write_status("preempted", "stopped by a signal")
    write_atomically(run.folder / "results.json", json.dumps(run.position.summaries, indent=1).encode())
    if not finished:
        where = f"stage {run.position.stage + 1}, step {run.position.step}"
        goes_on = "goes on from there" if run.checkpoints.paths() else "starts anew"
        print(f"stopped by a signal in {where}; the same command with --out {run.folder} {goes_on}")
    # A terminal has shown those of this process as they came, on stderr; a file of stdout gets them all.
    for summary in run.position.summaries[: run.num_stages_before if plain(sys.stdout).isatty() else None]:
        print(summary_line(summary))
    paths = (
        run.checkpoints.paths()
    )  # none where a finished checkpoint was "resumed" in another folder, or none was made
    if paths or run.resumed:
        print(f"checkpoint {paths[-1] if paths else run.options.resume}")
    print(f"training curve {draw_curve(run.folder)}")
    for probes in run.folder.glob("probe.png"):
        print(f"probes {probes}")
    for sheet in sorted(run.folder.glob("contact-sheet-*.png")):
        print(f"contact sheet {sheet}")


def _report_failure(opened: Sequence[Run], rank: int, error: str, reason: str, state: str = "failed") -> None:
    """Say why, once, in status.json and on the terminal.

    A rank that fails breaks the others' collective calls: those find `failed` in status.json and keep quiet. Where all
    ranks fail alike, the others wait a moment, rank 0 says it, and torchrun ends them.
    """
    for run in opened:
        run.stop_signal.close()
        if run.reporter.screen:
            run.reporter.screen.close()
    if rank != 0:
        time.sleep(1.0)
        error = f"rank {rank}: {error}"
    for run in opened:
        before = run.status()
        if before == "failed" or (before == "preempted" and rank != 0):  # rank 0 has said why
            return
        try:
            if before not in ("finished", "preempted"):  # what came to its end stays so
                run.write_status(state, reason if run.world.size == 1 else f"rank {rank}: {reason}")
            (run.folder / "error.txt").write_text(traceback.format_exc())  # for the developer of a task
        except OSError as problem:
            if run.status() != "failed":
                print(f"status.json could not be written: {problem}", file=sys.stderr)
    print(error, file=sys.stderr, flush=True)
