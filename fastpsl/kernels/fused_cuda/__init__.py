"""Whole views in few passes over memory: Triton kernels, the only folder that imports triton."""
