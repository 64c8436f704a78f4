"""`fastpsl launch slurm`: a recipe as a job of a cluster."""

import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, ClassVar, NamedTuple

import tyro

from fastpsl.commands.train import Eval, Train
from fastpsl.console.progress import note_output, operation
from fastpsl.console.terminal import escaped
from fastpsl.engine.options import flag
from fastpsl.files.json_records import NoRecord
from fastpsl.files.run_folder import STATUS
from fastpsl.files.system_errors import is_of_the_system
from fastpsl.scripts.command_line import HELP, parse
from fastpsl.scripts.recipe import Recipe

LOOK_EVERY_S = 1.0  # for new lines of the log
ASK_EVERY_S = 5.0  # squeue, which all users of a cluster ask
_ANSWER_S = 60.0
_LEFT = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT"}


class State(NamedTuple):
    """A job's state in the queue: in words, and whether it has ended."""

    words: str
    has_ended: bool = False


def require_slurm(*, has_environment: bool) -> None:
    """Check that a job can be submitted, and that it will find `fastpsl`."""
    if shutil.which("sbatch") is None:
        raise ValueError(
            "there is no sbatch here: give this command on a login node of a Slurm cluster; "
            "--print shows the script"
        )
    if not has_environment and shutil.which("fastpsl") is None:
        raise ValueError(
            "the job would not find fastpsl, which is not on PATH: activate its environment first, or let "
            "--setup do it"
        )


def submit(script: Path) -> str:
    """Give a script to sbatch, and return the job's number."""
    done = _ask("sbatch", "--parsable", str(script.absolute()))  # whose name may begin as an option does
    if done.returncode:
        raise ValueError(f"sbatch does not take the job: {' '.join(done.stderr.split())}")
    return done.stdout.strip().partition(";")[0]


def state_of(job: str) -> State:
    """Return a job's state as squeue tells it."""
    done = _ask("squeue", "--noheader", "--states=all", "--format=%T|%r|%N|%S", f"--jobs={job}")
    if done.returncode and "Invalid job id" not in done.stderr:
        return State(f"squeue does not answer ({' '.join(done.stderr.split())})")
    if not done.stdout.strip():
        return State("no longer in the queue", has_ended=True)
    state, reason, nodes, start = done.stdout.splitlines()[0].split("|")
    words = state + (f" on {nodes}" if nodes else "") + (f" ({reason})" if reason != "None" else "")
    if state == "PENDING" and start != "N/A":
        words += f", to start by {start}"
    return State(words, state in _LEFT)


def follow(job: str, out: Path) -> int:
    """Print a job's log as it grows, and its state beside the run's status.json, until it has ended."""
    log, position, line, asked = out / f"slurm-{job}.log", 0, "", float("-inf")
    try:
        with operation(f"job {job}: asking for its state") as progress:
            while True:
                if time.monotonic() - asked >= ASK_EVERY_S:
                    state, asked = state_of(job), time.monotonic()
                position = _print_from(log, position)
                if (now := f"job {job}: {state.words}; {_status(out)}") != line:
                    line = now
                    print(line, flush=True)
                    progress.rename(f"{line}; waiting for news of it")
                    note_output()
                if state.has_ended:
                    return 0 if _status(out).startswith(f"{STATUS.name} finished") else 1
                time.sleep(LOOK_EVERY_S)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"job {job} goes on; `tail -f -- {shlex.quote(str(log))}` and `squeue --jobs {job}` show it, "
            f"`scancel {job}` ends it"
        ) from None


def _ask(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=_ANSWER_S)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"no answer in {_ANSWER_S:.0f} s")


def _status(out: Path) -> str:
    """Return status.json in words."""
    try:
        status = STATUS.of(out, "state", "stage", "step")
    except OSError as error:
        return f"{STATUS.name}: {error}" if is_of_the_system(error) else f"no {STATUS.name} yet"
    except NoRecord as error:
        return f"{STATUS.name} {error.why}"
    where = f"{STATUS.name} {status['state']}, stage {status['stage']}, step {status['step']}"
    return where + (f": {status['reason']}" if status.get("reason") else "")


def _print_from(log: Path, position: int) -> int:
    """Print what a log has behind a position, and return the position of its end."""
    if not log.exists():
        return position
    with log.open("rb") as file:
        file.seek(position)
        new = file.read()
    if new:
        print(new.decode(errors="replace"), end="", flush=True)
        note_output()
    return position + len(new)


# The parts of NVIDIA's driver that a container gets; the GPU's JPEG engines need that of video.
_DRIVER_PARTS = "NVIDIA_DRIVER_CAPABILITIES=compute,utility,video"
_TIME = re.compile(r"\d+(-\d+(:\d+){0,2}|(:\d+){0,2})|unlimited|infinite", re.ASCII | re.IGNORECASE)


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return `fastpsl`'s own arguments, and those behind a recipe's name, which the recipe gets.

    The options of `launch slurm` are its own wherever they stand.
    """
    own, rest, words = list(arguments[:2]), list[str](), iter(arguments[2:])
    if own[1:] != ["slurm"] or HELP.intersection(arguments):
        return [*own, *(["--help"] if HELP.intersection(arguments) else words)], []
    takes_value = {flag(f.name): f.type is not bool for f in fields(Slurm) if f.name != "recipe"}
    for word in words:
        if (name := word.partition("=")[0]) not in takes_value:
            rest.append(word)
        elif takes_value[name] and name == word:
            own += [word, *(value for value in [next(words, None)] if value is not None)]
        else:
            own.append(word)
    if rest and not rest[0].startswith("-"):
        own.insert(2, rest.pop(0))
        return own, rest
    return own + rest, []


@dataclass(frozen=True)
class Slurm:
    """Submit a training to Slurm, on one or more nodes.

        fastpsl launch slurm jigsaw --nodes 2 --gpus 8 --time 24:00:00 --data 'train-*.beton' --out runs/j

    Writes slurm.sh in --out, gives it to sbatch, and shows the job's state and its log until Ctrl-C, which
    leaves the job alone. A job that is stopped by a signal is requeued and continues.
    """

    recipe: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="NAME")]]
    """A name of `fastpsl recipes`, or the path of a script; its options follow, --out among them."""
    nodes: Annotated[int, tyro.conf.arg(metavar="N")] = 1
    """Machines."""
    gpus: Annotated[int, tyro.conf.arg(metavar="N")] = 1
    """GPUs of each node, a process each; 0: one process on the CPU."""
    cpus: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Cores for each process. [the cluster's default]"""
    time: Annotated[str | None, tyro.conf.arg(metavar="D-HH:MM:SS")] = None
    """Time limit of each start. [the cluster's default]"""
    signal_s: Annotated[int, tyro.conf.arg(metavar="S")] = 120
    """Seconds before the time limit at which the training stops and writes a checkpoint."""
    sbatch: Annotated[str | None, tyro.conf.arg(metavar="OPTIONS")] = None
    """More options of sbatch in one word, such as --sbatch="--partition=gpu --account=lab --qos=high"."""
    setup: Annotated[str | None, tyro.conf.arg(metavar="COMMAND")] = None
    """Shell command before the start, such as "source .venv/bin/activate". The job also has the environment
    of this command."""
    container: Annotated[str | None, tyro.conf.arg(metavar="IMAGE")] = None
    """Image that has fastpsl, in which apptainer runs the processes."""
    print: bool = False
    """Print the script; write and submit nothing."""

    def run(self, *recipe_options: str) -> int:
        """Submit the job and follow it, or print its script."""
        from fastpsl.files.atomic import write_atomically
        from fastpsl.files.system_errors import output_errors

        script, out = self.script(recipe_options)
        if self.print:
            print(script, end="")
            return 0
        require_slurm(has_environment=bool(self.setup or self.container))
        path = out / "slurm.sh"
        with output_errors(path):
            out.mkdir(parents=True, exist_ok=True)
            write_atomically(path, script.encode())
        job = submit(path)
        print(f"job {job}: {path}, log {out / f'slurm-{job}.log'}", flush=True)
        return follow(job, out)

    def script(self, recipe_options: Sequence[str]) -> tuple[str, Path]:
        """Return the text for sbatch, and the run's folder."""
        from fastpsl.tables.templates import templates

        for name, value, least in (
            ("--nodes", self.nodes, 1),
            ("--gpus", self.gpus, 0),
            ("--cpus", self.cpus, 1),
            ("--signal-s", self.signal_s, 1),
        ):
            if value is not None and value < least:
                raise ValueError(f"{name} {value}: give {least} or more")
        if self.time is not None and not _TIME.fullmatch(self.time):
            raise ValueError(f"--time {self.time!r}: give D-HH:MM:SS, HH:MM:SS or a number of minutes")
        values = {"--sbatch": self.sbatch, "--container": self.container, "NAME": self.recipe}
        for name, text in (*values.items(), *(("argument", word) for word in recipe_options)):
            _require_plain(name, text or "")
        _require_plain("--setup", self.setup or "", also="\n\t")
        command, out = _command(self.recipe, recipe_options)
        if self.container is not None:
            if self.container.startswith("-"):
                raise ValueError(f"--container {self.container}: would be an option; give ./{self.container}")
            start = (
                ["env", _DRIVER_PARTS, "apptainer", "exec", "--nv"] if self.gpus else ["apptainer", "exec"]
            )
            command = [*start, self.container, *command]
        script = (
            templates(Path(__file__).parent)
            .get_template("slurm.sh.jinja")
            .render(
                vars(self),
                name=shlex.quote(out.name or "fastpsl"),
                ranks=self.gpus or 1,  # of each node
                log=shlex.quote(f"{str(out).replace('%', '%%')}/slurm-%j.log"),
                sbatch=shlex.join(_words(self.sbatch or "")),
                out=shlex.quote(str(out)),
                command=shlex.join(command),
            )
        )
        return script, out


def _require_plain(name: str, text: str, also: str = "") -> None:
    """Check that a value has no character that ends a line of the script, or is not printed as it is."""
    for letter in text:
        if (escaped(letter) != letter or letter in "\n\t") and letter not in also:
            raise ValueError(f"{name} {text!a}: a script cannot hold the character {letter!a}; leave it out")


def _words(options: str) -> list[str]:
    try:
        return shlex.split(options)
    except ValueError as error:
        raise ValueError(f"--sbatch {options}: {error}; close the quotation, or leave it out") from None


def _command(recipe: str, recipe_options: Sequence[str]) -> tuple[list[str], Path]:
    """Return the command that each process runs, and --out."""
    from fastpsl.scripts.recipe_files import load_recipe, named_path

    script = load_recipe(named_path(recipe, Train.names | Eval.names, recipe_options))
    verb = "eval" if Eval.knows(recipe) else "train"
    prog = f"fastpsl {verb} {recipe}"
    if not isinstance(script, Recipe):
        raise ValueError(  # noqa: TRY004 - a user error
            f"{recipe}: it does not train, so nothing of it continues; write a script that calls `{prog}`"
        )
    options = parse(script.options, recipe_options, default=script.with_paper(), prog=prog)
    if options.out is None:
        raise ValueError("--out is missing: give the run's folder, in which each start of the job continues")
    return ["fastpsl", verb, recipe, *recipe_options], options.out


class Launch:
    """Submit a training to a cluster's queue, and follow it."""

    commands: ClassVar[dict[str, type]] = {"slurm": Slurm}
