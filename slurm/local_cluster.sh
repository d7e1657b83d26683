#!/usr/bin/env bash
# A real SLURM on one machine, for tests and for trying things: two virtual nodes with two scheduled fake GPUs each,
# a partition `main` whose jobs are requeued when the partition `high` wants their place, accounting if DB=1.
#
#   slurm/local_cluster.sh start     installs Debian's packages if they are missing (as root); prints what to export
#   slurm/local_cluster.sh stop      ends what start began; `wipe` also forgets jobs and job ids
#   slurm/local_cluster.sh status
#
# PRUNELAB_CLUSTER  folder of the cluster (default: $XDG_RUNTIME_DIR or /tmp, plus prunelab-slurm-UID)
# NODES CPUS MEM GPUS   nodes, and per node: CPUs, MiB, fake GPUs      DB=1  slurmdbd and MariaDB, so that sacct works
# The machine needs no cgroups and no special rights but root
# for the installation; everything listens on 127.0.0.1 or on sockets in the folder.
set -euo pipefail

HOME_DIR=${PRUNELAB_CLUSTER:-${XDG_RUNTIME_DIR:-/tmp}/prunelab-slurm-$(id -u)}
NODES=${NODES:-2} CPUS=${CPUS:-2} MEM=${MEM:-8000} GPUS=${GPUS:-2} DB=${DB:-0}
PORT=${PORT:-16917}                       # controller; +1 accounting; nodes from +11
HOST=$(hostname -s) ME=$(id -un)
RUN=$HOME_DIR/run LOG=$HOME_DIR/log
export SLURM_CONF=$HOME_DIR/slurm.conf PATH=$PATH:/usr/sbin:/sbin

die() { echo "local_cluster: $*" >&2; exit 1; }

until_true() {  # until_true SECONDS COMMAND...: poll ten times a second
  local tries=$(($1 * 10)); shift
  until "$@" >/dev/null 2>&1; do
    ((tries-- > 0)) || return 1
    sleep 0.1
  done
}

install_packages() {
  local packages=(slurm-wlm munge)
  [ "$DB" = 1 ] && packages+=(slurmdbd slurm-wlm-mysql-plugin mariadb-server)
  local missing=(); local p
  for p in "${packages[@]}"; do dpkg -s "$p" >/dev/null 2>&1 || missing+=("$p"); done
  ((${#missing[@]})) || return 0
  [ "$(id -u)" = 0 ] || die "missing Debian packages: ${missing[*]}; install them as root"
  local policy=/usr/sbin/policy-rc.d  # nothing of it is to run as a service of the machine
  [ -e $policy ] || { printf '#!/bin/sh\nexit 101\n' > $policy; chmod +x $policy; trap "rm -f $policy" EXIT; }
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

write_config() {
  mkdir -p "$RUN" "$LOG" "$HOME_DIR"/{state,db,dev}
  chmod 755 "$HOME_DIR" "$RUN"
  local n; for n in $(seq "$NODES"); do mkdir -p "$HOME_DIR/spool/n$n"; done
  [ -s "$HOME_DIR/munge.key" ] || (umask 077; head -c 1024 /dev/urandom > "$HOME_DIR/munge.key")
  # ids never repeat between two clusters in one folder, unless FIRST_JOB_ID asks for it
  local first=${FIRST_JOB_ID:-$((1000 + $(date +%s) % 1000000 * 10))}
  {
    cat <<CONF
ClusterName=laptop
SlurmctldHost=$HOST(127.0.0.1)
SlurmctldPort=$PORT
AuthType=auth/munge
CredType=cred/munge
# cred_expire: a requeued job waits until its old credential is void
AuthInfo=socket=$RUN/munge.socket,cred_expire=5
SlurmUser=$ME
SlurmdUser=$ME
StateSaveLocation=$HOME_DIR/state
SlurmdSpoolDir=$HOME_DIR/spool/%n
SlurmctldPidFile=$RUN/slurmctld.pid
SlurmdPidFile=$RUN/slurmd-%n.pid
SlurmctldLogFile=$LOG/slurmctld.log
SlurmdLogFile=$LOG/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,bf_resolution=10,batch_sched_delay=0,default_queue_depth=500,max_rpc_cnt=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
# without this, preemption sends SIGTERM but not the signal that a job asked for
SlurmctldParameters=preempt_send_user_signal
JobRequeue=1
FirstJobId=$first
ReturnToService=2
SlurmctldTimeout=10
SlurmdTimeout=8
MinJobAge=${MIN_JOB_AGE:-300}
KillWait=${KILL_WAIT:-5}
UnkillableStepTimeout=20
CompleteWait=0
MaxArraySize=1001
MaxJobCount=20000
SwitchType=switch/none
MpiDefault=none
GresTypes=gpu
CONF
    if [ "$DB" = 1 ]; then
      cat <<CONF
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((PORT + 1))
AccountingStoragePass=$RUN/munge.socket
AccountingStorageTRES=gres/gpu
AccountingStoreFlags=job_comment
CONF
    else
      echo "AccountingStorageType=accounting_storage/none"
    fi
    for n in $(seq "$NODES"); do
      echo "NodeName=n$n NodeHostname=$HOST NodeAddr=127.0.0.1 Port=$((PORT + 10 + n)) CPUs=$CPUS Boards=1" \
        "SocketsPerBoard=1 CoresPerSocket=$CPUS ThreadsPerCore=1 RealMemory=$MEM Gres=gpu:fake:$GPUS State=UNKNOWN"
    done
    local shared="Nodes=ALL MaxTime=INFINITE DefaultTime=60 DefMemPerCPU=500 State=UP"
    echo "PartitionName=main $shared Default=YES PriorityTier=10 PreemptMode=REQUEUE GraceTime=10"
    echo "PartitionName=high $shared Default=NO PriorityTier=100 PreemptMode=OFF"
  } > "$SLURM_CONF"
  # a GPU needs a device file to be scheduled, and the flag for CUDA_VISIBLE_DEVICES to be set
  local g; for g in $(seq 0 $((GPUS - 1))); do
    [ -e "$HOME_DIR/dev/nvidia$g" ] || mknod "$HOME_DIR/dev/nvidia$g" c 1 3 2>/dev/null || : > "$HOME_DIR/dev/nvidia$g"
  done
  printf 'AutoDetect=off\nName=gpu Type=fake Flags=nvidia_gpu_env File=%s\n' "$HOME_DIR/dev/nvidia[0-$((GPUS - 1))]" \
    > "$HOME_DIR/gres.conf"
  cat > "$HOME_DIR/slurmdbd.conf" <<CONF
AuthType=auth/munge
AuthInfo=socket=$RUN/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=$((PORT + 1))
SlurmUser=$ME
PidFile=$RUN/slurmdbd.pid
LogFile=$LOG/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=$ME
StorageLoc=slurm_acct
CONF
  chmod 600 "$HOME_DIR/slurmdbd.conf"
}

start_database() {
  local socket=$RUN/mariadb.socket
  [ -d "$HOME_DIR/db/mysql" ] || mariadb-install-db --no-defaults --user="$ME" --datadir="$HOME_DIR/db" --skip-test-db \
    --auth-root-authentication-method=socket --auth-root-socket-user="$ME" > "$LOG/mariadb-install.log" 2>&1
  setsid mariadbd --no-defaults --user="$ME" --datadir="$HOME_DIR/db" --socket="$socket" --pid-file="$RUN/mariadb.pid" \
    --skip-networking --innodb-buffer-pool-size=64M --innodb-lock-wait-timeout=900 --innodb-flush-log-at-trx-commit=0 \
    > "$LOG/mariadb.log" 2>&1 < /dev/null &
  until_true 30 mariadb-admin --no-defaults -S "$socket" ping || die "MariaDB did not start; see $LOG/mariadb.log"
  MYSQL_UNIX_PORT=$socket slurmdbd < /dev/null
  until_true 30 sacctmgr -n list cluster || die "slurmdbd did not start; see $LOG/slurmdbd.log"
  sacctmgr -n list cluster format=cluster | grep -q laptop || sacctmgr -i -Q add cluster laptop >/dev/null
  sacctmgr -n list user format=user | grep -qw "$ME" && sacctmgr -n list account format=account | grep -qw lab || {
    sacctmgr -i -Q add account lab Cluster=laptop >/dev/null
    sacctmgr -i -Q add user "$ME" Account=lab DefaultAccount=lab >/dev/null
  }
}

start_node() { slurmd -N "$1" -f "$SLURM_CONF" < /dev/null; }

nodes_idle() { [ "$(sinfo -h -N -p main -t idle -o %N | wc -l)" = "$NODES" ]; }

start() {
  install_packages
  if [ -s "$SLURM_CONF" ] && scontrol ping 2>/dev/null | grep -q UP; then echo "already running in $HOME_DIR" >&2; settings; return; fi
  write_config
  munged --force --key-file="$HOME_DIR/munge.key" --socket="$RUN/munge.socket" --pid-file="$RUN/munged.pid" \
    --log-file="$LOG/munged.log" --seed-file="$HOME_DIR/munge.seed" 2>> "$LOG/munged.log"
  until_true 5 munge -n -S "$RUN/munge.socket" || die "munged did not start; see $LOG/munged.log"
  [ "$DB" = 1 ] && start_database
  slurmctld -f "$SLURM_CONF" < /dev/null
  until_true 15 sh -c 'scontrol ping | grep -q UP' || die "slurmctld did not start; see $LOG/slurmctld.log"
  local n; for n in $(seq "$NODES"); do start_node "n$n"; done
  until_true 20 nodes_idle || { sinfo -N -l >&2; die "the nodes are not idle; see $LOG"; }
  settings
}

settings() { echo "export SLURM_CONF=$SLURM_CONF"; }

gone() {  # a zombie that waits for its parent counts as gone
  local state; state=$(sed -n 's/^State:[[:space:]]*//p' "/proc/$1/status" 2>/dev/null) || true
  [[ -z $state || $state == Z* ]]
}

halt() {  # end the daemons with these pid files, in order; the numbers are read first since daemons delete their files
  local file pid pids=()
  for file in "$@"; do pid=$(cat "$file" 2>/dev/null) && [ -n "$pid" ] && pids+=("$pid"); done
  for pid in ${pids[@]+"${pids[@]}"}; do
    kill "$pid" 2>/dev/null || true
    until_true 15 gone "$pid" || kill -9 "$pid" 2>/dev/null || true
  done
  rm -f "$@"
}

stop() {
  [ -d "$HOME_DIR" ] || return 0
  if scontrol ping 2>/dev/null | grep -q UP; then
    scancel -u "$ME" 2>/dev/null || true
    until_true 10 sh -c '[ -z "$(squeue -h -t running,completing)" ]' || true
  fi
  halt "$RUN"/slurmd-*.pid "$RUN"/slurmctld.pid "$RUN"/slurmdbd.pid "$RUN"/mariadb.pid "$RUN"/munged.pid
}

case ${1:-} in
  start) start ;;
  stop) stop ;;
  wipe) stop; rm -rf "${HOME_DIR:?}/state" "$HOME_DIR/spool" ;;
  node) start_node "${2:?name of a node, e.g. n1}" ;;   # bring one node's daemon back
  status) sinfo -N -o '%N %P %T %C %m %G'; squeue -o '%.14i %.9P %.30j %.10T %.8M %R' ;;
  *) echo "usage: $0 start|stop|wipe|status|node NAME" >&2; exit 2 ;;
esac
