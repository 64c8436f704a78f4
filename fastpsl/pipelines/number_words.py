"""Numbers as people read them. Files keep fractions."""


def number_of(number: float | str, noun: str, plural: str = "") -> str:
    """Return a number with its noun: "1 core", "2 cores", "0.4 cores", "1,024 files"; the text "1.0" is 1."""
    text = f"{number:,}" if not isinstance(number, str) else number.removesuffix(".0")
    return f"{text} {noun if text == '1' else plural or noun + 's'}"


def percent(share: float) -> str:
    """Return a fraction in percent, such as "12.3 %", or "0.05 %" below 0.1 %."""
    return f"{100 * share:{'.2g' if 0 < share < 0.001 else '.1f'}} %"
