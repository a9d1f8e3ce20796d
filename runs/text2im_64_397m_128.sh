#!/usr/bin/env bash
# Text to 64x64, 396M parameters, data-parallel on 128 GPUs: batch 2048, 16 per GPU.
#
#   DATA=SHARDS RUN=RUN sbatch runs/text2im_64_397m_128.sh [--FIELD VALUE ...]
#
# imagen plan text2im_64_397m --gpus 128 --train.batch_size 2048
#SBATCH --job-name=text2im_64_397m_128
#SBATCH --nodes=16 --gpus-per-node=8 --ntasks-per-node=1 --exclusive
#SBATCH --time=24:00:00 --signal=USR1@300 --requeue --open-mode=append
set -euo pipefail
exec "${SLURM_SUBMIT_DIR:-.}/runs/slurm.sh" text2im_64_397m --train.batch_size 2048 "$@"
