#!/usr/bin/env bash
# Part H: seconds to an accuracy on CIFAR-10 (without .gpu/cifar: the sample).
part=h
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
if [ -n "$SMALL" ]; then
    bench rotation 220 time_to_accuracy --seeds 0
    exit
fi
unpack_cifar 30
bench rotation 130 time_to_accuracy "${cifar[@]}" --recipe rotation --seeds 0 1 --limit-s "$(share 130 95)"
bench simclr 225 time_to_accuracy "${cifar[@]}" --recipe simclr --seeds 0 --limit-s "$(share 225 95)"
