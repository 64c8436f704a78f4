#!/usr/bin/env bash
# Part F: the CUDA tests of what part A leaves out; a recipe at its paper's size and its resume; where a step's time goes; detection beside
# torchvision's.
part=f
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
few=10 # steps of each stage
options=()
if [ -n "$SMALL" ]; then
    few=2
    options=(--decoder pillow --workers 1 --batch-size 8 --backbone resnet18)
fi
run=$WORK/runs/jigsaw
jigsaw() { # jigsaw NAME LAST OUT OPTIONS...
    step "$1" "$2" "$PYTHON" recipes/jigsaw_r50.py --data "$photos" --out "$3" --max-steps-per-stage $few "${options[@]}" "${@:4}"
}

[ -n "$LIST" ] || rm -rf "$WORK/runs"
run_recipe() {
    make_photos 45
    jigsaw recipe 85 "$run" --checkpoint-steps $((few / 4 + 1)) --keep-checkpoints 99
    # Resumed in the middle of a stage: the same but for rounding.
    middle=$(find "$run/checkpoints" -name 'step-*.pt' 2>/dev/null | sort | sed -n 2p)
    jigsaw resume 115 "$run-resumed" --resume "${middle:-no checkpoint}"
    step same-losses 120 "$PYTHON" bench/gpu_day/same_losses.py "$run" "$run-resumed"
}
if [ -n "$SMALL" ]; then
    run_recipe
    step kernel-times 170 "$PYTHON" bench/gpu_day/kernel_times.py --small
    bench detection 220 detection --batch-size 1 --size 64 --repeats 1
else
    run_recipe & # nothing is timed here
    # What DALI decodes is tested in part D, where it is at hand.
    mapfile -t files < <(gpu_tests tests/kernels tests/pipelines tests/models tests/evaluation tests/transfer | grep -v tests/pipelines/test_cuda.py)
    OMP_NUM_THREADS=1 tests tests-rest 110 15 -n 12 --dist worksteal -o timeout=90 -k 'not memory' "${files[@]}"
    wait
    # They read how much of the device is in use.
    tests tests-memory 145 10 -o timeout=30 -k memory "${files[@]}" tests/engine/test_cuda.py tests/tasks/test_moco.py
    step kernel-times 175 "$PYTHON" bench/gpu_day/kernel_times.py
    bench detection 225 detection --repeats 5 --limit-s "$(share 225 60)"
fi
[ -n "$LIST" ] || find "$run" -maxdepth 1 \( -name '*.png' -o -name '*.json' -o -name '*.jsonl' \) -exec cp {} "$RESULTS/runs/" \;
