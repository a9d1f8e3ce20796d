#!/usr/bin/env bash
# Super-resolution 64 -> 256, 601M parameters, data-parallel on 128 GPUs, 6 images per GPU.
#
#   DATA=SHARDS RUN=RUN sbatch runs/sr_256_600m_128.sh [--FIELD VALUE ...]
#
# imagen plan sr_256_600m --gpus 128
#SBATCH --job-name=sr_256_600m_128
#SBATCH --nodes=16 --gpus-per-node=8 --ntasks-per-node=1 --exclusive
#SBATCH --time=24:00:00 --signal=USR1@300 --requeue --open-mode=append
set -euo pipefail
exec "${SLURM_SUBMIT_DIR:-.}/runs/slurm.sh" sr_256_600m "$@"
