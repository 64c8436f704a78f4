"""The life of a script's process once its options are known: exit codes, status.json, one-line errors."""

import errno
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from fastpsl.console.progress import operation
from fastpsl.console.terminal import (
    EXIT_CRASHED,
    EXIT_FINISHED,
    EXIT_PREEMPTED,
    EXIT_USER_ERROR,
    INTERRUPTED,
    escaped,
    number_in,
    own_rank,
    same_place,
)
from fastpsl.console.words import pasted, worded
from fastpsl.engine.distributed import World, join_world, leave_world, wait_for_all
from fastpsl.engine.gpu_failures import compiler_failed, explained, of_another_rank, resume_hint
from fastpsl.engine.options import INITIAL_WEIGHTS, PretrainOptions
from fastpsl.engine.reporter import DivergedError, summary_line
from fastpsl.engine.run import Run
from fastpsl.engine.trainer import pretrain
from fastpsl.files.run_folder import CONFIG
from fastpsl.files.system_errors import output_errors
from fastpsl.pipelines.loader.batch import BadSampleError
from fastpsl.scripts.after_training import last_lines
from fastpsl.scripts.before_training import instead, lines_before, stage_steps
from fastpsl.scripts.beginning import begun, require_room, seeing, with_first_learning
from fastpsl.scripts.forecast import dry_run
from fastpsl.scripts.recipe import Evaluation, Recipe, Training, differences
from fastpsl.scripts.recipe_files import short_name


def run(script: Recipe[Any] | Evaluation[Any], options: Any, name: str) -> NoReturn:
    """Run a script and exit, as described in `launch`; errors begin with `name`.

    ValueError, OSError and failures of the GPU (`gpu_failures`) are the user's: they are printed in one line
    without a traceback. A rank that lost another one prints a line and exits as crashed. All other errors are
    bugs and are printed with their traceback.
    """
    opened, rank = list[Run](), own_rank()
    try:
        with operation(f"{name}: at work"):
            code = _train(script, options, opened) if isinstance(script, Recipe) else script.run(options)
    except (ValueError, OSError) as error:
        code = EXIT_CRASHED if isinstance(error, DivergedError) else EXIT_USER_ERROR
        reason = error_line(error, opened)
        _report_failure(opened, rank, f"{name}: {reason}", reason)
    except KeyboardInterrupt:  # only before the run installs its own handler
        code = EXIT_PREEMPTED
        if rank == 0 or opened:
            _report_failure(opened, rank, f"{name}: {INTERRUPTED}", "interrupted")
    except Exception as error:  # noqa: BLE001  (reported in full; the process ends here)
        if compiler_failed(error) and any(run.stop_signal.stop_requested for run in opened):
            # Ctrl-C in a terminal also interrupts the compiler that torch.compile calls.
            _report_failure(opened, rank, f"{name}: {INTERRUPTED}", "interrupted", "preempted")
            _exit(EXIT_PREEMPTED, at_once=True)
        explanation = explained(error, opened)
        code = EXIT_USER_ERROR if explanation and not of_another_rank(error) else EXIT_CRASHED
        reason = explanation or f"{type(error).__name__}: {error}"
        _report_failure(
            opened, rank, f"{name}: {explanation}" if explanation else traceback.format_exc(), reason
        )
    _exit(code, at_once=code in (EXIT_USER_ERROR, EXIT_CRASHED))


def error_line(error: ValueError | OSError, opened: Sequence[Run]) -> str:
    """Return an error as one line, with a remedy and the checkpoint if a file could not be written."""
    folders = [run.folder for run in opened]
    if isinstance(error, OSError) and _is_output_error(error, folders):
        path = Path(os.fsdecode(error.filename)) if isinstance(error.filename, (str, bytes)) else None
        try:
            with output_errors(path or (folders or [Path("a file")])[-1]):
                raise error
        except ValueError as output_error:
            return f"{output_error}{resume_hint(opened)}"
    has_option = not opened or "on_bad_sample" not in opened[-1].options.without
    remedy = f"; {error.remedy}" if isinstance(error, BadSampleError) and has_option else ""
    return " ".join(f"{error}{remedy}".split())


def _is_output_error(error: OSError, folders: Sequence[Path]) -> bool:
    """Return whether writing failed: a full or read-only disk, or any error of a file in one of `folders`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
        return True
    has_path = isinstance(error.filename, str) and not isinstance(error, FileNotFoundError)
    return has_path and any(Path(error.filename).is_relative_to(folder) for folder in folders)


def _exit(code: int, *, at_once: bool) -> NoReturn:
    """Exit; at once without waiting in the process group, because other ranks may be gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    if at_once and number_in("WORLD_SIZE", 1) > 1:
        os._exit(code)
    leave_world()
    sys.exit(code)


def _train(recipe: Recipe[Any], options: Any, opened: list[Run]) -> int:
    if options.dry_run:
        dry_run(recipe, options)
        return EXIT_FINISHED
    finished = train(recipe, options, opened)
    opened[-1].stop_signal.ignore()  # srun sends SIGTERM when the first rank has left
    opened[-1].close()
    return EXIT_FINISHED if finished else EXIT_PREEMPTED


def train(
    recipe: Recipe[Training],
    options: Training,
    opened: list[Run],
    *,
    owns_process: bool = True,
    world: World | None = None,
) -> bool:
    """Train, print the results, and return whether the training finished; False after a signal.

    `world` is the one that the process has joined already, or None.
    """
    if options.dry_run:
        raise ValueError("--dry-run is for commands: `fastpsl train NAME --dry-run`; leave it out here")
    world = world or join_world(options.device, timeout_s=10 * options.timeout_s)
    options, chosen = with_first_learning(recipe, options, world)
    experiment, origin, told = begun(recipe, options, world)
    require_room(experiment, options, world)
    data = experiment.open_data(options, world)
    changed = differences(options, recipe.usual(options))
    science = {**experiment.science, **origin}
    steps = sum(stage_steps(experiment, data))
    run = Run(
        recipe.name, data, science, owns_process=owns_process, differences=changed, steps=steps,
        called=short_name(recipe.name),
    )  # fmt: skip
    opened.append(run)
    experiment = seeing(experiment, run.science.get(INITIAL_WEIGHTS))
    if world.rank == 0 and not run.resumed:
        for line in (*chosen, *told, *lines_before(experiment, run.data)):
            run.reporter.log(line)
        usual = "the paper's" if recipe.source == "paper" else "the defaults"
        run.reporter.log(f"all values, and where they differ from {usual}: {run.folder / CONFIG.name}")
    finished = pretrain(experiment, run) and experiment.beside(run)
    if world.rank == 0:
        _print_results(run, finished)
        results = experiment.finish(run) if finished else ()
        if finished:
            run.write_status("finished", "")
        for line in results:
            print(line)
        if finished and isinstance(options, PretrainOptions):
            lines = [*last_lines(run, options), *instead(experiment, run.data)]
            print(worded("\n".join(lines)))
    if not finished:
        wait_for_all(world)  # srun and others end the processes that are left soon after the first has gone
    return finished


def _print_results(run: Run, finished: bool) -> None:
    assert run.reporter.screen
    run.reporter.screen.close()
    if not finished:
        run.write_status("preempted", "interrupted")
    run.write_results()
    if not finished:
        if run.position.run_step:
            where = f"in stage {run.position.stage + 1}, step {run.position.step}"
            what_it_does = "goes on from there" if run.checkpoints.paths() else "starts anew"
        else:
            where, what_it_does = "before the first step", "begins the training"
        folder = pasted(run.folder)
        print(worded(f"interrupted {where}; the same command with --out {folder} {what_it_does}"))
    if not same_place(sys.stdout, sys.stderr):  # the reporter has printed them on stderr
        for summary in run.position.summaries:
            print(summary_line(summary))
    # Empty if a finished checkpoint was "resumed" in another folder, or none was written.
    paths = run.checkpoints.paths()
    if paths or run.resumed:
        print(f"checkpoint {paths[-1] if paths else run.options.resume}")
    from fastpsl.plots.charts import draw_curve  # needs matplotlib, which takes 0.3 s

    print(f"training curve {draw_curve(run.folder)}")
    for probes in run.folder.glob("probe.png"):
        print(f"probes {probes}")
    for sheet in sorted(run.folder.glob("contact-sheet-*.png")):
        print(f"contact sheet {sheet}")


def _report_failure(opened: Sequence[Run], rank: int, error: str, reason: str, state: str = "failed") -> None:
    """Report the reason once, in status.json and on the terminal.

    A failing rank breaks the others' collective calls. They find `failed` in status.json and print nothing.
    If all ranks fail alike, the others wait a moment while rank 0 prints the error, and torchrun ends them.
    """
    for run in opened:
        run.stop_signal.ignore()
        if run.reporter.screen:
            run.reporter.screen.close()
    if rank != 0:
        time.sleep(1.0)
        error = f"rank {rank}: {error}"
    if note_failure(opened, rank, reason, state):
        print(error, file=sys.stderr, flush=True)


def note_failure(opened: Sequence[Run], rank: int, reason: str, state: str = "failed") -> bool:
    """Write the reason to status.json and error.txt; return False if another rank has reported a failure."""
    for run in opened:
        before = run.status()
        if before == "failed" or (before == "preempted" and rank != 0):  # rank 0 has reported it
            return False
        try:
            if before not in ("finished", "preempted"):  # these states are final
                run.write_status(state, reason if run.world.size == 1 else f"rank {rank}: {reason}")
            # For the developer of a task.
            (run.folder / "error.txt").write_text(escaped(traceback.format_exc()))
        except OSError as problem:
            if run.status() != "failed":
                print(f"status.json could not be written: {problem}", file=sys.stderr)
    return True
