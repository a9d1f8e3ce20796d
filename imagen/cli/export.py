"""`imagen export`"""

import argparse
from pathlib import Path

from imagen.cli.command import Command, add_out_cascade
from imagen.cli.output import Result, lines
from imagen.cli.values import count, number


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="a training run")
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--sigma-rel", type=number, metavar="S", help="length of the EMA relative to the run, 0 to 0.288"
    )
    length.add_argument("--decay", type=number, metavar="D", help="decay of an EMA that the run stored")
    parser.add_argument("--step", type=count, metavar="N", help="step of the checkpoint or snapshot (default: last)")
    add_out_cascade(parser)


def run(options: argparse.Namespace) -> Result:
    from imagen.train.export import export_run

    how = {"sigma_rel": options.sigma_rel, "decay": options.decay, "step": options.step}
    words = export_run(options.run_folder, options.out, **how)
    return lines(
        {"run": str(options.run_folder), "out": str(options.out), "exported": words},
        f"{words}; sample from it: imagen sample {options.out} PROMPT --out DIR",
    )


COMMAND = Command(
    name="export",
    help="export a checkpoint or another EMA of a training run as a cascade",
    add=add,
    run=run,
    details="Training writes RUN/export. This command exports an earlier checkpoint, or another EMA from the\n"
    "snapshots in RUN/averages: a decay of train.ema_decays or, with train.ema_sigma_rels, an EMA of any length.\n"
    "With sigma_rel 0.05, half of the EMA's weight is on the last 4 % of the steps; with 0.10, on the last 8 %.\n"
    "The command runs in one process, even if several ranks trained.\n\n"
    "  imagen export runs/base --step 20000 --out base-20000\n"
    "  imagen export runs/base --sigma-rel 0.08 --out base-0.08",
)
