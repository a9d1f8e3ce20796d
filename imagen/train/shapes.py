"""The image sizes of a training run: its aspect-ratio buckets, and what they mean for the stage and its batches."""

import math
from collections.abc import Callable
from dataclasses import replace

from imagen.data.loading.buckets import Assignment, Size, assign, bucket_sizes, show_size
from imagen.data.loading.config import DataConfig
from imagen.data.shards.mixture import AnyDataset
from imagen.errors import UserError
from imagen.stage.config import StageConfig
from imagen.train.config import TrainConfig, micro_batches

MOST_COUNTED = 5_000_000  # samples whose sizes are read at the start although no bucket needs them


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
    """Assign the samples of a data set to buckets by the sizes in its indexes; None without buckets."""
    sizes = run_buckets(stage, data)
    return None if sizes is None else assign(sizes, dataset.image_sizes(), data.max_enlargement)


def report_sizes(stage: StageConfig, data: DataConfig, dataset: AnyDataset, report: Callable[[str], None]) -> None:
    """Report the images per bucket, and how many are too small or upsampled; the latter also without buckets.

    Says nothing if no image is small, if an index of an earlier version lacks the sizes, or for a very large data set.
    """
    side, assignment = stage.resolution, assign_buckets(stage, data, dataset)
    if assignment is None:
        if len(dataset) > MOST_COUNTED or not dataset.has_image_sizes:
            return
        assignment = assign([(side, side)], dataset.image_sizes(), data.max_enlargement)
    else:
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
        where = "any bucket" if data.buckets else f"{side}x{side}"
        report(
            f"{small:,} of {total:,} images are too small for {where} and are not used; data.max_enlargement above "
            f"{data.max_enlargement:g} upsamples them"
        )
    if unreadable:
        report(f"{unreadable:,} of {total:,} samples have no readable image and are not used")
