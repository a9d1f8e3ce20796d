#!/bin/sh
# The reference run: train three stages on emoji, evaluate them, and assemble the cascade `emoji` of the package.
#
#   sh runs/emoji_reference.sh [DIR]
#
# To resume, run the same command again. `imagen train` uses a GPU if there is one. To add a style:
#   STYLES="--iconify noto/icons.json=noto" sh runs/emoji_reference.sh
# Hardware: two CPU cores (AMD EPYC, AVX512-BF16) trained the packaged weights. The base took about 2.5 hours on both
# cores, and each other stage 35 to 40 minutes on one core, estimated from the speed of each stage alone.
# Expected scores, 64 held-out prompts of each kind, guidance scale 2: object 98 %, colour 100 %, count 98 %, relation
# 9 %; super-resolution +3.4 dB and +2.7 dB over bicubic. This base stopped at step 6,764 of 8,000; see
# docs/explanation/reference-run.md. More steps: BASE_STEPS, SR_STEPS.
set -eu
out=${1:-reference}

# First single objects, then scenes as well: a model that cannot generate a horse learns little from a horse beside a
# bus. There are many scenes so that the network cannot memorise the pairs.
imagen data emoji --out "$out/single" --sizes 64
imagen data emoji --out "$out/scenes" --sizes 64 --variants 12 --relations 0.4 --counts 0.25 ${STYLES:-}
imagen data emoji --out "$out/small" --sizes 64,256 --relations 0.25 --counts 0.15 ${STYLES:-}
imagen data emoji --out "$out/large" --sizes 256,1024 --variants 1 --relations 0.25 --counts 0.15 ${STYLES:-}

imagen train emoji_64 --data "$out/single" --out "$out/base" --train.steps 3055
imagen train emoji_64 --data "$out/scenes" --out "$out/base" --train.steps "${BASE_STEPS:-8000}" --optim.schedule cosine
imagen train emoji_256 --data "$out/small" --out "$out/sr_256" --train.steps "${SR_STEPS:-5000}"
imagen train emoji_1024 --data "$out/large" --out "$out/sr_1024" --train.steps "${SR_STEPS:-5000}"

imagen evaluate-emoji "$out/base" --guidance 1,1.25,1.5,2,3,4,6,8,10 --out "$out/sheets"
imagen assemble "$out/base" "$out/sr_256" "$out/sr_1024" --out "$out/cascade" --half
imagen sample "$out/cascade" "an octopus on a blue background" --out "$out/pictures"
