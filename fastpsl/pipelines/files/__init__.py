"""Helpers for any file: atomic writes, bounded reads and caches."""
