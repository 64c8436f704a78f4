#!/usr/bin/env bash
# Part C: the step by stage, with PSL's cost over end to end's; its kernels; small images that stay on the GPU (without .gpu/cifar: noise).
part=c
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
if [ -n "$SMALL" ]; then
    bench step 300 step --recipes jigsaw --stages S2 --modes eager --backbone resnet18 --batch-size 8 --repeats 1
    step kernel-times 400 "$PYTHON" bench/gpu_day/kernel_times.py --small
    bench small 500 small --recipes sslpp_rotation --no-evaluation --decoders torchvision --batch-size 8 --seconds 0.1 --repeats 1
    exit
fi
# Of rotation: its views and head cost next to nothing. Modes that compile are in part E.
bench step 90 step --recipes rotation --modes eager fused eager+fold fused+fold --no-revnet --repeats 5 --limit-s "$(share 90 75)"
step kernel-times 150 "$PYTHON" bench/gpu_day/kernel_times.py
unpack_cifar 170
bench small 220 small "${cifar[@]}" --recipes sslpp_rotation sslpp_colorization --no-evaluation --repeats 3 --seconds 1 --limit-s "$(share 220 60)"
