"""Decoders: one file each, same samples in, same crops out."""
