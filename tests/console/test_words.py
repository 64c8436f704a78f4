"""Metrics, hints and options in words that people read."""

import shlex
import threading
from pathlib import Path

import pytest

from fastpsl.console.words import at_home, metric_words, nearest, pasted, val_words, worded, words_of_python

SHARES = ("accuracy", "accuracy_labels", "agreement", "top1", "top5_B4")


def test_a_path_with_a_tilde(cwd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(cwd))
    assert at_home("~/a b") == f"{cwd}/a b" and at_home(Path("~/a")) == cwd / "a"
    for other in ("a/~", "", 3, None, "no~", "~nobody-of-this-name/a"):
        assert at_home(other) == other
    (cwd / "~").mkdir()
    assert at_home("~/a") == "~/a"  # what a folder is called precedes what a shell would read


def test_names_tell_which_metrics_are_shares() -> None:
    values = {name: metric_words(name, 0.1234) for name in SHARES}
    assert set(values.values()) == {"12.3 %"}
    assert metric_words("loss", 2.71828) == "2.718" and metric_words("entropy", 2.71828, ".2f") == "2.72"
    assert metric_words("stop1", 0.25) == "0.25"


def test_chance_follows_the_first_accuracy() -> None:
    chance = " (chance 10.0 %)"
    assert val_words({"loss": 1.5, "accuracy": 0.5}, chance) == "accuracy 50.0 % (chance 10.0 %)"
    named = val_words({"accuracy": 0.5, "top1": 0.25}, chance, "permutation accuracy")
    assert named == "permutation accuracy 50.0 % (chance 10.0 %), top-1 25.0 %"
    agreement = val_words({"loss": 1.5, "agreement": 0.5}, chance)
    assert agreement == "same class for two crops 50.0 % (chance 10.0 %)"
    assert val_words({"top5": 0.75, "top1": 0.5}, chance) == "top-1 50.0 % (chance 10.0 %), top-5 75.0 %"
    blocks = {"top1_B2": 0.12345, "top1_B4": 0.5}
    assert val_words(blocks, chance) == "top-1 B2 12.3, B4 50.0 % (chance 10.0 %)"


def test_a_loss_is_told_beside_that_of_a_constant_answer() -> None:
    assert val_words({"loss": 0.1239, "loss_constant": 0.4}, "") == "loss 0.124 (a constant answer 0.400)"
    several = {"accuracy": 0.5, "loss": 3.0, "task_loss": 1.5, "task_loss_constant": 2.0}
    assert val_words(several, "") == "accuracy 50.0 %, task loss 1.500 (a constant answer 2.000)"
    assert val_words({"loss": -1.25}, " (chance 10.0 %)") == "loss -1.250"
    assert val_words({}, " (chance 10.0 %)") == ""


def test_the_nearest_name_may_be_what_others_call_it() -> None:
    options = ("lr", "batch_size", "workers", "size_px", "max_steps_per_stage", "val")
    meant = {
        "learning_rate": "lr",
        "batchsize": "batch_size",
        "num_workers": "workers",
        "Image-Size": "size_px",
    }
    meant |= {"steps": "max_steps_per_stage", "validation": "val", "worker": "workers", "lr": "lr"}
    assert {name: nearest(name, options) for name in meant} == meant
    assert nearest("image_size", ("short_side", "tile_px")) == "short_side"
    assert nearest("learning_rate", ("short_side", "num_threads")) is None
    assert nearest("--num-workers", ("--data", "--workers")) == "--workers"
    assert nearest("ntxent", ("SwAV", "NTXent")) == "NTXent"


@pytest.mark.parametrize(
    "path", ["runs/a", "-x", "--out=y", "my runs", "a; rm -r $(b) `c`", "'\"\\", "a\nb", "*", ""]
)
def test_a_path_stays_one_word_of_a_shell_and_is_no_option(path: str) -> None:
    (word,) = shlex.split(pasted(path))
    assert word == (f"./{path}" if path.startswith("-") else path)


MESSAGES = (
    ("give more --epochs, a smaller --batch-size", "give more epochs, a smaller batch_size"),
    ("--k x: give whole numbers; see fastpsl eval knn --help", "k x: give whole numbers"),
    ("NAME is missing; see --help", "NAME is missing"),
    ("a--b runs/x--y ./--z", "a--b runs/x--y ./--z"),
    ("`fastpsl data write --mode raw`, or --workers 1", "`fastpsl data write --mode raw`, or workers 1"),
    ("shrink them (fastpsl data write --min-px 9)", "shrink them (fastpsl data write --min-px 9)"),
    ("the same command with --out a goes on", "the same call with out a goes on"),
    ("by pip install --no-deps --upgrade x; or --lr 1", "by pip install --no-deps --upgrade x; or lr 1"),
    ("a tar; tar --dereference makes one (or --lr 1)", "a tar; tar --dereference makes one (or lr 1)"),
)  # fmt: skip


@pytest.mark.parametrize(("said", "of_python"), MESSAGES)
def test_options_are_named_as_python_names_them(said: str, of_python: str) -> None:
    assert worded(said) == said
    with pytest.raises(ValueError) as caught, words_of_python():
        assert worded(said) == of_python
        raise ValueError(said)
    assert str(caught.value) == of_python and worded(said) == said


def test_other_kinds_of_errors_stay() -> None:
    with pytest.raises(UnicodeDecodeError, match="invalid start byte"), words_of_python():
        b"\xff".decode()


def test_calls_in_two_threads_have_words_of_their_own() -> None:
    inside, other_is_over, words = threading.Event(), threading.Event(), list[str]()

    def longer() -> None:
        with words_of_python():
            inside.set()
            other_is_over.wait(60)
            words.append(worded("--lr"))

    thread = threading.Thread(target=longer)
    thread.start()
    assert inside.wait(60) and worded("--lr") == "--lr"
    with words_of_python():
        assert worded("--lr") == "lr"
    other_is_over.set()
    thread.join()
    assert words == ["lr"] and worded("--lr") == "--lr"
