"""Evaluate a cascade on a data set: sample captions, compare the images with real ones, and write a report."""

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from typing_extensions import Unpack

from imagen.cascade import Cascade
from imagen.cascade.lazy_images import LazyImages
from imagen.cascade.options import JobOptions, RequestOptions, takes_options
from imagen.data.shards.dataset import ShardedDataset, open_split
from imagen.errors import UserError, check_number
from imagen.evaluate import REPORT
from imagen.evaluate.extractors import Extractor, load_extractor
from imagen.evaluate.extractors.hub import Clip
from imagen.evaluate.extractors.pairs import Pairs
from imagen.evaluate.generated import PER_IMAGE, check_folder, describe_job, generated_features
from imagen.evaluate.metrics.table import Features, Metric, find_metric
from imagen.evaluate.real import choose, images, large_enough, real_features
from imagen.files import read_json, write_json
from imagen.stage.inputs import to_images

Inputs = Literal["generated", "true"]

log = logging.getLogger(__name__)

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
    inputs: Inputs = "generated",
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
    the reference. reference: number of real images (default: all, at most 50,000). Images that are too small by the
    sizes in the indexes are left out and counted. inputs: "true" runs only the last stage, a super-resolution stage, on
    the captions' own images. weights: of feature extractors, as {"clip": NAME or folder}. seed: of the choice of
    samples; image i has the seed `seed` + i. save_images: how many of the images to write to `out`/images. cache:
    folder of the features of real images.
    rank, ranks: rank r samples every `ranks`-th part, and computes the features of every `ranks`-th part of the real
    images; only rank 0 returns a report.

    A cascade without text samples unconditional images. Calling again resumes an interrupted job. The report of an
    earlier call is replaced only by one with the same real images and at least its metrics.
    Raises UserError for invalid arguments and for a damaged real image, before anything is sampled.
    """
    started = time.time()
    check_number("n", n, least=2)
    check_number("save_images", save_images, least=0)
    chosen = [find_metric(name) for name in metrics]
    _check_metrics(chosen, cascade, inputs)
    dataset = open_split(data, split)
    given: RequestOptions = {"seeds": [seed + i for i in range(n)], **options}
    if inputs == "true":
        samples, given["start"] = _true_inputs(cascade, dataset, n, seed, options.get("stages"))
    else:
        order = choose(dataset, None, seed)
        samples = [int(order[i % len(order)]) for i in range(n)]
    captions = [dataset.caption(i) for i in samples]
    prompts = captions if cascade.text is not None else [""] * n
    request = cascade.request(prompts, **given)
    resolution = _resolution(request.crop)
    usable = large_enough(dataset, resolution)
    compared = choose(dataset, reference, seed, usable)[: reference or REFERENCE]
    _check_counts(chosen, n, len(compared))
    extractors: dict[str, Extractor | Pairs] = {
        name: Pairs(dataset, samples, resolution)
        if name == "pairs"
        else load_extractor(f"{name}:{(weights or {})[name]}" if name in (weights or {}) else name, request.device)
        for name in dict.fromkeys(metric.extractor for metric in chosen)
    }
    compared_with = {
        "data": str(data),
        "fingerprint": dataset.fingerprint(),
        "split": split,
        "images": len(compared),
        "left_out": int((~usable).sum()),  # of the split
    }
    job = describe_job(cascade, request, extractors)
    check_folder(Path(out), job)
    _check_report(Path(out) / REPORT, compared_with, [name for metric in chosen for name in metric.names])
    if rank == 0 and compared_with["left_out"] and not all(metric.needs_captions for metric in chosen):
        log.warning(
            "%s: %s of %s images are left out: they have fewer than %d pixels on a side, or an unreadable header",
            *(dataset.folder, f"{compared_with['left_out']:,}", f"{len(dataset):,}", resolution),
        )
    # First the real images: they are cached, and one that is damaged stops the evaluation before anything is sampled.
    real = {
        name: real_features(
            dataset, compared, resolution, extractor, cache=cache, rank=rank, ranks=ranks, progress=progress
        )
        for name, extractor in extractors.items()
        if not isinstance(extractor, Pairs)
        and any(metric.extractor == name and not metric.needs_captions for metric in chosen)
    }
    generated = generated_features(
        cascade, request, extractors, Path(out), job, save_images=save_images, rank=rank, ranks=ranks, progress=progress
    )
    if rank != 0:
        return None
    values: dict[str, Any] = {}
    for metric in chosen:
        extractor = extractors[metric.extractor]
        generated_ND = generated[metric.extractor]
        real_MD = real.get(metric.extractor, generated_ND[:0])
        _check_features(metric, extractor.description, real_MD, generated_ND)
        text_ND = extractor.embed(captions).numpy() if metric.needs_captions and isinstance(extractor, Clip) else None
        measured = metric.measure(Features(real_MD, generated_ND, text_ND))
        values |= {name: value._asdict() for name, value in zip(metric.names, measured, strict=True)}
    described = cascade.metadata(request, 0)
    report = {
        "metrics": values,
        "images": n,
        "inputs": inputs,
        "resolution": resolution,
        "reference": compared_with,
        "extractors": {name: extractor.description for name, extractor in extractors.items()},
        "request": {name: value for name, value in described.items() if name not in (*PER_IMAGE, "negative")},
        "seed": seed,
        "seconds": round(time.time() - started, 1),
    }
    write_json(Path(out) / REPORT, report)
    return report


def _check_metrics(metrics: Sequence[Metric], cascade: Cascade, inputs: Inputs) -> None:
    if not metrics:
        raise UserError("no metrics: name at least one")
    if any(metric.needs_captions for metric in metrics) and cascade.text is None:
        raise UserError("the cascade reads no text, so metrics of captions (clip) do not apply; leave them out")
    if inputs not in ("generated", "true"):
        raise UserError(f'inputs is {inputs!r}; it must be "generated" or "true"')
    if inputs == "generated" and (pairs := [m.names[0] for m in metrics if m.extractor == "pairs"]):
        raise UserError(f"{' and '.join(pairs)} compare with the true image of each input: set inputs to true")


def _check_counts(metrics: Sequence[Metric], generated: int, real: int) -> None:
    """Raise UserError unless there are enough images for every metric. psnr, ssim and clip use no other real images."""
    for metric in metrics:
        fewest = generated if metric.extractor == "pairs" or metric.needs_captions else min(generated, real)
        if fewest < metric.least:
            raise UserError(
                f"{', '.join(metric.names)}: {generated:,} generated and {real:,} real images; at least "
                f"{metric.least} of each are needed: raise --n, or use a larger split"
            )


def _check_features(metric: Metric, description: str, real_MD: np.ndarray, generated_ND: np.ndarray) -> None:
    """Raise UserError for features that are not finite. Warn if a Fréchet distance has fewer images than features."""
    wrong = sum(int((~np.isfinite(each).all(1)).sum()) for each in (generated_ND, real_MD))
    if wrong:
        raise UserError(f"{description}: the features of {wrong:,} images are not finite; check the network's weights")
    (M, D), N = real_MD.shape, len(generated_ND)
    if metric.is_frechet and min(M, N) <= D:
        log.warning(
            "%s: %s generated and %s real images for %s features: too few, the distance is much too large",
            *(metric.names[0], f"{N:,}", f"{M:,}", f"{D:,}"),
        )


def _check_report(path: Path, reference: Mapping[str, Any], names: Sequence[str]) -> None:
    """Raise UserError if the report of an earlier evaluation has other real images, or metrics beyond `names`."""
    if not path.is_file():
        return
    former = read_json(path)
    if not isinstance(former, dict) or not isinstance(former.get("reference"), dict):
        raise UserError(f"{path} is not a report of this evaluation; move it, or choose another folder")
    if any(former["reference"].get(name) != reference[name] for name in ("fingerprint", "split", "images")):
        raise UserError(f"{path} compares with other real images; move it, or choose another folder")
    if lost := [name for name in former.get("metrics", ()) if name not in names]:
        raise UserError(f"{path} also has {' and '.join(lost)}: request these metrics, too, or choose another folder")


def _true_inputs(
    cascade: Cascade, dataset: ShardedDataset, n: int, seed: int, stages: int | None
) -> tuple[list[int], LazyImages]:
    """Return `n` samples, and their images at the low resolution of the last stage that runs, read when needed."""
    last = cascade.stages[min(stages or len(cascade.stages), len(cascade.stages)) - 1].config
    if last.low_resolution is None:
        raise UserError("the last stage generates from text alone: true inputs are for super-resolution stages")
    side = last.low_resolution
    samples = choose(dataset, n, seed, large_enough(dataset, last.resolution)).tolist()

    def read(number: int) -> Image.Image:
        return to_images(next(images(dataset, [samples[number]], side)))[0]

    return samples, LazyImages(n, (side, side), read)


def _resolution(size: tuple[int, int]) -> int:
    height, width = size
    if height != width:
        raise UserError(f"images of {height} x {width} cannot be compared: real images are cropped to squares")
    return height
