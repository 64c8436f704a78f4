"""Backbones as blocks B1 to B5."""
