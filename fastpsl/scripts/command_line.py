"""Command lines by tyro: its help has the options in groups, and an error is one line in our words."""

import ast
import contextlib
import inspect
import io
import os
import re
import shutil
import sys
import textwrap
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, make_dataclass
from functools import cache, cached_property
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from tyro.conf import OmitArgPrefixes, Positional, Suppress, arg
from tyro.constructors import PrimitiveConstructorSpec

from fastpsl.console.words import at_home, nearest
from fastpsl.engine.options import flag
from fastpsl.models.names import check_backbone

COMMAND = "FASTPSL_COMMAND"  # in the environment of the processes that `fastpsl` starts: what was typed
HELP = frozenset({"-h", "--help"})
_alone = threading.Lock()  # tyro and what redirects stdout keep states of the whole process
_MAX_METAVAR = 60  # columns; longer lists of values stand in the text
UNGROUPED = "options"  # tyro's name for the box of options without a group
# What --help and errors call a value of each type.
_WORDS = {
    int: ("N", "give a whole number", "give whole numbers"),
    float: ("X", "give a number", "give numbers"),
    str: ("NAME", "", ""),
    Path: ("PATH", "", ""),
    bool: ("", "", ""),
}


class _Refused(Exception):
    """A value that an option does not take. It is no ValueError, because tyro draws a box around those."""


@dataclass(frozen=True)
class Option:
    """A field of a dataclass of options; its default is MISSING if it must be given."""

    name: str
    hint: Any
    text: str
    default: Any
    group: str
    may_be_empty: bool
    bare: str = ""  # its value where it is given alone; "" if it must be given with one

    @cached_property
    def _marks(self) -> tuple[Any, ...]:
        return getattr(self.hint, "__metadata__", ())

    def _said(self, name: str) -> Any:
        """Return a field of the tyro `arg` in the option's type, such as its metavar; None without it."""
        return next((said for mark in self._marks if (said := getattr(mark, name, None))), None)

    @cached_property
    def kind(self) -> Any:
        """The type of the value; `T` of `T | None`, and the list of `T | tuple[T, ...]`."""
        return self._kinds[-1]

    @cached_property
    def _kinds(self) -> list[Any]:
        kind = get_args(self.hint)[0] if self._marks else self.hint
        is_union = get_origin(kind) in (Union, UnionType)
        return [part for part in get_args(kind) if part is not NoneType] if is_union else [kind]

    @property
    def is_argument(self) -> bool:
        """Whether it is given without a flag."""
        return Positional in self._marks

    @property
    def _is_list(self) -> bool:
        return get_origin(self.kind) in (tuple, list)

    @property
    def _item(self) -> Any:
        return get_args(self.kind)[0] if self._is_list else self.kind

    @cached_property
    def _choices(self) -> dict[str, Any]:
        return {str(each): each for each in get_args(self._item)} if get_origin(self._item) is Literal else {}

    @property
    def _metavar(self) -> str:
        word = "|".join(self._choices) or _WORDS[self._item][0]
        return self._said("metavar") or word + " ..." * self._is_list

    @property
    def usage(self) -> str:
        """The flag and its values, such as `--batch-size N`; of an argument, its value."""
        if self.is_argument:
            return self._said("metavar") or "|".join(self._choices) or self.name.upper()
        if self.kind is bool:
            return flag(self.name).replace("--", "--[no-]") if self.default is True else flag(self.name)
        return f"{flag(self.name)} {self._metavar}"

    @property
    def called(self) -> str:
        """The flag; of an argument, its name in --help, which may list its values."""
        if not self.is_argument:
            return flag(self.name)
        return self.name.upper() if "|" in self.usage else self.usage

    @property
    def without_value(self) -> str:
        """The error of the option alone: what its value may be."""
        words = _WORDS.get(self._item, ("", "", ""))[1 + self._is_list]
        text = re.sub(r" \[[^]]*\]$", "", self.text).rstrip(".")  # without the default
        text = ": ".join(filter(None, (self._said("metavar"), text)))
        return f"{self.called} without a value; {self._allowed or words or text}"

    @property
    def _allowed(self) -> str:
        return f"allowed are {', '.join(self._choices)}" if self._choices else ""

    @property
    def flags(self) -> list[str]:
        if self.is_argument:
            return []
        return [flag(self.name)] + [flag(f"no_{self.name}")] * (self.kind is bool)

    def read(self, words: list[Any]) -> Any:
        """Return the value that the words of a command line give."""
        if self.bare and not words:
            return self.bare
        if words == [[]]:  # tyro's words for an argument that is missing, if there is an unknown option, too
            return None if self.default is MISSING else self.default
        if not words and not (self.is_argument or self.may_be_empty):
            raise _Refused(self.without_value)
        try:
            values = [self._choices[word] if self._choices else self._item(at_home(word)) for word in words]
            if len(values) > 1 and not self._is_list:  # tyro takes any number after a `bare` option
                raise ValueError
        except (KeyError, ValueError):
            several = self._is_list and (len(words) != 1 or len(self._kinds) == 1)
            wanted = self._allowed or _WORDS[self._item][1 + several]
            others = [word for word in words if word not in self._choices]
            near = next(filter(None, (nearest(word, self._choices) for word in others)), None)
            hint = f"; perhaps you meant {near}" if near else ""
            raise _Refused(f"{self.called} {' '.join(words)}: {wanted}{hint}") from None
        is_one = not self._is_list or (len(values) == 1 and len(self._kinds) > 1)  # no list of one
        return values[0] if is_one else get_origin(self.kind)(values)

    def for_tyro(self, *, is_required: bool, is_hidden: bool) -> tuple[Any, ...]:
        """Return its name, type and default for `make_dataclass`."""
        metavar, text = self.called if self.is_argument else self._metavar, self.text
        words = self.usage.split()[-1 - self._is_list] if "|" in self.usage else ""
        if self.is_argument and words or len(words) > _MAX_METAVAR:
            metavar = self.called if self.is_argument else "NAME" + " ..." * self._is_list
            text = f"{words.replace('|', ', ')}. {text}"
        default = ("", "yes")[self.default] if isinstance(self.default, bool) else _text(self.default)
        marks: list[Any] = [Positional] * self.is_argument + [Suppress] * is_hidden
        names = {name: self._said(name) for name in ("name", "aliases")}
        marks.append(arg(**names, help=text, help_behavior_hint=f"[{default}]" if default else ""))
        hint: Any = bool
        if self.kind is not bool:
            kinds = get_args(self.kind)
            is_open = self._is_list and (len(kinds) == 1 or kinds[-1] is ...)
            nargs: Any = "*" if is_open or self.bare else len(kinds) if self._is_list else 1
            reader = PrimitiveConstructorSpec(nargs, metavar, self.read, lambda _: True, lambda x: [str(x)])
            marks.append(reader)
            hint = object
        hint = Annotated[(hint, *marks)]
        if self.default is not MISSING:
            return self.name, hint, field(default=self.default)
        may_be_empty = self.is_argument and self._is_list  # its command says what to name
        return (self.name, hint) if is_required or may_be_empty else (self.name, hint, field(default=None))


def options_of(kind: type, default: Any = None, group: str = "") -> Iterator[Option]:
    """Yield the options of a dataclass and of those in it, with the values of `default` as defaults.

    Their texts are those of `arg`, or the strings below the fields.
    """
    hints, texts = get_type_hints(kind, include_extras=True), _texts(kind)
    for each in fields(kind):
        hint = hints[each.name]
        if isinstance(hint, type) and is_dataclass(hint):
            yield from options_of(hint, group=each.name)
            continue
        told = [mark.help for mark in getattr(hint, "__metadata__", ()) if getattr(mark, "help", None)]
        yield Option(
            each.name,
            hint,
            told[0] if told else texts.get(each.name, ""),
            getattr(default, each.name, each.default),
            group or each.metadata.get("group", UNGROUPED),
            each.default == () or each.metadata.get("may_be_empty", False),
            each.metadata.get("bare", ""),
        )


def parse(
    kind: Any, arguments: Sequence[str] | None = None, *, prog: str | None = None, default: Any = None,
    description: str | None = None,
) -> Any:  # fmt: skip
    """Return the options of a command line, by default that of the process; or print the help and exit."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    wants_help = not HELP.isdisjoint(given)
    options = list(options_of(kind, default))
    groups = dict[str, list[Any]]()
    for option in options:
        # Without help, tyro requires nothing, so that mistyped options are found before missing ones. Options
        # without effect are taken, because their dataclass refuses them with a reason.
        is_hidden = wants_help and option.name in getattr(kind, "without", ())
        made = option.for_tyro(is_required=wants_help, is_hidden=is_hidden)
        groups.setdefault(option.group, []).append(made)
    members = groups.pop(UNGROUPED, [])
    for name, grouped in groups.items():
        group = make_dataclass(name, grouped, kw_only=True, namespace={"__doc__": ""})
        # Without a text, tyro would look for one in the sources, which takes longer than all the rest.
        members.append((name, Annotated[group, arg(help="")]))
    see = " ".join(filter(None, ("see", prog, "--help")))
    # tyro draws boxes if the encoding is written like this.
    shown = io.TextIOWrapper(io.BytesIO(), encoding=(sys.stdout.encoding or "utf-8").lower())
    box, about = io.StringIO(), inspect.cleandoc(description or kind.__doc__ or "")
    about = re.sub(r"(?<=\S)\n(?=[^\s*-])", " ", about)  # tyro keeps line breaks before signs and numbers
    all_options = make_dataclass("Options", members, kw_only=True)
    parsed: Any
    try:
        with _alone, contextlib.redirect_stdout(shown), contextlib.redirect_stderr(box):
            parsed, rest = tyro.cli(
                all_options, prog=prog, description=about, args=given, config=(OmitArgPrefixes,),
                return_unknown_args=True,
            )  # fmt: skip
    except _Refused as error:
        raise ValueError(str(error)) from None
    except SystemExit as end:
        if end.code in (0, None):
            shown.seek(0)
            _print_help(shown.read())
            raise
        raise ValueError(f"{_in_our_words(_first_part(box.getvalue()), options)}; {see}") from None
    values = vars(parsed)
    for name in groups:
        values |= vars(values.pop(name))
    missing = [each for each in options if each.default is MISSING and values[each.name] is None]
    if rest or missing:
        problem = _unknown(rest, options, prog) if rest else _missing(missing, options, prog)
        raise ValueError(f"{problem}; {see}")
    for name in ("backbone", "teacher_backbone"):  # here, because torch is not imported yet
        if values.get(name) is not None:
            check_backbone(values[name], flag(name))
    return _built(kind, values)


def option_words(values: Mapping[str, Any]) -> list[str]:
    """Return the words of a command line that give options these values; None gives none."""
    words = list[str]()
    for name, value in values.items():
        texts = list(map(text_of, value if isinstance(value, tuple | list) else [value]))
        if isinstance(value, bool):
            words.append(flag(name if value else f"no_{name}"))
        elif isinstance(value, tuple | list):
            if any(text.startswith("--") for text in texts):
                raise ValueError(f"{name} {value}: a value cannot begin with --")
            words += [flag(name), *texts]
        elif value is not None:
            words += [f"{flag(name)}={texts[0]}"] if texts[0].startswith("-") else [flag(name), *texts]
    return words


def require_within(*given: tuple[str, float | None, float, float]) -> None:
    """Raise ValueError for an option with a value beyond its limits, each as (flag, value, low, high)."""
    for name, value, low, high in given:
        if value is not None and not low <= value <= high:
            raise ValueError(f"{name} {value}: give a number from {low} to {high}")


def text_of(value: Any) -> str:
    """Return a value as a word; of what stands for a path, the path."""
    return os.fspath(value) if isinstance(value, os.PathLike) else str(value)


def _built(kind: Any, values: Mapping[str, Any]) -> Any:
    """Return a dataclass and those in it, filled with these values."""
    inner = {name: each for name, each in get_type_hints(kind).items() if is_dataclass(each)}
    given = {name: values[name] for name in (each.name for each in fields(kind)) if name not in inner}
    return kind(**given, **{name: _built(each, values) for name, each in inner.items()})


def _print_help(text: str) -> None:
    """Print tyro's help, and wrap its paragraphs. Commands stay whole, so that they can be copied."""
    width = shutil.get_terminal_size().columns
    lines = list[str]()
    for line in map(str.rstrip, text.splitlines()):
        if line and not line.startswith((" ", "│")):
            lines += textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False)
        elif line or (lines and lines[-1]):
            lines.append(line)
    print("\n".join(lines))


def show_commands(prog: str, kind: type, commands: Mapping[str, type]) -> None:
    """Print the help of a command that has commands of its own."""
    _print_help(f"usage: {prog} COMMAND\n\n{inspect.cleandoc(kind.__doc__ or '')}\n\n")
    abouts = {name: inspect.cleandoc(each.__doc__ or "").split("\n\n")[0] for name, each in commands.items()}
    show_list("commands", abouts)


def show_list(title: str, abouts: Mapping[str, str]) -> None:
    """Print a box of names with a line about each."""
    table = Table.grid(padding=(0, 2, 0, 0))
    for name, about in abouts.items():
        table.add_row(name, " ".join(about.split()))
    console = Console(width=min(shutil.get_terminal_size().columns, 100), highlight=False, markup=False)
    console.print(Panel(table, title=title, title_align="left"))


def _text(value: Any) -> str:
    """Return a default in words; nothing where the option's text says what happens without it."""
    if value is None or value is MISSING:
        return "" if value is None else "required"
    return " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def _unknown(words: Sequence[str], options: Sequence[Option], prog: str | None) -> str:
    """Return a line about the first word that is no option, or else the first that no option takes."""
    word = next((word for word in words if word.startswith("-")), words[0])
    if not word.startswith("-"):
        return f"{word}: there is no such argument"
    given = word.partition("=")[0]
    arguments = [option for option in options if option.is_argument]
    for place, argument in enumerate(arguments, 1):
        if given == flag(argument.name):  # such as --checkpoint RUN
            command = [prog or Path(sys.argv[0]).name, *(each.called for each in arguments[:place])]
            return f"{given}: give it without a flag, as in `{' '.join(command)}`"
    near = nearest(given, [each for option in options for each in option.flags])
    return f"{given}: there is no such option" + (f"; perhaps you meant {near}" if near else "")


def _missing(missing: Sequence[Option], options: Sequence[Option], prog: str | None) -> str:
    """Return a line about options that were not given, with the shortest command that has all of them."""
    *others, last = [option.called for option in missing]
    fault = f"{', '.join(others)} and {last} are missing" if others else f"{last} is missing"
    needed = [each for each in options if each.default is MISSING]
    words = [each.called if each.is_argument else each.usage.partition("|")[0] for each in needed]
    return f"{fault}, as in `{' '.join([prog or Path(sys.argv[0]).name, *words])}`"


@cache
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


def _in_our_words(problem: str, options: Sequence[Option]) -> str:
    """Return tyro's line; of a missing value, with what the option takes."""
    match = re.fullmatch(r"Missing value for argument '(\S+)'. Expected \d+ values", problem)
    option = next((each for each in options if match and match[1] in each.flags), None)
    return problem if option is None else option.without_value


def _first_part(box: str) -> str:
    """Return the text below the title of tyro's box, up to a line if there is one."""
    text = "\n".join(line.strip("│ ") for line in box.splitlines()[1:])
    first = next(part for part in re.split(r"^[─-]+$", text, flags=re.MULTILINE) if part.strip())
    return " ".join(first.split()).rstrip(".")
