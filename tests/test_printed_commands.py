"""The commands of `fastpsl` that pages and recipes print have names and options that exist."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from fastpsl.cli import Fastpsl
from fastpsl.commands.doctor import Doctor
from fastpsl.commands.launch import Slurm
from fastpsl.commands.train import Eval, Train
from fastpsl.scripts.recipe_files import find_recipe, recipe_path
from tests.programs import ROOT

PAGES = (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("recipes/*.py"))
# In backticks, indented as code, or with an option.
COMMAND = re.compile(r"(?:`|^ {4,}|^(?=fastpsl .* --))(fastpsl [a-z](?:[^`\n\\]|\\{1,2}\n)*)", re.MULTILINE)
NO_COMMANDS = {"crc32"}  # `fastpsl crc32 1` is what a dataset file's checksum begins with


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the words of the page's commands, without comments."""
    for match in COMMAND.finditer(page.read_text()):
        line = re.sub(r"\\+\n", " ", match[1]).split("  #")[0].replace("…", "")
        words = shlex.split(line.replace("'", "") if line.count("'") % 2 else line, comments=True)[1:]
        if words[0] not in NO_COMMANDS:
            yield words


def names(kind: Any) -> set[str]:
    """Return the names of a command's options, those of its groups too."""
    hints = get_type_hints(kind)
    groups = [hints[field.name] for field in fields(kind) if is_dataclass(hints[field.name])]
    return {field.name for field in fields(kind)}.union(*(names(group) for group in groups))


@pytest.mark.parametrize(
    "page", [page for page in PAGES if next(commands(page), None)], ids=lambda p: str(p.relative_to(ROOT))
)
def test_printed_commands_exist(page: Path) -> None:
    for words in commands(page):
        kind: Any = Fastpsl
        while words and (known := getattr(kind, "commands", None)):
            if words[0] not in known:
                break
            kind = known[words.pop(0)]
        assert kind is not Fastpsl, words
        options = {"help", "help_all"} | (names(kind) if is_dataclass(kind) else set())
        if kind in (Train, Eval) and words and words[0] in kind.names:
            options |= names(find_recipe(kind.names[words[0]]).options)
        elif kind is Slurm and words and words[0] in Train.names:
            options |= names(find_recipe(Train.names[words[0]]).options)
        elif kind is Doctor:
            recipes = [Path(word).stem for word in words if word.endswith(".py") or word == "RECIPE"]
            recipes += [Train.names[word] for word in words if word in Train.names]
            if not all(map(recipe_path, recipes)):
                continue  # a script of the reader's
            options = options.union(*(names(find_recipe(recipe).options) for recipe in recipes))
        elif kind in (Train, Eval):
            assert not words or words[0] == words[0].upper() or words[0].endswith(".py"), words
            continue
        for word in words:
            if word.startswith("--"):
                option = word[2:].partition("=")[0].replace("-", "_")
                assert option in options or option.removeprefix("no_") in options, (page.name, words)
