#!/usr/bin/env bash
# Text to 64x64, 2.0B parameters, on 256 GPUs: 32 replicas, each sharded over the 8 GPUs of a host; 8 images per GPU.
#
#   DATA=SHARDS RUN=RUN sbatch runs/text2im_64_2b_256.sh [--FIELD VALUE ...]
#
# imagen plan text2im_64_2b --gpus 256 --train.batch_size 2048
#SBATCH --job-name=text2im_64_2b_256
#SBATCH --nodes=32 --gpus-per-node=8 --ntasks-per-node=1 --exclusive
#SBATCH --time=24:00:00 --signal=USR1@300 --requeue --open-mode=append
set -euo pipefail
exec "${SLURM_SUBMIT_DIR:-.}/runs/slurm.sh" text2im_64_2b --train.batch_size 2048 "$@"
