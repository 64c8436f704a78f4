"""Backbones as blocks, and files of weights in and out."""
