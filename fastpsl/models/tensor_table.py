"""The table of `fastpsl export`: which tensor got which name."""

import re


def key_table(pairs: list[tuple[str, str]]) -> list[str]:
    """Build a table of old and new names.

    Names that differ only in block numbers or in their last part share a line.

    Args:
        pairs: Pairs of our name and the library's name.
    """
    groups: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for pair in pairs:
        groups.setdefault((_pattern(pair[0]), _pattern(pair[1])), []).append(pair)
    rows = [
        (
            len(group),
            _abbreviate([old_name for old_name, _ in group]),
            _abbreviate([new_name for _, new_name in group]),
        )
        for group in groups.values()
    ]
    width = max(len(old_name) for _, old_name, _ in rows)
    return [
        f"  tensors  {'here':<{width}}  there",
        *(f"  {number:>7}  {old_name:<{width}}  {new_name}" for number, old_name, new_name in rows),
    ]


# The number of a block or layer: after "layer", after "res" or after a dot.
_NUMBER = re.compile(r"((?<=^layer)|(?<=^res)|(?<=\.))\d+(?=\.|$)")


def _pattern(name: str) -> str:
    return _NUMBER.sub("#", name.rpartition(".")[0])


def _abbreviate(names: list[str]) -> str:
    """Abbreviate names of one pattern, such as layer1-4.0-5.bn1.*."""
    stems, leaves = zip(*(name.rpartition(".")[::2] for name in names), strict=True)
    ranges = []
    for numbers in zip(*((int(match[0]) for match in _NUMBER.finditer(stem)) for stem in stems), strict=True):
        low, high = min(numbers), max(numbers)
        ranges.append(str(low) if low == high else f"{low}-{high}")
    texts = iter(ranges)
    stem = _NUMBER.sub(lambda _: next(texts), stems[0])
    return f"{stem}.{leaves[0] if len(set(leaves)) == 1 else '*'}"
