"""The speeds of steps with fused BatchNorms that were measured, by backbone."""

# (backbone, first and last learning block, side of the images in px) → the speed relative to eager. Measured
# with ResNet-50 in fp16, batch 256, on one H200 with torch 2.11, launched from the host
# (bench/results/step-h200.json). In S2 and S3 eager was faster, because the host could not keep up.
GAINS: dict[tuple[str, int, int, int], float] = {
    ("resnet50", 1, 3, 224): 1.26,
    ("resnet50", 1, 5, 224): 1.19,
}
# The same of captured steps, relative to captured eager ones and with folded frozen blocks in S2 and S3, of a
# prototype on the same GPU on 2026-11-26. This version's own steps were not measured yet.
CAPTURED: dict[tuple[str, int, int, int], float] = {
    ("resnet50", 1, 5, 224): 1.27,
    ("resnet50", 1, 3, 224): 1.27,
    ("resnet50", 2, 4, 224): 1.31,
    ("resnet50", 3, 5, 224): 1.24,
}
MEASURED_PRECISIONS = ("fp16", "bf16")  # bf16 by analogy: it has fp16's kernels and its layout
