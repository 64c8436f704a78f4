"""Recipes: options with defaults from the paper and for the sample, and the experiment built from them."""

from __future__ import annotations

import shutil
import sys
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import SimpleNamespace, UnionType
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from fastpsl.console.terminal import own_rank, plain
from fastpsl.console.words import at_home, unknown, worded
from fastpsl.engine.options import (
    INITIAL_WEIGHTS,
    PretrainOptions,
    RunOptions,
    TrainingOptions,
    flag,
    names_val,
    plain_value,
)
from fastpsl.files.json_records import NoRecord
from fastpsl.files.paths import FORMS, WEIGHTS, require_existing, require_folder
from fastpsl.files.remote.address import is_remote
from fastpsl.files.run_folder import CONFIG, recorded_options
from fastpsl.files.system_errors import input_errors
from fastpsl.models.names import is_own, is_timm, not_given
from fastpsl.scripts.command_line import HELP, option_words, options_of, parse, text_of
from fastpsl.scripts.presets import backbone_of_init, kept_precision, preset_values

if TYPE_CHECKING:
    from fastpsl.engine.experiment import Experiment

_SHOWN = 40  # characters of a recorded value in an error

# Options that may name a Python file, which runs only if the command names it.
_NAMES_OF_NETWORKS = ("backbone", "teacher", "teacher_backbone")
# Options that are not taken from a record: the folders for files, and those that name an earlier run.
_NOT_REPEATED = {"out", "cache_dir", "resume", "config"}


def values_of_config(path: Path, recipe: str, options: type[RunOptions]) -> dict[str, Any]:
    """Return the values of a run's config.json, but for --out, --cache-dir, --resume and --config."""
    config = _read_config(path)
    if (made_by := config["science"]["recipe"]) != recipe:
        raise ValueError(f"--config {path}: it is of a run of {made_by}, and this is {recipe}")
    origin = config["science"].get(INITIAL_WEIGHTS)
    if origin and "path" not in origin:
        warnings.warn(
            f"--config {path}: its run began from the weights of a module; only the module as backbone=, in "
            "Python, begins so again",
            stacklevel=2,
        )
    return recorded_values(config, recipe, options, f"--config {path}")


def recorded_values(
    config: Mapping[str, Any], recipe: str, options: type[RunOptions], source: str
) -> dict[str, Any]:
    """Return the values of a record's options, but for those in `_NOT_REPEATED`.

    Raises:
        ValueError: The recipe has no such option, or a value is not of the option's kind.
    """
    given, origin = recorded_options(config), config["science"].get(INITIAL_WEIGHTS) or {}
    hints = get_type_hints(options)
    kinds = {field.name: hints[field.name] for field in fields(options)}
    if unknown := given.keys() - kinds.keys():
        raise ValueError(f"{source}: {recipe} has no option {', '.join(sorted(unknown))}")
    if "path" in origin:
        given["init"] = origin["path"]  # a resume may have been given another, which was not read
    values = dict[str, Any]()
    for name in given.keys() - _NOT_REPEATED:
        try:
            values[name] = _of_json(given[name], kinds[name])
        except TypeError:
            raise ValueError(
                f"{source}: its {name} is {ascii(given[name])[:_SHOWN]}, which {flag(name)} cannot be; give "
                "a record as it was written"
            ) from None
    return values


def _of_json(value: Any, kind: Any) -> Any:
    """Return a value of JSON as a field of this kind has it; raise TypeError if it is of another kind."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal and any(value == each and type(value) is type(each) for each in parts):
        return value
    if origin is tuple and isinstance(value, list):
        return tuple(_of_json(each, parts[0]) for each in value)
    if origin in (Union, UnionType):
        for part in parts:
            with suppress(TypeError):
                return _of_json(value, part)
    if kind is Path and isinstance(value, str):
        return Path(at_home(value))
    if type(value) is kind or (kind is float and type(value) is int):
        return at_home(value)
    raise TypeError


def origin_of_config(path: Path) -> dict[str, Any]:
    """Return the record of the weights that a run began with, by its config.json; {} if they were random."""
    return _read_config(path)["science"].get(INITIAL_WEIGHTS) or {}


def _read_config(path: Path) -> dict[str, Any]:
    """Return a run's config.json, by its folder or itself, with options and a recipe."""
    path = path / CONFIG.name if path.is_dir() else path
    if not path.exists():
        raise ValueError(f"--config {path}: there is no such file; give a run's folder, or its config.json")
    try:
        with input_errors(path):
            config: dict[str, Any] = CONFIG.read(path, "options", "science.recipe")
    except NoRecord as error:
        raise ValueError(f"--config {path}: it is no config.json of a run ({error.why})") from None
    return config


def require_paths(options: RunOptions) -> None:
    """Check that --data, --val, --init, --teacher and a run are there, and that --out can be made."""
    from fastpsl.pipelines.datasets.open import check_form  # imports numba, which --help does without

    for source in (options.data, options.val if names_val(options) else None):
        if source is not None and options.forms == FORMS:
            check_form(source)
        elif source is not None:
            require_existing(source, options.forms)
    init = None if options.goes_on() else getattr(options, "init", None)
    teacher = getattr(options, "teacher", None)
    named = [getattr(options, "checkpoint", None), *getattr(options, "more_runs", ()), init]
    for weights in (*named, None if teacher and is_own(teacher) else teacher):
        if weights is not None and not (is_timm(weights) or is_remote(weights)):
            require_existing(Path(weights), WEIGHTS)
    if options.out is not None:
        require_folder(options.out)


def require_given_classes(options: RunOptions) -> None:
    """Check that --val has the classes of --data, without looking at images.

    Raises:
        ValueError: It has others, or one of them cannot be read.
    """
    from fastpsl.pipelines.datasets.open import classes_of
    from fastpsl.pipelines.interface.dataset import require_same_classes

    if options.data is not None and options.val is not None and names_val(options):
        both = options.data, options.val
        train, val = (classes_of(source, options.cache_dir, options.cache_gb) for source in both)
        require_same_classes(train, val, options.data, options.val)


Options = TypeVar("Options", bound=RunOptions)
Training = TypeVar("Training", bound=TrainingOptions)


def print_now(line: str) -> None:
    """Print a line, in the caller's words; on a terminal, broken between them."""
    line = worded(line)
    if plain(sys.stdout).isatty():
        width = shutil.get_terminal_size().columns
        line = textwrap.fill(
            line, width, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
        )
    print(line, flush=True)


@dataclass(frozen=True)
class Script(Generic[Options]):
    """A script with options, whose defaults depend on whether --data is given or the sample is used.

    Attributes:
        name: The file's name without .py, which also names runs.
        description: The file's docstring, for --help.
        options: The class of the options.
        paper: The defaults with --data, by option.
        sample: The defaults without --data, on top of `paper`.
        source: The origin of `paper`: "paper", or "default" if no paper states it.
        variant: Returns defaults that depend on the given options, on top of `paper`.
        scales_rate: Whether `build` scales the rate with the batch, so that --preset small leaves it.
        at_most: Sizes that --preset small limits to a share of the images, besides the batch.
    """

    name: str
    description: str | None
    options: type[Options]
    paper: Mapping[str, Any]
    sample: Mapping[str, Any]
    source: str = field(default="paper", kw_only=True)
    variant: Callable[[Options], Mapping[str, Any]] = field(default=lambda options: {}, kw_only=True)
    scales_rate: bool = field(default=False, kw_only=True)
    at_most: Mapping[str, float] = field(default_factory=dict, kw_only=True)

    def with_paper(self, **values: Any) -> Options:
        """Return options with `paper`'s values, overridden by `values`."""
        return self.options(**{**self.paper, **self.options.renewed(values), **values})

    def usual(self, options: Options) -> dict[str, Any]:
        """Return the defaults with --data, as they depend on the given options."""
        return {**self.paper, **self.variant(options)}

    def parse(
        self,
        arguments: Sequence[str] | None = None,
        *,
        prog: str | None = None,
        log: Callable[[str], object] = print_now,
        by_machine: bool = False,
    ) -> Options:
        """Parse the command line.

        With `by_machine` a training without a GPU keeps --preset auto, until `for_machine` chooses.
        """
        is_rank_0 = own_rank() == 0
        given = sys.argv[1:] if arguments is None else list(arguments)
        if HELP.intersection(given):
            if is_rank_0:
                self._show_help(prog)
            sys.exit(0)

        def parsed(values: Mapping[str, Any]) -> Options:
            options: Options = parse(self.options, given, default=self.options(**values), prog=prog)
            return options

        first = parsed(self.paper)
        if begun := backbone_of_init(first, self.name):
            first = parsed({**self.paper, **begun})
        paper = self.usual(first)
        defaults = {**self.defaults(first, paper, by_machine), **kept_precision(first, self.name)}
        values = {**paper, **defaults, **begun}
        options = first if values == self.paper else parsed(values)
        if isinstance(options, PretrainOptions):
            chosen = {"preset": "paper", "precision": "auto", **defaults}
            chosen = {name: chosen[name] for name in ("preset", "precision") if vars(options)[name] == "auto"}
            if options.plan != "continue" and getattr(first, "first_learning", None) is None:
                chosen["first_learning"] = None  # --config had another plan
            options = replace(options, **chosen)
        for name in _NAMES_OF_NETWORKS:
            network = getattr(options, name, None)
            if network is not None and is_own(network) and network != getattr(first, name, None):
                raise not_given(f"--config {options.config}", network, flag(name))
        if is_rank_0:
            if not isinstance(options, PretrainOptions):  # a training tells it in its config.json
                log(describe_choice(options, paper, self.source))
            elif options.plan == "psl" and len(options.epochs) == 1:
                num = len(paper["epochs"])
                if num > 1 and options.epochs[0] >= 1:
                    log(
                        "one value of --epochs is one stage: all blocks learn, at the hardest level; the "
                        f"paper's {num} stages are --epochs {_words(options.epochs * num)}"
                    )
        return options.completed()

    def defaults(
        self, options: Options, paper: Mapping[str, Any], by_machine: bool = False
    ) -> Mapping[str, Any]:
        """Return the values that replace `paper`'s where the command does not give them."""
        if options.config is not None:
            recorded = values_of_config(options.config, self.name, self.options)
            return {**self.options.renewed(recorded), **recorded}
        if not isinstance(options, PretrainOptions):
            of_run = options.of_run()
            if "size_px" in of_run.keys() & paper.keys():  # the protocol's, at most the run's
                of_run["size_px"] = min(of_run["size_px"], paper["size_px"])
            return {**(self.sample if of_run.get("data", options.data) is None else {}), **of_run}
        values = preset_values(
            options, self.name, paper, self.sample, self.at_most,
            scales_rate=self.scales_rate, by_machine=by_machine,
        )  # fmt: skip
        given = {name: value for name, value in vars(options).items() if name not in self.paper}
        return values | self.options.renewed(given)

    def _show_help(self, prog: str | None) -> None:
        small = " ".join(f"{flag(name)} {_words(value)}" for name, value in self.sample.items())
        usual = "the paper's" if self.source == "paper" else "those with --data"
        description = f"{(self.description or '').rstrip()}\n\nDefaults in brackets are {usual}."
        description += f" For the embedded sample they are {small}." if small else ""
        if prog is not None and prog.startswith("fastpsl "):
            description += " --gpus N runs it on N GPUs of this machine."
        defaults = SimpleNamespace(**self.paper)
        parse(self.options, ["--help"], prog=prog, default=defaults, description=description)

    def from_values(
        self, values: Mapping[str, Any], log: Callable[[str], object] = print_now, by_machine: bool = False
    ) -> Options:
        """Return the options that `parse` returns for the same values on a command line."""
        names, kinds = [field.name for field in fields(self.options)], get_type_hints(self.options)
        for name, value in values.items():
            if name not in names:
                raise unknown(f"option of {self.name}", name, names)
            if value is not None and isinstance(value, bool) != (kinds[name] is bool):
                allowed = "a value other than True and False" if isinstance(value, bool) else "True or False"
                raise ValueError(f"{name} is {value!r}: give {allowed}")
        module = values.get("backbone")
        if is_module := module is not None and type(module) is not str:
            from fastpsl.models.given import given  # imports torch, as who gives a module has

            values = {**values, "backbone": given(module)}
        words = _arguments(values, self.options)
        options = self.parse(words, prog=self.name, log=log, by_machine=by_machine)
        return replace(options, backbone=values["backbone"]) if is_module else options  # type: ignore[call-arg]


@dataclass(frozen=True)
class Recipe(Script[Training]):
    """A script that trains: Recipe(name, description, options, paper, sample, build).

    Attributes:
        build: Makes an experiment from the options.
    """

    build: Callable[[Training], Experiment]


@dataclass(frozen=True)
class Evaluation(Script[Options]):
    """A script without training. `run` does its work and returns the exit code."""

    run: Callable[[Options], int]


def differences(options: RunOptions, paper: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the values in which `options` differ from the usual ones, each with the usual one."""
    values = options.as_dict()
    names = {*options.science(), "max_steps_per_stage"} - paper.keys()
    usual = {**paper} | {f.name: f.default for f in fields(options) if f.name in names}
    pairs = {name: (values[name], plain_value(value)) for name, value in usual.items()}
    return {
        name: (value, usual_value) for name, (value, usual_value) in pairs.items() if value != usual_value
    }


def describe_choice(options: RunOptions, paper: Mapping[str, Any], source: str = "paper") -> str:
    """Return a line with the values in which `options` differ from the usual ones."""
    changed = [
        f"{name} {_words(value)}"
        + ("" if usual is None else f" ({source if name in paper else 'default'} {_words(usual)})")
        for name, (value, usual) in differences(options, paper).items()
    ]
    data = options.data or "the embedded sample"
    same = "all values as in the paper" if source == "paper" else "all values are the defaults"
    return f"{data}: " + (", ".join(changed) if changed else same)


def _arguments(values: Mapping[str, Any], options: type[RunOptions]) -> list[str]:
    """Return the command line that gives options these values, arguments first."""
    arguments = {option.name for option in options_of(options) if option.is_argument}
    texts = [text_of(values[name]) for name in arguments & values.keys()]
    words = [f"./{text}" if text.startswith("-") else text for text in texts]
    return words + option_words({name: each for name, each in values.items() if name not in arguments})


def _words(value: Any) -> str:
    value = () if value is None else value
    return " ".join(map(str, value)) or "none" if isinstance(value, tuple | list) else str(value)
