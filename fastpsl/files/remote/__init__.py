"""Bytes behind an address."""
