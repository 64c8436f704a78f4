#!/usr/bin/env bash
# Part G: the step compiled, launched and captured, end to end and in S2. A compilation takes 45 s.
part=g
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
if [ -n "$SMALL" ]; then
    bench compiled 220 step --recipes jigsaw --stages S2 --modes eager eager+fold --backbone resnet18 --batch-size 8 --repeats 1
    exit
fi
bench compiled 225 step --recipes rotation --stages E S2 --modes eager eager+fold compiled compiled+fold --graph off on --no-revnet --repeats 5 \
    --limit-s "$(share 225 75)"
