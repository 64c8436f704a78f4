#!/usr/bin/env bash
# Prepares the data of a plan and runs it, in pieces: the same command goes on until it exits with 0.
# usage: experiment.sh PLAN SOURCE RUNS [MINUTES [JOBS]]
#   PLAN     a plan of this folder without .json, such as psl_jigsaw-small
#   SOURCE   the folder of the images as published (see data.py); - for digits
#   RUNS     the folder for data, runs, results.json and figure.png
#   MINUTES  after which it stops by itself, with exit code 75 [9]
#   JOBS     trainings at a time [1]
set -euo pipefail
if [ $# -lt 3 ]; then
    sed -n '3,8s/^# //p' "${BASH_SOURCE[0]}" >&2
    exit 2
fi
plan=$1 source=$2 runs=$(realpath -m "$3")
[ "$source" = - ] || source=$(realpath "$source")
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=${PYTHON:-.venv/bin/python}
"$python" -m bench.evidence.data "$plan" "$source" "$runs/data"
exec "$python" -m bench.evidence.run "bench/evidence/$plan.json" --data "$runs/data" --runs "$runs/runs" \
    --out "$runs" --minutes "${4:-9}" --jobs "${5:-1}"
