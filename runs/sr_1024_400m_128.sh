#!/usr/bin/env bash
# Super-resolution 256 -> 1024, 400M parameters, on 128 GPUs: sharded over the 8 GPUs of a host, with activation
# checkpointing, 1 crop per GPU.
#
#   DATA=SHARDS RUN=RUN sbatch runs/sr_1024_400m_128.sh [--FIELD VALUE ...]
#
# imagen plan sr_1024_400m --gpus 128
#SBATCH --job-name=sr_1024_400m_128
#SBATCH --nodes=16 --gpus-per-node=8 --ntasks-per-node=1 --exclusive
#SBATCH --time=24:00:00 --signal=USR1@300 --requeue --open-mode=append
set -euo pipefail
exec "${SLURM_SUBMIT_DIR:-.}/runs/slurm.sh" sr_1024_400m "$@"
