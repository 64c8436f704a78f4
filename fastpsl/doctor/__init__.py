"""Measure how fast each part of a recipe is on this machine, name the slowest, and say what to change."""
