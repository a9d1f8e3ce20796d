"""`imagen data encode`"""

import argparse
from pathlib import Path

from imagen.cli.command import Command, add_device
from imagen.cli.engine import add_engine, connected
from imagen.cli.output import Result, counted, lines
from imagen.cli.values import count, processes
from imagen.errors import UserError


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shards", type=Path, metavar="SHARDS", help="the folder with the tars")
    parser.add_argument(
        "--encoder", metavar="NAME", help="a Hugging Face name or a local folder (default: the embedded one)"
    )
    parser.add_argument("--revision", default="main", metavar="NAME", help="revision of the encoder (default: main)")
    parser.add_argument(
        "--max-tokens", type=count, default=128, metavar="N", help="longer captions are truncated (default: 128)"
    )
    parser.add_argument(
        "--batch-tokens", type=count, default=8192, metavar="N", help="tokens per batch, with padding (default: 8192)"
    )
    add_device(parser)
    add_engine(parser)
    parser.add_argument(
        "--workers",
        type=processes,
        metavar="N",
        help="number of encoders with --engine ray (default: one per GPU, or one per machine without GPUs)",
    )


def run(options: argparse.Namespace) -> Result:
    from imagen.cli.devices import choose_device
    from imagen.cli.encoding import encode
    from imagen.data.embed.sidecar import count_truncated
    from imagen.data.shards.dataset import index_folder, open_split, splits
    from imagen.text.config import EMBEDDED_ENCODER
    from imagen.text.encoder import encoder_config

    if options.workers is not None and options.engine == "local":
        raise UserError("--workers requires --engine ray; without it, start the command several times")
    with connected(options) as on_cluster:
        engine, device = None, options.device
        if on_cluster:
            from imagen.data.build.cluster import encoders

            engine, device = encoders(options.workers, device)
        else:
            device = choose_device(device)
        index_folder(options.shards, sizes=True)
        samples = sum(len(open_split(options.shards, split)) for split in splits(options.shards))
        name = options.encoder or EMBEDDED_ENCODER
        text = encoder_config(name, revision=options.revision, max_tokens=options.max_tokens)
        encoded = encode(options.shards, text, batch_tokens=options.batch_tokens, device=device, engine=engine)
    done = f"{counted(encoded, 'shard')} encoded" if encoded else "every shard was encoded already"
    texts = [f"{options.shards}: {counted(samples, 'sample')}, {done} by {text.encoder} (max_tokens {text.max_tokens})"]
    cut, captions = count_truncated(options.shards, text)
    if cut.captions:
        texts.append(
            f"{cut.captions:,} of {counted(captions, 'caption')} truncated at {text.max_tokens} tokens, losing "
            f"{cut.tokens / cut.captions:,.0f} on average and {cut.most:,} at most; a larger --max-tokens loses fewer"
        )
    document = {
        "shards": str(options.shards),
        "samples": samples,
        "shards_encoded": encoded,
        "encoder": text.encoder,
        "max_tokens": text.max_tokens,
        "captions": captions,
        "captions_cut": cut.captions,
    }
    return lines(document, *texts)


COMMAND = Command(
    name="data encode",
    help="write text embeddings (and indexes) beside the shards",
    add=add,
    run=run,
    details="SHARDS contains WebDataset tars, as img2dataset writes them. If the command is stopped or killed, run it\n"
    "again to resume. To use several GPUs or machines, start the command once on each: the processes divide the\n"
    "shards among themselves, and each returns when all are encoded. Or use a Ray cluster: --engine ray.\n\n"
    "  imagen data encode shards --encoder google/t5-v1_1-xxl",
)
