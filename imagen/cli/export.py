"""`imagen export`"""

import argparse
from pathlib import Path

from imagen.cli.command import Command
from imagen.cli.output import Result, lines
from imagen.cli.values import count, lora_file, number
from imagen.errors import UserError


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="a training run; with --lora also a cascade")
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--sigma-rel", type=number, metavar="S", help="length of the EMA relative to the run, 0 to 0.288"
    )
    length.add_argument("--decay", type=number, metavar="D", help="decay of an EMA that the run stored")
    parser.add_argument("--step", type=count, metavar="N", help="step of the checkpoint or snapshot (default: last)")
    parser.add_argument("--merge", action="store_true", help="merge adapters into the weights")
    parser.add_argument(
        "--lora",
        type=lora_file,
        action="append",
        default=[],
        metavar="FILE:W",
        help="with --merge: merge a LoRA file at weight W (default: 1); FILE#256:W adapts that stage; may be repeated",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="CASCADE", help="the folder to write; or FILE.safetensors for a LoRA"
    )


def run(options: argparse.Namespace) -> Result:
    how = {"sigma_rel": options.sigma_rel, "decay": options.decay, "step": options.step}
    if options.lora:
        return _merge(options, how)
    from imagen.train.export import export_run

    merge = options.merge or options.out.suffix != ".safetensors"
    words = export_run(options.run_folder, options.out, **how, merge=merge)
    try_it = f"imagen sample {options.out} PROMPT" if merge else f"imagen sample CASCADE PROMPT --lora {options.out}"
    return lines(
        {"run": str(options.run_folder), "out": str(options.out), "exported": words},
        f"{words}; sample from it: {try_it} --out DIR",
    )


def _merge(options: argparse.Namespace, how: dict[str, object]) -> Result:
    if not options.merge:
        raise UserError("--lora needs --merge: `imagen sample --lora` uses adapters without merging them")
    if any(value is not None for value in how.values()):
        raise UserError("--lora merges files into a cascade: --sigma-rel, --decay and --step are for runs without it")
    from imagen.cascade.merging import merge_lora

    adapters = [(each.path, 1.0 if each.weight is None else each.weight, each.resolution) for each in options.lora]
    placed = merge_lora(options.run_folder, adapters, options.out)
    words = ", ".join(f"{path} in stage {stage}" for path, stage in placed.items())
    return lines(
        {"cascade": str(options.run_folder), "out": str(options.out), "merged": placed},
        f"{options.out}: {words}; sample from it: imagen sample {options.out} PROMPT --out DIR",
    )


COMMAND = Command(
    name="export",
    help="export a checkpoint, another EMA or adapters of a training run, or merge adapters into a cascade",
    add=add,
    run=run,
    details="Training writes RUN/export. This command exports an earlier checkpoint, or another EMA from the\n"
    "snapshots in RUN/averages: a decay of train.ema_decays or, with train.ema_sigma_rels, an EMA of any length.\n"
    "With sigma_rel 0.05, half of the EMA's weight is on the last 4 % of the steps; with 0.10, on the last 8 %.\n"
    "The command runs in one process, even if several ranks trained. A run of adapters is exported\n"
    "merged, or as a LoRA file.\n\n"
    "  imagen export runs/base --step 20000 --out base-20000\n"
    "  imagen export runs/base --sigma-rel 0.08 --out base-0.08\n"
    "  imagen export runs/style --step 400 --out style-400.safetensors\n"
    "  imagen export emoji --merge --lora style.safetensors:0.8 --out emoji-style",
)
