#!/bin/bash
# A sweep on a real SLURM on this machine: 12 packs, one job preempted, one killed, one timed out (about ten minutes).
#
#   tests/slurm/run.sh        as root, on Debian, best in a container or a virtual machine: it installs packages
#
# All daemons listen on the loopback interface only, live in a temporary directory, and are stopped at the end.
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-.venv/bin/python}

fail() { echo "error: $*" >&2; exit 1; }
[ "$(id -u)" = 0 ] || fail "SLURM's node daemon needs root"
host=$(hostname)
getent ahostsv4 "$host" | grep -q '^127\.' || fail "$host must be a loopback address in /etc/hosts (127.0.1.1 $host)"
"$PYTHON" -c 'import submitit' || fail "submitit is not installed for $PYTHON; see make setup, or set PYTHON"

packages=(slurmctld slurmd slurmdbd slurm-client munge mariadb-server)
if ! dpkg -s "${packages[@]}" >/dev/null 2>&1; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}"
fi

work=$(mktemp -d)
chmod 755 "$work" # munge wants its socket's directory to be open to all
export SLURM_CONF=$work/slurm.conf MYSQL_UNIX_PORT=$work/mysql.sock
pids=()

stop() {
    status=$?
    trap - EXIT INT TERM
    set +e
    if [ -f "$work/up" ]; then
        scancel --me 2>/dev/null
        for _ in $(seq 40); do [ -z "$(squeue -h 2>/dev/null)" ] && break; sleep 1; done
    fi
    for ((i = ${#pids[@]} - 1; i >= 0; i--)); do
        kill "${pids[i]}" 2>/dev/null
        for _ in $(seq 100); do kill -0 "${pids[i]}" 2>/dev/null || break; sleep .1; done
        kill -9 "${pids[i]}" 2>/dev/null
    done
    if [ "$status" = 0 ]; then
        rm -rf "$work"
    else
        for log in slurmctld slurmd slurmdbd; do echo "--- $log"; tail -n 15 "$work/$log.log" 2>/dev/null; done
        echo "failed; logs and runs are in $work" >&2
    fi
    exit "$status"
}
trap stop EXIT
trap 'exit 130' INT TERM

start() { # name, command...: a daemon in the foreground of its own process
    local name=$1
    shift
    "$@" >"$work/$name.out" 2>&1 &
    pids+=($!)
}

await() { # what, seconds, command...
    local what=$1 seconds=$2
    shift 2
    for ((i = 0; i < seconds * 5; i++)); do "$@" >/dev/null 2>&1 && return; sleep .2; done
    fail "$what did not come up within $seconds s"
}

ports=($("$PYTHON" - <<'EOF'
import socket
sockets = [socket.socket() for _ in range(3)]
for s in sockets:
    s.bind(("127.0.0.1", 0))
print(*(s.getsockname()[1] for s in sockets))
EOF
))

cat >"$SLURM_CONF" <<EOF
ClusterName=trial
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=${ports[0]}
SlurmdPort=${ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$work/munge.sock
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
SchedulerParameters=sched_interval=5,bf_interval=5
KillWait=30
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=${ports[2]}
AccountingStoragePass=$work/munge.sock
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=$host CPUs=2 State=UNKNOWN
PartitionName=normal Nodes=$host Default=YES PriorityTier=1 PreemptMode=REQUEUE MaxTime=INFINITE State=UP
PartitionName=urgent Nodes=$host PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE State=UP
EOF
cat >"$work/slurmdbd.conf" <<EOF
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=${ports[2]}
CommunicationParameters=NoInAddrAny
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$work/munge.sock
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=accounting
LogFile=$work/slurmdbd.log
PidFile=$work/slurmdbd.pid
EOF
chmod 600 "$work/slurmdbd.conf"
mkdir "$work/state" "$work/spool"

echo "starting munge, mariadb, slurmdbd, slurmctld, slurmd in $work"
head -c 128 /dev/urandom >"$work/munge.key"
chmod 400 "$work/munge.key"
start munged munged --foreground --force --key-file="$work/munge.key" --socket="$work/munge.sock" \
    --pid-file="$work/munge.pid" --log-file="$work/munge.log" --seed-file="$work/munge.seed"
await munge 10 munge --socket="$work/munge.sock" -n
mariadb-install-db --no-defaults --user=root --auth-root-authentication-method=normal --skip-test-db \
    --datadir="$work/mysql" >"$work/install.out" 2>&1
start mariadbd mariadbd --no-defaults --user=root --datadir="$work/mysql" --socket="$MYSQL_UNIX_PORT" \
    --pid-file="$work/mysql.pid" --skip-networking --innodb-buffer-pool-size=64M
await mariadb 30 mariadb --no-defaults --socket="$MYSQL_UNIX_PORT" -e 'select 1'
start slurmdbd slurmdbd -D
await slurmdbd 60 sacctmgr -n show cluster
sacctmgr -i add cluster trial >/dev/null
start slurmctld slurmctld -D -c
await slurmctld 30 scontrol ping
start slurmd slurmd -D -N "$host"
touch "$work/up"
await "the node" 60 sh -c "sinfo -h -o %T | grep -q idle"
open=$(ss -Hltnp 2>/dev/null | grep -E 'slurm|munge|maria' | awk '$4 !~ /^(127\.|\[::1\])/ {print $4}' || true)
[ -z "$open" ] || fail "a daemon listens beyond the loopback interface: $open"

${CHECK:-"$PYTHON" tests/slurm/check.py} "$work/runs"
