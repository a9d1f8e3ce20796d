"""Compare the size of a data set's stored text embeddings with that of padded float32 embeddings.

    python benchmarks/embedding_size.py SHARDS

Sums the file sizes of all sidecars in SHARDS, headers and hashes included. The same N embeddings of dimension D, padded
to the token limit in float32, would take N x max_tokens x D x 4 bytes. The ratio is 2 x max_tokens / (mean tokens), so
it depends mostly on the length of the captions.
"""

import argparse
from collections import defaultdict
from pathlib import Path

from imagen.data.shards.dataset import splits
from imagen.data.shards.mapped import MappedTensors

T5_XXL = 4096  # embedding dimension


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path, metavar="SHARDS", help="shards encoded by `imagen data encode`")
    sidecars = defaultdict(list)
    for folder in splits(parser.parse_args().shards).values():
        for path in sorted(folder.glob("*.text.safetensors")):
            sidecar = MappedTensors(path, "run `imagen data encode`")
            sidecars[sidecar.metadata["encoder"], int(sidecar.metadata["max_tokens"])].append(sidecar)
    for (encoder, limit), files in sidecars.items():
        captions = sum(len(file["caption_hash"]) for file in files)
        tokens = sum(len(file["tokens"]) for file in files)
        width = files[0]["tokens"].shape[1]
        stored = sum(file.path.stat().st_size for file in files)
        padded = captions * limit * width * 4
        print(f"{encoder}: {captions} captions, {tokens / captions:.1f} tokens per caption, dimension {width}")
        print(f"  trimmed bfloat16, as stored            {stored:>15,} bytes")
        print(f"  padded to {limit:>4} in float32            {padded:>15,} bytes   {padded / stored:.1f} x")
        large = tokens * T5_XXL * 2, captions * limit * T5_XXL * 4
        gib = [bytes_ / captions * 1e6 / 2**30 for bytes_ in large]
        print(
            f"  a million captions with this mean length from T5-XXL: {gib[0]:,.0f} GiB trimmed, "
            f"{gib[1]:,.0f} GiB padded"
        )


if __name__ == "__main__":
    main()
