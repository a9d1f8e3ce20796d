#!/usr/bin/env bash
# Starts `imagen train` on every machine of a Slurm allocation, one process for each GPU: used by the scripts beside it.
#
#   runs/slurm.sh PRESET [--FIELD VALUE ...]      inside a job; DATA and RUN name the shards and the run's folder
#
# Preemption and the time limit: Slurm sends SIGUSR1 five minutes before (#SBATCH --signal), torchrun passes it on, every
# process stops after the same step and a checkpoint is written. The job then puts itself back into the queue, and goes
# on from there, until all steps are done. Lost processes: torchrun starts all of them again from the last checkpoint.
set -euo pipefail
: "${DATA:?the folder of the shards, as in DATA=/data/shards sbatch runs/...}"
: "${RUN:?the folder of the run, on storage that all machines share}"
preset=$1
shift
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1  # torchrun passes them on
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=240    # seconds for the checkpoint after that
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1  # else a restart meets the addresses of the processes before
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}

imagen config "$preset" "$@" > /dev/null  # a mistake in a field ends the job here, not after every restart
code=0
srun --ntasks-per-node=1 --kill-on-bad-exit=1 torchrun \
  --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node="${GPUS_PER_NODE:-8}" --max-restarts="${RESTARTS:-10}" \
  --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}" --rdzv-endpoint="$head:${PORT:-29500}" \
  -m imagen train "$preset" --data "$DATA" --out "$RUN" "$@" || code=$?

# RUN/status.json is there after a clean end, as after the signal, and not after a failure.
[ -e "$RUN/status.json" ] || exit "$code"
grep -q '"finished": true' "$RUN/status.json" || scontrol requeue "$SLURM_JOB_ID"
