"""Shards of discs, a run trained on them in seconds, and copies of both with planted faults."""

import dataclasses
import io
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from imagen.cascade import Cascade, SamplingConfig, StageConfig
from imagen.data.embed.encode import encode_shards
from imagen.data.loading.config import DataConfig
from imagen.data.shards.writer import ShardWriter
from imagen.diffusion.objective import ObjectiveConfig
from imagen.models.config import Level, UNetConfig
from imagen.text.config import TextConfig
from imagen.train.config import OptimConfig, TrainConfig
from imagen.train.experiment import Experiment
from imagen.train.ranks import Ranks
from imagen.train.run import train_run

SIDE, WIDTH = 16, 16
COLOURS = {
    "red": (214, 40, 40),
    "blue": (30, 60, 220),
    "yellow": (240, 200, 30),
    "green": (40, 140, 60),
}
TEXT = TextConfig(encoder="words", width=WIDTH, max_tokens=16)


class Words:
    """A text encoder that needs no files: one token per word. salt: another one gives another encoder."""

    def __init__(self, config: TextConfig = TEXT, salt: int = 0):
        self.config, self.salt = config, salt

    def lengths(self, captions: list[str]) -> list[int]:
        return [max(1, len(caption.split())) for caption in captions]

    untruncated_lengths = lengths

    def encode(self, captions: list[str]) -> list[Tensor]:
        return [torch.stack([self._token(word) for word in caption.split() or [""]]) for caption in captions]

    def _token(self, word: str) -> Tensor:
        seed = self.salt + sum(ord(letter) * 31**place for place, letter in enumerate(word))
        return torch.randn(self.config.width, generator=torch.Generator().manual_seed(seed))


class Constant(Words):
    """Returns the same tokens for all captions."""

    def __init__(self, value: float | None = None):
        super().__init__()
        self.value = value

    def encode(self, captions: list[str]) -> list[Tensor]:
        tokens = super().encode(["same"])[0]
        return [tokens if self.value is None else torch.full_like(tokens, self.value) for _ in captions]


Pair = tuple[np.ndarray, str]  # uint8 [H, W, 3], and a caption


def discs(count: int, seed: int = 0, shapes: Sequence[tuple[int, int]] = ((SIDE, SIDE),)) -> list[Pair]:
    """Return images of a disc on a background, in turn of each of `shapes`; the captions name both colours."""
    random, names = np.random.default_rng(seed), list(COLOURS)
    pairs = []
    for number in range(count):
        height, width = shapes[number % len(shapes)]
        y, x = np.mgrid[:height, :width]
        y, x = y - (height - 1) / 2, x - (width - 1) / 2
        inner = names[number % 4]
        outer = names[(number % 4 + 1 + number // 4 % 3) % 4]
        centre, radius = random.uniform(-2, 2, 2), random.uniform(3.5, 5.5)
        inside = (radius - np.hypot(y - centre[0], x - centre[1])).clip(0, 1)[..., None]
        image = inside * COLOURS[inner] + (1 - inside) * COLOURS[outer]
        pairs.append((image.round().astype(np.uint8), f"a {inner} disc on {outer}"))
    return pairs


def write_shards(
    folder: Path,
    train: Iterable[Pair],
    heldout: Iterable[Pair] = (),
    *,
    encoder: Words | None = Words(),  # noqa: B008  # has no state
    change: Callable[[np.ndarray], np.ndarray] = lambda image: image,
    caption: Callable[[str], str] = lambda text: text,
) -> Path:
    """Write pairs as shards, each image and caption changed, with embeddings unless `encoder` is None."""
    for split, pairs in (("train", train), ("heldout", heldout)):
        if not (pairs := list(pairs)):
            continue
        with ShardWriter(folder / split) as writer:
            for number, (image, text) in enumerate(pairs):
                file = io.BytesIO()
                Image.fromarray(change(image)).save(file, "PNG")
                text = caption(text)
                writer.write(
                    {"__key__": f"{number:04d}", "png": file.getvalue()} | ({"txt": text.encode()} if text else {})
                )
    if encoder is not None:
        encode_shards(folder, encoder, progress=False)
    return folder


UNET = UNetConfig(
    levels=(Level(channels=16, blocks=1, stride=1), Level(channels=32, blocks=1, attention="fused")),
    text_width=WIDTH,
    context_width=32,
    time_width=64,
    head_channels=32,
    norm_groups=4,
    resample="plain",
)


def experiment(steps: int, buckets: str | None = None) -> Experiment:
    return Experiment(
        name="discs",
        stage=StageConfig(
            resolution=SIDE,
            unet=UNET,
            objective=ObjectiveConfig(prediction="x0", weighting="velocity"),
            sampling=SamplingConfig(steps=8, spacing="logsnr", guidance=1.5, threshold="static"),
        ),
        text=TEXT,
        data=DataConfig(workers=0, buckets=buckets),
        optim=OptimConfig(
            algorithm="muon", lr=2e-3, muon_lr=1e-2, warmup_steps=10, schedule="cosine", betas=(0.9, 0.99)
        ),
        train=TrainConfig(
            steps=steps,
            batch_size=16,
            precision="fp32",
            ema_decay=0.95,
            log_every=max(1, steps // 20),
            gap_every=0,
            gap_samples=16,
            checkpoint_every=0,
            sample_every=0,
        ),
    )


def train_discs(run: Path, shards: Path, steps: int, buckets: str | None = None) -> Path:
    train_run(experiment(steps, buckets), shards, run, report=lambda line: None, ranks=Ranks())
    return run


def log_only(
    folder: Path, rows: Iterable[dict[str, float]], change: Callable[[Experiment], Experiment] = lambda e: e
) -> Path:
    """Write a run folder with a config and a log, and no weights."""
    from imagen.jsonconfig import to_json

    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(to_json(change(experiment(1000)))))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def healthy_rows(count: int = 20) -> list[dict[str, float]]:
    """Return a log of a loss that falls from 1 to 0.1 at a constant rate."""
    return [
        {"step": 50 * i, "loss": 0.1 + 0.9 / i, "grad_norm": 0.5 + 0.5 / i, "lr": 2e-3} for i in range(1, count + 1)
    ]


def changed_cascade(
    source: Path, target: Path, *, change: Callable[[str, Tensor], Tensor] = lambda name, w: w, **fields: object
) -> Path:
    """Copy a one-stage cascade with changed weights and changed fields of its stage's config."""
    from imagen.cascade.storage import read_manifest, read_tensors, read_unconditional, resolve_folder, write_cascade

    folder = resolve_folder(source)
    manifest = read_manifest(folder)
    (record,) = manifest.stages
    assert manifest.text is not None
    weights = {name: change(name, w) for name, w in read_tensors(folder, record.weights, record.sha256).items()}
    write_cascade(
        target,
        text=manifest.text.config,
        unconditional=read_unconditional(folder, manifest.text),
        stages=[(dataclasses.replace(record.config, **fields), weights, record.info)],
    )
    return target


class Wrapped(nn.Module):
    """A network whose inputs or output are changed: change(network, x, noise, conditions) is the output."""

    def __init__(self, network: nn.Module | None, change: Callable[..., Tensor]):
        super().__init__()
        self.network, self.change = network, change

    def forward(self, x: Tensor, noise: Tensor, **conditions: Tensor) -> Tensor:
        return self.change(self.network, x, noise, conditions)


def wrapped(cascade: Cascade, change: Callable[..., Tensor]) -> Cascade:
    """Return a cascade whose first network is changed."""
    first = dataclasses.replace(cascade.stages[0], unet=Wrapped(cascade.stages[0].unet, change))
    return Cascade([first, *cascade.stages[1:]], text=cascade.text, unconditional=cascade.unconditional)


def copy_run(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target
