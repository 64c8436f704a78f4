"""Numbers, metrics, names of options and hints, in words that people read. This module does not import torch.

By its name, a metric is one of these:

- accuracy, agreement, NAME_accuracy, top1, top5 and top1_NAME, of a classifier of that name, are fractions.
- NAME_constant is the value that metric NAME has for a constant answer.
- All others are numbers, such as the loss.
"""

import difflib
import os
import re
import shlex
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any


def number_of(number: float | str, noun: str, plural: str = "") -> str:
    """Return a number with its noun: "1 core", "2 cores", "0.4 cores", "1,024 files"; the text "1.0" is 1."""
    text = f"{number:,}" if not isinstance(number, str) else number.removesuffix(".0")
    return f"{text} {noun if text == '1' else plural or noun + 's'}"


def number_of_weights(number: int) -> str:
    """Return three digits of a number: "11.2 million weights", or below a million "23,600 weights"."""
    rounded = float(f"{number:.3g}")
    return f"{rounded / 1e6:,g} million weights" if rounded >= 1e6 else number_of(int(rounded), "weight")


def percent(share: float) -> str:
    """Return a fraction in percent, such as "12.3 %", or "0.05 %" below 0.1 %."""
    return f"{100 * share:{'.2g' if 0 < share < 0.001 else '.1f'}} %"


def gibibytes(number: float) -> str:
    """Return bytes as text, such as "1.5 GiB"."""
    return f"{number / 2**30:.1f} GiB"


def gigabytes(num_bytes: float) -> str:
    """Return bytes on a disk as text, such as "1.5 GB" or "35.9 MB"."""
    return f"{num_bytes / 1e9:,.3g} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.3g} MB"


_SHARES = {"accuracy": "accuracy", "agreement": "same class for two crops", "top1": "top-1", "top5": "top-5"}


def metric_words(name: str, value: float, form: str = ".4g") -> str:
    """Return a metric's value: a fraction in percent, others by a format."""
    is_share = "accuracy" in name or name == "agreement" or name.startswith(("top1", "top5"))
    return percent(value) if is_share else f"{value:{form}}"


def val_words(val: dict[str, float], chance: str, accuracy: str = "accuracy") -> str:
    """Return the metrics of the validation pass as one line; `chance` follows the first share.

    `accuracy` says what the accuracy counts, such as "permutation accuracy".

    Shares are the accuracy, that two crops have one class (UIC), top-1 and top-5, or the top-1 of several
    classifiers ("top1_B4"). A loss is added if there is its value for a constant answer ("loss_constant"),
    or if there is no share (IIC).
    """
    words = []
    for name, label in _SHARES.items():
        if name in val:
            words.append(f"{accuracy if name == 'accuracy' else label} {percent(val[name])}")
    parts = [f"{n[5:]} {100 * value:.1f}" for n, value in val.items() if n.startswith("top1_")]
    words += [f"top-1 {', '.join(parts)} %"] if parts else []
    words = [words[0] + chance, *words[1:]] if words else []
    for constant in (name for name in val if name.endswith("_constant")):
        loss = constant.removesuffix("_constant")
        words.append(f"{loss.replace('_', ' ')} {val[loss]:.3f} (a constant answer {val[constant]:.3f})")
    if not words and "loss" in val:
        words.append(f"loss {val['loss']:.3f}")
    return ", ".join(words)


def pasted(path: object) -> str:
    """Return a path as a word of a shell's command, which never takes it for an option."""
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def at_home(given: Any) -> Any:
    """Return a path that begins with ~ as a shell reads it; a name that is there stays."""
    if not isinstance(given, str | Path) or not str(given).startswith("~"):
        return given
    is_there = os.path.lexists(str(given).partition("/")[0])
    return given if is_there else type(given)(os.path.expanduser(given))


def unknown(what: str, given: str, allowed: Iterable[str]) -> ValueError:
    """Return an error in one line: the wrong name, and the nearest of the allowed ones or all of them."""
    names = list(allowed)
    near = nearest(given, names)
    remedy = f"perhaps you meant {near}" if near else f"there are {', '.join(names)}"
    return ValueError(f"there is no {what} called {given!r}; {remedy}")


def hint(given: str, allowed: Iterable[str]) -> str:
    """Return "did you mean …? " with the most similar name, or nothing without one."""
    near = nearest(given, allowed)
    return f"did you mean {near}? " if near else ""


# A row has the names of one thing in this and other programs. A wrong name means the first allowed name of
# its row.
_SYNONYMS = tuple(
    row.split()
    for row in (
        "lr learningrate baselr initiallr maxlr",
        "batchsize batchsizeperrank batch bs",
        "epochs numepochs nepochs maxepochs",
        "maxstepsperstage maxsteps numsteps steps",
        "workers numthreads numworkers nworkers threads jobs njobs",
        "sizepx shortside imagesize imgsize cropsize inputsize resolution size",
        "embeddingwidth width outdim projdim projectiondim embeddingdim",
        "temperature temp tau",
        "weightdecay wd decay",
        "data train traindir datadir dataset root",
        "val valdata valdir validation test",
        "out output outputdir outdir savedir logdir",
        "backbone model arch architecture network encoder",
        "checkpoint weights ckpt pretrained",
        "prefetchbatches prefetchfactor prefetch",
        "precision amp mixedprecision",
        "seed randomstate randomseed",
        "numviews nviews views",
    )
)


def _plain(name: str) -> str:
    return re.sub(r"[-_ ]", "", name).casefold()


def similar(given: str, names: Iterable[str], num: int = 1, least: float = 0.6) -> list[str]:
    """Return up to `num` names that are spelled like this one, the most similar first; 1 is equality."""
    return difflib.get_close_matches(given, [*names], num, least)


def nearest(given: str, allowed: Iterable[str]) -> str | None:
    """Return the allowed name that means the same or is most similar; None if none is similar."""
    names, plain = {_plain(name): name for name in allowed}, _plain(given)
    meant = (name for row in _SYNONYMS if plain in row for name in row if name in names)
    name = next(iter((*[plain] * (plain in names), *meant, *similar(plain, names))), None)
    return None if name is None else names[name]


_HELP = re.compile(r"; see [^;]*--help$")
# Commands stay as they are, also those of other programs.
_COMMAND = r"`[^`]*`|\(fastpsl [^)]*\)|(?:pip install|docker|tar) -[^;:(]*"
_FLAG = re.compile(_COMMAND + r"|(?<![\w./-])--([a-z][a-z-]*)")
_called_from_python = ContextVar("called_from_python", default=False)


def cut(text: str) -> str:
    """Return the words of a file as an error shows them: 100 characters at most, and then dots."""
    return text if len(text) < 100 else f"{text[:100]}..."


def is_python() -> bool:
    """Return whether a Python program has called fastpsl: messages then name arguments instead of options."""
    return _called_from_python.get()


def worded(text: str) -> str:
    """Return a message that names options as the caller gives them: --batch-size, or batch_size in Python."""
    if _called_from_python.get():
        text = _HELP.sub("", text).replace("the same command", "the same call")
        text = _FLAG.sub(lambda match: match[1].replace("-", "_") if match[1] else match[0], text)
    return text


def warn(text: str, stacklevel: int = 2) -> None:
    """Warn of a text that is `worded`, as from the caller, or from further up the stack."""
    warnings.warn(worded(text), stacklevel=stacklevel + 1)


@contextmanager
def words_of_python() -> Iterator[None]:
    """Let ValueErrors, and the texts that pass through `worded`, name options as arguments of Python."""
    token = _called_from_python.set(True)
    try:
        yield
    except ValueError as error:
        if type(error) is ValueError:
            error.args = (worded(str(error)),)
        raise
    finally:
        _called_from_python.reset(token)
