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
_SOUND = frozenset({float, bool, type(None)})  # types all of whose values may stand in a record
_decode = json.JSONDecoder().raw_decode


class NoRecord(ValueError):
    """The error of a file that holds no record; `why` continues a sentence that begins with its path."""

    def __init__(self, path: Path | str, why: str):
        super().__init__(f"{path} {why}")
        self.path, self.why = path, why


class Kind(NamedTuple):
    """A kind of values: in words, and as a function that tells whether a value is of it."""

    words: str
    holds: Callable[[Any], bool]


def is_number(value: Any) -> bool:
    """Return whether a value of JSON is a number, be it finite or not."""
    return type(value) is float or type(value) is int


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

    def checked(self, path: Path | str, value: Any, *needed: str) -> Any:
        """Return a value that a file holds, which must be a record of this form; raise NoRecord otherwise."""
        if self.is_list and not isinstance(value, list):
            raise NoRecord(path, "is no list of records")
        for record in value if self.is_list else [value]:
            if why := self.why_not(record, *needed):
                raise NoRecord(path, why)
        return value

    def why_not(self, record: Any, *needed: str) -> str:
        """Return why a value is no record of this form, as `NoRecord` tells it; "" if it is one."""
        if not isinstance(record, dict):
            return "is no record"
        for name, kind in self.fields.items():
            value: Any = record
            for part in name.split("."):
                value = (value or {}).get(part)
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
    return open(fd, "rb")


def read_bytes(path: Path) -> bytes:
    """Return the bytes of a small file.

    Raises:
        OSError: It cannot be read.
        NoRecord: It is no file, or a large one.
    """
    with open_regular(path) as file:
        num_bytes = os.fstat(file.fileno()).st_size
        if num_bytes > MAX_BYTES:
            raise NoRecord(path, f"has {num_bytes:,} bytes, and at most {MAX_BYTES:,} are read")
        return file.read(num_bytes)


def parse(path: Path | str, data: bytes) -> Any:
    """Return the value of a JSON text of a file.

    Raises:
        NoRecord: It is none, or one of its values is too large, too deep or no text.
    """
    try:
        text = data.decode().strip()
        value, end = _decode(text)
    except UnicodeDecodeError:
        raise NoRecord(path, "is no text in UTF-8") from None
    except json.JSONDecodeError as error:
        raise NoRecord(path, f"is no JSON (line {error.lineno}, column {error.colno})") from None
    except ValueError:  # of Python's limit of digits
        raise NoRecord(path, _TOO_LARGE) from None
    except RecursionError:
        raise NoRecord(path, _TOO_DEEP) from None
    if end < len(text):
        raise NoRecord(path, "holds more than one value")
    sound = _SOUND if "\\u" in text else _SOUND | {str}
    level, depth = [[value]], 0
    while level:
        depth += 1
        if depth > _MAX_DEPTH:
            raise NoRecord(path, _TOO_DEEP)
        inner = list[Any]()
        for outer in level:
            for each in outer:
                kind = type(each)
                if kind in sound:
                    continue
                if kind is int:
                    if not _MIN_INTEGER <= each <= _MAX_INTEGER:
                        raise NoRecord(path, _TOO_LARGE)
                elif kind is dict:
                    inner.append(each.values())
                    if str not in sound:
                        inner.append(each)
                elif kind is list:
                    inner.append(each)
                elif _NO_TEXT.search(each):
                    raise NoRecord(path, "holds a text that is no Unicode")
        level = inner
    return value
