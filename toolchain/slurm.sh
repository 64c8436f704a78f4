#!/usr/bin/env bash
# Starts a Slurm cluster on this machine, to try jobs: two nodes on the loopback, without GPUs and accounting.
#   bash toolchain/slurm.sh start build/slurm    # installs Slurm and munge where they are missing, by apt
#   export SLURM_CONF=$PWD/build/slurm/slurm.conf && sinfo
#   bash toolchain/slurm.sh stop build/slurm
# A second `start` starts the daemons that have gone. All files are in the folder; --time counts as elsewhere, and
# what Slurm waits for is short. A job of partition `urgent` takes the nodes from one of `batch`, which is requeued.
set -euo pipefail
export LC_ALL=C PATH=$PATH:/usr/sbin

die() { echo "slurm: $*" >&2 && exit 1; }
[ $# = 2 ] || die "usage: slurm.sh start|stop FOLDER"
verb=$1
mkdir -p "$2"
folder=$(cd "$2" && pwd -P)
export SLURM_CONF=$folder/slurm.conf
nodes=(node1 node2)

install_slurm() {
    local as_root=(env)
    if [ "$(command -v slurmctld slurmd munged sbatch | wc -l)" = 4 ]; then return; fi
    command -v apt-get >/dev/null || die "Slurm is not installed, and there is no apt-get to install slurm-wlm and munge"
    if [ "$(id -u)" != 0 ]; then as_root=(sudo -n env); fi
    as_root+=(DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300)
    { "${as_root[@]}" update || true; } >"$folder/apt.log" 2>&1
    "${as_root[@]}" install -y --no-install-recommends slurm-wlm munge >>"$folder/apt.log" 2>&1 </dev/null ||
        die "slurm-wlm and munge cannot be installed: $(grep -v '^$' "$folder/apt.log" | tail -n 1) ($folder/apt.log)"
}

is_running() { [ -e "$folder/$1.pid" ] && kill -0 "$(cat "$folder/$1.pid")" 2>/dev/null; }

write_config() {
    local user ports
    user=$(id -un)
    mapfile -t ports < <(python3 -c '
import socket
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
print(*(each.getsockname()[1] for each in sockets), sep="\n")')
    rm -rf "$folder/state" && mkdir -p "$folder/state"
    [ -e "$folder/munge.key" ] || mungekey --create --keyfile "$folder/munge.key"
    cat >"$SLURM_CONF" <<END
ClusterName=loopback
SlurmctldHost=$(hostname)(127.0.0.1)
SlurmctldPort=${ports[0]}
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket,cred_expire=10 # a job that is requeued waits for so long
StateSaveLocation=$folder/state
SlurmctldPidFile=$folder/slurmctld.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdPidFile=$folder/%n.pid
SlurmdLogFile=$folder/%n.log
SlurmdSpoolDir=$folder/%n
SlurmdParameters=config_overrides # two nodes share this machine's cores
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
MailProg=/bin/true
AccountingStorageType=accounting_storage/none
SchedulerParameters=batch_sched_delay=1,sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=30
MessageTimeout=10
SlurmdTimeout=10
ReturnToService=2
NodeName=${nodes[0]} NodeHostname=$(hostname) NodeAddr=127.0.0.1 Port=${ports[1]} CPUs=$(nproc)
NodeName=${nodes[1]} NodeHostname=$(hostname) NodeAddr=127.0.0.1 Port=${ports[2]} CPUs=$(nproc)
PartitionName=batch Nodes=ALL Default=YES OverSubscribe=EXCLUSIVE PriorityTier=1 PreemptMode=REQUEUE
PartitionName=urgent Nodes=ALL OverSubscribe=EXCLUSIVE PriorityTier=2 PreemptMode=OFF
END
}

start() {
    install_slurm
    is_running slurmctld || write_config
    is_running munged || munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" \
        --pid-file="$folder/munged.pid" --log-file="$folder/munged.log" --seed-file="$folder/munge.seed" \
        2>"$folder/munged.err" || die "munged does not start: $(tail -n 1 "$folder/munged.err")"
    is_running slurmctld || slurmctld || die "slurmctld does not start ($folder/slurmctld.log)"
    for node in "${nodes[@]}"; do
        is_running "$node" || slurmd -N "$node" || die "slurmd of $node does not start ($folder/$node.log)"
    done
    for _ in {1..300}; do
        if [ "$(sinfo --noheader --Node --partition=batch --format=%T 2>/dev/null | grep -cx idle)" = 2 ]; then return; fi
        sleep 0.2
    done
    die "the nodes are not idle after a minute: $(sinfo --noheader --Node --partition=batch --format='%N %T %E' 2>&1 | paste -sd ';')"
}

stop() {
    local name pid
    if is_running slurmctld; then scancel --user="$(id -un)" 2>/dev/null || true; fi
    for name in "${nodes[@]}" slurmctld munged; do
        if ! is_running "$name"; then continue; fi
        pid=$(cat "$folder/$name.pid")
        kill "$pid"
        for _ in {1..150}; do
            if ! kill -0 "$pid" 2>/dev/null; then break; fi
            sleep 0.2
        done
    done
}

case $verb in
    start | stop) "$verb" ;;
    *) die "usage: slurm.sh start|stop FOLDER" ;;
esac
