#!/usr/bin/env bash
# Part A: what runs other code on a GPU than without. A recipe at its paper's size and its resume; every CUDA test but DALI's (part B) and
# those of the recipes (part D).
part=a
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
export OMP_NUM_THREADS=1 TORCHINDUCTOR_COMPILE_THREADS=2
few=10 # steps of each stage
options=(--compile off)
if [ -n "$SMALL" ]; then
    few=2
    options=(--decoder torchvision --workers 1 --batch-size 8 --backbone resnet18)
fi
run=$WORK/runs/jigsaw
jigsaw() { # jigsaw NAME LAST OUT OPTIONS...
    step "$1" "$2" "$PYTHON" recipes/jigsaw_r50.py --data "$photos" --out "$3" --max-steps-per-stage $few "${options[@]}" "${@:4}"
}

[ -n "$LIST" ] || rm -rf "$WORK/runs"
run_recipe() {
    make_photos 60
    jigsaw recipe 120 "$run" --checkpoint-steps $((few / 4 + 1)) --keep-checkpoints 99
    # Resumed in the middle of a stage: the same but for rounding.
    middle=$(find "$run/checkpoints" -name 'step-*.pt' 2>/dev/null | sort | sed -n 2p)
    jigsaw resume 150 "$run-resumed" --resume "${middle:-no checkpoint}"
    step same-losses 155 "$PYTHON" bench/gpu_day/same_losses.py "$run" "$run-resumed"
}
if [ -n "$SMALL" ]; then
    run_recipe
    step tests 500 "$PYTHON" -m pytest -q -p no:cacheprovider tests/pipelines/test_arenas.py
else
    run_recipe & # nothing is timed here
    rooms=(tests/kernels tests/pipelines tests/models tests/engine tests/tasks tests/evaluation tests/transfer)
    # What DALI decodes is tested in part B, where it is at hand.
    mapfile -t files < <(grep -rlE --include 'test_*.py' --exclude 'test_dali*' 'mark\.gpu|^DEVICE' "${rooms[@]}" | grep -v tests/pipelines/test_cuda.py)
    tests tests-fastpsl 160 15 -n 12 --dist worksteal -o timeout=150 -k 'not memory' "${files[@]}"
    wait
    # They read how much of the device is in use.
    tests tests-memory 190 10 -o timeout=60 -k memory "${files[@]}"
fi
[ -n "$LIST" ] || find "$run" -maxdepth 1 \( -name '*.png' -o -name '*.json' -o -name '*.jsonl' \) -exec cp {} "$RESULTS/runs/" \;
