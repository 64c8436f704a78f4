"""Whole views in few passes over memory by Triton; the only folder that imports triton."""
