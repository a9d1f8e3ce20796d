"""An experiment whose memory and cost are planned, and batches to run it on."""

import torch

from imagen.data.loading.batches import Batch
from imagen.presets import preset
from imagen.train.experiment import override


def experiment(*fields):
    """Return debug_64 with AdamW in float32, and a batch that is large enough for activations to matter."""
    common = ("--optim.algorithm", "adamw", "--train.precision", "fp32", "--train.batch_size", "32")
    return override(preset("debug_64"), [*common, *fields])


def real_batches(what, count, size):
    """Yield `count` batches of `size` random images with embeddings."""
    text = what.text
    for part in range(count):
        pictures = torch.randint(0, 256, (size, 3, 64, 64), dtype=torch.uint8)
        embeddings = torch.randn(size, text.max_tokens, text.width)
        mask = torch.ones(size, text.max_tokens, dtype=torch.bool)
        yield Batch(part * size, [""] * size, [""] * size, pictures, None, embeddings, mask)
