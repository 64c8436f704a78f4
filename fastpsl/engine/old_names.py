"""Former names of options, which one version still understands: on command lines and in records of runs."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from fastpsl.engine.options import flag

# Several options may have had one name, and one option several names, in different scripts.
_RENAMED: tuple[tuple[str, str], ...] = (
    ("augment", "augment_backend"),
    ("augmentation", "augment"),
    ("channels", "input_channels"),
    ("heads", "num_heads"),
    ("labels", "pseudo_labels"),
    ("nproc_per_node", "gpus"),
    ("num_classes", "num_clusters"),
    ("num_processes", "workers"),
    ("num_steps", "steps"),
    ("num_threads", "workers"),
    ("short_px", "short_side"),
    ("shorter_px", "short_side"),
    ("stage_epochs", "epochs"),
    ("step", "compile"),
    ("transforms", "augment"),
)
_VALUES: dict[str, dict[Any, Any]] = {
    "augment": {"color": "colour", "gray": "grey"},
    "compile": {"eager": "off", "compiled": "on", "graphs": "on", "graphed": "on"},
    "num_heads": {"one": 1, "two": 2},
}
# Values of options that older runs of a recipe do not record.
_UNSAID: dict[str, dict[str, Any]] = {
    "mocov2_r50": {"sobel_p": 0.2},
    "rotation_rv50": {"same_window": False},
    "simclr_r50": {"sobel_p": 0.2},
    "supervised": {"crop": "random_resized", "labels_per_class": None},
}
_NEW = frozenset(new for _, new in _RENAMED) - {"pseudo_labels", "gpus"}
_BACKENDS = ("auto", "kornia", "fused")


def current_arguments(arguments: Sequence[str], names: Collection[str]) -> tuple[list[str], list[str]]:
    """Return a command line with today's names of options and values, and a line about each that changed.

    Args:
        arguments: The words of the command line.
        names: The fields of its options, such as batch_size.
    """
    words, notes, name = list[str](), list[str](), ""
    for word, following in zip(arguments, [*arguments[1:], ""], strict=False):
        if word.startswith("--"):
            given, equals, value = word.removeprefix("--").partition("=")
            name = _current(given.replace("-", "_"), names, value if equals else following)
            today = flag(name)
            if name != given.replace("-", "_"):
                notes.append(f"--{given} is called {today} now; the next version will not know the old name")
                word = f"{today}{equals}{_value(name, value)}"
            elif equals:
                word = f"{today}={_value(name, value)}"
        else:
            word = _value(name, word)
        words.append(word)
    return words, notes


def current_record(record: Mapping[str, Any], names: Collection[str] = _NEW) -> dict[str, Any]:
    """Return the values of a run's record under today's names, with those that older runs do not record.

    Args:
        record: Values by name, such as the science of a checkpoint.
        names: Today's names. Others are kept as they are.
    """
    current = dict(_UNSAID.get(record.get("recipe", ""), {}))
    for old, value in record.items():
        # `heads` of block_probe is a list of names, and `channels` of an input is a number.
        name = _current(old, names, value) if isinstance(value, (str, int, tuple, list)) else old
        if (old == "heads" and value not in ("one", "two")) or name in record:
            name = old
        if isinstance(value, str):
            value = _VALUES.get(name, {}).get(value, value)
        elif name in ("fine_tuned", "pseudo_labels") and isinstance(value, Mapping):
            value = current_record(value, _NEW - {"num_clusters"} if name == "pseudo_labels" else _NEW)
        current[name] = value
    # It was once an option of recipes that do not learn by SGD, too.
    if "apex" not in names and current.get("apex") is False:
        del current["apex"]
    return current


def counted_inputs(science: Mapping[str, Any], options: Mapping[str, Any]) -> bool:
    """Return whether a run's batch_size, by its record, counted network inputs and not images."""
    recipe = science["recipe"]
    has_copies = recipe == "sslpp_iic" or options.get("rotations_per_image") == "all"
    has_copies |= recipe == "sslpp_rotation" and options.get("proxy", True)
    return has_copies and "inputs_per_image" not in science


def _current(name: str, names: Collection[str], value: Any) -> str:
    if name == "augment" and value in _BACKENDS and "augment_backend" in names:
        return "augment_backend"  # UIC and IIC have another option of this name today
    if name in names:
        return name
    return next((new for old, new in _RENAMED if old == name and new in names), name)


def _value(name: str, word: str) -> str:
    return str(_VALUES.get(name, {}).get(word, word))
