#!/usr/bin/env bash
# Train a cascade on a folder of photographs: build data, encode captions, train two stages, sample.
#
#   python examples/make_photos.py photos          # or use your own folder, with a/cat.txt beside a/cat.jpg
#   bash examples/photos.sh photos out "a meadow under a blue sky"
#
# The debug presets run all steps in about a minute on two idle cores. Their images are only blurred patches of colour.
# For real images, set BASE=text2im_64_397m and SR=sr_256_600m, their encoder and steps, and train on GPUs.
set -euo pipefail
photos=${1:?usage: photos.sh PHOTOS [OUT [PROMPT]]} out=${2:-photos-out} prompt=${3:-a meadow under a blue sky}

imagen data build "$photos" --out "$out/shards" --min-side 256
imagen data encode "$out/shards"
imagen data inspect "$out/shards" --html "$out/data.html"

imagen train "${BASE:-debug_64}" --data "$out/shards" --out "$out/base" --train.steps "${BASE_STEPS:-150}"
imagen train "${SR:-debug_256}" --data "$out/shards" --out "$out/sr" --train.steps "${SR_STEPS:-20}"

imagen assemble "$out/base" "$out/sr" --out "$out/cascade"
imagen sample "$out/cascade" "$prompt" --n 4 --out "$out/samples"
