"""JSON, XML, lists and names of folders: nesting without end, numbers of nonsense, markup, escapes, ways out."""

import json
from pathlib import Path
from typing import Any

from tests.faults.hostile_common import DEEP, DIGITS, ESCAPES, MARKUP, Attack, Payload, text


def _entities(kind: str) -> Payload:
    """XML's ways to other files, and to more memory."""
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
        f'<?xml version="1.0"?>{heads[kind]}<annotation><object><name>{name}</name>{box}</object></annotation>'
    )


def _json_with(value: Any, *keys: str) -> Payload:
    """The sound JSON with another value at a place."""

    def make(path: Path) -> None:
        record = json.loads(path.read_text())
        place = record
        for key in keys[:-1]:
            place = place[int(key)] if key.isdecimal() else place[key]
        place[int(keys[-1]) if keys[-1].isdecimal() else keys[-1]] = value
        path.write_text(json.dumps(record))

    return make


def _all_strings(text: str) -> Payload:
    """The sound JSON with `text` behind every string and key, but those that tell what it is."""

    def changed(value: Any) -> Any:
        if isinstance(value, str):
            return value + text
        if isinstance(value, list):
            return [changed(part) for part in value]
        if isinstance(value, dict):
            return {
                key: part if key in ("format", "protocol", "state") else changed(part)
                for key, part in value.items()
            }
        return value

    return lambda path: path.write_text(json.dumps(changed(json.loads(path.read_text()))))


def _folder_renamed(text: str) -> Payload:
    """The run's folder under a name that is markup or escapes."""

    def make(path: Path) -> None:
        path.parent.rename(path.parent.with_name(text.replace("/", "|")))

    return make


_JSON_TEXTS: dict[str, str | bytes] = {
    "deep": DEEP, "deep objects": '{"a":' * 200_000, "empty": "", "a number": "7", "null": "null", "a list": "[1, 2]",
    "infinity": "1e999", "many digits": DIGITS, "zeros": bytes(4096), "bytes": bytes(range(256)), "cut": '{"a": [1,',
    "escapes": json.dumps({ESCAPES: ESCAPES}), "surrogate": '{"a": "\\ud800"}', "NaN": "NaN",
}  # fmt: skip
_JSON_GATES = (
    "w.pth.json",
    "l.json",
    "config.json",
    "status.json",
    "results.json",
    "result.json",
    "metrics.jsonl",
)


ATTACKS: list[Attack] = [
    *(("000007.xml", f"entities: {kind}", _entities(kind)) for kind in ("laughs", "file", "remote", "quadratic")),
    *(("000007.xml", name, text(data)) for name, data in (
        ("deep", "<a>" * 200_000), ("empty", ""), ("escapes", f"<annotation><object><name>{MARKUP}</name></object></annotation>"),
        ("infinite box", "<annotation><object><name>dog</name><bndbox><xmin>1e999</xmin><ymin>nan</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>"))),
    *(("trainval.txt", name, text(data)) for name, data in (
        ("leads out", "../../../etc/passwd\n"), ("zeros", bytes(100)), ("escapes", ESCAPES + "\n"), ("one long line", "a" * 1_000_000), ("not UTF-8", b"\xff\xfe\n"))),
    *(("list.txt", name, text(data)) for name, data in (
        ("many digits", DIGITS), ("negative", "-1\n"), ("not UTF-8", b"\xff\xfe\n"), ("escapes", ESCAPES + "\n"), ("zeros", bytes(100)), ("other digits", "²\n"))),
    *(("l.txt", name, text(data)) for name, data in (
        ("leads out", "../../../../etc/passwd 0\n"), ("a zero byte", "a\0b.jpg 0\n"), ("large label", "0.jpg 99999999999999999999\n"),
        ("many digits", f"0.jpg {DIGITS}\n"), ("one long line", "a" * 1_000_000 + "\n"), ("bytes", bytes(range(256)) * 9),
        ("other digits", "0.jpg ²\n"), ("devices", "/dev/zero 0\n/dev/tty 1\n"), ("escapes", f"{ESCAPES}.jpg 0\n0.jpg 1\n"))),
    *(("l.csv", name, text(data)) for name, data in (
        ("escapes", f"filename,label\n0.jpg,{ESCAPES}{MARKUP}\n"), ("a long field", "filename,label\n" + "a" * 1_000_000 + ",x\n"),
        ("open quote", 'filename,label\n"0.jpg,x\n'), ("a zero byte", "filename,label\na\0.jpg,x\n"), ("formula", "filename,label\n=cmd|' /C calc'!A0.jpg,x\n0.jpg,=1+1\n"))),
    *((gate, f"JSON: {name}", text(told)) for gate in _JSON_GATES for name, told in _JSON_TEXTS.items()),
    *((gate, f"{name} in every string", _all_strings(told)) for gate in ("config.json", "status.json", "results.json", "result.json", "l.json") for name, told in (("escapes", ESCAPES), ("markup", MARKUP))),
    *(("l.json", f"{name} in {keys}", _json_with(value, *keys.split("."))) for keys in ("images.0.id", "images.0.file_name", "annotations.0.image_id", "annotations.0.category_id", "categories.0.id", "categories.0.name", "images", "annotations", "categories") for name, value in (
        ("infinity", float("inf")), ("a list", [[]]), ("an object", {}), ("a large number", 10**30), ("null", None), ("a path", "../../../etc/passwd"))),
    *(("result.json", f"{name} in {keys}", _json_with(value, *keys.split("."))) for keys in ("numbers", "settings", "checkpoint", "data", "protocol", "recipe", "data.num_train", "numbers.top1_B4", "checkpoint.science", "checkpoint.path") for name, value in (
        ("infinity", float("inf")), ("a list", [[]]), ("a large number", 10**30), ("null", None), ("a path", "../../../etc/passwd"))),
    *(("config.json", f"{name} in {keys}", _json_with(value, *keys.split("."))) for keys in ("options", "science", "science.seed", "options.data") for name, value in (
        ("infinity", float("inf")), ("a list", [[]]), ("null", None), ("a large number", 10**30))),
    ("result.json", "markup as the folder's name", _folder_renamed(MARKUP)),
    ("result.json", "escapes as the folder's name", _folder_renamed(ESCAPES)),
]  # fmt: skip
