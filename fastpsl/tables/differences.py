"""List how a training, its pseudo-labels and an evaluation differ from those that a number is measured on."""

from collections.abc import Mapping
from typing import Any

from fastpsl.tables.needs import COUPLED, NO_LABELS, Weights
from fastpsl.tables.scales import Scale


def training_differences(science: Mapping[str, Any], weights: Weights, scale: Scale) -> list[str]:
    """Return why a run with this science has not made the weights; empty if it has.

    The backbone is not compared, because a result records it itself.
    """
    wanted = {name: value for name, value in scale.training_science(weights).items() if name != "backbone"}
    reasons = differences("pre-trained", science, wanted)
    if "labels" in science:
        reasons.append("pre-trained on labels of a file")
    reasons += _label_differences(science, weights, scale)
    if weights.base is None:
        return [*reasons, "fine-tuned"] if "fine_tune" in science else reasons
    base = science.get("fine_tuned")
    if base is None:
        return [*reasons, "pre-trained without saying what it fine-tunes"]
    if base["data_digest"] != science.get("data_digest"):
        reasons.append("fine-tuned on other images")
    of_base = training_differences(base, weights.base, scale)
    return reasons + [f"before it was fine-tuned: {reason}" for reason in of_base]


def label_source(science: Mapping[str, Any]) -> str:
    """Return the source of the pseudo-labels of a run: iic, coupled, true, random, k-means or none."""
    return str(science.get("pseudo_labels", {}).get("source", NO_LABELS))


def _label_differences(science: Mapping[str, Any], weights: Weights, scale: Scale) -> list[str]:
    """Return how the pseudo-labels of a run differ from those of the weights."""
    labels, record = weights.labels, science.get("pseudo_labels", {})
    if label_source(science) != weights.label_source:
        return [f"pre-trained with pseudo-labels {label_source(science)}, here {weights.label_source}"]
    if labels is None or labels == COUPLED:  # an option of the run has the number of coupled classes
        return []
    reasons = differences("its pseudo-labels made", record, scale.label_science(labels))
    if record.get("cut"):
        reasons.append("its pseudo-labels made by a run that --max-steps-per-stage cut short")
    if record.get("seed", science.get("seed")) != science.get("seed"):
        reasons.append(f"its pseudo-labels of seed {record['seed']}, its own is {science.get('seed')}")
    if record.get("data_digest", science.get("data_digest")) != science.get("data_digest"):
        reasons.append("its pseudo-labels made from other images")
    return reasons


def differences(what: str, given: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Return a reason for each wanted value that is missing or different.

    Args:
        what: The words before each reason, such as "evaluated".
        given: The recorded values.
        wanted: The values that are needed.
    """
    return [
        f"{what} with {name} {_words(given[name])}, here {_words(value)}"
        if name in given
        else f"{what} without saying {name}"
        for name, value in wanted.items()
        if name not in given or given[name] != value
    ]


def _words(value: Any) -> str:
    return " ".join(map(str, value)) or "default" if isinstance(value, list) else str(value)
