#!/bin/bash
# Ray on Slurm: one driver for all nodes of an allocation. sbatch slurm-ray.sh photos.csv
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --gres=gpu:4
#SBATCH --time=12:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
set -u
nodes=($(scontrol show hostnames "$SLURM_JOB_NODELIST"))
port=$((20000 + SLURM_JOB_ID % 20000))
head="${nodes[0]}:$port"

srun --nodes=1 --ntasks=1 -w "${nodes[0]}" --overlap \
	ray start --head --port="$port" --include-dashboard=false --block &
sleep 20
if [ "${#nodes[@]}" -gt 1 ]; then
	others=$(IFS=,; echo "${nodes[*]:1}")
	srun --nodes=$((${#nodes[@]} - 1)) --ntasks=$((${#nodes[@]} - 1)) -w "$others" --overlap \
		ray start --address="$head" --block &
fi

stylize-batch "$1" --address "$head" --checkpoint-every 50 &
driver=$!
trap 'kill -TERM $driver' TERM  # two minutes before the end, or at a preemption
wait $driver
code=$?
while kill -0 $driver 2>/dev/null; do wait $driver; code=$?; done
# 130: stopped in time. 5: the cluster or the storage went away; perhaps it is back. The same command
# goes on.
again=${SLURM_RESTART_COUNT:-0}
if [ $code = 130 ] || { [ $code = 5 ] && [ "$again" -lt 3 ]; }; then
	scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
