#!/usr/bin/env bash
# Part E, which needs DALI: whether the JPEG engines work; decoding beside peers, with and without them.
part=e
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
make_photos 60
decode() { # decode LAST OPTIONS...
    step decode "$1" "$PYTHON" bench/loaders.py --what decode --data "$photos" "${@:2}" --out "$RESULTS/results/decode-$gpu.json"
}
if [ -n "$SMALL" ]; then
    bench jpeg_engines 110 jpeg_engines --data "$photos" --batch-size 16 --threads 1 --repeats 1 --seconds 0.1
    decode 220 --batch-size 16 --threads 1 --views 1 --repeats 1 --seconds 0.1 --no-peers
    exit
fi
bench jpeg_engines 125 jpeg_engines --data "$photos" --repeats 3 --seconds 1 --limit-s "$(share 125 70)"
# Starts of processes take most of the time: one each.
decode 225 --decoders dali turbo --threads 16 --shares 0 0.9 --repeats 3 --seconds 1.2 --limit-s "$(share 225 75)"
