"""The decoders: they read and crop samples by different libraries, with equal results."""
