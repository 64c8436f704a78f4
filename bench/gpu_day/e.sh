#!/usr/bin/env bash
# Part E, which needs DALI: decoding beside peers, with and without the hardware decoder.
part=e
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
make_photos 60
decode() { # decode LAST OPTIONS...
    step decode "$1" "$PYTHON" bench/loaders.py --what decode --data "$photos" "${@:2}" --out "$RESULTS/results/decode-$gpu.json"
}
if [ -n "$SMALL" ]; then
    decode 220 --batch-size 16 --threads 1 --views 1 --repeats 1 --seconds 0.1 --no-peers
    exit
fi
# Starts of processes take most of the time: one each.
decode 225 --decoders dali turbo --threads 16 --shares 0 0.9 --repeats 3 --seconds 1.2 --limit-s "$(share 225 75)"
