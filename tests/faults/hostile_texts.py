"""Hostile JSON, XML, lists and folder names: endless nesting, odd numbers, markup, escapes, ways out."""

import hashlib
import json
from pathlib import Path
from typing import Any

from fastpsl.pipelines.views import Input
from tests.faults.hostile_common import DEEP, DIGITS, ESCAPES, MARKUP, Attack, Payload, text, text_attacks


def _entities(kind: str) -> Payload:
    """Build XML that uses entities to reach other files, or more memory."""
    laughs = '<!ENTITY a0 "lol">' + "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 10))
    heads = {
        "laughs": f"<!DOCTYPE annotation [{laughs}]>",
        "file": '<!DOCTYPE annotation [<!ENTITY a9 SYSTEM "file:///etc/passwd">]>',
        "remote": '<!DOCTYPE annotation SYSTEM "http://127.0.0.1:9/x.dtd">',
        "quadratic": f'<!DOCTYPE annotation [<!ENTITY a9 "{"x" * 100_000}">]>',
    }
    name = "&a9;" * (10_000 if kind == "quadratic" else 1) if kind != "remote" else "dog"
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    return text(
        f'<?xml version="1.0"?>{heads[kind]}'
        f"<annotation><object><name>{name}</name>{box}</object></annotation>"
    )


def _json_with(value: Any, *keys: str) -> Payload:
    """Replace one value of the sound JSON."""

    def make(path: Path) -> None:
        record = json.loads(path.read_text())
        parent = record
        for key in keys[:-1]:
            parent = parent[int(key)] if key.isdecimal() else parent[key]
        parent[int(keys[-1]) if keys[-1].isdecimal() else keys[-1]] = value
        path.write_text(json.dumps(record))

    return make


def _all_strings(text: str) -> Payload:
    """Append `text` to every string of the sound JSON, except values that identify its kind."""

    def append(value: Any) -> Any:
        if isinstance(value, str):
            return value + text
        if isinstance(value, list):
            return [append(part) for part in value]
        if isinstance(value, dict):
            return {
                key: part if key in ("format", "protocol", "state") else append(part)
                for key, part in value.items()
            }
        return value

    return lambda path: path.write_text(json.dumps(append(json.loads(path.read_text()))))


def _folder_renamed(text: str) -> Payload:
    """Rename the run's folder to markup or escapes."""

    def make(path: Path) -> None:
        path.parent.rename(path.parent.with_name(text.replace("/", "|")))

    return make


def _names_code(path: Path) -> None:
    """Name a Python file as the backbone of the weights beside the JSON."""
    (path.parent / "net.py").write_text(f"open({str(path.parent / 'canary')!r}, 'w')\n")
    digest = hashlib.sha256(path.with_suffix("").read_bytes()).hexdigest()
    record = {"sha256": digest, "backbone": f"{path.parent}/net.py:Net", "input": Input().as_dict()}
    path.write_text(json.dumps(record))


_JSON_TEXTS: dict[str, str | bytes] = {
    "JSON: deep": DEEP, "JSON: deep objects": '{"a":' * 200_000, "JSON: empty": "", "JSON: a number": "7",
    "JSON: null": "null", "JSON: a list": "[1, 2]", "JSON: infinity": "1e999", "JSON: many digits": DIGITS,
    "JSON: zeros": bytes(4096), "JSON: bytes": bytes(range(256)), "JSON: cut": '{"a": [1,',
    "JSON: escapes": json.dumps({ESCAPES: ESCAPES}), "JSON: surrogate": '{"a": "\\ud800"}',
    "JSON: NaN": "NaN",
}  # fmt: skip
_JSON_GATES = (
    "w.pth.json", "l.json", "config.json", "status.json", "results.json", "result.json", "metrics.jsonl",
)  # fmt: skip
_PATH = "../../../etc/passwd"
_VALUES = {"infinity": float("inf"), "a list": [[]], "a large number": 10**30, "null": None, "a path": _PATH}
_LIST_VALUES = {
    "infinity": float("inf"), "a list": [[]], "an object": {}, "a large number": 10**30, "null": None,
    "a path": _PATH,
}  # fmt: skip
_CONFIG_VALUES = {"infinity": float("inf"), "a list": [[]], "null": None, "a large number": 10**30}
_LIST_KEYS = (
    "images.0.id", "images.0.file_name", "annotations.0.image_id", "annotations.0.category_id",
    "categories.0.id", "categories.0.name", "images", "annotations", "categories",
)  # fmt: skip
_RESULT_KEYS = (
    "numbers", "settings", "checkpoint", "data", "protocol", "recipe", "data.num_train", "numbers.top1_B4",
    "checkpoint.science", "checkpoint.path",
)  # fmt: skip
_CONFIG_KEYS = ("options", "science", "science.seed", "options.data")
_STRING_GATES = ("config.json", "status.json", "results.json", "result.json", "l.json")
_INFINITE_BOX = "<bndbox><xmin>1e999</xmin><ymin>nan</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"


def _value_attacks(gate: str, keys: tuple[str, ...], values: dict[str, Any]) -> list[Attack]:
    """Return an attack for each place in a JSON, named by keys with dots between them, and value."""
    return [
        (gate, f"{name} in {key}", _json_with(value, *key.split(".")))
        for key in keys
        for name, value in values.items()
    ]


_ENTITIES = ("laughs", "file", "remote", "quadratic")


ATTACKS: list[Attack] = [
    *(("000007.xml", f"entities: {kind}", _entities(kind)) for kind in _ENTITIES),
    *text_attacks("000007.xml", {
        "deep": "<a>" * 200_000, "empty": "",
        "escapes": f"<annotation><object><name>{MARKUP}</name></object></annotation>",
        "infinite box": f"<annotation><object><name>dog</name>{_INFINITE_BOX}</object></annotation>",
    }),
    *text_attacks("trainval.txt", {
        "leads out": f"{_PATH}\n", "zeros": bytes(100), "escapes": ESCAPES + "\n",
        "one long line": "a" * 1_000_000, "not UTF-8": b"\xff\xfe\n",
    }),
    *text_attacks("list.txt", {
        "many digits": DIGITS, "negative": "-1\n", "not UTF-8": b"\xff\xfe\n", "escapes": ESCAPES + "\n",
        "zeros": bytes(100), "other digits": "²\n",
    }),
    *text_attacks("l.txt", {
        "leads out": "../../../../etc/passwd 0\n", "a zero byte": "a\0b.jpg 0\n",
        "large label": "0.jpg 99999999999999999999\n", "many digits": f"0.jpg {DIGITS}\n",
        "one long line": "a" * 1_000_000 + "\n", "bytes": bytes(range(256)) * 9, "other digits": "0.jpg ²\n",
        "devices": "/dev/zero 0\n/dev/tty 1\n", "escapes": f"{ESCAPES}.jpg 0\n0.jpg 1\n",
    }),
    *text_attacks("l.csv", {
        "escapes": f"filename,label\n0.jpg,{ESCAPES}{MARKUP}\n",
        "a long field": "filename,label\n" + "a" * 1_000_000 + ",x\n",
        "open quote": 'filename,label\n"0.jpg,x\n', "a zero byte": "filename,label\na\0.jpg,x\n",
        "formula": "filename,label\n=cmd|' /C calc'!A0.jpg,x\n0.jpg,=1+1\n",
    }),
    *(attack for gate in _JSON_GATES for attack in text_attacks(gate, _JSON_TEXTS)),
    *(
        (gate, f"{name} in every string", _all_strings(suffix))
        for gate in _STRING_GATES for name, suffix in (("escapes", ESCAPES), ("markup", MARKUP))
    ),
    *_value_attacks("l.json", _LIST_KEYS, _LIST_VALUES),
    *_value_attacks("result.json", _RESULT_KEYS, _VALUES),
    *_value_attacks("config.json", _CONFIG_KEYS, _CONFIG_VALUES),
    ("result.json", "markup as the folder's name", _folder_renamed(MARKUP)),
    ("result.json", "escapes as the folder's name", _folder_renamed(ESCAPES)),
    ("w.pth.json", "a Python file as the backbone", _names_code),
]  # fmt: skip
