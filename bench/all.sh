#!/usr/bin/env bash
# Every measurement, in parts that fit 8 minutes each on a bare machine with one GPU (16 cores, Python 3.12, no network; fastpsl installed).
#
#   bench/all.sh --list            a line a command: its part, its name, the seconds that it may take, and how to call it
#   bench/all.sh decode            one part
#   bench/all.sh smoke             a few seconds on any machine: whether the rest could run
#
# Results: $OUT (default runs/bench), one JSON with the GPU's short name a measurement, beside it the output and PART.tsv: what was done,
# exit status, seconds. A command that hangs is ended after its seconds, and the part goes on. Exit status 1 where one failed.
# Pictures: made once in $WORK (default: a folder under TMPDIR); PHOTOS=a.beton takes others. CIFAR=FOLDER holds train.npz and test.npz, or
# train.packed and test.packed (bench/pack_pictures.py; 30,000 and 5,000 are 59 MB).
# Without a GPU a part measures little data: that shows whether it works, and its figures mean nothing.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
OUT=${OUT:-runs/bench}
WORK=${WORK:-${TMPDIR:-/tmp}/fastpsl-bench}
PHOTOS=${PHOTOS:-$WORK/photos.beton}
CIFAR=${CIFAR:-$WORK/cifar}
part=${1:---help}
listing=
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}

# run NAME SECONDS COMMAND...
run() {
    local name=$1 limit=$2 status started call
    shift 2
    call=$(printf '%q ' "$@") # as a shell reads it again
    call=${call% }
    if [ -n "$listing" ]; then
        printf '%s\t%s\t%s\t%s\n' "$part" "$name" "$limit" "$call"
        return 0
    fi
    echo "== $name (at most $limit s): $call"
    started=$SECONDS
    timeout -k 10 "$limit" "$@" >"$OUT/$part-$name.log" 2>&1
    status=$?
    tail -n 25 "$OUT/$part-$name.log"
    [ $status = 124 ] && echo "== $name: ended after $limit s"
    printf '%s\t%s\t%s\t%s\n' "$name" $status $((SECONDS - started)) "$call" >>"$OUT/$part.tsv"
    [ $status = 0 ] || failed=1
    return $status
}

bench() { # bench NAME SECONDS SCRIPT OPTIONS...: its result is SCRIPT-GPU-NAME.json
    local name=$1 limit=$2 script=$3
    shift 3
    run "${name:-$script}" "$limit" "$PYTHON" "bench/$script.py" "$@" --out "$OUT/$script-$gpu${name:+-$name}.json"
}

photos() {
    if [ -n "$listing" ] || { [ -z "$small" ] && [ ! -e "$PHOTOS" ]; }; then
        run photos 60 "$PYTHON" bench/photos.py "$PHOTOS" --num 6000
    fi
}

cifar() { # train.beton and test.beton in $WORK
    local each
    for each in train test; do
        if [ -n "$listing" ] || { [ -e "$CIFAR/$each.packed" ] && [ ! -e "$CIFAR/$each.npz" ]; }; then
            run "unpack-$each" 20 "$PYTHON" bench/pack_pictures.py unpack "$CIFAR/$each.packed" "$WORK/$each.npz"
        fi
        if [ -n "$listing" ] || [ ! -e "$WORK/cifar-$each.beton" ]; then
            local from=$CIFAR/$each.npz
            [ -e "$from" ] || from=$WORK/$each.npz
            run "beton-$each" 20 "$PYTHON" -c 'from fastpsl.cli import main; main()' beton write "$from" "$WORK/cifar-$each.beton"
        fi
    done
}

throughput() { # throughput RECIPE NAME OPTIONS...
    local recipe=$1 name=$2
    shift 2
    photos
    if [ -n "$small" ]; then
        bench "$name" 410 throughput --recipe "$recipe" --stages S2 --backbone resnet18 --batch-size 16 --decoders ffcv torchvision --no-peers --repeats 1
    else
        bench "$name" 410 throughput --data "$PHOTOS" --recipe "$recipe" --stages S1 S2 S3 E --decoders dali \
            --epochs 3 --limit-s 330 --no-peers "$@"
    fi
}

seconds_to() { # seconds_to RECIPE
    if [ -n "$small" ]; then
        bench "$1" 380 time_to_accuracy --recipe "$1" --seeds 0 --accuracy 0.3
    else
        cifar
        bench "$1" 380 time_to_accuracy --recipe "$1" --data "$WORK/cifar-train.beton" --val "$WORK/cifar-test.beton" --limit-s 370
    fi
}

parts="smoke correctness kernels labels step decode loaders throughput-jigsaw throughput-rotation throughput-rotation-r50 throughput-simclr throughput-moco scaling small-pictures detection time-to-accuracy-rotation time-to-accuracy-simclr"

do_part() {
    case $part in
    smoke)
        run versions 60 "$PYTHON" -c 'import sys, torch, fastpsl; print(sys.version, torch.__version__, torch.cuda.is_available())'
        run photos-8 60 "$PYTHON" bench/photos.py "$WORK/photos-8.beton" --num 8
        ;;
    correctness) # what runs other code on a GPU than without
        run kernels 200 "$PYTHON" -m pytest -q -o timeout=120 tests/kernels
        # shellcheck disable=SC2046
        run others 260 "$PYTHON" -m pytest -q -o timeout=120 \
            $(grep -rl --include='test_*.py' -i cuda tests/pipelines tests/fastpsl)
        ;;
    kernels)
        bench '' 460 kernels
        ;;
    labels)
        bench '' 100 labels
        ;;
    step)
        bench '' 460 step
        ;;
    decode)
        photos
        if [ -n "$small" ]; then bench '' 410 decode; else bench '' 410 decode --data "$PHOTOS" --limit-s 330; fi
        ;;
    loaders)
        photos
        if [ -n "$small" ]; then
            bench loaders 410 throughput --recipe --repeats 1
        else
            bench loaders 410 throughput --recipe --data "$PHOTOS" --decoders dali ffcv torchvision --limit-s 300
        fi
        ;;
    throughput-jigsaw) throughput jigsaw jigsaw ;;
    throughput-rotation) throughput rotation rotation ;; # RevNet-50
    throughput-rotation-r50) throughput rotation rotation-r50 --backbone resnet50 ;;
    throughput-simclr) throughput simclr simclr ;;
    throughput-moco) throughput moco moco ;;
    scaling)
        photos
        if [ -n "$small" ]; then
            bench '' 410 scaling --stages S2 --backbone resnet18 --repeats 1
        else
            bench '' 410 scaling --data "$PHOTOS" --recipe jigsaw simclr --storage "$WORK" --repeats 3 --steps 40
        fi
        ;;
    small-pictures)
        if [ -n "$small" ]; then bench '' 460 small --recipes sslpp_rotation --repeats 1; else bench '' 460 small; fi
        ;;
    detection)
        bench '' 400 detection
        ;;
    time-to-accuracy-rotation) seconds_to rotation ;;
    time-to-accuracy-simclr) seconds_to simclr ;;
    *)
        echo "bench/all.sh: unknown part '$part'; there are $parts" >&2
        exit 2
        ;;
    esac
}

case $part in
-h | --help)
    sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p}' "$0"
    exit 0
    ;;
--list)
    listing=1 small= gpu=GPU
    printf 'part\tname\tseconds\tcommand\n'
    for part in $parts; do do_part; done
    exit 0
    ;;
esac
case " $parts " in *" $part "*) ;; *) do_part ;; esac
mkdir -p "$OUT" "$WORK"
gpu=$("$PYTHON" -c '
import sys
sys.path.insert(0, ".")
import torch
from bench.schema import short_name
print(short_name({"gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None}))') || {
    echo "bench/all.sh: $PYTHON cannot import what is measured; install fastpsl, or set PYTHON" >&2
    exit 2
}
small=
[ "$gpu" = cpu ] && small=1
failed=
rm -f "$OUT/$part.tsv"
do_part
echo "== $part: exit status, seconds"
cut -f 1-3 "$OUT/$part.tsv"
exit "${failed:-0}"
