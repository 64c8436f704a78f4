#!/usr/bin/env bash
# Part B: DALI's tests; decoding and kernels beside their peers; loader, step and both together where the step is shortest.
part=b
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
make_photos 80
decode() { # decode LAST OPTIONS...
    step decode "$1" "$PYTHON" bench/loaders.py --what decode "${@:2}" --out "$RESULTS/results/decode-$gpu.json"
}
if [ -n "$SMALL" ]; then
    decode 300 --data "$photos" --batch-size 16 --threads 1 --views 1 --repeats 1 --seconds 0.1 --no-peers
    bench kernels 420 kernels --chains flip 'SimCLR T3' --batch-size 4 --size-px 64 --repeats 1 --no-peers
    exit
fi
# One after the other: some read how much of the device is in use.
tests tests-dali 85 15 -o timeout=60 tests/pipelines/test_cuda.py
bench kernels 130 kernels --chains 'SimCLR T3' jigsaw 'rotation, all 8' UIC --repeats 7
bench recipes 190 throughput --data "$photos" --recipe simclr jigsaw --stages S1 --decoders dali --compile off --epochs 1 \
    --seconds 1.2 --repeats 2 --limit-s "$(share 190 75)" --no-peers
# With and without the hardware decoder. Starts of processes take most of the time.
decode 420 --data "$photos" --threads 16 --shares 0 0.9 --repeats 3 --seconds 1.2 --limit-s "$(share 420 75)"
