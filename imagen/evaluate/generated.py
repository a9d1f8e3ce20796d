"""Compute features of generated images in parts, one file each, so that a job can resume and use several ranks.

Images are stored only on request. A part's features depend on the request alone, so metrics are bit-equal for any
number of ranks and any interruptions. Parts do not depend on the batch size, with which a job may resume: it changes
rounding only.
"""

import hashlib
import json
import time
from collections.abc import Mapping
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imagen.cascade import Cascade
from imagen.cascade.request import Request
from imagen.errors import UserError
from imagen.evaluate.extractors import Extractor
from imagen.evaluate.extractors.pairs import Pairs
from imagen.evaluate.files import read_arrays, write_arrays
from imagen.evaluate.real import as_rgb
from imagen.files import read_json, write_json
from imagen.pictures import write_png
from imagen.progress import progress_bar
from imagen.stage.inputs import to_images

PART = 256  # images per file of features
JOB = "job.json"
_OWN = (JOB, "features", "images")
PER_IMAGE = ("prompt", "seed", "start")  # fields of the metadata that differ between images
Job = dict[str, Any]
WAIT = 2.0  # seconds between two checks for the files of other ranks


def generated_features(
    cascade: Cascade,
    request: Request,
    extractors: Mapping[str, Extractor | Pairs],
    out: Path,
    job: Job,
    *,
    save_images: int = 0,
    rank: int = 0,
    ranks: int = 1,
    progress: bool = True,
) -> dict[str, np.ndarray]:
    """Sample a request, and return its images' features [N, D] by extractor; {} on ranks other than 0.

    out: folder of the parts and of the first `save_images` images. job: of `describe_job`. Calling again resumes a job.
    Rank 0 waits for the parts of all ranks. Raises UserError if `out` belongs to another job.
    """
    check_folder(out, job)
    write_json(out / JOB, job)  # each rank may write it: the bytes are the same
    parts = _parts(request)
    missing = [number for number in range(rank, len(parts), ranks) if not _is_whole(out, number, parts, save_images)]
    with progress_bar(
        total=sum(len(batch) for number in missing for batch in parts[number]),
        unit="image",
        desc="generated images",
        disable=not progress or rank != 0,
    ) as bar:
        for number in missing:
            batches = parts[number]
            features: dict[str, list[np.ndarray]] = {name: [] for name in extractors}
            with closing(cascade.run(request, batches, output="tensor", progress=False)) as images:
                for batch in batches:
                    images_BCHW = torch.stack(list(islice(images, len(batch))))
                    for name, extractor in extractors.items():
                        given_BCHW = as_rgb(images_BCHW)
                        found = extractor(given_BCHW, batch) if isinstance(extractor, Pairs) else extractor(given_BCHW)
                        features[name].append(found.numpy())
                    _save(images_BCHW, batch, out, save_images)
                    bar.update(len(batch))
            write_arrays(_path(out, number), {name: np.concatenate(each) for name, each in features.items()})
    if rank != 0:
        return {}
    while not all(_path(out, number).is_file() for number in range(len(parts))):
        time.sleep(WAIT)
    counts = [sum(map(len, part)) for part in parts]
    loaded = [read_arrays(_path(out, number), extractors, count) for number, count in enumerate(counts)]
    return {name: np.concatenate([part[name] for part in loaded]) for name in extractors}


def _parts(request: Request) -> list[list[range]]:
    """Return the batches of each part; no batch extends over two parts."""
    count, size = len(request.prompts), request.batch_size
    ends = [(start, min(start + PART, count)) for start in range(0, count, PART)]
    return [[range(i, min(i + size, end)) for i in range(start, end, size)] for start, end in ends]


def _is_whole(out: Path, number: int, parts: list[list[range]], save_images: int) -> bool:
    """Return whether the features of a part exist, and its images below `save_images`."""
    saved = (i for batch in parts[number] for i in batch if i < save_images)
    return _path(out, number).is_file() and all(_image(out, i).is_file() for i in saved)


def _image(out: Path, number: int) -> Path:
    return out / "images" / f"{number:05d}.png"


def _path(out: Path, part: int) -> Path:
    return out / "features" / f"{part:05d}.safetensors"


def _save(images_BCHW: Tensor, batch: range, out: Path, save_images: int) -> None:
    for number, image in zip(batch, to_images(images_BCHW), strict=True):
        if number < save_images:
            write_png(_image(out, number), image)


def describe_job(cascade: Cascade, request: Request, extractors: Mapping[str, Extractor | Pairs]) -> Job:
    """Return everything that the features depend on, as JSON. Reads the images to start from, if there are any."""
    own = hashlib.sha256()
    for number in range(len(request.prompts)):
        described = cascade.metadata(request, number)
        own.update(json.dumps([described.pop(name, None) for name in PER_IMAGE]).encode())
    job = {
        "images": len(request.prompts),
        "per_image": own.hexdigest(),
        "request": described,
        "extractors": {name: extractor.name for name, extractor in extractors.items()},
    }
    plain: Job = json.loads(json.dumps(job))  # with lists in place of tuples, as in the file
    return plain


def check_folder(out: Path, job: Job) -> None:
    """Raise UserError if `out` contains another job, or something else."""
    if (out / JOB).is_file():
        if read_json(out / JOB) != job:
            raise UserError(f"{out} contains an evaluation with other options, data or weights; choose another folder")
    elif out.exists() and (not out.is_dir() or any(_is_foreign(file) for file in out.iterdir())):
        raise UserError(f"{out} is not empty and contains no evaluation; choose another folder")


def _is_foreign(file: Path) -> bool:
    """Return whether `file` is neither an evaluation's nor the temporary file of a rank that is writing JOB."""
    return file.name not in _OWN and not (file.name.startswith(".") and file.suffix == ".tmp")
