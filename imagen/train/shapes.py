"""The image sizes of a training run: its aspect-ratio buckets, and what they mean for the stage and its batches."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from imagen.data.loading.buckets import Assignment, Size, assign, bucket_sizes, show_size
from imagen.data.loading.config import DataConfig
from imagen.data.shards.mixture import AnyDataset
from imagen.errors import UserError
from imagen.stage.config import StageConfig
from imagen.train.config import TrainConfig, micro_batches

MOST_COUNTED = 5_000_000  # samples whose sizes are read at the start although there are no buckets


def size_unit(stage: StageConfig) -> int:
    """Return the number that heights and widths of a stage's training images must be multiples of."""
    scale = 1 if stage.low_resolution is None else stage.resolution // stage.low_resolution
    return math.lcm(stage.unet.total_stride, scale)


def run_buckets(stage: StageConfig, data: DataConfig) -> tuple[Size, ...] | None:
    """Return the bucket sizes of a run; None without buckets. Raises UserError for invalid ones."""
    return None if data.buckets is None else bucket_sizes(data.buckets, stage.resolution, size_unit(stage))


def largest_size(stage: StageConfig, data: DataConfig) -> Size:
    """Return height and width of the largest images that the U-Net is trained on: crops, a bucket, or the square."""
    if data.crop is not None:
        return data.crop, data.crop
    return (run_buckets(stage, data) or ((stage.resolution, stage.resolution),))[0]


def with_sizes(stage: StageConfig, data: DataConfig) -> StageConfig:
    """Return the stage with the run's buckets in `sizes`; unchanged without buckets, or with crops.

    A stage that is trained on crops is sampled at other sizes anyway.
    """
    sizes = run_buckets(stage, data)
    return stage if sizes is None or data.crop is not None else replace(stage, sizes=sizes)


def within_buckets(train: TrainConfig, data: DataConfig) -> TrainConfig:
    """Return the config with micro-batches of at most `data.bucket_batch` samples, which have one shape."""
    if data.bucket_batch is None or (train.micro_batch or train.batch_size) <= data.bucket_batch:
        return train
    return replace(train, micro_batch=data.bucket_batch)


def check_buckets(stage: StageConfig, data: DataConfig, train: TrainConfig, world_size: int | None) -> None:
    """Raise UserError unless buckets, crops and micro-batches (if the world size is known) fit each other."""
    sizes = run_buckets(stage, data)
    if sizes is None:
        if data.bucket_batch is not None:
            raise UserError("data.bucket_batch is set without data.buckets; set data.buckets to auto, or omit both")
        return
    if data.crop is not None and (small := [size for size in sizes if min(size) < data.crop]):
        raise UserError(f"data.crop is {data.crop}, but the bucket {show_size(small[0])} is smaller")
    group = data.bucket_batch or train.batch_size
    if train.batch_size % group:
        raise UserError(f"data.bucket_batch is {group}; it must divide train.batch_size {train.batch_size}")
    if world_size is None:
        return
    micro, _ = micro_batches(within_buckets(train, data), world_size)
    if group % micro:
        raise UserError(
            f"data.bucket_batch is {group}, but a rank's micro-batch has {micro} samples; one must divide the other: "
            f"set train.micro_batch to a divisor of {group}"
        )


def assign_buckets(stage: StageConfig, data: DataConfig, dataset: AnyDataset) -> Assignment | None:
    """Assign samples to buckets by the image sizes in the indexes; without buckets, return `leave_out_small`."""
    sizes = run_buckets(stage, data)
    if sizes is None:
        return leave_out_small(stage, data, dataset)
    return assign(sizes, dataset.image_sizes(), data.max_enlargement)


def leave_out_small(stage: StageConfig, data: DataConfig, dataset: AnyDataset) -> Assignment | None:
    """Assign all images that are large enough to the stage's square; None if no image is known to be too small.

    Images whose size cannot be read are included: they are bad samples, which training counts.
    """
    squares = _squares(stage, data, dataset)
    if squares is None or not squares.count(Assignment.TOO_SMALL):
        return None
    bucket_N = np.where(squares.bucket == Assignment.UNREADABLE, np.int16(0), squares.bucket)
    return replace(squares, bucket=bucket_N)


def _squares(stage: StageConfig, data: DataConfig, dataset: AnyDataset) -> Assignment | None:
    """Assign images to the stage's square; None if an index lacks the sizes, or for a very large data set."""
    if len(dataset) > MOST_COUNTED or not dataset.has_image_sizes:
        return None
    return assign([(stage.resolution, stage.resolution)], dataset.image_sizes(), data.max_enlargement)


def report_sizes(stage: StageConfig, data: DataConfig, dataset: AnyDataset, report: Callable[[str], None]) -> None:
    """Report the images per bucket, and how many are too small or upsampled; the latter also without buckets.

    Says nothing if no image is small, if an index of an earlier version lacks the sizes, or for a very large data set.
    """
    has_buckets, side = data.buckets is not None, stage.resolution
    assignment = assign_buckets(stage, data, dataset) if has_buckets else _squares(stage, data, dataset)
    if assignment is None:
        return
    if has_buckets:
        counts = [f"{show_size(size)} {assignment.count(n):,}" for n, size in enumerate(assignment.sizes)]
        report(f"images per bucket (width x height): {', '.join(counts)}")
    small, unreadable = assignment.count(Assignment.TOO_SMALL), assignment.count(Assignment.UNREADABLE)
    total = len(assignment.bucket)
    if assignment.upsampled:
        report(
            f"{assignment.upsampled:,} of {total:,} images are upsampled, by at most data.max_enlargement "
            f"{data.max_enlargement:g}"
        )
    if small:
        where = "any bucket" if has_buckets else f"{side}x{side}"
        report(
            f"{small:,} of {total:,} images are too small for {where} and are not used; data.max_enlargement above "
            f"{data.max_enlargement:g} upsamples them"
        )
    if unreadable:
        use = "are not used" if has_buckets else f"count as bad samples (data.max_bad {data.max_bad:g})"
        report(f"{unreadable:,} of {total:,} samples have no readable image and {use}")
