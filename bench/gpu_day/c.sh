#!/usr/bin/env bash
# Part C: every recipe on a GPU, with its resume, and two ranks of one GPU.
part=c
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
export OMP_NUM_THREADS=1 TORCHINDUCTOR_COMPILE_THREADS=2
if [ -n "$SMALL" ]; then
    step two-ranks 220 "$PYTHON" -m torch.distributed.run --standalone --nproc-per-node=2 bench/gpu_day/two_ranks.py recipes/simclr_r50.py \
        --backbone resnet18 --size-px 32 --batch-size 16 --out "$WORK/runs/two-ranks" --max-steps-per-stage 2
    exit
fi
tests tests-recipes 225 20 -n 14 --dist worksteal -o timeout=200 tests/recipes
