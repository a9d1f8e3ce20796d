"""Check shards: captions, images, duplicates, and stored embeddings."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from imagen.data.loading.transforms import decode
from imagen.data.shards.dataset import ShardedDataset
from imagen.data.shards.images import BadSample, choose_image
from imagen.data.shards.inspect import LARGEST, spread
from imagen.doctor.finding import Finding, Measured, Numbers, Severity
from imagen.doctor.subject import Subject

CAPTIONS, BYTES, PIXELS = 10_000, 4_000, 300  # samples whose captions, bytes and pixels are read
FEW = 8  # samples below which shares are not assessed
ALIKE = 0.25  # share of the most frequent caption
EMPTY, CONSTANT, DUPLICATES, UNREADABLE, LEAK = 0.05, 0.05, 0.05, 0.02, 0.02  # tolerated shares
DARK, BRIGHT = 100, 155  # of 255: all images below the one, or above the other


class Captions:
    """Judge whether captions differ, and whether there are any."""

    name, title, slow = "captions", "captions: are they there, and do they differ?", False
    finds = ("captions-alike", "captions-empty")

    def __call__(self, subject: Subject) -> Iterator[Measured]:
        for where, dataset in subject.datasets.items():
            chosen = spread(CAPTIONS // (10 if subject.quick else 1), len(dataset))
            captions = [dataset.caption(i) for i in subject.each(chosen, f"{where}: captions")]
            count = Counter(caption for caption in captions if caption)
            empty = captions.count("") / max(1, len(captions))
            text, most = count.most_common(1)[0] if count else ("", 0)
            share = most / max(1, len(captions))
            numbers: Numbers = {"captions": len(captions), "distinct": len(count)}
            numbers |= {"most_frequent": round(share, 4), "empty": round(empty, 4)}
            findings = []
            if share > ALIKE and len(captions) >= FEW:
                findings.append(
                    _finding(
                        "captions-alike",
                        where,
                        numbers,
                        f"{share:.0%} of the captions are the same: {text[:60]!r}. A network cannot learn from them "
                        "what a prompt means.",
                        "Give images captions that tell them apart, or train without text (text null). For a single "
                        "subject one caption is right, beside other images with captions of their own.",
                        "problem" if share > 0.5 else "warning",
                    )
                )
            if empty > EMPTY:
                findings.append(
                    _finding(
                        "captions-empty",
                        where,
                        numbers,
                        f"{empty:.0%} of the samples have no caption.",
                        "Build the shards again with captions (KEY.txt beside each image, or --caption-column).",
                        "problem" if empty > 0.5 else "warning",
                    )
                )
            yield Measured(where=where, numbers=numbers, findings=tuple(findings))


@dataclass(frozen=True)
class _Image:
    """Statistics of one image's pixels, 0 to 255."""

    least: int
    most: int
    deviation: float  # over all pixels, per channel
    grey: bool  # red, green and blue are equal


class Images:
    """Judge the range of pixel values, and images without content or colour."""

    name, title, slow = "images", "images: range of values, colour, content", False
    finds = ("value-range", "images-grey", "images-constant", "images-unreadable")

    def __call__(self, subject: Subject) -> Iterator[Measured]:
        for where, dataset in subject.datasets.items():
            chosen = spread(PIXELS // (5 if subject.quick else 1), len(dataset))
            images, unreadable = [], 0
            for i in subject.each(chosen, f"{where}: images"):
                try:
                    images.append(_read(dataset, i))
                except BadSample:
                    unreadable += 1
            wants_grey = {config.unet.image_channels for config in subject.stages} == {1}
            yield self._judge(where, images, unreadable, wants_grey)

    def _judge(self, where: str, images: list[_Image], unreadable: int, wants_grey: bool) -> Measured:
        count = len(images) + unreadable
        least, most = min((i.least for i in images), default=0), max((i.most for i in images), default=0)
        from_floats = 0 < most <= 2
        shares = {
            "unreadable": unreadable / max(1, count),
            "constant": sum(image.deviation < 1 for image in images if not from_floats) / max(1, len(images)),
            "grey": sum(image.grey for image in images) / max(1, len(images)),
        }
        numbers: Numbers = {"images": count, "lowest_value": least, "highest_value": most}
        numbers |= {name: round(share, 4) for name, share in shares.items()}
        findings = []
        if shares["unreadable"] > UNREADABLE:
            findings.append(
                _finding(
                    "images-unreadable",
                    where,
                    numbers,
                    f"{shares['unreadable']:.0%} of the images cannot be decoded; training replaces them by others.",
                    "Build the shards again with `imagen data build`, which rejects such images and says why.",
                    "warning",
                )
            )
        if images and (most < DARK or least > BRIGHT) and shares["constant"] < 1:
            why = " They were saved from values between 0 and 1." if from_floats else ""
            findings.append(
                _finding(
                    "value-range",
                    where,
                    numbers,
                    f"All pixel values lie between {least} and {most} of 255.{why} Samples will be as "
                    f"{'dark' if most < DARK else 'pale'}.",
                    "Write the images with values from 0 to 255 (multiply values between 0 and 1 by 255) and build the "
                    "shards again.",
                )
            )
        if shares["constant"] > CONSTANT:
            findings.append(
                _finding(
                    "images-constant",
                    where,
                    numbers,
                    f"{shares['constant']:.0%} of the images have one colour everywhere.",
                    "Look at them (`imagen data inspect SHARDS --html data.html`) and remove them from the source.",
                    "problem" if shares["constant"] > 0.5 else "warning",
                )
            )
        if len(images) >= FEW and shares["grey"] > 0.95 and not wants_grey and shares["constant"] < 0.5:
            findings.append(
                _finding(
                    "images-grey",
                    where,
                    numbers,
                    f"{shares['grey']:.0%} of the images have no colour, so samples will have none.",
                    "If they should be grey, train with --stage.unet.image_channels 1; else build from the colour "
                    "originals.",
                    "warning",
                )
            )
        return Measured(where=where, numbers=numbers, findings=tuple(findings))


class Duplicates:
    """Judge the share of images that appear several times, and of held-out images that are trained on.

    Copies have the same number of bytes. In a large data set, all images of some numbers of bytes are therefore read,
    and not evenly spaced ones, among which copies would be rare.
    """

    name, title, slow = "duplicates", "duplicates, and held-out images in training", False
    finds = ("duplicates", "heldout-in-training")

    def __call__(self, subject: Subject) -> Iterator[Measured]:
        count = BYTES // (10 if subject.quick else 1)
        sizes: dict[str, np.ndarray] = {}
        for where, dataset in subject.datasets.items():
            sizes[where] = dataset.image_bytes()
            chosen = _with_bytes(sizes[where], _some(np.unique(sizes[where]), sizes[where], count), count)
            mine = _hashes(subject, where, chosen)
            copies = len(mine) - len(set(mine))
            share, images = copies / max(1, len(mine)), _looked(len(mine), len(dataset))
            numbers: Numbers = {"images": len(mine), "of": len(dataset), "copies": copies, "share": round(share, 4)}
            findings = []
            if share > DUPLICATES:
                findings.append(
                    _finding(
                        "duplicates",
                        where,
                        numbers,
                        f"{share:.0%} of the images are copies of others: {copies:,} of {images}.",
                        "Build the shards again without --keep-duplicates: the network memorises what it sees most.",
                        "problem" if share > 0.5 else "warning",
                    )
                )
            if where == "heldout" and "train" in sizes and mine:
                looked = np.array(spread(count, len(dataset)))
                some = _some(np.unique(sizes[where][looked]), sizes["train"], count)
                ours = _hashes(subject, where, looked[np.isin(sizes[where][looked], some)])
                theirs = set(_hashes(subject, "train", _with_bytes(sizes["train"], some, count)))
                leaked = sum(each in theirs for each in ours) / max(1, len(ours))
                numbers |= {"looked_for": len(ours), "in_training": round(leaked, 4)}
                if leaked > LEAK:
                    findings.append(
                        _finding(
                            "heldout-in-training",
                            where,
                            numbers,
                            f"{leaked:.0%} of the held-out images ({_looked(len(ours), len(dataset))}) are training "
                            "images, too: validation is too good.",
                            "Remove duplicates before the images are divided.",
                            "warning",
                        )
                    )
            yield Measured(where=where, numbers=numbers, findings=tuple(findings))


def _some(wanted: np.ndarray, sizes_N: np.ndarray, count: int) -> np.ndarray:
    """Return random ones of the `wanted` numbers of bytes, at least one, which `count` of the samples have at most."""
    shuffled, ordered = np.random.default_rng(0).permutation(wanted), np.sort(sizes_N)
    samples = np.searchsorted(ordered, shuffled, "right") - np.searchsorted(ordered, shuffled, "left")
    return shuffled[: max(1, int(np.count_nonzero(np.cumsum(samples) <= count)))]


def _with_bytes(sizes_N: np.ndarray, some: np.ndarray, count: int) -> np.ndarray:
    """Return the samples with these numbers of bytes; `count` evenly spaced ones if there are more."""
    found = np.flatnonzero(np.isin(sizes_N, some))
    return found[spread(count, len(found))]


def _hashes(subject: Subject, where: str, chosen: np.ndarray) -> list[bytes]:
    """Return the hashes of the readable images among the chosen samples of a split."""
    dataset, found = subject.datasets[where], []
    for i in subject.each(chosen.tolist(), f"{where}: duplicates"):
        try:
            data = dataset.read(i, choose_image(dataset.extensions(i), LARGEST))
        except BadSample:
            continue
        found.append(hashlib.blake2b(data, digest_size=16).digest())
    return found


def _looked(images: int, of: int) -> str:
    """Return the number of images looked at, for a message."""
    return f"{images:,}" if images >= of else f"{images:,} looked at, of {of:,}"


def _read(dataset: ShardedDataset, i: int) -> _Image:
    image_CHW = decode(dataset.read(i, choose_image(dataset.extensions(i), LARGEST)), 128).numpy()
    return _Image(
        least=int(image_CHW.min()),
        most=int(image_CHW.max()),
        deviation=float(image_CHW.reshape(3, -1).astype(np.float32).std(1).max()),
        grey=bool((image_CHW[0] == image_CHW[1]).all() and (image_CHW[1] == image_CHW[2]).all()),
    )


def _finding(
    name: str, where: str, numbers: Numbers, explanation: str, remedy: str, severity: Severity = "problem"
) -> Finding:
    return Finding(name=name, severity=severity, where=where, numbers=numbers, explanation=explanation, remedy=remedy)
