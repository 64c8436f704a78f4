"""One way in which a kernel is launched, written so that it can be compiled where there is no GPU."""

from typing import Any, NamedTuple


class Variant(NamedTuple):
    """A kernel with the types of its arguments: every module of this folder lists what it launches as VARIANTS.

    arguments: by the kernel's parameter names, either a type as triton's tools write it ("*fp16", "i32"; with ":16"
    where the pointer or the number is divisible by 16) or, for a tl.constexpr, its value (no string).
    """

    name: str
    kernel: Any
    arguments: dict[str, Any]
    num_warps: int
    num_stages: int = 3
