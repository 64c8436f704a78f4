"""The gate of JSON that others may have written: regular files alone, bounded, with fields of known kinds.

Behind it, a record is a dict or a list of JSON values. Texts are Unicode, integers have at most 64 bits, and
nesting is shallow. Floats may be NaN, as the loss of a run that has diverged.
"""

import json
import os
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

MAX_BYTES = 16 << 20
_MAX_DEPTH = 32
_MIN_INTEGER, _MAX_INTEGER = -1 << 63, (1 << 64) - 1
_SHOWN = 40  # characters of a value in an error
_TOO_LARGE, _TOO_DEEP = "holds an integer of more than 64 bits", "is nested too deeply"
# Surrogates that are no bytes of a file's name, and NUL, which no name has.
_NO_TEXT = re.compile("[\0\ud800-\udc7f\udd00-\udfff]")
_decode = json.JSONDecoder().decode


class NoRecord(ValueError):
    """The error of a file that holds no record; `why` continues a sentence that begins with its path."""

    def __init__(self, path: Path, why: str):
        super().__init__(f"{path} {why}")
        self.path, self.why = path, why


class Kind(NamedTuple):
    """A kind of values: in words, and as a function that tells whether a value is of it."""

    words: str
    holds: Callable[[Any], bool]


def is_number(value: Any) -> bool:
    """Return whether a value of JSON is a number, be it finite or not."""
    return type(value) in (int, float)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_record(value: Any, kind: "Kind") -> bool:
    return isinstance(value, dict) and all(map(kind.holds, value.values()))


def maybe(kind: Kind) -> Kind:
    """Return the kind of a field that may be null or missing."""
    return Kind(f"{kind.words} or null", lambda value: value is None or kind.holds(value))


TEXT = Kind("a text", lambda value: isinstance(value, str))
TRUTH = Kind("true or false", lambda value: isinstance(value, bool))
WHOLE = Kind("a whole number", lambda value: type(value) is int)
COUNT = Kind("a whole number from 0", _is_count)
NUMBER = Kind("a number", is_number)
RECORD = Kind("a record", lambda value: isinstance(value, dict))
NUMBERS = Kind("a record of numbers", lambda value: _is_record(value, NUMBER))
FIGURES = Kind("a record of numbers or null", lambda value: _is_record(value, maybe(NUMBER)))
TEXTS = Kind("a list of texts", lambda value: isinstance(value, list) and all(map(TEXT.holds, value)))
COUNTS = Kind("a list of whole numbers", lambda value: isinstance(value, list) and all(map(_is_count, value)))


@dataclass(frozen=True)
class Form:
    """A form of records.

    Attributes:
        name: The file's name.
        fields: By a field's name the kind of its value; "science.seed" is a field of the record "science".
        is_list: Whether the file holds a list of such records.
    """

    name: str
    fields: Mapping[str, Kind]
    is_list: bool = False

    def of(self, folder: Path, *needed: str) -> Any:
        """Return a folder's record, as `read` does."""
        return self.read(folder / self.name, *needed)

    def read(self, path: Path, *needed: str) -> Any:
        """Return the record in a file, or the list of them; `needed` are fields that must not be null.

        Raises:
            OSError: The file cannot be opened or read.
            NoRecord: It holds something else.
        """
        return self.checked(path, parse(path, read_bytes(path)), *needed)

    def checked(self, path: Path, value: Any, *needed: str) -> Any:
        """Return a value that a file holds, which must be a record of this form; raise NoRecord otherwise."""
        records = value if isinstance(value, list) and self.is_list else [value]
        for record in records:
            if why := self.why_not(record, *needed):
                raise NoRecord(path, why)
        return value

    def why_not(self, record: Any, *needed: str) -> str:
        """Return why a value is no record of this form, as `NoRecord` tells it; "" if it is one."""
        if not isinstance(record, dict):
            return "is no list of records" if self.is_list else "is no record"
        for name, kind in self.fields.items():
            *outer, last = name.split(".")
            inner: Any = record
            for part in outer:
                inner = inner.get(part) or {}
            value = inner.get(last)
            if value is None and name in needed:
                return f"has no {name}"
            if not kind.holds(value):
                return f"holds {name} {ascii(value)[:_SHOWN]}, not {kind.words}"
        return ""


def open_regular(path: Path) -> BinaryIO:
    """Open a file to read it.

    Raises:
        OSError: It cannot be opened.
        NoRecord: It is a folder, a device or a pipe, which may never end.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise NoRecord(path, "is no regular file")
    return os.fdopen(fd, "rb")


def read_bytes(path: Path) -> bytes:
    """Return what a small file holds.

    Raises:
        OSError: It cannot be read.
        NoRecord: It is no file, or a large one.
    """
    with open_regular(path) as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise NoRecord(path, f"has more than {MAX_BYTES:,} bytes")
    return data


def parse(path: Path, data: bytes) -> Any:
    """Return the value of a JSON text of a file.

    Raises:
        NoRecord: It is none, or one of its values is too large, too deep or no text.
    """
    try:
        text = data.decode()
        value = _decode(text)
    except UnicodeDecodeError:
        raise NoRecord(path, "is no text in UTF-8") from None
    except json.JSONDecodeError as error:
        raise NoRecord(path, f"is no JSON (line {error.lineno}, column {error.colno})") from None
    except ValueError:  # of Python's limit of digits
        raise NoRecord(path, _TOO_LARGE) from None
    except RecursionError:
        raise NoRecord(path, _TOO_DEEP) from None
    may_be_no_text, level, depth = "\\u" in text, [value], 0
    while level:
        depth += 1
        if depth > _MAX_DEPTH:
            raise NoRecord(path, _TOO_DEEP)
        inner = list[Any]()
        for each in level:
            kind = type(each)
            if kind is dict:
                inner += each.values()
                if may_be_no_text:
                    inner += each
            elif kind is list:
                inner += each
            elif kind is int and not _MIN_INTEGER <= each <= _MAX_INTEGER:
                raise NoRecord(path, _TOO_LARGE)
            elif may_be_no_text and kind is str and _NO_TEXT.search(each):
                raise NoRecord(path, "holds a text that is no Unicode")
        level = inner
    return value
