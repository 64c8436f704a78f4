"""Triton kernels: whole views, isotropic crops, BatchNorm. No other folder imports triton."""
