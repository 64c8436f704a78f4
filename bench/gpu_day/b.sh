#!/usr/bin/env bash
# Part B: DALI's tests; decoding, kernels and loaders beside their peers.
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
step tests-dali 150 "$PYTHON" -m pytest -q -p no:cacheprovider -m gpu -o timeout=110 -o "session_timeout=$(until_end 150 20)" tests/pipelines
# Nine processes, whose starts take most of the time.
decode 330 --data "$photos" --threads 4 16 --shares 0.9 1 --repeats 3 --seconds 1.2 --limit-s "$(share 330 85)"
bench kernels 425 kernels --repeats 7
bench loaders 520 throughput --recipe --data "$photos" --decoders dali --views 1 2 --repeats 2 --seconds 1.2 --limit-s "$(share 520 75)"
