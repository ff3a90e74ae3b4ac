#!/usr/bin/env bash
# Runs a command of kdsearch on the nodes of a Slurm job: Ray on all of them, the command's driver on
# the first. `kdsearch submit EXPERIMENT.yaml --slurm` sends it; by hand it is
#
#   sbatch --nodes=4 --gres=gpu:4 --cpus-per-task=32 --time=4:00:00 experiments/clusters/slurm.sh \
#       launch task.yaml --name first --continue --storage /shared/runs
#
# with the environment in which kdsearch is installed active, in a folder that all nodes share, as the
# storage must be. --continue goes on with what an earlier job of the same command has left.
#
# Two minutes before its time limit Slurm signals this script, which ends the search as Ctrl-C does, so
# that its trials are kept. With --requeue as the first word the job then queues again by itself,
# until the search is at its end. `scancel --batch --signal=INT JOB` ends it as cleanly, for good.
#
# Several jobs may share a node: each has its own ports, folder and password, made anew each time.
# Ray's own `ray symmetric-run` has none of these, refuses a node on which a Ray runs, stops those of
# other jobs at its end, and tells its command nothing of Slurm's signal.
#SBATCH --job-name=kdsearch
#SBATCH --ntasks-per-node=1
#SBATCH --signal=B:USR1@120
#SBATCH --open-mode=append
set -euo pipefail

requeue=
if [ "${1:-}" = --requeue ]; then
    requeue=yes
    shift
fi

driver='' cut=''
end_search() {
    if [ -n "$driver" ]; then kill -INT "$driver"; fi
}
trap end_search INT
trap 'cut=yes; echo "the job is near its time limit"; end_search' USR1

unset RAY_ADDRESS RAY_AUTH_TOKEN_PATH
# Ray's server for remote clients, which nobody uses, is the only one that finds no port by itself; one
# below those that the kernel gives away stays free until it is there.
read -r RAY_AUTH_TOKEN client_port < <(
    python3 << 'END'
import random, secrets, socket

while True:
    port = random.randrange(10_000, 32_768)
    try:
        socket.socket().bind(("", port))
        break
    except OSError:
        pass
print(secrets.token_hex(32), port)
END
)
# Metrics would be open to whoever reaches the nodes, without the password.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN RAY_enable_metrics_collection=0 RAY_USAGE_STATS_ENABLED=0

# Ray on this node until SIGTERM, with what Slurm gave to the job here. Ray opens its own folder to
# everybody, so it lies in a closed one; the paths of sockets in it must stay below 108 characters. It
# keeps little in its object store, and ports that are 0 are any that are free.
start_ray() {
    local folder=/tmp/kdsearch-$SLURM_JOB_ID.$1 ray ended=
    shift
    rm -rf "$folder"
    mkdir -m 700 "$folder" || return
    ray start "$@" --block --temp-dir="$folder/ray" --num-cpus="$SLURM_CPUS_ON_NODE" \
        --num-gpus="${SLURM_GPUS_ON_NODE:-0}" --object-store-memory=200000000 \
        --dashboard-agent-listen-port=0 --min-worker-port=0 --max-worker-port=0 \
        > "$folder/start.log" 2>&1 &
    ray=$!
    trap 'ended=yes; kill $ray' TERM
    wait $ray || wait $ray || true
    if [ -z "$ended" ]; then cat "$folder/start.log" >&2; fi
    rm -rf "$folder"
}
export -f start_ray

start_ray head --head --port=0 --include-dashboard=false --ray-client-server-port="$client_port" &
processes=($!)
end_ray() {
    # srun itself would kill what it started at once.
    if [ "$SLURM_NNODES" -gt 1 ]; then scancel --quiet --signal=TERM "$SLURM_JOB_ID" || true; fi
    kill "${processes[0]}" 2> /dev/null || true
    wait "${processes[@]}" || true
}
trap end_ray EXIT

address_file=/tmp/kdsearch-$SLURM_JOB_ID.head/ray/ray_current_cluster
until [ -s "$address_file" ]; do
    kill -0 "${processes[0]}" 2> /dev/null || exit 1
    sleep 0.5
done
address=$(cat "$address_file")

if [ "$SLURM_NNODES" -gt 1 ]; then
    # All cores and memory of the job, and not one core for each task.
    srun --nodes=$((SLURM_NNODES - 1)) --ntasks=$((SLURM_NNODES - 1)) --exclude="$SLURMD_NODENAME" \
        --cpu-bind=none --mem=0 bash -c "start_ray \$SLURM_NODEID --address=$address" &
    processes+=($!)
    python3 - "$address" "$SLURM_NNODES" << 'END' &
import sys, time
import ray

address, nodes = sys.argv[1], int(sys.argv[2])
ray.init(address, logging_level="ERROR", log_to_driver=False)
deadline = time.monotonic() + 300
while (there := sum(node["Alive"] for node in ray.nodes())) < nodes and time.monotonic() < deadline:
    time.sleep(1)
has = ray.cluster_resources()
words = f"{has.get('CPU', 0):g} CPUs and {has.get('GPU', 0):g} GPUs"
print(f"{there} of {nodes} nodes are there, with {words}", flush=True)
END
    waiting=$!
    while kill -0 "$waiting" 2> /dev/null; do
        if ! kill -0 "${processes[0]}" 2> /dev/null; then
            kill "$waiting"
            exit 1
        fi
        sleep 1
    done
    wait "$waiting"
fi

set -m # without, the command would not be told of SIGINT
kdsearch "$@" --address "$address" &
driver=$!
set +m
while kill -0 "$driver" 2> /dev/null; do
    wait "$driver" || true # a signal ends it too
done
status=0
wait "$driver" || status=$?
driver=
if [ -n "$requeue" ] && [ -n "$cut" ] && [ "$status" = 130 ]; then
    end_ray
    trap - EXIT
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
