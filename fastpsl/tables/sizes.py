"""What one paper's tables are measured with, at one scale."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """values: recipe, or an evaluation's name → option → value; None, which commands leave out, is what the recipe does by itself.

    about: the sizes in words. num_processes: of torchrun. flags: which values commands spell where a scale does not spell all.
    """

    about: str
    num_processes: int
    values: Mapping[str, Mapping[str, Any]]
    flags: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
