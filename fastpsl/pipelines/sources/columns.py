"""The choice of a table's columns of images and labels, where only one is possible."""

import json
import re
from dataclasses import dataclass
from typing import Any

from fastpsl.pipelines.sources.labels import is_label_word

NO_COLUMN = "none"
_LABEL_KINDS = ("classes", "integer", "number", "text")
_TYPES = {  # of pyarrow, by their names
    "bytes": r"(large_)?binary|struct<.*\bbytes: (large_)?binary",
    "integer": r"(u?int\d+|bool)$",
    "number": r"(halffloat|float|double)$",
    "text": r"(large_)?string|dictionary<values=(large_)?string",
}


@dataclass(frozen=True)
class Columns:
    """The columns to read, and class names where the table has them."""

    image: str
    label: str | None
    class_names: list[str] | None = None
    is_told_by_values: bool = False  # labels of fractions or text, whose classes are told by all of them
    left_out: str = ""  # a column with a label's name that holds no labels, and what it holds

    @property
    def names(self) -> list[str]:
        return [self.image, self.label] if self.label else [self.image]


def choose_columns(what: str, schema: Any, image: str | None, label: str | None) -> Columns:
    """Choose the columns that hold images and labels.

    Images are datasets' Image feature, else encoded bytes. Labels are its ClassLabel, else, of the columns
    with a label's name, integers or booleans, else other numbers, else text.

    Args:
        what: The table's name, for messages.
        schema: A pyarrow schema.
        image: The column of images; None to choose.
        label: The column of labels; "none" for no labels, None to choose.

    Raises:
        ValueError: There is no such column, or several.
    """
    kinds, class_names = _kinds(schema)
    all_columns = f"its columns are {', '.join(schema.names)}"
    images = _column(what, "image", image, kinds, ("image", "bytes"), all_columns)
    if images is None:
        raise ValueError(f"{what}: no column of images or of their bytes; {all_columns}")
    if label == NO_COLUMN:
        return Columns(images, None)
    likely = {name: kind for name, kind in kinds.items() if kind == "classes" or is_label_word(name)}
    labels = _column(what, "label", label, kinds if label else likely, _LABEL_KINDS, all_columns)
    unusable = [f"{name} holds neither numbers nor text" for name in likely if not labels]
    return Columns(
        images,
        labels,
        class_names.get(labels or ""),
        labels is not None and kinds[labels] in ("number", "text"),
        unusable[0] if unusable else "",
    )


def _kinds(schema: Any) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Return each column's content ("image", "bytes", one of _LABEL_KINDS or "") and class names."""
    features = (
        json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    )
    kinds, class_names = {}, {}
    for column in schema:
        feature, type_name = features.get(column.name), str(column.type)
        feature = feature if isinstance(feature, dict) else {}
        if feature.get("_type") == "Image":
            kind = "image"
        elif feature.get("_type") == "ClassLabel":
            kind = "classes"
            class_names[column.name] = [str(name) for name in feature.get("names") or ()]
        else:
            kind = next((kind for kind, types in _TYPES.items() if re.match(types, type_name)), "")
        kinds[column.name] = kind
    return kinds, {name: names for name, names in class_names.items() if names}


def _column(
    what: str,
    role: str,
    column: str | None,
    kinds: dict[str, str],
    allowed: tuple[str, ...],
    all_columns: str,
) -> str | None:
    """Return the given column, or the only one of the first kind in `allowed` that occurs."""
    option = f"--{role}-column"
    if column is not None:
        if column not in kinds:
            raise ValueError(f"{what}: {option} {column}: there is no such column; {all_columns}")
        if kinds[column] not in allowed:
            holds = {"image": "images or their bytes", "label": "numbers, text or a ClassLabel"}[role]
            raise ValueError(f"{what}: {option} {column}: does not hold {holds}; {all_columns}")
        return column
    for kind in allowed:
        matches = [name for name in kinds if kinds[name] == kind]
        if len(matches) > 1:
            none_option = f" or {NO_COLUMN}" if role == "label" else ""
            raise ValueError(
                f"{what}: several columns may hold {role}s; give {option} {' or '.join(matches)}{none_option}"
            )
        if matches:
            return matches[0]
    return None
