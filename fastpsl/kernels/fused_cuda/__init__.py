"""Whole views on a GPU in a few passes over memory by Triton. No other folder imports triton."""
