"""Numbers with their nouns."""


def number_of(number: float | str, noun: str, plural: str = "") -> str:
    """1 core, 2 cores, 0.4 cores, 1,024 files; 1.0 as given in a string is 1."""
    text = f"{number:,}" if not isinstance(number, str) else number.removesuffix(".0")
    return f"{text} {noun if text == '1' else plural or noun + 's'}"
