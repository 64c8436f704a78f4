#!/usr/bin/env bash
# What the parts have in common: part.sh sources it, and it leaves the checkout's root as the working directory. Called by itself it sets the
# machine up and no more. A machine that is still warm has most of it.
#
# PYTHON   default python3
# OUT      where results-PART.tgz goes; default runs/gpu_day
# WORK     packages, images and runs, kept from part to part; default a folder in TMPDIR
# SMALL    set: a rehearsal at tiny values, for a machine without a GPU; its results are marked so
# SLOW     each step has this many times its seconds; default 1
# LIST     set: nothing is done; a line a step: its name, its last second, its command
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit
part=${part:-setup} part_started=$SECONDS
SMALL=${SMALL:-} SLOW=${SLOW:-1} LIST=${LIST:-}
export PYTHON=${PYTHON:-python3} OUT=${OUT:-runs/gpu_day} WORK=${WORK:-${TMPDIR:-/tmp}/fastpsl-gpu-day}
SITE=$WORK/site RESULTS=$WORK/part-$part
export PYTHONPATH=$PWD:$SITE${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
[ -z "$SMALL" ] || export FASTPSL_REHEARSAL=1
gpu=GPU photos=$WORK/photos.beton

left() { echo $(($1 * SLOW - (SECONDS - part_started))); } # seconds until second $1 of this part

# For pytest's session_timeout: no test begins in the $2 seconds before second $1, so that what failed is said before the step is ended.
until_end() { echo $(($(left "$1") > $2 + 5 ? $(left "$1") - $2 : 5)); }

share() { echo $(($(left "$1") * $2 / 100)); } # $2 % of them, for --limit-s: a program that ends by itself keeps what it has

# step NAME LAST COMMAND...: ended at second LAST of the part at the latest. Its output goes to a log, its exit status, seconds and last line
# to steps.tsv; a step that had no time has no status.
step() {
    local name=$1 last=$2 began=$EPOCHREALTIME seconds status log=$RESULTS/logs/$1.log
    shift 2
    if [ -n "$LIST" ]; then
        printf '%s\t%s\t%s\n' "$name" "$last" "$(printf '%q ' "$@")"
        return 0
    fi
    seconds=$(left "$last")
    if [ "$seconds" -lt 3 ]; then
        printf '%s\t\t\t\n' "$name" >>"$RESULTS/steps.tsv"
        return 0
    fi
    echo "== $name, at most $seconds s"
    timeout -k 5 "$seconds" "$@" >"$log" 2>&1 </dev/null
    status=$?
    printf '%s\t%d\t%s\t%s\n' "$name" $status "$("$PYTHON" -c "print(f'{$EPOCHREALTIME - $began:.2f}')")" \
        "$(tail -n 1 "$log" | tr -d '\r' | tr '\t' ' ' | cut -c 1-150)" >>"$RESULTS/steps.tsv"
    return 0
}

bench() { # bench NAME LAST SCRIPT OPTIONS...: its result is SCRIPT-GPU-NAME.json, or SCRIPT-GPU.json where the two are one
    local name=$1 last=$2 script=$3
    shift 3
    step "$name" "$last" "$PYTHON" "bench/$script.py" "$@" --out "$RESULTS/results/$script-$gpu$([ "$name" = "$script" ] || echo "-$name").json"
}

tests() { # tests NAME LAST SECONDS OPTIONS...: those that only a GPU can run; none begins in the last SECONDS, and a cut log has their names
    step "$1" "$2" "$PYTHON" -m pytest -v --durations=20 -p no:cacheprovider -m gpu -o "session_timeout=$(until_end "$2" "$3")" "${@:4}"
}

gpu_tests() { grep -rlE --include 'test_*.py' --exclude 'test_dali*' 'mark\.gpu|^DEVICE' "$@"; } # the files in $@ with tests of CUDA

make_photos() { # make_photos LAST: JPEGs as long and as dear as ImageNet's, unless an earlier part left them
    local num=3000
    [ -z "$SMALL" ] || num=32
    [ -e "$photos" ] || step photos "$1" "$PYTHON" bench/photos.py "$photos" --num $num
}

unpack_cifar() { # unpack_cifar LAST: sets `cifar` to options for CIFAR-10's first images, or to none where they were not carried
    local first
    cifar=()
    compgen -G "$WORK/images/train-1of*.packed" >/dev/null || [ -n "$LIST" ] || return 0
    cifar=(--data "$WORK/cifar-train.beton" --val "$WORK/cifar-test.beton")
    for each in train test; do
        [ ! -e "$WORK/cifar-$each.beton" ] || continue
        first=("$WORK"/images/$each-1of*.packed) # the others change no figure
        step "unpack-$each" "$1" "$PYTHON" bench/pack_images.py unpack "${first[0]}" "$WORK/$each.npz"
        step "dataset-$each" "$1" "$PYTHON" -c 'from fastpsl.cli import main; main()' data write "$WORK/$each.npz" "$WORK/cifar-$each.beton"
    done
}

# All of it in one archive. What is printed last is the summary: little else may come back.
finish_part() {
    local status=0
    wait
    grep -hoE '(FAILED|ERROR) tests/.*' "$RESULTS"/logs/*.log 2>/dev/null | cut -c 1-220 | sort -u >"$RESULTS/failed.txt"
    "$PYTHON" bench/gpu_day/report.py summary "$part" "$RESULTS" "$gpu" || status=1
    [ -e "$RESULTS/summary.txt" ] || cp "$RESULTS/steps.tsv" "$RESULTS/summary.txt"
    tar czf "$OUT/results-$part.tgz" -C "$RESULTS" . || status=1
    head -n 30 "$RESULTS/failed.txt"
    cat "$RESULTS/summary.txt"
    exit $status
}

if [ -z "$LIST" ]; then
    rm -rf "$RESULTS"
    mkdir -p "$OUT" "$SITE" "$WORK/images" "$RESULTS"/{logs,results,runs}
    trap finish_part EXIT
    # CIFAR-10 and the scenes come in four calls each.
    for piece in .gpu/{cifar,scenes}[1-4]/*.packed; do [ ! -e "$piece" ] || cp "$piece" "$WORK/images/"; done
    if [ -d .gpu/whl ] && [ -z "$SMALL" ]; then
        export XDG_CACHE_HOME=$WORK/cache
        [ -e "$SITE/.done" ] || { "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$SITE" .gpu/whl/*.whl && touch "$SITE/.done"; }
        cp -r .gpu/whl/built/. .
        export LD_LIBRARY_PATH=$PWD/.gpu/whl/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
        # DALI comes in two calls; it is there from the second one on.
        for piece in .gpu/dali[12]/dali.tar.xz.[01]; do [ ! -e "$piece" ] || cp "$piece" "$WORK/"; done
        if [ -e "$WORK/dali.tar.xz.0" ] && [ -e "$WORK/dali.tar.xz.1" ] && [ ! -e "$SITE/nvidia/dali" ]; then
            cat "$WORK"/dali.tar.xz.? | "$PYTHON" -c 'import lzma, shutil, sys; shutil.copyfileobj(lzma.open(sys.stdin.buffer), sys.stdout.buffer, 1 << 22)' |
                tar x -C "$SITE"
        fi
        FASTPSL_COMMIT=$(sed -n '1s/^# //p' .gpu/whl/sources.sha256)
        sha256sum --check --status .gpu/whl/sources.sha256 2>/dev/null || FASTPSL_COMMIT="${FASTPSL_COMMIT% and changes} and changes"
        export FASTPSL_COMMIT
    fi
    [ -e "$WORK/gpu" ] || step versions 60 "$PYTHON" bench/gpu_day/report.py versions "$WORK/gpu" # of the machine's first part
    gpu=$(cat "$WORK/gpu" 2>/dev/null || echo unknown)
fi
