#!/usr/bin/env bash
# Start `imagen train` on every host of a Slurm allocation, one process per GPU; used by the scripts in this folder.
#
#   runs/slurm.sh PRESET [--FIELD VALUE ...]      inside a job; DATA: folder of the shards, RUN: run folder
#
# Five minutes before preemption or the time limit, Slurm sends SIGUSR1 (#SBATCH --signal), which torchrun forwards. All
# processes stop after the same step and write a checkpoint. The job then requeues itself and resumes, until all steps
# are done. If a process dies, torchrun restarts all of them from the last checkpoint.
set -euo pipefail
: "${DATA:?set DATA to the folder of the shards, as in DATA=/data/shards sbatch runs/...}"
: "${RUN:?set RUN to the run folder, on storage that all hosts share}"
preset=$1
shift
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1  # forwarded by torchrun
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=240    # seconds to write the checkpoint
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1  # otherwise a restart finds the addresses of the old processes
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}

imagen config "$preset" "$@" > /dev/null  # reports an invalid field once, instead of after every restart
rm -f "$RUN/status.json"  # of an earlier start
code=0
srun --ntasks-per-node=1 --kill-on-bad-exit=1 torchrun \
  --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node="${GPUS_PER_NODE:-8}" --max-restarts="${RESTARTS:-10}" \
  --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}" --rdzv-endpoint="$head:${PORT:-29500}" \
  -m imagen train "$preset" --data "$DATA" --out "$RUN" "$@" || code=$?

# RUN/status.json exists if training ended normally or by the signal, but not after a failure.
[ -e "$RUN/status.json" ] || exit "$code"
grep -q '"finished": true' "$RUN/status.json" || scontrol requeue "$SLURM_JOB_ID"
