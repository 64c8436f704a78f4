"""Samples to batches on the device: betons, order, decoders, loader. Knows no task."""
