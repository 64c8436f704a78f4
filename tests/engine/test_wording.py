import threading
import warnings

import pytest

from fastpsl.console.words import in_words_of_python, worded, words_of_python

MESSAGES = (
    ("give more --epochs, a smaller --batch-size", "give more epochs, a smaller batch_size"),
    ("--k x: give whole numbers; see fastpsl eval knn --help", "k x: give whole numbers"),
    ("NAME is missing; see --help", "NAME is missing"),
    ("a--b runs/x--y ./--z", "a--b runs/x--y ./--z"),
    ("`fastpsl data write --mode raw`, or --workers 1", "`fastpsl data write --mode raw`, or workers 1"),
    ("shrink them (fastpsl data write --min-px 9)", "shrink them (fastpsl data write --min-px 9)"),
    ("the same command with --out a goes on", "the same call with out a goes on"),
)  # fmt: skip


@pytest.mark.parametrize(("said", "of_python"), MESSAGES)
def test_options_are_named_as_python_names_them(
    said: str, of_python: str, recwarn: pytest.WarningsRecorder
) -> None:
    assert in_words_of_python(said) == of_python
    assert worded(said) == said
    show = warnings.showwarning
    with pytest.raises(ValueError) as caught, words_of_python():
        assert worded(said) == of_python
        warnings.warn(said, stacklevel=1)
        raise ValueError(said)
    assert str(caught.value) == str(recwarn[0].message) == of_python
    assert worded(said) == said and warnings.showwarning is show


def test_other_kinds_of_warnings_and_errors_stay(recwarn: pytest.WarningsRecorder) -> None:
    with pytest.raises(UnicodeDecodeError), words_of_python():
        warnings.warn("--a-flag", DeprecationWarning, stacklevel=1)
        b"\xff".decode()
    assert str(recwarn[0].message) == "--a-flag"


def test_calls_that_overlap_in_two_threads_leave_the_programs_own_warnings() -> None:
    show, inside, other_is_over = warnings.showwarning, threading.Event(), threading.Event()

    def longer() -> None:
        with words_of_python():
            inside.set()
            other_is_over.wait(60)

    thread = threading.Thread(target=longer)
    with words_of_python():
        thread.start()
        assert inside.wait(60)
    assert warnings.showwarning is not show  # of the call that goes on
    other_is_over.set()
    thread.join()
    assert warnings.showwarning is show
