"""Evaluate a cascade on a data set: sample its captions, compare the images with the real ones, report."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from typing_extensions import Unpack

from imagen.cascade import Cascade
from imagen.cascade.options import JobOptions, takes_options
from imagen.data.shards.dataset import open_split
from imagen.errors import UserError, check_number
from imagen.evaluate.extractors import Extractor, load_extractor
from imagen.evaluate.extractors.hub import Clip
from imagen.evaluate.generated import generated_features
from imagen.evaluate.metrics.table import Features, Metric, find_metric
from imagen.evaluate.real import choose, real_features
from imagen.files import write_json

REFERENCE = 50_000  # real images at most, unless asked for


@takes_options(JobOptions)
def evaluate(
    cascade: Cascade,
    data: str | Path,
    out: str | Path,
    *,
    metrics: Sequence[str] = ("fid", "kid"),
    n: int = 10_000,
    split: str = "heldout",
    reference: int | None = None,
    weights: Mapping[str, str] | None = None,
    seed: int = 0,
    save_images: int = 0,
    cache: Path | None = None,
    rank: int = 0,
    ranks: int = 1,
    progress: bool = True,
    **options: Unpack[JobOptions],
) -> dict[str, Any] | None:
    """Sample `n` captions of `data` and measure the images; return the report, which is also `out`/report.json.

    metrics: names in `imagen.evaluate.metrics.table`. split: of `data`; its captions are sampled and its images are
    the reference. reference: number of real images (default: all, at most 50,000). weights: of feature extractors, as
    {"clip": NAME or folder}. seed: of the choice of samples; image i has the seed `seed` + i. save_images: how many of
    the images to write to `out`/images. cache: folder of the features of real images.
    rank, ranks: rank r samples every `ranks`-th part; only rank 0 returns a report.

    Without captions in the cascade, images are sampled unconditionally. Calling again continues an interrupted job.
    Raises UserError for invalid arguments, before anything is sampled.
    """
    started = time.time()
    check_number("n", n, least=2)
    chosen = [find_metric(name) for name in metrics]
    if not chosen:
        raise UserError("no metrics: name at least one")
    dataset = open_split(data, split)
    compared = choose(dataset, reference if reference is not None else min(len(dataset), REFERENCE), seed)
    order = choose(dataset, None, seed)
    captions = [dataset.caption(int(order[i % len(order)])) for i in range(n)]
    prompts = captions if cascade.text is not None else [""] * n
    request = cascade.request(prompts, seeds=[seed + i for i in range(n)], **options)
    if any(metric.needs_captions for metric in chosen) and cascade.text is None:
        raise UserError("the cascade reads no text, so metrics of captions (clip) mean nothing; leave them out")
    extractors = _extractors(chosen, weights or {}, request.device)
    generated = generated_features(
        cascade, request, extractors, Path(out), save_images=save_images, rank=rank, ranks=ranks, progress=progress
    )
    if rank != 0:
        return None
    values: dict[str, Any] = {}
    for metric in chosen:
        extractor = extractors[metric.extractor]
        features = Features(
            real_features(dataset, compared, _resolution(request.crop), extractor, cache=cache, progress=progress),
            generated[metric.extractor],
            extractor.embed(captions).numpy() if metric.needs_captions and isinstance(extractor, Clip) else None,
        )
        measured = metric.measure(features)
        values |= {name: value._asdict() for name, value in zip(metric.names, measured, strict=True)}
    described = cascade.metadata(request, 0)
    report = {
        "metrics": values,
        "images": n,
        "reference": {"data": str(data), "fingerprint": dataset.fingerprint(), "split": split, "images": len(compared)},
        "extractors": {name: extractor.description for name, extractor in extractors.items()},
        "request": {name: value for name, value in described.items() if name not in ("prompt", "seed", "negative")},
        "seed": seed,
        "seconds": round(time.time() - started, 1),
    }
    write_json(Path(out) / "report.json", report)
    return report


def _extractors(metrics: Sequence[Metric], weights: Mapping[str, str], device: Any) -> dict[str, Extractor]:
    names = dict.fromkeys(metric.extractor for metric in metrics)
    return {name: load_extractor(f"{name}:{weights[name]}" if name in weights else name, device) for name in names}


def _resolution(size: tuple[int, int]) -> int:
    height, width = size
    if height != width:
        raise UserError(f"images of {height} x {width} cannot be compared: real images are cropped to squares")
    return height
