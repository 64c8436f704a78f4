"""What a finished training was worth, and what to do with it: a run's last lines."""

from pathlib import Path
from typing import Any

from fastpsl.console.words import pasted, percent
from fastpsl.engine.experiment import why_no_knn
from fastpsl.engine.online_probe import read_probes, two_standard_errors
from fastpsl.engine.options import INITIAL_WEIGHTS, PretrainOptions
from fastpsl.engine.reporter import BEFORE, result_words
from fastpsl.engine.run import Run
from fastpsl.files.run_folder import PROBES
from fastpsl.models.names import BACKBONES, TIMM, is_module, is_own, is_timm
from fastpsl.models.state_dict_files import TARGETS

Look = dict[str, Any]


def last_lines(run: Run, options: PretrainOptions) -> list[str]:
    """Return what a finished run has come to, whether it was worth it, and what to do next."""
    reason, looks = why_no_knn(run.data), first_and_last(run)
    done, best = [f"done: {result_words(run.position.summaries[-1])}"], run.folder
    if reason:
        done.append(f"no kNN tells whether the features got better: {reason}")
        done += [_signs(*looks, run)] if looks else []
    elif looks and INITIAL_WEIGHTS in run.science and (worse := why_not_better(*looks)):
        done.append(worse)
        best = run.checkpoints.start if run.checkpoints.start.exists() else best  # older versions kept none
    return ["\n      ".join(done), *next_lines(run, options, best)]


def first_and_last(run: Run) -> tuple[Look, Look] | None:
    """Return the looks before the first step and after the last one, at the last stage's block."""
    name, last = run.position.summaries[-1]["stage"], run.position.run_step
    lines = [line for line in read_probes(run.folder / PROBES) if line["stage"] == name]
    first, after = (next((line for line in lines if line["run_step"] == step), None) for step in (0, last))
    same = ("block", "num_train", "num_val")
    if first is None or after is None or any(first[key] != after[key] for key in same):
        return None
    return None if None in (first["feature_std"], after["feature_std"]) else (first, after)


def why_not_better(before: Look, after: Look) -> str:
    """Return that the kNN has not risen by `two_standard_errors` of the start's, or "" if it has."""
    start, accuracy, num = before["knn_accuracy"], after["knn_accuracy"], after["num_val"]
    margin = two_standard_errors(start, num)
    if accuracy > start + margin:
        return ""
    return (
        f"not better than the weights it began with: kNN {percent(accuracy)} after {percent(start)} "
        f"(two standard errors of {num:,} images are {100 * margin:.1f} points)"
    )


def _signs(before: Look, after: Look, run: Run) -> str:
    rank = min(after["num_train"], after["channels"])
    name = BEFORE["knn_at_start" if INITIAL_WEIGHTS in run.science else "knn_untrained"]
    return (
        f"{name} and now: std {before['feature_std']:.3f} and {after['feature_std']:.3f} of 1, rank "
        f"{before['effective_rank']:.1f} and {after['effective_rank']:.1f} of {rank}"
    )


def next_lines(run: Run, options: PretrainOptions, weights: Path) -> list[str]:
    """Return what to do with weights of a run: commands, or calls if a Python program has trained it."""
    has_classes, backbone = not why_no_knn(run.data), str(getattr(options, "backbone", ""))
    own_data = "" if run.data.val is not None else options.data
    is_named_again = is_own(backbone) or is_module(backbone)
    if not run.owns_process:
        place, data = repr(str(weights)), f", {options.data!r}" if options.data else ""
        made = f"{place}, backbone={'module' if is_module(backbone) else repr(backbone)}"
        place, model = (made, f"fastpsl.load({made})") if is_named_again else (place, place)
        shown = f"fastpsl.plot.neighbours({model}{data})"  # needs no label
        steps = [f"fastpsl.evaluate.knn({place})" if has_classes else shown]
        steps += [f"features, labels = fastpsl.embed({model}{data})", f"model = fastpsl.load({place})"]
    else:
        place, name = pasted(weights), pasted(backbone.removeprefix(TIMM))
        place += f" --backbone {pasted(backbone)}" if is_named_again else ""
        queries = f" --queries {pasted(own_data)}" if own_data else ""
        steps = [f"fastpsl eval knn {place}" if has_classes else f"fastpsl retrieve {place}{queries}"]
        steps.append(f"fastpsl tsne {place}" + (f" --data {pasted(own_data)}" if own_data else ""))
        if backbone in TARGETS["timm"].backbones or is_timm(backbone):
            steps.append(f"fastpsl export {place} --to timm {name}.pth")
        elif backbone in BACKBONES:
            steps.append(f"fastpsl export {place} --to safetensors {name}.safetensors")
    return [f"{'next:' if step is steps[0] else '     '} {step}" for step in steps]
