"""The folder of a run, the checkpoint that it resumes from, and the check that both belong together."""

import contextlib
import re
import shutil
import socket
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from fastpsl.engine.distributed import World, share, wait_for_all
from fastpsl.engine.options import INITIAL_WEIGHTS, RunOptions, TrainingOptions
from fastpsl.engine.plan import Stage
from fastpsl.engine.step_modes import StageChoices
from fastpsl.engine.train_step import TrainStep
from fastpsl.files.atomic import atomic_file
from fastpsl.files.locks import try_lock
from fastpsl.files.paths import require_folder
from fastpsl.files.run_folder import LINES, RESULTS
from fastpsl.files.system_errors import output_errors
from fastpsl.models.checkpoint import CheckpointManager, read_checkpoint
from fastpsl.pipelines.interface.identity import not_compared, same_data
from fastpsl.pipelines.views import ViewSpec

# The options whose "auto" keeps the choice of a stage's start when it resumes, even if a later version or
# another GPU would choose differently: compiled, fused and folded computations round differently. A replayed
# graph does not, so `graph` may change.
AUTOMATIC = ("compile", "augment_backend", "fold_frozen", "decoder")
_OLD_VALUES = {"fold_frozen": {False: "off", True: "on"}}  # of earlier checkpoints


def choices_of(train_step: TrainStep) -> dict[str, Any]:
    """Return the stage's choices under their options' names, for checkpoints."""
    step, fold = train_step.step_choice.mode, train_step.fold_choice.mode
    return {"compile": step, "augment_backend": train_step.augment.path, "fold_frozen": fold}


def reasons_of(
    train_step: TrainStep,
    stage: Stage,
    views: Sequence[ViewSpec],
    options: TrainingOptions,
    kept: Collection[str],
) -> Iterator[tuple[str, str, bool]]:
    """Yield how a stage is computed and why, and whether to tell: a slower way, or one that was asked for."""
    augment, step, graph = train_step.augment, train_step.step_choice, train_step.graph_choice
    fold = train_step.fold_choice
    on_gpu, frozen = train_step.world.device.type == "cuda", stage.first_learning - 1
    reasons = StageChoices(step, graph, fold).reasons()
    choices = [
        ("compile", *reasons["compile"], on_gpu and step.mode == "off"),
        # Several ranks are told, too, because a capture needs a variable in their environment.
        ("graph", *reasons["graph"], on_gpu and not (graph.captures and train_step.world.size == 1)),
    ]
    if frozen or options.fold_frozen == "on":
        choices.append(("fold_frozen", *reasons["fold_frozen"], graph.captures and fold.mode == "off"))
    if views:
        choices.insert(0, ("augment_backend", augment.path, augment.reason, augment.path != "fused"))
    for name, value, reason, is_slower in choices:
        why = "as the stage began" if name in kept else reason
        yield name.replace("_", " "), f"{value}: {why}", is_slower or getattr(options, name) != "auto"


def apply_kept_choices(
    options: TrainingOptions,
    kept: Mapping[str, Any],
    check: Callable[[TrainingOptions], None],
    log: Callable[[str], None],
) -> TrainingOptions:
    """Return the options for a stage that resumes from a checkpoint: "auto" becomes the stored choice."""
    for name, stored in kept.items():
        value = _OLD_VALUES.get(name, {}).get(stored, stored)
        option = getattr(options, name)
        if name in AUTOMATIC and option == "auto":
            as_begun = replace(options, **{name: value})
            try:
                check(as_begun)
                options = as_begun
            except ValueError as error:  # another machine may not be able to
                log(
                    f"the stage began with {name} {value}, which cannot be here, and goes on by auto: {error}"
                )
        elif option != value:
            log(f"the stage began with {name} {value} and goes on with {option}, as this command has it")
    return options


# The required keys of a checkpoint. Other keys are optional.
_KEYS: dict[str, Any] = dict.fromkeys(
    ("science", "machine", "position", "backbone", "train_step", "choices", "task"), dict
)
_POSITION: dict[str, Any] = {
    "stage": int, "step": int, "run_step": int, "first_epoch": int, "seconds": (int, float), "summaries": list
}  # `run.Position`  # fmt: skip
_OLDER = "resume from an older one, or give another --out"


def choose_folder(called: str, options: RunOptions) -> Path:
    """Return the run's folder, and create it if necessary.

    It is --out, or the folder of --resume's checkpoint, or a new one: runs/CALLED-001, -002, ….
    """
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
            return new_numbered_folder(Path("runs"), called)
    require_folder(folder)
    for name in (".lock", *LINES, "bad-samples.csv", "error.txt", "wandb-id.txt"):  # others are replaced
        path = folder / name
        # We add lines to these files, and a link in a stranger's folder may lead to a file of yours.
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise ValueError(f"{path}: is no file of the run's own; put the file in its place, or remove it")
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def lock_folder(folder: Path) -> TextIO:
    """Lock a run's folder until the returned file is closed or the process ends.

    The file holds the machine's name, for those who ask whether the run is still at work.
    """
    with output_errors(folder):
        # Opened without a cut, because it may hold the name of the machine that is at work.
        file = open(folder / ".lock", "a+")  # noqa: SIM115  (held open by the caller)
    for is_last in (False, True):  # `fastpsl runs` holds it for an instant
        if try_lock(file) is not False:  # None is of a file system without locks, where runs go on without
            break
        if is_last:
            file.close()
            raise ValueError(f"another process trains in {folder}: wait for it, or give another --out")
        time.sleep(0.1)  # many times that instant (not measured)
    with output_errors(folder):
        file.truncate(0)
        print(socket.gethostname(), file=file, flush=True)  # the file stays open until the run ends
    return file


@contextlib.contextmanager
def open_folder(called: str, options: RunOptions, world: World) -> Iterator[Path]:
    """Yield the run's folder on every rank, locked by rank 0 until the end."""
    # Rank 0 chooses, because each rank would make a numbered folder of its own.
    folder = Path(share(world, str(choose_folder(called, options)) if world.rank == 0 else None))
    lock = lock_folder(folder) if world.rank == 0 else contextlib.nullcontext()
    with lock:
        yield folder


def new_numbered_folder(parent: Path, name: str) -> Path:
    """Create and return the next of parent/name-001, -002, …; several runs may do so at once."""
    parent.mkdir(parents=True, exist_ok=True)
    taken = (re.fullmatch(rf"{re.escape(name)}-(\d+)", path.name) for path in parent.iterdir())
    number = 1 + max((int(match[1]) for match in taken if match), default=0)
    while True:
        folder = parent / f"{name}-{number:03d}"
        try:
            folder.mkdir()  # the system makes it for one process alone
            return folder
        except FileExistsError:  # another run has taken it since we looked
            number += 1


def find_checkpoint(
    options: RunOptions, world: World, folder: Path, science: dict[str, Any], machine: dict[str, Any]
) -> tuple[str | None, dict[str, Any] | None, list[str]]:
    """Find the checkpoint to resume from. All ranks read the same file."""
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
    elif world.rank == 0 and (newest := checkpoints.newest(refuse_incomplete)):
        path, state, problems = newest
        chosen = str(path)
        notes += [f"passed over: {problem}" for problem in problems]
    chosen = share(world, chosen)  # all ranks must go on from one step
    if chosen is None:
        return None, None, notes
    if state is None:  # rank 0 has already read the newest one
        state = read_checkpoint(Path(chosen))
        refuse_incomplete(Path(chosen), state)
    notes += refuse_other_science(state["science"], science, chosen)
    began = state["science"].get(INITIAL_WEIGHTS)
    if science.get(INITIAL_WEIGHTS) not in (None, began):
        notes.append(
            "the weights of the module given now are not used: the run goes on with the checkpoint's"
        )
    if (init := getattr(options, "init", None)) is not None:
        notes.append(f"--init {init} is not read: the run goes on with the checkpoint's weights")
    where = state["position"]
    notes.append(f"resuming {chosen}: stage {where['stage'] + 1}, step {where['step']}")
    pairs = {name: (value, machine.get(name)) for name, value in state["machine"].items()}
    changed = {name: f"{name} {was} → {now}" for name, (was, now) in pairs.items() if was != now}
    if changed:
        notes.append(f"changed since then (allowed): {', '.join(changed.values())}")
    for summary in where["summaries"] if "max_steps_per_stage" in changed else ():
        name, steps, planned = summary["stage"], summary["num_steps"], summary["num_steps_planned"]
        if steps < planned:
            notes.append(
                f"{name} has ended after {steps:,} of {planned:,} steps and stays so; give another --out to "
                "train it longer"
            )
    wait_for_all(world)  # every rank must have read it before files are renamed
    if world.rank == 0:
        notes += _abandon_later_checkpoints(checkpoints, Path(chosen), where["run_step"])
    return chosen, state, notes


def _abandon_later_checkpoints(checkpoints: CheckpointManager, chosen: Path, run_step: int) -> list[str]:
    """Make `chosen` the newest of its folder by renaming later ones.

    If the run continues in another folder, its metrics up to that point and its first weights are copied.
    """
    for name in (*LINES, f"checkpoints/{checkpoints.start.name}"):
        source, target = chosen.resolve().parent.parent / name, checkpoints.folder.parent / name
        if source.exists() and not target.exists():
            target.parent.mkdir(exist_ok=True)
            with open(source, "rb") as file, atomic_file(target) as copied:
                shutil.copyfileobj(file, copied)
    notes = []
    for path in checkpoints.paths():
        if int(path.stem.split("-")[1]) > run_step:
            # Under its name, a resume would prefer it to `chosen`.
            path.rename(path.with_name(f"abandoned-{path.name}"))
            notes.append(f"{path} is of a line that ends here: renamed to abandoned-{path.name}")
    return notes


def refuse_incomplete(path: Path, state: dict[str, Any]) -> None:
    """Check that a checkpoint has all keys that a run needs, with values of the right types."""
    for within, keys in ((state, _KEYS), (state.get("position", {}), _POSITION)):
        where = "" if within is state else "position: "
        for name, kind in keys.items():
            value = within.get(name)
            if not isinstance(value, kind) or isinstance(value, bool):  # a bool is an int
                is_there = f"is of type {type(value).__name__}" if name in within else "is missing"
                raise ValueError(f"{path} is no whole checkpoint ({where}{name!r} {is_there}): {_OLDER}")  # noqa: TRY004
            # `not`, because NaN lies in no range. Below 2**53, a float holds every whole number.
            if isinstance(value, (int, float)) and not 0 <= value < 1 << 53:
                raise ValueError(f"{path} is no whole checkpoint ({where}{name!r} is {value}): {_OLDER}")
        if within is not state and (unknown := within.keys() - keys.keys()):
            raise ValueError(
                f"{path} is no whole checkpoint (position: {min(map(str, unknown))!r} is unknown): {_OLDER}"
            )
    position = state["position"]
    for summary in position["summaries"]:
        if why := RESULTS.why_not(
            summary, "stage", "level", "num_steps", "num_steps_planned", "seconds", "val"
        ):
            raise ValueError(f"{path} is no whole checkpoint (a finished stage {why}): {_OLDER}")
    # One more between a stage's end and the next one's beginning.
    if (finished := len(position["summaries"])) - position["stage"] not in (0, 1):
        raise ValueError(
            f"{path} is no whole checkpoint (position: 'stage' is {position['stage']} after {finished} "
            f"finished ones): {_OLDER}"
        )


@contextlib.contextmanager
def loading(path: str | None) -> Iterator[None]:
    """Turn errors of loading a state from the checkpoint `path` into a one-line ValueError that names it."""
    try:
        yield
    # What `load_state_dict` of torch and of tasks raise for states that are not theirs.
    except (KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "state_dict" not in str(error):
            raise  # an error of the device
        text = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{path} does not hold what this experiment needs ({' '.join(text.split())[:200]}): {_OLDER}"
        ) from error


def refuse_other_science(saved: dict[str, Any], asked: dict[str, Any], path: str) -> list[str]:
    """Compare a checkpoint's experiment (`saved`) with the `asked` one; return lines on what is not compared.

    Raises ValueError with all differences.
    """
    different = [
        f"{'the data: its digest' if name == 'data_digest' else name} ({saved.get(name)} there, "
        f"{asked.get(name)} now)"
        # A resume does not read the weights that a run begins with, and `find_checkpoint` tells that.
        for name in sorted((saved.keys() | asked.keys()) - {INITIAL_WEIGHTS})
        if not _agree(name, saved.get(name), asked.get(name))
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
    return not_compared(path, str(saved.get("data_digest")), str(asked.get("data_digest")))


def _agree(name: str, saved: Any, asked: Any) -> bool:
    """Return whether two values are equal. A digest of data may stand within a dict, such as the labels'."""
    if isinstance(saved, dict) and isinstance(asked, dict):
        return saved.keys() == asked.keys() and all(_agree(key, saved[key], asked[key]) for key in saved)
    if name == "data_digest" and isinstance(saved, str) and isinstance(asked, str):
        return same_data(saved, asked)
    return bool(saved == asked)
