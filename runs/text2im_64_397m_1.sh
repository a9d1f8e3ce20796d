#!/usr/bin/env bash
# Text to 64x64, 396M parameters, on one GPU, batch 16.
#
#   DATA=SHARDS RUN=RUN runs/text2im_64_397m_1.sh [--FIELD VALUE ...]
#
# imagen plan text2im_64_397m --gpus 1
set -euo pipefail
exec imagen train text2im_64_397m \
  --data "${DATA:?set DATA to the folder of the shards}" --out "${RUN:?set RUN to the run folder}" "$@"
