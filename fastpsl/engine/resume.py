"""Where a run lives and where it goes on from: its folder, the checkpoint to resume, what may not have changed."""

import contextlib
import fcntl
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from fastpsl.engine.distributed import World, share, wait_for_all
from fastpsl.engine.options import RunOptions
from fastpsl.models.checkpoint import CheckpointManager, read_checkpoint
from fastpsl.pipelines.files.atomic import output_errors

# What a checkpoint holds besides what is only looked at where it is there.
_KEYS: dict[str, type] = {
    "science": dict,
    "machine": dict,
    "position": dict,
    "backbone": dict,
    "learner": dict,
    "task": dict,
}
_POSITION: dict[str, type | tuple[type, ...]] = {
    "stage": int,
    "step": int,
    "run_step": int,
    "first_epoch": int,
    "seconds": (int, float),
    "summaries": list,
}  # `run.Position`
_OLDER = "resume from an older one, or give another --out"


def choose_folder(recipe: str, options: RunOptions) -> Path:
    """--out; or the folder of the checkpoint named by --resume; or a new numbered one. Made where it is not there."""
    if options.out is not None:
        folder = options.out
    elif options.resume not in ("auto", "never"):
        checkpoint = Path(options.resume).resolve()
        if checkpoint.parent.name != "checkpoints":
            raise ValueError(
                f"--resume {options.resume} lies in no run's folder: give --out for the run that goes on"
            )
        folder = checkpoint.parent.parent
    else:
        with output_errors(Path("runs").absolute()):
            return new_numbered_folder(Path("runs"), recipe)
    with output_errors(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise ValueError(
                f"--out {folder} is a file: give a folder, or a path that does not exist yet"
            ) from None
    return folder


def lock_folder(folder: Path) -> TextIO:
    """Hold a run's folder until the file that is returned is closed or the process ends; ValueError where it is held."""
    with output_errors(folder):
        file = open(folder / ".lock", "w")  # noqa: SIM115  (held open by the caller)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ValueError(f"another process trains in {folder}: wait for it, or give another --out") from None
    except OSError:
        pass  # a file system without locks
    return file


@contextlib.contextmanager
def open_folder(recipe: str, options: RunOptions, world: World) -> Iterator[Path]:
    """The run's folder on every rank, held by rank 0 until the end."""
    folder = Path(share(world, str(choose_folder(recipe, options)) if world.rank == 0 else None))
    lock = lock_folder(folder) if world.rank == 0 else contextlib.nullcontext()
    with lock:
        yield folder


def new_numbered_folder(parent: Path, name: str) -> Path:
    """parent/name-001, -002, …: the first number after the last, made here (several runs may ask at once)."""
    parent.mkdir(parents=True, exist_ok=True)
    taken = (re.fullmatch(rf"{re.escape(name)}-(\d+)", path.name) for path in parent.iterdir())
    number = 1 + max((int(match[1]) for match in taken if match), default=0)
    while True:
        folder = parent / f"{name}-{number:03d}"
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1


def find_checkpoint(
    options: RunOptions, world: World, folder: Path, science: dict[str, Any], machine: dict[str, Any]
) -> tuple[str | None, dict[str, Any] | None, list[str]]:
    """The checkpoint to go on from and its state (None: from the start), and notes for people; every rank reads the same file.

    ValueError where it cannot be read or belongs to another experiment.
    """
    checkpoints, notes = CheckpointManager(folder / "checkpoints"), list[str]()
    chosen: str | None = None
    state: dict[str, Any] | None = None
    if options.resume == "never":
        if checkpoints.paths():
            raise ValueError(
                f"--resume never, but {checkpoints.folder} holds checkpoints: give another --out, or "
                "--resume auto"
            )
    elif options.resume != "auto":
        chosen = options.resume
    elif world.rank == 0 and (found := checkpoints.newest(refuse_incomplete)):
        path, state, problems = found
        chosen = str(path)
        notes += [f"passed over: {problem}" for problem in problems]
    chosen = share(world, chosen)
    if chosen is None:
        return None, None, notes
    if state is None:  # rank 0 has read the newest while it looked for it
        state = read_checkpoint(Path(chosen))
        refuse_incomplete(Path(chosen), state)
    refuse_other_science(state["science"], science, chosen)
    where = state["position"]
    notes.append(f"resuming {chosen}: stage {where['stage'] + 1}, step {where['step']}")
    changed = [
        f"{name} {value} → {machine.get(name)}"
        for name, value in state["machine"].items()
        if value != machine.get(name)
    ]
    if changed:
        notes.append(f"changed since then (allowed): {', '.join(changed)}")
    wait_for_all(world)  # until every rank has read it
    if world.rank == 0:
        notes += _leave_other_lines_behind(checkpoints, Path(chosen), where["run_step"])
    return chosen, state, notes


def _leave_other_lines_behind(checkpoints: CheckpointManager, chosen: Path, run_step: int) -> list[str]:
    """Make `chosen` the newest of its folder: later ones are renamed, or they would win over what is learned now.

    A run that goes on in another folder takes the metrics up to there along.
    """
    for name in ("metrics.jsonl", "probe.jsonl", "epochs.jsonl"):
        theirs, ours = chosen.resolve().parent.parent / name, checkpoints.folder.parent / name
        if theirs.exists() and not ours.exists():
            shutil.copyfile(theirs, ours)
    notes = []
    for path in checkpoints.paths():
        if int(path.stem.split("-")[1]) > run_step:
            path.rename(path.with_name(f"abandoned-{path.name}"))
            notes.append(f"{path} is of a line that ends here: renamed to abandoned-{path.name}")
    return notes


def refuse_incomplete(path: Path, state: dict[str, Any]) -> None:
    """ValueError naming the first key that a run could not go on without, or whose value is of another type."""
    optional: dict[str, type] = {"choices": dict} if "choices" in state else {}
    parts: tuple[tuple[dict[str, Any], Mapping[str, Any]], ...] = (
        (state, _KEYS | optional),
        (state.get("position", {}), _POSITION),
    )
    for within, keys in parts:
        where = "" if within is state else "position: "
        for name, kind in keys.items():
            value = within.get(name)
            if not isinstance(value, kind) or isinstance(value, bool):
                is_there = f"is of type {type(value).__name__}" if name in within else "is missing"
                raise ValueError(f"{path} is no whole checkpoint ({where}{name!r} {is_there}): {_OLDER}")  # noqa: TRY004
            if isinstance(value, (int, float)) and not 0 <= value < 1 << 53:
                raise ValueError(f"{path} is no whole checkpoint ({where}{name!r} is {value}): {_OLDER}")
        if within is not state and (unknown := within.keys() - keys.keys()):
            raise ValueError(
                f"{path} is no whole checkpoint (position: {min(map(str, unknown))!r} is unknown): {_OLDER}"
            )


@contextlib.contextmanager
def loading(path: str | None) -> Iterator[None]:
    """Around what takes its state from the checkpoint `path`: what does not fit is one line that names it."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "state_dict" not in str(error):
            raise  # of the device
        what = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{path} does not hold what this experiment needs ({' '.join(what.split())[:200]}): {_OLDER}"
        ) from error


def refuse_other_science(saved: dict[str, Any], asked: dict[str, Any], path: str) -> None:
    """ValueError naming every field in which a checkpoint's experiment differs from the one asked for."""
    different = [
        f"{'the data: its digest' if name == 'data_digest' else name} ({saved.get(name)} there, "
        f"{asked.get(name)} now)"
        for name in sorted(saved.keys() | asked.keys())
        if saved.get(name) != asked.get(name)
    ]
    if saved.get("recipe") != asked.get("recipe"):
        raise ValueError(
            f"{path} is a checkpoint of {saved.get('recipe')}, and this is {asked.get('recipe')}: give "
            "another --out"
        )
    if different:
        raise ValueError(
            f"{path} belongs to another experiment: {', '.join(different)}; give the same values, or "
            "another --out"
        )
