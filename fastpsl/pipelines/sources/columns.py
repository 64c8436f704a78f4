"""Which columns of a table hold images and labels: where only one can be meant, it is taken."""

import json
import re
from dataclasses import dataclass
from typing import Any

NO_COLUMN = "none"
LABEL_WORDS = ("label", "labels", "cls", "target", "targets")


@dataclass(frozen=True)
class Columns:
    """The columns to read; class names where the table tells them."""

    image: str
    label: str | None
    class_names: list[str] | None = None
    left_out: str | None = None  # a column that is called labels and holds none

    @property
    def names(self) -> list[str]:
        return [self.image, self.label] if self.label else [self.image]


def choose_columns(what: str, schema: Any, image: str | None, label: str | None) -> Columns:
    """The columns of `schema` (pyarrow's) that hold images and labels; `image` and `label` name them, label "none"
    wants none. Images: datasets' Image feature, else encoded bytes. Labels: its ClassLabel, else integers that are
    called labels. ValueError where there is no such column, or several."""
    kinds, class_names = _kinds(schema)
    there = f"its columns are {', '.join(schema.names)}"
    images = _column(what, "image", image, kinds, ("image", "bytes"), there)
    if images is None:
        raise ValueError(f"{what}: no column of images or of their bytes; {there}")
    if label == NO_COLUMN:
        return Columns(images, None)
    likely = {name: kind for name, kind in kinds.items() if kind == "classes" or name.lower() in LABEL_WORDS}
    labels = _column(what, "label", label, kinds if label else likely, ("classes", "integer"), there)
    odd = [name for name, kind in likely.items() if not labels and kind not in ("classes", "integer")]
    return Columns(images, labels, class_names.get(labels or ""), odd[0] if odd else None)


def _kinds(schema: Any) -> tuple[dict[str, str], dict[str, list[str]]]:
    """What each column holds ("image", "classes", "bytes", "integer" or ""), and names of classes."""
    told = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    kinds, class_names = {}, {}
    for column in schema:
        feature, type_name = told.get(column.name), str(column.type)
        feature = feature if isinstance(feature, dict) else {}
        if feature.get("_type") == "Image":
            kind = "image"
        elif feature.get("_type") == "ClassLabel":
            kind = "classes"
            class_names[column.name] = [str(name) for name in feature.get("names") or ()]
        elif re.match(r"(large_)?binary|struct<.*\bbytes: (large_)?binary", type_name):
            kind = "bytes"
        else:
            kind = "integer" if re.fullmatch(r"u?int\d+", type_name) else ""
        kinds[column.name] = kind
    return kinds, {name: names for name, names in class_names.items() if names}


def _column(
    what: str, role: str, given: str | None, kinds: dict[str, str], allowed: tuple[str, str], there: str
) -> str | None:
    """The column that was given, or the only one of the first of the `allowed` kinds that there is."""
    option = f"--{role}-column"
    if given is not None:
        if kinds.get(given) not in allowed:
            holds = {"image": "images or their bytes", "label": "integers or a ClassLabel"}[role]
            why = f"does not hold {holds}" if given in kinds else "there is no such column"
            raise ValueError(f"{what}: {option} {given}: {why}; {there}")
        return given
    for kind in allowed:
        found = [name for name in kinds if kinds[name] == kind]
        if len(found) > 1:
            none = f" or {NO_COLUMN}" if role == "label" else ""
            raise ValueError(
                f"{what}: several columns may hold {role}s; give {option} {' or '.join(found)}{none}"
            )
        if found:
            return found[0]
    return None
