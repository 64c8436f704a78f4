#!/usr/bin/env bash
# PSL, SL, end to end, reversed levels and growth at the hardest level, jigsaw puzzles.
# usage: psl_jigsaw.sh small|gpu SOURCE RUNS [MINUTES [JOBS]]; SOURCE is tiny-imagenet-200. See experiment.sh.
exec bash "$(dirname "${BASH_SOURCE[0]}")/experiment.sh" "psl_jigsaw-${1:?give small|gpu, SOURCE and RUNS}" "${@:2}"
