#!/usr/bin/env bash
# Decode damaged JPEGs or packed coefficients of at most 64 px, with the C sources under sanitizers of addresses and of
# undefined behaviour: toolchain/fuzz.sh coefficients|jpeg CASES [FIRST]
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
build="$root/build/fuzz"
mkdir -p "$build"
decoders="$root/fastpsl/pipelines/decoders"
"${CC:-cc}" -O1 -g -std=gnu11 -ffp-contract=off -fno-omit-frame-pointer \
    -fsanitize=address,undefined -fno-sanitize-recover=all -I "$decoders" \
    "$root/toolchain/fuzz.c" "$decoders"/{turbo,huffman,pack,unpack}.c -ljpeg -lm -o "$build/fuzz"
exec "$build/fuzz" "$@"
