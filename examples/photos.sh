#!/usr/bin/env bash
# Train a cascade on a folder of photographs: build data, encode captions, train two stages, sample.
#
#   python examples/make_photos.py photos          # or use your own folder, with a/cat.txt beside a/cat.jpg
#   bash examples/photos.sh photos out "a cup of coffee on a wooden table"
#
# The debug presets run all steps in about a minute on two idle cores. Their images are only blurred patches of colour.
# For real images, train on a GPU with BASE=photos_64_50m SR=photos_256_50m ENCODER=google-t5/t5-base and more steps:
# see docs/howto/photographs.md.
set -euo pipefail
photos=${1:?usage: photos.sh PHOTOS [OUT [PROMPT]]} out=${2:-photos-out} prompt=${3:-a cup of coffee on a wooden table}
encoder=${ENCODER:-sentence-transformers/all-MiniLM-L6-v2}

imagen data build "$photos" --out "$out/shards" --min-side 256 --sizes 64,256
imagen data encode "$out/shards" --encoder "$encoder"
imagen train "${BASE:-debug_64}" --data "$out/shards" --out "$out/base" --train.steps "${BASE_STEPS:-300}"
imagen train "${SR:-debug_256}" --data "$out/shards" --out "$out/sr" --train.steps "${SR_STEPS:-50}"
imagen assemble "$out/base" "$out/sr" --out "$out/cascade"
imagen sample "$out/cascade" "$prompt" --n 4 --out "$out/samples"
