#!/bin/bash
# A Ray cluster inside of a Slurm job, one command on it, and nothing left behind:
#   sbatch cluster/slurm.sh train run.yaml store.path=/shared/runs name=mine
# Slurm's signal comes two minutes before the time is over: the run saves, and ends with 75. By hand the same is
# `scancel --batch --signal=TERM JOB`; without these options scancel ends the nodes of Ray at once, and nothing is saved.
# Started again by Slurm (a lost node, `scontrol requeue JOB`), it resumes the run, where name= and store.path= are given.
#SBATCH --job-name=sftray
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-task=1
#SBATCH --time=08:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
umask 077

# A token of this job alone, in the environment of its processes: never on a command line.
RAY_AUTH_TOKEN=$(head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0

# Ray lets anybody write in its folders, and other users may have work on these nodes.
export RAY_TMPDIR="/tmp/sftray-$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}"
srun --overlap --ntasks-per-node=1 mkdir -m 700 "$RAY_TMPDIR"   # fails where it is somebody else's
nodes=()
leave_nothing() {
    kill "${nodes[@]}" 2>/dev/null || true
    wait || true
    srun --overlap --ntasks-per-node=1 rm -rf "$RAY_TMPDIR" || true
}
trap leave_nothing EXIT

head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
last_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | tail -n 1)
# As the other nodes reach it: by its own name a machine often finds 127.0.1.1 alone, or nothing.
head_name=$(scontrol show node "$head_node" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
head_ip=$(srun --overlap --nodes=1 --ntasks=1 -w "$last_node" getent ahostsv4 "$head_name" | awk 'NR == 1 {print $1}')
port=$((20000 + SLURM_JOB_ID % 20000))   # jobs that share a node do not meet
export RAY_ADDRESS="$head_ip:$port"
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"   # since 22.05 srun does not take it over from the job
ray=(ray start --block --disable-usage-stats --num-cpus "$SRUN_CPUS_PER_TASK")

srun --overlap --nodes=1 --ntasks=1 -w "$head_node" \
    "${ray[@]}" --head --node-ip-address "$head_ip" --port "$port" --include-dashboard=false &
nodes+=("$!")
srun --overlap --nodes=1 --ntasks=1 -w "$head_node" \
    bash -c 'for _ in $(seq 60); do ray health-check --address "$RAY_ADDRESS" 2>/dev/null && exit 0; sleep 1; done; exit 1'
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
    srun --overlap --nodes=$((SLURM_JOB_NUM_NODES - 1)) --ntasks=$((SLURM_JOB_NUM_NODES - 1)) --exclude "$head_node" \
        "${ray[@]}" --address "$RAY_ADDRESS" &
    nodes+=("$!")
fi
timeout 300 python -c '
import sys, time, ray
ray.init(log_to_driver=False)
while sum(node["Alive"] for node in ray.nodes()) < int(sys.argv[1]):
    time.sleep(0.5)' "$SLURM_JOB_NUM_NODES"   # what is asked for before all have come would not fit

if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ]; then   # Slurm has started the job again, as it does when a node is lost
    for word in "$@"; do
        case $word in store.path=*) store=${word#*=} ;; name=*) name=${word#*=} ;; esac
    done
    store=${store:-runs} options=
    case $store in *\?*) options="?${store#*\?}" store=${store%%\?*} ;; esac   # of a bucket's URL
    run="$store/${name:-}$options"
    if [ -n "${name:-}" ] && sftray runs show "$run" > /dev/null 2>&1; then set -- resume "$run"; fi
fi

sftray "$@" &
run=$!
trap 'kill -TERM "$run"' TERM   # it saves; then it is waited for once more
code=0
wait "$run" || code=$?
while kill -0 "$run" 2>/dev/null; do
    code=0
    wait "$run" || code=$?
done
exit "$code"
