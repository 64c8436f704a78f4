"""The decoders: different libraries that read the same boxes of the same samples.

Their pixels differ by at most the bounds in docs/reference/decoders.md.
"""
