"""Bound the numbers in `cascade.json`, `config.json` and the metadata of images.

Values are checked when they are read, before anything is allocated or computed. Each bound is at least sixteen times
the value of the largest known model. It therefore rejects only damaged, mistaken or hostile values, with which a
command would never finish or would exhaust memory.
"""

from collections.abc import Mapping
from typing import Any

from imagen.errors import check_number

Bounds = Mapping[str, float]  # keywords of `check_number`
Table = Mapping[str, Bounds]  # by field

WIDEST = 65_536  # channels, or embedding dimension
SIDE = 65_536  # of an image, in pixels
STEPS = 10_000  # of a sampler, which converges in a hundredth of them
CHARACTERS = 10_000  # of a prompt; encoders read the first 128 to 512 tokens
PIXELS = 2**28  # of a batch of images
STAGES = 32
SIZES = 256  # buckets of a stage
LEVELS = 32
BLOCKS = 512  # of all levels, in the down path
PROCESSES = 1_024  # each has its own copy of its input
SEED = 2**63 - 1
LORA_WEIGHT: Bounds = {"least": -100, "most": 100}


def between(least: float, most: float) -> Bounds:
    return {"least": least, "most": most}


def up_to(most: float) -> Bounds:
    """Return bounds above 0 and at most `most`."""
    return {"above": 0, "most": most}


LEVEL: Table = {
    "channels": between(1, WIDEST),
    "blocks": between(1, BLOCKS),
    "stride": between(1, 64),
    "feed_forward": between(0, 64),
}
UNET: Table = {
    "image_channels": between(1, 1_024),
    "patch": between(1, 64),
    "stem_channels": between(1, WIDEST),
    "text_width": between(1, WIDEST),
    "context_width": between(1, WIDEST),
    "time_width": between(1, WIDEST),
    "head_channels": between(1, WIDEST),
    "norm_groups": between(1, WIDEST),
    "pooling_heads": between(1, WIDEST),
    "residual_divisor": up_to(1_000),
    "dropout": {"least": 0, "below": 1},
}
STAGE: Table = {
    "resolution": between(1, SIDE),
    "low_resolution": between(1, SIDE),
    "detail_std": up_to(1_000),
    "detail_blur": between(0, 16),
}
SCHEDULE: Table = {"shift_reference": between(1, SIDE)}
OBJECTIVE: Table = {
    "p2_gamma": between(0, 100),
    "p2_k": up_to(1e6),
    "min_snr_gamma": up_to(1e6),
    "sigmoid_bias": between(-100, 100),
    "velocity_snr": up_to(1e6),
    "variance_weight": between(0, 1e6),
}
SAMPLING: Table = {
    "steps": {"most": STEPS},
    "guidance": between(-1_000, 1_000),  # beyond it images are noise; float32 overflows at 1e38
    "logsnr_range": between(-100, 100),
    "guidance_interval": between(-1e6, 1e6),
    "max_scale": {"most": 1e6},
}
TEXT: Table = {"width": between(1, WIDEST), "max_tokens": between(1, 65_536)}
ENCODER: Table = {  # fields of an encoder's own config.json, whatever its architecture
    **{
        name: between(1, most)
        for most, names in {
            1_024: ("num_layers", "num_decoder_layers", "num_hidden_layers", "n_layers", "n_layer", "encoder_layers"),
            4_096: ("num_heads", "num_attention_heads", "n_heads", "n_head"),
            WIDEST: ("d_model", "d_kv", "hidden_size", "embedding_size", "dim", "n_embd", "num_labels"),
            2**20: ("d_ff", "intermediate_size", "hidden_dim", "max_position_embeddings"),
            2**22: ("vocab_size",),
        }.items()
        for name in names
    },
    "relative_attention_num_buckets": between(1, 4_096),
    "relative_attention_max_distance": between(1, 2**16),
    "position_buckets": between(-1, 2**16),  # -1: none
    "type_vocab_size": between(0, 2**16),
}
ENCODER_COUNT = 1_024  # other fields that count layers or similar modules, which take time to build
ENCODER_NUMBER = 2**27  # all other fields: bases of rotary embeddings are tens of millions
ENCODER_SLACK = 2**26  # elements of a model beyond its stored weights: position tables, masks
DATA: Table = {
    "crop": between(1, SIDE),
    "bucket_batch": between(1, 10_000_000),
    "workers": between(0, PROCESSES),
    "window": between(1, 1_000_000),
    "max_enlargement": up_to(SIDE),
    "max_bad": between(0, 1),
    "cache_gb": up_to(1e9),
}
TRAIN: Table = {
    "steps": between(1, 10**12),
    "batch_size": between(1, 10_000_000),  # samples of a step
    "micro_batch": between(1, 10_000_000),
    "seed": between(0, SEED),
    "ema_decay": {"least": 0, "below": 1},
    "ema_decays": {"least": 0, "below": 1},
    "ema_snapshot_every": between(0, 10**12),
    "ema_every": between(1, 10**12),
    "text_dropout": between(0, 1),
    "max_nonfinite": between(1, 10**12),
    "log_every": between(0, 10**12),
    "sample_every": between(0, 10**12),
    "checkpoint_every": between(0, 10**12),
    "keep_checkpoints": between(1, 10**6),
    "keep_every": between(0, 10**12),
    "gap_every": between(0, 10**12),
    "gap_samples": between(1, 100_000),  # they are all in memory
    "evaluate_every": between(0, 10**12),
    "evaluate_images": between(20, 100_000),  # likewise
    "peak_tflops": up_to(1e9),
}
OPTIM: Table = {
    "lr": up_to(1e6),
    "muon_lr": up_to(1e6),
    "betas": {"least": 0, "below": 1},
    "eps": up_to(1),
    "weight_decay": between(0, 1e6),
    "warmup_steps": between(0, 10**12),
    "clip_norm": up_to(1e30),  # effectively no clipping
}
LORA: Table = {"rank": between(0, 4_096), "alpha": up_to(1e6)}  # 4,096: what `imagen.lora.files` reads
DISTILL: Table = {"teacher_steps": between(0, 1_000)}
MADE: Table = {"seed": between(0, SEED), "size": between(1, SIDE), "strength": up_to(1), "tiles": between(1, SIDE)}
CONDITIONS: Table = {"threads": between(1, PROCESSES), "batch": between(1, 4_096), "rows": between(1, 4_096)}
VARIATION: Table = {"seed": between(0, SEED), "amount": between(0, 1)}


def check(values: Any, table: Table, where: str = "") -> None:
    """Raise UserError, beginning with `where` and the field's name, if a field in `table` is out of its bounds.

    Checks every item of a tuple, and skips None.
    """
    for name, bounds in table.items():
        value = getattr(values, name)
        items = {f"{name}[{i}]": item for i, item in enumerate(value)} if isinstance(value, tuple) else {name: value}
        for field, item in items.items():
            if item is not None:
                check_number(f"{where}{field}", item, **bounds)
