#!/usr/bin/env bash
# Part E, which needs DALI: whether the JPEG engines work, by nvImageCodec's log; decoding beside peers, with and without them.
part=e
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
make_photos 60
decode() { # decode LAST OPTIONS...
    step decode "$1" "$PYTHON" bench/loaders.py --what decode --data "$photos" "${@:2}" --out "$RESULTS/results/decode-$gpu.json"
}
engines() { # engines LAST WORK: the log of a loader's first batch
    step engines "$1" env DALI_NVIMGCODEC_LOG_LEVEL=3 "$PYTHON" -m bench.peers.serve "{\"kind\": \"dali\", \"data\": \"$photos\", \"files\": \"\", $2}" 1
}
if [ -n "$SMALL" ]; then
    engines 110 '"batch_size": 16, "num_threads": 1, "size_px": 32, "device": "cpu"'
    decode 220 --batch-size 16 --threads 1 --views 1 --repeats 1 --seconds 0.1 --no-peers
    exit
fi
engines 90 '"batch_size": 256, "num_threads": 8, "size_px": 224, "device": "cuda:0"'
# Starts of processes take most of the time: one each.
decode 225 --decoders dali turbo --threads 16 --shares 0 0.65 0.9 --repeats 3 --seconds 1.2 --limit-s "$(share 225 75)"
