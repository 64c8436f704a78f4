#!/usr/bin/env bash
# A part of the measurements on a rented GPU: bash bench/gpu_day/part.sh PART. README.md says what each needs; setup.sh explains the variables.
part=${1:-}
[[ $part =~ ^([a-j]|uic|iic|sslpp|psl|deepcluster|worth)$ ]] || {
    echo "usage: bash bench/gpu_day/part.sh a|b|c|d|e|f|g|h|i|j|uic|iic|sslpp|psl|deepcluster|worth" >&2
    exit 2
}
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

# The CUDA tests of the step, the tasks, BatchNorm and photometric kernels, with launched and captured steps compared; the step by
# stage and mode, launched and captured, with PSL's cost over end to end's; kernels of augmentation (T3).
part_a() {
    if [ -n "$SMALL" ]; then
        step tests 100 "$PYTHON" -m pytest -q -p no:cacheprovider tests/pipelines/test_view_memory.py
        bench step 180 step --recipes jigsaw --stages S2 --modes eager --backbone resnet18 --batch-size 8 --repeats 1
        bench kernels 220 kernels --chains flip 'SimCLR T3' --batch-size 4 --size-px 64 --repeats 1 --no-peers
        return
    fi
    mapfile -t files < <(gpu_tests tests/engine tests/tasks tests/kernels/test_*norm.py tests/kernels/test_*photometric.py)
    OMP_NUM_THREADS=1 TORCHINDUCTOR_COMPILE_THREADS=2 tests tests-changed 110 20 -n 14 --dist worksteal -o timeout=40 -k 'not memory' "${files[@]}"
    # Of rotation: its views and head cost next to nothing.
    bench step 203 step --recipes rotation --modes eager fused fused+fold --graph off on --no-revnet --repeats 5 --limit-s "$(share 203 92)"
    bench kernels 225 kernels --chains 'SimCLR T3' jigsaw 'rotation, all 8' UIC --repeats 7
}

# Loader alone, step alone and trained, from JPEGs; SimCLR beside lightly's.
part_b() {
    make_photos 45
    if [ -n "$SMALL" ]; then
        bench recipes 100 throughput --recipe --stages jigsaw:S2 --backbone resnet18 --batch-size 8 --decoders pillow --compile off \
            --seconds 0.1 --repeats 1 --no-peers
        bench lightly 220 training --peers lightly --forms channels_last --stages simclr:S1 --batch-size 4 --workers 1 --repeats 1
        return
    fi
    bench recipes 120 throughput --data "$photos" --recipe --stages jigsaw:S1 simclr:E simclr:S1 simclr:S3 rotation:E --backbone resnet50 \
        --decoders turbo --fold-frozen --seconds 1.2 --repeats 2 --limit-s "$(share 120 75)" --no-peers
    # Half a minute for each first batch and repeat of lightly, whose 16 processes hold 32 batches ready.
    bench lightly 225 training --data "$photos" --peers lightly --forms channels_last --stages simclr:E simclr:S1 --decoder turbo --repeats 2 --seconds 1.5 --limit-s "$(share 225 60)"
}

# Every recipe on a GPU, with its resume, and two ranks of one GPU.
part_c() {
    export OMP_NUM_THREADS=1 TORCHINDUCTOR_COMPILE_THREADS=2
    if [ -n "$SMALL" ]; then
        step two-ranks 220 "$PYTHON" -m torch.distributed.run --standalone --nproc-per-node=2 bench/gpu_day/two_ranks.py recipes/simclr_r50.py \
            --backbone resnet18 --size-px 32 --batch-size 16 --out "$WORK/runs/two-ranks" --max-steps-per-stage 2
        return
    fi
    tests tests-recipes 225 20 -n 14 --dist worksteal -o timeout=200 tests/recipes
}

# DALI, which must be there: its tests, with the hardware decoder; supervised training beside its example of ResNet-50.
part_d() {
    make_photos 60
    if [ -n "$SMALL" ]; then
        bench dali 220 training --stages supervised:E --peers dali_resnet50 --batch-size 4 --workers 1 --repeats 1
        return
    fi
    # One after the other: some read how much of the device is in use.
    tests tests-dali 130 15 -o timeout=60 tests/pipelines/test_cuda.py
    bench dali 225 training --data "$photos" --stages supervised:E --peers dali_resnet50 --decoder turbo --repeats 3 --seconds 1.5 \
        --limit-s "$(share 225 70)"
}

# DALI, which must be there: whether the JPEG engines work, by nvImageCodec's log; decoding beside peers, with and without them.
part_e() {
    make_photos 60
    decode() { # decode LAST OPTIONS...
        step decode "$1" "$PYTHON" bench/loaders.py --data "$photos" "${@:2}" --out "$RESULTS/results/decode-$gpu.json"
    }
    engines() { # engines LAST WORK: the log of a loader's first batch
        step engines "$1" env DALI_NVIMGCODEC_LOG_LEVEL=3 "$PYTHON" -m bench.peers.serve "{\"kind\": \"dali\", \"data\": \"$photos\", \"files\": \"\", $2}" 1
    }
    if [ -n "$SMALL" ]; then
        engines 110 '"batch_size": 16, "num_threads": 1, "size_px": 32, "device": "cpu"'
        decode 220 --batch-size 16 --threads 1 --views 1 --repeats 1 --seconds 0.1 --no-peers
        return
    fi
    engines 90 '"batch_size": 256, "num_threads": 8, "size_px": 224, "device": "cuda:0"'
    # Starts of processes take most of the time: one each.
    decode 225 --decoders dali turbo --threads 16 --shares 0 0.65 0.9 --repeats 3 --seconds 1.2 --limit-s "$(share 225 75)"
}

# The CUDA tests of what part A leaves out; a recipe at its paper's size and its resume; where a step's time goes; detection beside
# torchvision's.
part_f() {
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
        step same-losses 120 "$PYTHON" bench/gpu_day/report.py same-losses "$run" "$run-resumed"
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
}

# The step compiled, launched and captured, end to end and in S2. A compilation takes 45 s.
part_g() {
    if [ -n "$SMALL" ]; then
        bench compiled 220 step --recipes jigsaw --stages S2 --modes eager eager+fold --backbone resnet18 --batch-size 8 --repeats 1
        return
    fi
    bench compiled 225 step --recipes rotation --stages E S2 --modes eager eager+fold compiled compiled+fold --graph off on --no-revnet --repeats 5 \
        --limit-s "$(share 225 75)"
}

# Loader alone, step alone and trained, of small images that stay on the GPU; seconds to an accuracy on CIFAR-10 (without .gpu/cifar: the
# sample, and the last alone).
part_h() {
    if [ -n "$SMALL" ]; then
        bench sslpp 100 throughput --recipe --stages sslpp_rotation:E --decoders pillow --batch-size 8 --seconds 0.1 --repeats 1 --no-peers
        bench rotation 220 time_to_accuracy --seeds 0
        return
    fi
    unpack_cifar 30
    if [ "${#cifar[@]}" != 0 ]; then # at the papers' batches
        small=("${cifar[@]:0:2}" --decoders resident --repeats 3 --seconds 1 --no-peers --recipe)
        bench sslpp 100 throughput "${small[@]}" --stages sslpp_rotation:E --batch-size 128 --limit-s "$(share 100 80)"
    fi
    bench rotation 165 time_to_accuracy "${cifar[@]}" --recipe rotation --seeds 0 --limit-s "$(share 165 95)"
    bench simclr 225 time_to_accuracy "${cifar[@]}" --recipe simclr --seeds 0 --limit-s "$(share 225 95)"
}

# The CUDA tests of what a step on a GPU is made of, graphs, folding, LARS and crops; then stages S3 by default options, SimCLR's with LARS.
part_i() {
    if [ -n "$SMALL" ]; then
        make_photos 45
        bench defaults 220 throughput --recipe --stages simclr:S3 --backbone resnet18 --batch-size 4 --decoders pillow --seconds 0.1 --repeats 1 \
            --no-peers
        return
    fi
    mapfile -t files < <(gpu_tests tests/engine tests/kernels tests/pipelines/test_resident.py tests/tasks/test_moco.py)
    OMP_NUM_THREADS=1 TORCHINDUCTOR_COMPILE_THREADS=2 tests tests-defaults 110 20 -n 14 --dist worksteal -o timeout=40 -k 'not memory' "${files[@]}"
    make_photos 135
    bench defaults 225 throughput --data "$photos" --recipe --stages rotation:S3 simclr:S3 --backbone resnet50 --decoders turbo --seconds 1.2 \
        --repeats 2 --limit-s "$(share 225 85)" --no-peers
}

# The loader's share: jigsaw S1 three times, and UIC of small images that stay on the GPU; then Inductor's step beside the fused norms, both
# captured.
part_j() {
    make_photos 45
    if [ -n "$SMALL" ]; then
        bench jigsaw 220 throughput --recipe --stages jigsaw:S1 --backbone resnet18 --batch-size 4 --decoders pillow --seconds 0.1 --repeats 1 \
            --no-peers
        return
    fi
    unpack_cifar 60
    bench jigsaw 95 throughput --data "$photos" --recipe --stages jigsaw:S1 --backbone resnet50 --decoders turbo --seconds 1.2 --repeats 3 \
        --limit-s "$(share 95 85)" --no-peers
    if [ "${#cifar[@]}" != 0 ]; then
        bench uic 125 throughput "${cifar[@]:0:2}" --decoders resident --repeats 3 --seconds 1 --no-peers --recipe --stages uic_cifar10:E \
            --batch-size 256 --limit-s "$(share 125 80)"
    fi
    bench inductor 225 step --recipes rotation --stages E --modes fused compiled --graph on --no-revnet --repeats 5 --limit-s "$(share 225 75)"
}

# Whether the methods work: the plan PART-gpu of bench/evidence, as far as it is missing. docs/runs/ has what earlier parts have brought back.
part_uic() { evidence 3; }
part_iic() { evidence 1; }
part_sslpp() { evidence 4; }
part_psl() { evidence 4; }
part_deepcluster() { evidence 2; }
part_worth() { evidence 2; }

evidence() { # evidence JOBS: arms that learn at a time
    local name=$part-gpu last=405
    local plan=bench/evidence/$name.json out=docs/runs/$name work=$WORK/evidence/$name
    if [ -n "$SMALL" ]; then
        out=$WORK/rehearsal/$name plan=$WORK/rehearsal/$name.json work=$WORK/rehearsal/runs/$name last=225
        [ -n "$LIST" ] || small_evidence "$plan"
    fi
    # A training that is stopped writes a checkpoint, and this part its archive.
    step evidence $last "$PYTHON" -m bench.evidence.run "$plan" --source "$WORK/images" --work "$work" --out "$out" \
        --seconds $(($(left $last) - 25)) --jobs "$1"
    [ -z "$LIST" ] || return 0
    mkdir -p "$RESULTS/experiments/$name"
    [ ! -e "$out/results.json" ] || cp "$out/results.json" "$RESULTS/experiments/$name/"
    find "$out" -name '*-s[0-9]*-*' -exec cp {} "$RESULTS/experiments/$name/" \; 2>/dev/null # what the plan keeps
    find "$work/runs" -maxdepth 2 -name '*.log' -exec cp {} "$RESULTS/logs/" \; 2>/dev/null
}

small_evidence() { # small_evidence PLAN: a plan of tiny values with a title that says so, and made-up images in several pieces
    mkdir -p "${1%/*}"
    # A run of a network of one's own is scored where the plan has a command for all arms: worth keeps its networks.
    sed -E "$([ $part = worth ] || echo 's#--backbone [^ "]+#--backbone bench/evidence/networks.py:SmallResNet#g;') s#docs/runs/#$WORK/rehearsal/#g
        s#--num-clusters [0-9]+#--num-clusters 8#g; s#--pca-width [0-9]+#--pca-width 16#g; s#--batch-size [0-9]+#--batch-size 32#g
        s#--epochs [0-9]+#--epochs 1#g; s#\"epochs\": .*#\"epochs\": [1],#; s#\"seeds\": .*#\"seeds\": [0],#
        s#\"title\": \"#&a rehearsal at tiny values: its figures mean nothing; #" "bench/evidence/${1##*/}" >"$1"
    "$PYTHON" -c "
import numpy as np
from pathlib import Path
from bench.pack_images import pack
for name, num, each in (('train', 600, 220), ('test', 60, 40)):
    images = np.random.default_rng(num).integers(0, 256, (num, 32, 32, 3), np.uint8)
    np.savez('$WORK/' + name + '.npz', images=images, labels=np.arange(num) % 10)
    pack(Path('$WORK/' + name + '.npz'), Path('$WORK/images'), each)
"
    [ $part = worth ] || return 0
    mkdir -p "$WORK/scenes"
    for each in train-labelled:train train-search:test held-out:test; do
        "$PYTHON" -c 'from fastpsl.cli import main; main()' data write "$WORK/${each#*:}.npz" "$WORK/scenes/${each%%:*}.beton" --mode jpg --overwrite
    done
    "$PYTHON" -c 'import sys, timm, torch; torch.save(timm.create_model("tf_efficientnet_lite0").state_dict(), sys.argv[1])' "$WORK/scenes/lite0.pth"
    tar czf "$WORK/images/scenes-1of1.packed" -C "$WORK/scenes" .
}

"part_$part"
