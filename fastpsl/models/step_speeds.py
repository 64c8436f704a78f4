"""The fastest modes of a step that were measured, by backbone."""

# (backbone, first and last learning block, side of the images in px) → the fastest mode, and its speed
# relative to eager. Measured with ResNet-50 in fp16, batch 256, on one H200 with torch 2.11: S1 ran at 9,900
# images/s against 8,400, and end to end at 6,700 against 5,800. Other cases, and the mode `fused`, have not
# been measured.
GAINS = {("resnet50", 1, 3, 224): ("compiled", 1.18), ("resnet50", 1, 5, 224): ("compiled", 1.16)}
MEASURED_PRECISIONS = ("fp16", "bf16")  # bf16 by analogy: it has fp16's kernels and its layout
