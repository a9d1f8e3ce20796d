"""Plot the packaged cascade's Pareto curve over guidance, and what each of its stages adds (the cascade gap).

    imagen data emoji --out SHARDS --relations 0.25 --counts 0.15
    python benchmarks/emoji_curves.py SHARDS --out DIR [--n 512] [--gap-n 128]

The curve is that of the base stage at 64 pixels: KID, precision and recall of `n` held-out captions, and the share of
held-out prompts (those of `imagen evaluate-emoji`) in which the packaged detector finds everything right. The
detector takes the place of CLIP in the paper's figure. The gap is KID of every stage on generated and on true inputs,
with PSNR on the latter. Running the command again resumes. DIR has the figures as PNG, and all numbers as JSON.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from imagen.cascade import Cascade
from imagen.emoji.evaluation import choose_suite, scores
from imagen.emoji.recogniser import load_recogniser, packaged_recogniser
from imagen.evaluate import plots
from imagen.evaluate.metrics.interval import Interval
from imagen.evaluate.sweep import cascade_gap, sweep
from imagen.files import write_json

GUIDANCE = (1.0, 1.5, 2.0, 3.0, 5.0)
RIGHT = "prompts right, %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--n", type=int, default=512, help="images of the base per guidance scale (default: 512)")
    parser.add_argument("--prompts", type=int, default=64, help="prompts of each kind for the detector (default: 64)")
    parser.add_argument("--gap-n", type=int, default=128, help="images of each stage (default: 128)")
    options = parser.parse_args()
    cascade = Cascade.load("emoji")
    rows = pareto(cascade, options)
    gap = cascade_gap(cascade, options.shards, options.out / "gap", metrics=("kid", "psnr"), n=options.gap_n)
    assert gap is not None  # None is for other ranks than the first
    figures = {
        "emoji-pareto": plots.trade_off(rows, "guidance", RIGHT, "kid"),
        "emoji-guidance": plots.over_setting(rows, "guidance"),
        "emoji-gap": plots.by_stage(gap),
    }
    for name, figure in figures.items():
        figure.savefig(options.out / f"{name}.png", dpi=110)
    write_json(options.out / "curves.json", {"guidance": rows, "gap": gap})
    print(json.dumps([{"guidance": row["guidance"], **values(row)} for row in rows], indent=2))
    print(json.dumps([{"stage": row["resolution"], "inputs": row["inputs"], **values(row)} for row in gap], indent=2))


def pareto(cascade: Cascade, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a report per guidance scale, with the detector's share among the metrics."""
    base = Cascade.load("emoji", stages=1)
    given = {"metrics": ("kid", "prdc"), "n": options.n, "batch_size": 32}
    rows = sweep(base, options.shards, options.out / "guidance", "guidance", GUIDANCE, **given)
    assert rows is not None
    folder = packaged_recogniser(base.vocabulary.names if base.vocabulary else ())
    recogniser = load_recogniser(folder)
    suite = choose_suite(recogniser, folder, options.prompts)
    numbers = {kind: len(prompts) for kind, prompts in suite.prompts.items()}
    for row in rows:
        cached = options.out / f"guidance/right-{row['guidance']}.json"
        if not cached.is_file():
            (found,) = scores(base, recogniser, suite, guidance=[row["guidance"]])
            write_json(cached, {kind: found[kind]["all"] for kind in numbers})
        shares = json.loads(cached.read_text())
        right = Interval.of_share(round(sum(numbers[kind] * shares[kind] for kind in numbers)), sum(numbers.values()))
        row["metrics"][RIGHT] = Interval(*(100 * value for value in right))._asdict()
        row["right"] = shares
    return rows


def values(row: dict[str, Any]) -> dict[str, str]:
    return {
        name: f"{found['value']:.4g} ({found['low']:.4g} to {found['high']:.4g})"
        for name, found in row["metrics"].items()
    }


if __name__ == "__main__":
    main()
