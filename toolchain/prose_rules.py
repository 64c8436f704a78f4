"""The rules of our prose, as checks for proselint: short sentences, plain words, and one name for one thing.

CONTRIBUTING.md has them for people. tests/test_prose.py runs them over what users read.
"""

import re
from collections.abc import Iterator

from proselint.registry.checks import Check, CheckResult, types

MAX_WORDS = 25
_SENTENCE = re.compile(r"[^.!?:]*(?:[.!?:](?![\s\"')\]]|$)[^.!?:]*)*[.!?:]?")
_WORD = re.compile(r"\w[\w'.,/%×-]*")


def long_sentences(text: str, check: Check) -> Iterator[CheckResult]:
    """Yield each sentence of more than MAX_WORDS words; a code span counts as one word."""
    for match in _SENTENCE.finditer(text):
        num_words = len(_WORD.findall(match[0]))
        if num_words > MAX_WORDS:
            yield CheckResult(check.path, check.message.format(num_words), match.span(), None)


PLAIN = {
    "as ever": "as before",
    "held out": "validation",
    "held-out": "validation",
    "in the place of": "instead of",
    "likewise": "also",
    "of one's own": "your own",
    "of your own making": "yours",
    "pictures": "images",
    "picture": "image",
    "says so": "prints a line",
    "trunk": "backbone",
    "where it is there": "if it is installed",
    "is the truth": "is right",
}
COUNTED = "images?|steps?|samples?|views?|lines?|values?|inputs?|batches"
UNITS = "second|step|image|class|epoch|rank|GPU|view|run|batch|file"
PER = rf"\b(?:{COUNTED}) an? (?:{UNITS})\b"
BETON = r"(?:^|[^.\w*-])betons?\b"  # a file's ending stays
EMPTY = ("easily", "just", "obviously", "of course", "please", "simply")

__register__ = (
    Check(long_sentences, path="fastpsl.long", message="a sentence of {} words; at most 25"),
    Check(types.PreferredFormsSimple(PLAIN), path="fastpsl.plain", message="write '{}', not '{}'"),
    Check(types.ExistenceSimple(BETON), path="fastpsl.beton", message="write 'dataset file', not '{}'"),
    Check(types.ExistenceSimple(PER), path="fastpsl.per", message="write 'per', not 'a': '{}'"),
    Check(types.Existence(EMPTY), path="fastpsl.empty", message="leave out '{}'"),
)
