"""Parsing of command lines by tyro, with its errors as one line in our words."""

import ast
import contextlib
import inspect
import io
import re
import shutil
import sys
import textwrap
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro
from rich.console import Console
from rich.panel import Panel
from rich.text import Text
from tyro.conf import Positional

from fastpsl.console.terminal import plain
from fastpsl.console.words import nearest
from fastpsl.engine.options import flag

METHOD, MACHINE_BOX = "this method", "speed and machine"
BOXES: dict[str, tuple[str, ...]] = {
    "data": (
        "data", "val", "checkpoint", "random_weights", "pseudo_labels", "label_list", "sbd", "order", "lanes",
        "on_bad_sample", "cache_dir", "cache_gb",
    ),
    METHOD: (),
    "plan": ("preset", "backbone", "plan", "epochs", "steps", "levels", "partition", "frozen_batchnorm"),
    "optimisation": (
        "batch_size", "lr", "intervals", "warmup_epochs", "weight_decay", "momentum", "trust", "dropout",
        "accumulate", "sync_batchnorm", "apex",
    ),
    "output and resume": (
        "out", "resume", "config", "seed", "max_steps_per_stage", "checkpoint_minutes", "checkpoint_steps",
        "keep_checkpoints",
    ),
    "monitoring": ("log_steps", "probe_every", "tensorboard", "wandb"),
    MACHINE_BOX: (
        "device", "precision", "decoder", "workers", "hw_decoder_load", "augment_backend", "compile", "graph",
        "fold_frozen", "prefetch_batches", "timeout_s",
    ),
}  # fmt: skip


_MAX_WIDTH = 100
_COLUMN = 26  # where the texts begin at the latest
_WORDS = {int: "N", float: "X", str: "NAME", Path: "PATH"}


@dataclass(frozen=True)
class Option:
    """An option as --help shows it.

    Attributes:
        name: The field's name.
        usage: The flag and its values, such as `--batch-size N`; of an argument without a flag, its value.
        text: What it does, with its default in brackets.
        is_own: Whether the recipe itself defines it.
    """

    name: str
    usage: str
    text: str
    is_own: bool


def show_help(
    prog: str, description: str, options: type, defaults: Mapping[str, Any], *, everything: bool
) -> None:
    """Print the help of a recipe."""
    boxes = in_boxes(list(described(options, defaults)))
    folded = [] if everything else boxes.pop(MACHINE_BOX, [])
    console = _print(f"usage: {prog} [options]", description, boxes)
    if folded:
        names = ", ".join(flag(option.name) for option in folded)
        more = f"--help-all shows the options of speed and machine, too: {names}."
        console.print(wrapped(more, console.width), markup=False)


def show_command_help(prog: str, command: type, subcommands: Mapping[str, type]) -> None:
    """Print the help of a command of `fastpsl`."""
    boxes = dict[str, list[Option]]()
    usage = prog + (" COMMAND" if subcommands else "")
    for name, each in subcommands.items():
        about = inspect.cleandoc(each.__doc__ or "").split("\n\n")[0]
        boxes.setdefault("commands", []).append(Option(name, name, " ".join(about.split()), False))
    if not subcommands:
        usage += _in_boxes_of_command(command, boxes)
    _print(f"usage: {usage}", inspect.cleandoc(command.__doc__ or ""), boxes)


def _in_boxes_of_command(command: type, boxes: dict[str, list[Option]]) -> str:
    """Add a command's options to the boxes; return its arguments in words."""
    words = ""
    hints = get_type_hints(command, include_extras=True)
    for option in described(command, {}):
        marks = getattr(hints[option.name], "__metadata__", ())
        is_positional = Positional in marks
        boxes.setdefault("arguments" if is_positional else "options", []).append(option)
        name = option.usage if len(option.usage) <= _COLUMN else option.name.upper()
        words += f" {name}" if is_positional else ""
    for name, kind in hints.items():
        if isinstance(kind, type) and is_dataclass(kind):
            boxes[name.replace("_", " ")] = list(described(kind, {}))
    return words + (" [options]" if len(boxes) > ("arguments" in boxes) else "")


def _print(usage: str, description: str, boxes: Mapping[str, Sequence[Option]]) -> Console:
    width = min(shutil.get_terminal_size().columns, _MAX_WIDTH)
    console = Console(width=width, highlight=False)
    console.print(f"{wrapped(usage, width)}\n", markup=False)
    console.print(wrapped(description, width), markup=False)
    for title, members in boxes.items():
        column = min(_COLUMN, 2 + max(len(option.usage) for option in members))
        body = "\n".join(line for option in members for line in _lines(option, width - 4, column))
        console.print(Panel(Text(body), title=title, title_align="left", padding=(0, 1)))
    return console


def described(options: type, defaults: Mapping[str, Any]) -> Iterator[Option]:
    """Yield the options of a dataclass. Their texts are those of `arg`, or the strings below the fields."""
    hints, texts = get_type_hints(options, include_extras=True), _texts(options)
    own = inspect.get_annotations(options)
    for field in fields(options):
        if field.name in getattr(options, "without", ()):
            continue
        kind, *marks = (
            get_args(hints[field.name]) if _is_annotated(hints[field.name]) else (hints[field.name],)
        )
        if is_dataclass(kind):  # a box of its own
            continue
        metavar = next((mark.metavar for mark in marks if getattr(mark, "metavar", None)), None)
        text = next((mark.help for mark in marks if getattr(mark, "help", None)), texts.get(field.name, ""))
        default = defaults.get(field.name, field.default)
        usage = flag(field.name)
        if Positional in marks:
            usage = metavar or field.name.upper()
        elif kind is bool:
            usage = usage.replace("--", "--[no-]") if default is True else usage
            text = f"{text} [yes]" if default is True else text
        else:
            usage += f" {metavar or _metavar(kind)}"
        if metavar and (default is MISSING) and Positional not in marks:
            text = f"{text} (required)"
        yield Option(field.name, usage, f"{text}{_default(default)}", field.name in own)


def in_boxes(options: Sequence[Option]) -> dict[str, list[Option]]:
    """Return options by the title of their box. Within a box a recipe's own options come first."""
    box_of = {name: title for title, names in BOXES.items() for name in names}
    boxes: dict[str, list[Option]] = {title: [] for title in BOXES}
    for option in options:
        boxes[box_of.get(option.name, METHOD)].append(option)
    return {title: sorted(box, key=lambda o: not o.is_own) for title, box in boxes.items() if box}


def wrapped(text: str, width: int) -> str:
    """Return a text with lines of at most `width` columns. Long commands continue after a backslash."""
    lines = list[str]()
    for paragraph in re.sub(r" \\\n +", " ", text).split("\n\n"):
        plain, commands = list[str](), list[str]()
        for line in paragraph.split("\n"):
            if not line.startswith("    "):
                plain.append(line)
                continue
            command, _, comment = line.strip().partition("  # ")
            if comment:
                commands.append(f"    # {comment.strip()}")
            # A flag and its value stay on one line.
            parts = textwrap.wrap(
                re.sub(r"(--[\w-]+) (?=[^-\s])", "\\1\0", command.strip()),
                width - 6,
                subsequent_indent="    ",
                break_long_words=False,
                break_on_hyphens=False,
            )
            commands.append(" \\\n    ".join(["    " + parts[0], *parts[1:]]).replace("\0", " "))
        lines.append(
            "\n".join(
                [
                    *textwrap.wrap(" ".join(plain), width, break_long_words=False, break_on_hyphens=False),
                    *commands,
                ]
            )
        )
    return "\n\n".join(lines)


def _lines(option: Option, width: int, column: int) -> list[str]:
    texts = textwrap.wrap(option.text, width - column, break_long_words=False, break_on_hyphens=False)
    lines = [" " * column + text for text in texts]
    if len(option.usage) < column and lines:
        return [option.usage.ljust(column) + texts[0], *lines[1:]]
    usage = textwrap.wrap(
        option.usage if len(option.usage) <= width else option.usage.replace("|", " | "),
        width,
        subsequent_indent="    ",
        break_on_hyphens=False,
    )
    return [*usage, *lines]


def _is_annotated(hint: Any) -> bool:
    return hasattr(hint, "__metadata__")


def _metavar(kind: Any) -> str:
    if get_origin(kind) in (Union, types.UnionType):
        kind = next(part for part in get_args(kind) if part is not type(None))
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    if get_origin(kind) is tuple:
        return f"{_metavar(get_args(kind)[0])} ..."
    return _WORDS[kind]


def _default(value: Any) -> str:
    """Return a default in brackets; nothing where the text says what happens without the option."""
    if value is MISSING or value is None or value == () or isinstance(value, bool):
        return ""
    return f" [{' '.join(map(str, value)) if isinstance(value, tuple) else value}]"


def _texts(options: type) -> dict[str, str]:
    """Return the strings below the fields of a dataclass and its bases, by field."""
    texts = dict[str, str]()
    for base in reversed(options.__mro__[:-1]):
        try:
            (body,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        except (OSError, TypeError, SyntaxError):  # typing.Generic, or a class without a file
            continue
        assert isinstance(body, ast.ClassDef)
        for node, following in zip(body.body, body.body[1:], strict=False):
            if isinstance(node, ast.AnnAssign) and isinstance(following, ast.Expr):
                value = following.value
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    texts[ast.unparse(node.target)] = " ".join(value.value.split())
    return texts


_FRAME = "│|+╭╮╰╯─- "
_NUMBERS = {int: ("a whole number", "whole numbers"), float: ("a number", "numbers")}
_VALUES = re.compile(r"\[['\"].*\]|'.*'|\".*\"")  # in tyro's messages: one value, or a list of them


def parse(kind: Any, arguments: Sequence[str] | None = None, **settings: Any) -> Any:
    """Return `tyro.cli(kind, args=arguments, **settings)`; without arguments, for those of the process."""
    box, events = io.StringIO(), list[Any]()
    # tyro's events are private. Where a version has none, its own words are shown.
    watch = getattr(getattr(tyro, "_errors", None), "on_parse_error", contextlib.nullcontext)
    try:
        with (
            watch(events.append),
            contextlib.redirect_stderr(box),
            contextlib.redirect_stdout(plain(sys.stdout)),
        ):
            return tyro.cli(kind, args=arguments, **settings)
    except SystemExit as end:
        if end.code in (0, None):
            raise
        see = " ".join(filter(None, ("see", settings.get("prog"), "--help")))
        line = error_line(events[-1], kind, see) if events else None
        raise ValueError(line or f"{_flat(box.getvalue())}; {see}") from None


def error_line(event: Any, kind: type, see: str) -> str | None:
    """Return one of tyro's events as one line: what was given, and what is allowed."""
    name, argument = type(event).__name__, getattr(event, "argument", None)
    if wrong := getattr(event, "tokens", None) or getattr(event, "unrecognized_tokens", None):
        return f"{_unknown(wrong, kind)}; {see}"
    if name == "MissingArgs":
        *others, last = [_called(each.arg) for each in event.missing_arguments]
        missing = f"{', '.join(others)} and {last} are" if others else f"{last} is"
        return f"{missing} missing; {see}"
    if argument is None:  # an error of our own __post_init__, which names the remedy
        return getattr(event, "message", None)
    called, wanted = _called(argument), _wanted(argument.field.type_stripped)
    if name == "BadValue":
        return f"{called} has no value: {wanted or 'give one'}; {see}"
    if name == "InvalidChoice":
        near = nearest(event.value, event.choices)
        return f"{called} {event.value}: {wanted}" + (f"; perhaps you meant {near}" if near else "")
    if name == "InstantiationFailure" and wanted and (found := _VALUES.search(event.message.split("\n")[0])):
        given = ast.literal_eval(found[0])
        return f"{called} {given if isinstance(given, str) else ' '.join(given)}: {wanted}"
    return None


def _unknown(words: Sequence[str], kind: type) -> str:
    """Return a line about the first word that is no option, or else the first that no option takes."""
    word = next((word for word in words if word.startswith("-")), words[0])
    if not word.startswith("-"):
        return f"{word}: there is no such argument"
    given = word.partition("=")[0]
    near = nearest(given, _flags(kind))
    return f"{given}: there is no such option" + (f"; perhaps you meant {near}" if near else "")


def _flags(kind: type) -> Iterator[str]:
    """Yield the flags of a dataclass of options, and of those in it."""
    hints = get_type_hints(kind)
    for field in fields(kind):
        if is_dataclass(hints[field.name]):
            yield from _flags(hints[field.name])
        else:
            yield flag(field.name)
            if hints[field.name] is bool:
                yield flag(f"no_{field.name}")


def _called(argument: Any) -> str:
    """Return an option's flag; of an argument without one, its name in --help, which may list its values."""
    if not argument.is_positional():
        return str(argument.lowered.name_or_flags[-1])
    name = str(argument.lowered.metavar)
    return str(argument.field.intern_name).upper() if "|" in name else name


def _wanted(hint: Any) -> str:
    """Return which values an option takes; nothing where it takes any."""
    parts = [part for part in get_args(hint) if part not in (NoneType, ...)]
    if get_origin(hint) is Literal:
        return f"allowed are {', '.join(map(str, parts))}"
    if get_origin(hint) is tuple:
        return f"give {_NUMBERS[parts[0]][1]}" if parts[0] in _NUMBERS else _wanted(parts[0])
    if parts:
        return _wanted(parts[0])
    return f"give {_NUMBERS[hint][0]}" if hint in _NUMBERS else ""


def _flat(box: str) -> str:
    """Return the text in a box as one line, without the title."""
    return " ".join(" ".join(line.strip(_FRAME) for line in box.splitlines()[1:]).split())
