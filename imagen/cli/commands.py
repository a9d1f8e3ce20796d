"""What the commands do. Heavy imports are inside them."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from imagen.cli.data import connected
from imagen.errors import UserError

if TYPE_CHECKING:
    from imagen.data.build.engines import Engine
    from imagen.text.config import TextConfig
    from imagen.train.experiment import Experiment


def demo(options: argparse.Namespace) -> None:
    from imagen.emoji.demo import run_demo

    device = choose_device(options.device) if options.device else None
    run_demo(options.out, minutes=options.minutes, device=device)


def data_emoji(options: argparse.Namespace) -> None:
    from imagen.emoji.dataset import build_emoji
    from imagen.emoji.presets import MINILM
    from imagen.text.encoder import encoder_config

    # First, so that a mistake in its name is known at once.
    text = encoder_config(options.encoder or MINILM.encoder, max_tokens=MINILM.max_tokens)
    built = build_emoji(
        options.out,
        options.sizes,
        variants=options.variants,
        seed=options.seed,
        limit_objects=options.objects,
        relations=options.relations,
        counts=options.counts,
        styles=dict(options.iconify),
    )
    _encode(options.out, text)
    samples = built["samples"]
    print(f"{options.out}: {samples['train']} pictures to train on, {samples['heldout']} held out")
    print(f"train on it: imagen train PRESET --data {options.out} --out RUN")


def data_encode(options: argparse.Namespace) -> None:
    from imagen.data.embed.sidecar import captions_cut
    from imagen.data.shards.dataset import index_folder, open_split, splits
    from imagen.text.config import EMBEDDED_ENCODER
    from imagen.text.encoder import encoder_config

    if options.workers is not None and options.engine == "local":
        raise UserError("--workers belongs to --engine ray; without it, start the command several times")
    with connected(options) as on_cluster:
        engine, device = None, options.device
        if on_cluster:
            from imagen.data.build.cluster import encoders

            engine, device = encoders(options.workers, device)
        else:
            device = choose_device(device)
        index_folder(options.shards)
        samples = sum(len(open_split(options.shards, split)) for split in splits(options.shards))
        name = options.encoder or EMBEDDED_ENCODER
        text = encoder_config(name, revision=options.revision, max_tokens=options.max_tokens)
        encoded = _encode(options.shards, text, batch_tokens=options.batch_tokens, device=device, engine=engine)
    done = f"{_counted(encoded, 'shard')} encoded" if encoded else "every shard was encoded already"
    print(f"{options.shards}: {_counted(samples, 'sample')}, {done} by {text.encoder} (max_tokens {text.max_tokens})")
    cut, captions = captions_cut(options.shards, text)
    if cut.captions:
        print(
            f"{cut.captions:,} of {_counted(captions, 'caption')} cut at {text.max_tokens} tokens, losing "
            f"{cut.tokens / cut.captions:,.0f} on average and {cut.most:,} at most; a larger --max-tokens keeps more"
        )


def _encode(
    shards: Path,
    text: "TextConfig",
    *,
    batch_tokens: int = 8192,
    device: str | None = None,
    engine: "Engine | None" = None,
) -> int:
    from imagen.data.embed.encode import encode_shards
    from imagen.text.encoder import LazyEncoder

    return encode_shards(shards, LazyEncoder(text, device or choose_device(None)), batch_tokens, engine=engine)


def data_bench(options: argparse.Namespace) -> None:
    from imagen.data.loading.bench import bench
    from imagen.data.loading.config import DataConfig

    config = DataConfig(crop=options.crop, full_decode=options.full_decode, workers=options.workers)
    config.check()
    found = bench(
        options.shards,
        config,
        resolution=options.resolution,
        low_resolution=options.low_resolution,
        seconds=options.seconds,
    )
    if options.json:
        print(json.dumps(found, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    text = "no embeddings" if found["encoder"] is None else f"embeddings of {found['encoder']}"
    table = Table("one process", "ms an image", "share", caption=f"{found['kilobytes']:,.0f} kB an image; {text}")
    table.columns[1].justify = table.columns[2].justify = "right"
    total = sum(found["milliseconds"].values())
    for part, value in found["milliseconds"].items():
        table.add_row(part, f"{value:.2f}", f"{value / total:.0%}")
    Console().print(table)
    print(f"{found['images_per_s']:,.0f} images/s in one process")
    if options.workers:
        counted = f"{found['images_per_s_a_worker']:,.0f} a worker, on {_counted(found['cores'], 'core')}"
        print(f"{found['workers_images_per_s']:,.0f} images/s from {_counted(options.workers, 'worker')}: {counted}")


def presets(options: argparse.Namespace) -> None:
    from imagen.presets import PRESETS
    from imagen.train.run import describe

    rows = [describe(function()) for function in PRESETS.values()]
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("preset", "parameters", "resolution", "GFLOP an image", caption="GFLOP: one forward")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        low = f"{row['low_resolution']} -> " if row["low_resolution"] else ""
        crop = f" (crop {row['side']})" if row["side"] != row["resolution"] else ""
        table.add_row(
            row["name"], f"{row['parameters'] / 1e6:,.1f}M", f"{low}{row['resolution']}", f"{row['gflop']:,.1f}{crop}"
        )
    Console().print(table)


def config(options: argparse.Namespace) -> None:
    from imagen.jsonconfig import to_json

    print(json.dumps(to_json(_experiment(options)), indent=2))


def train(options: argparse.Namespace) -> None:
    experiment = _experiment(options)
    from imagen.train.ranks import joined
    from imagen.train.run import train_run

    with joined(choose_device(options.device) if options.device else None) as ranks:
        train_run(experiment, options.data, options.out, minutes=options.minutes, profile=options.profile, ranks=ranks)
    if not ranks.first:
        return
    if experiment.stage.low_resolution is None:
        print(f"draw with it: imagen sample {options.out} PROMPT --out DIR")
    else:
        print(f"enlarge with it: imagen upscale {options.out} PICTURE --out DIR")


def assemble(options: argparse.Namespace) -> None:
    from imagen.cascade import assemble
    from imagen.cli.convert import push_cascade

    assemble(options.runs, options.out)
    if options.half:
        from imagen.cascade.halve import halve

        halve(options.out)
    joined = f"{_counted(len(options.runs), 'run')} joined"
    print(f"{options.out}: {joined}; draw with it: imagen sample {options.out} PROMPT --out DIR")
    push_cascade(options.out, options.push)


def export(options: argparse.Namespace) -> None:
    from imagen.train.export import export_run

    how = {"sigma_rel": options.sigma_rel, "decay": options.decay, "step": options.step}
    print(f"{export_run(options.run_folder, options.out, **how)}; draw with it: imagen sample {options.out} PROMPT")


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _experiment(options: argparse.Namespace) -> "Experiment":
    from imagen.presets import preset
    from imagen.train.config import check
    from imagen.train.experiment import override

    experiment = override(preset(options.preset), options.overrides)
    check(experiment)
    return experiment


def choose_device(name: str | None) -> str:
    """`name`, tried out; or the default."""
    import torch

    from imagen.devices import default_device

    if name is None:
        return default_device()
    try:
        if torch.device(name).type == "cpu" and torch.device(name).index:  # torch takes any number for it
            raise ValueError(name)
        torch.zeros(1, device=name).item()
    except Exception as error:  # of any kind: each backend fails in a way of its own
        there = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        there += ["mps"] if torch.backends.mps.is_available() else []
        unknown = "no such device" if "device string" in str(error) else "not available here"
        raise UserError(f"--device {name}: {unknown}; this machine has {', '.join(there)}") from None
    return name
