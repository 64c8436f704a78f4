"""torch's own randomness (initial weights, dropout) as a function of position."""

import hashlib


def torch_seed(*numbers: int) -> int:
    """A 63-bit seed from numbers, for `torch.manual_seed`."""
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest(), "little") >> 1
