"""`imagen data build`"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from imagen.cli.command import Command
from imagen.cli.engine import add_engine, connected
from imagen.cli.output import Result, counted, lines
from imagen.cli.values import Choice, Listed, count, number, processes, side, whole

if TYPE_CHECKING:
    from imagen.data.build.engines import Engine


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="SOURCE", help="file, folder or URL with the pairs, see below")
    parser.add_argument("--out", type=Path, metavar="SHARDS", help="the folder to build")
    parser.add_argument("--format", metavar="NAME", help="format of the source (default: detected)")
    parser.add_argument("--image-column", metavar="NAME", help="column of a table that contains images or their paths")
    parser.add_argument("--caption-column", metavar="NAME", help="column of a table that contains captions")
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="folder of the images that a table names (default: the table's)"
    )
    parser.add_argument(
        "--caption-from",
        type=Choice("folder", "name"),
        metavar="NAME",
        help="caption images in a folder by the name of the `folder` (a class), or by the `name` of the file",
    )
    parser.add_argument(
        "--min-side",
        type=count,
        default=64,
        metavar="N",
        help="minimum length of the shorter side, in pixels (default: 64)",
    )
    parser.add_argument(
        "--max-aspect", type=number, default=4.0, metavar="R", help="maximum longer / shorter side (default: 4)"
    )
    parser.add_argument(
        "--max-caption", type=count, default=2000, metavar="N", help="maximum characters per caption (default: 2000)"
    )
    parser.add_argument(
        "--max-rejected", type=number, default=0.5, metavar="F", help="maximum share of rejected records (default: 0.5)"
    )
    parser.add_argument(
        "--sizes",
        type=Listed(side),
        default=[],
        metavar="N,...",
        help="store JPEGs of this shorter side, such as 64,256, in place of the images: small, and fast to load",
    )
    parser.add_argument(
        "--first-frame",
        action="store_true",
        help="accept animations and files with several pages, by their first frame",
    )
    parser.add_argument(
        "--keep-duplicates",
        action="store_true",
        help="accept duplicate images, and make each row of a table a sample of its own",
    )
    parser.add_argument(
        "--copy", action="store_true", help="build new shards from existing ones, instead of using those in place"
    )
    parser.add_argument(
        "--samples-per-shard", type=count, metavar="N", help="maximum samples per new shard (default: 1000)"
    )
    parser.add_argument(
        "--held-out",
        type=number,
        default=0.0,
        metavar="F",
        help="share of samples held out for validation, chosen at random (default: none)",
    )
    parser.add_argument("--seed", type=whole, default=0, metavar="N", help="seed of the held-out choice (default: 0)")
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="downloads from a URL (default: ~/.cache/imagen/sources)"
    )
    parser.add_argument("--workers", type=processes, metavar="N", help="processes (default: one per core, at most 16)")
    add_engine(parser)
    parser.add_argument("--encoder", metavar="NAME", help="text encoder of the embeddings that the source contains")
    parser.add_argument("--max-tokens", type=count, metavar="N", help="token limit of these embeddings")


def run(options: argparse.Namespace) -> Result:
    with connected(options) as on_cluster:
        if not on_cluster:
            return _build(options, None)
        from imagen.data.build.cluster import builders

        return _build(options, builders(options.workers))


def _build(options: argparse.Namespace, engine: "Engine | None") -> Result:
    from imagen.data.build.dataset import build
    from imagen.data.build.quality import Limits

    built = build(
        options.source,
        options.out,
        format=options.format,
        image_column=options.image_column,
        caption_column=options.caption_column,
        images=options.images,
        caption_from=options.caption_from,
        cache=options.cache,
        copy=options.copy,
        limits=Limits(
            min_side=options.min_side,
            max_aspect=options.max_aspect,
            max_caption=options.max_caption,
            first_frame=options.first_frame,
            sizes=tuple(options.sizes),
        ),
        samples_per_shard=options.samples_per_shard,
        keep_duplicates=options.keep_duplicates,
        held_out=options.held_out,
        seed=options.seed,
        max_rejected=options.max_rejected,
        encoder=options.encoder,
        max_tokens=options.max_tokens,
        workers=options.workers,
        engine=engine,
        report=print,
    )
    folder = options.out or (options.source if options.source.is_dir() else options.source.parent)
    captions = f" with {built['captions']:,} captions" if built["captions"] > built["samples"] else ""
    texts = [
        f"{folder}: {built['samples']:,} samples{captions} in {counted(built['shards'], 'shard')}, "
        f"of {built['records']:,} records",
        *([f"  {built['held_out']:,} of the samples are held out"] if "held_out" in built else []),
        *(f"  {rejected:,} rejected: {reason}" for reason, rejected in built["rejected"].items()),
        f"inspect it: imagen data inspect {folder} --html data.html",
    ]
    if options.encoder is None:
        texts.append(f"then: imagen data encode {folder}")
    return lines({"out": str(folder), **built}, *texts)


COMMAND = Command(
    name="data build",
    help="check pairs of images and captions and write them as shards",
    add=add,
    run=run,
    details="SOURCE is a folder of images with .txt, .caption, .text or .json captions beside them; a table (csv,\n"
    "tsv, jsonl, json, parquet), or a folder with metadata.csv or metadata.jsonl in it or in each subfolder; a\n"
    "Hugging Face data set on disk; a zip of images; or shards, which are checked and indexed in place. It may be a\n"
    "URL, such as hf://org/name on the Hugging Face hub or s3://bucket/folder. Rejected records are listed in\n"
    "*.rejected.jsonl. If the command is stopped, run it again to resume. SHARDS that are finished are not built\n"
    "again: if a file of SOURCE has changed since, delete SHARDS or choose another folder.\n\n"
    "  imagen data build photos --out shards\n"
    "  imagen data build photos --out shards --sizes 64,256\n"
    "  imagen data build pairs.csv --image-column file --caption-column text --out shards --min-side 256",
)
