#!/usr/bin/env bash
# Part D: small images that stay on the GPU; seconds to an accuracy on CIFAR-10 (without .gpu/cifar: noise, and the embedded sample).
part=d
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
if [ -n "$SMALL" ]; then
    bench small 300 small --recipes sslpp_rotation --no-evaluation --decoders torchvision --batch-size 8 --seconds 0.1 --repeats 1
    exit
fi
data=()
if [ -e .gpu/cifar/train.packed ] || [ -n "$LIST" ]; then
    data=(--data "$WORK/cifar-train.beton" --val "$WORK/cifar-test.beton")
    for each in train test; do
        [ ! -e "$WORK/cifar-$each.beton" ] || continue
        step "unpack-$each" 60 "$PYTHON" bench/pack_images.py unpack ".gpu/cifar/$each.packed" "$WORK/$each.npz"
        step "beton-$each" 80 "$PYTHON" -c 'from fastpsl.cli import main; main()' data write "$WORK/$each.npz" "$WORK/cifar-$each.beton"
    done
fi
bench small 210 small "${data[@]}" --repeats 3 --seconds 1.5 --limit-s "$(share 210 80)"
bench graphed 270 small "${data[@]}" --recipes sslpp_rotation --compile graphs --no-evaluation --repeats 3 --seconds 1.5 --limit-s "$(share 270 75)"
bench rotation 440 time_to_accuracy "${data[@]}" --recipe rotation --seeds 0 1 --limit-s "$(share 440 95)"
bench simclr 520 time_to_accuracy "${data[@]}" --recipe simclr --seeds 0 --limit-s "$(share 520 95)"
