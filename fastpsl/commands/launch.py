"""`fastpsl launch slurm`: a recipe as a job of a cluster."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from fastpsl.commands.train import Eval, Train
from fastpsl.console.terminal import escaped
from fastpsl.engine.options import flag
from fastpsl.files.system_errors import output_errors
from fastpsl.scripts.command_line import HELP, parse
from fastpsl.scripts.recipe import Recipe

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
    """Print the script of a training for Slurm's sbatch, on one or more nodes.

        fastpsl launch slurm jigsaw --nodes 2 --gpus 8 --data 'train-*.beton' --out runs/j | sbatch

    It makes the folder --out, in which Slurm puts the job's log. A job that a signal stops is requeued and
    continues.
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

    def run(self, *recipe_options: str) -> int:
        """Print the script, and make the folder of its log, without which Slurm would start no job."""
        if "--print" in recipe_options:  # until version 0.2
            raise ValueError("--print: the script is printed without it; leave it out, and give it to sbatch")
        script, out = self.script(recipe_options)
        with output_errors(out):
            out.mkdir(parents=True, exist_ok=True)
        print(script, end="")
        return 0

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
            start = f"env {_DRIVER_PARTS} apptainer exec --nv" if self.gpus else "apptainer exec"
            command = [*start.split(), self.container, *command]
        template = templates(Path(__file__).parent).get_template("slurm.sh.jinja")
        script = template.render(
            vars(self),
            name=shlex.quote(out.name or "fastpsl"),
            ranks=self.gpus or 1,  # of each node
            log=shlex.quote(f"{str(out).replace('%', '%%')}/slurm-%j.log"),
            sbatch=shlex.join(_words(self.sbatch or "")),
            out=shlex.quote(str(out)),
            command=shlex.join(command),
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
    """Return the command that each process runs, and the folder of its --out."""
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
    """Print the script of a training for a cluster's queue."""

    commands: ClassVar[dict[str, type]] = {"slurm": Slurm}
