"""Words for a task's metrics, by the form of their names.

- accuracy, agreement, NAME_accuracy, top1, top5 and top1_NAME, of a classifier of that name, are fractions.
- NAME_constant is the value that metric NAME has for a constant answer.
- All others are numbers, such as the loss.
"""

from fastpsl.pipelines.number_words import percent

_SHARES = {"accuracy": "accuracy", "agreement": "agreement of two views", "top1": "top-1", "top5": "top-5"}


def metric_words(name: str, value: float, form: str = ".4g") -> str:
    """Return a metric's value: a fraction in percent, others by a format."""
    is_share = "accuracy" in name or name == "agreement" or name.startswith(("top1", "top5"))
    return percent(value) if is_share else f"{value:{form}}"


def val_words(val: dict[str, float], chance: str) -> str:
    """Return the metrics of the validation pass as one line; `chance` follows the first share.

    Shares are the accuracy, the agreement of two views (UIC), top-1 and top-5, or the top-1 of several
    classifiers ("top1_B4"). A loss is added if there is its value for a constant answer ("loss_constant"),
    or if there is no share (IIC).
    """
    words = []
    for name, label in _SHARES.items():
        if name in val:
            words.append(f"{label} {percent(val[name])}")
    parts = [f"{n[5:]} {100 * value:.1f}" for n, value in val.items() if n.startswith("top1_")]
    words += [f"top-1 {', '.join(parts)} %"] if parts else []
    words = [words[0] + chance, *words[1:]] if words else []
    for constant in (name for name in val if name.endswith("_constant")):
        loss = constant.removesuffix("_constant")
        words.append(f"{loss.replace('_', ' ')} {val[loss]:.3f} (a constant answer {val[constant]:.3f})")
    if not words and "loss" in val:
        words.append(f"loss {val['loss']:.3f}")
    return ", ".join(words)
