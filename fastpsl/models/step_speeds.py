"""The fastest modes of a step that were measured, by backbone."""

# (backbone, first and last learning block, side of the images in px) → the fastest mode, and its speed
# relative to eager. Measured with ResNet-50 in fp16, batch 256, on one H200 with torch 2.11
# (bench/results/step-h200.json). In S2 and S3 eager was faster than `fused`.
GAINS = {("resnet50", 1, 3, 224): ("fused", 1.26), ("resnet50", 1, 5, 224): ("fused", 1.19)}
MEASURED_PRECISIONS = ("fp16", "bf16")  # bf16 by analogy: it has fp16's kernels and its layout
