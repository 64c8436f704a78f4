"""Seeds of torch's random numbers (initial weights, dropout) as a function of the training's position."""

import hashlib


def torch_seed(*numbers: int) -> int:
    """Return a 63-bit seed for `torch.manual_seed`, derived from `numbers`."""
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest(), "little") >> 1
