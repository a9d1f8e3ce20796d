"""Test the loader: its stream is independent of workers, ranks and interruptions, and bad samples are replaced."""

import dataclasses
import io
import logging
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from encoders import Text, WordEncoder
from loading import open_loader
from PIL import Image
from samples import epoch_order, take

from imagen.data.embed.encode import encode_shards
from imagen.data.embed.sidecar import Embeddings
from imagen.data.loading.config import DataConfig
from imagen.data.loading.loader import Loader
from imagen.data.loading.stream import dataset_batch
from imagen.data.loading.transforms import decode
from imagen.data.shards.dataset import ShardedDataset, open_split
from imagen.data.shards.writer import ShardWriter
from imagen.errors import UserError

SUPPORT = str(Path(__file__).parents[2] / "support")  # for the scripts that tests run


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def picture(seed: int, side: int) -> np.ndarray:
    """Return a smooth image [side, side, 3] in which every crop and every seed differs."""
    y, x = (np.mgrid[:side, :side] + 0.5) / side
    a, b, c = np.random.default_rng(seed).uniform(0.5, 3, 3)
    waves = [np.sin(a * x + b * y), np.cos(c * y - a * x), np.sin(b * x * y + c)]
    return (127.5 + 110 * np.stack(waves, axis=-1)).round().astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Write shards of 23 samples in 5 tars: images of 8 and 32 pixels, embeddings of 1 to 4 tokens."""
    folder = tmp_path_factory.mktemp("shards")
    with ShardWriter(folder, 5) as writer:
        for i in range(23):
            caption = " ".join(f"w{i}" for _ in range(i % 4))
            pictures = {f"{side}.png": png(picture(i, side)) for side in (8, 32)}
            writer.write({"__key__": f"k{i:02d}", **pictures, "txt": caption.encode()})
    encode_shards(folder, WordEncoder(), progress=False)
    return folder


CONFIG = DataConfig(crop=16, flip=True, workers=0, window=2)


def make_loader(folder, config=CONFIG, **options) -> Loader:
    return open_loader(
        folder, config, **{"resolution": 32, "low_resolution": 8, "text": Text(), "batch_size": 8, "seed": 3} | options
    )


def comparable_samples(batches) -> list[tuple]:
    """Return (key, caption, image, low-resolution image, unpadded text) of every sample, as comparable values."""
    return [
        (key, caption, batch.image[j].numpy().tobytes(), batch.low_res[j].numpy().tobytes(),
         batch.text[j][batch.text_mask[j]].numpy().tobytes())
        for batch in batches for j, (key, caption) in enumerate(zip(batch.keys, batch.captions, strict=True))
    ]  # fmt: skip


@pytest.fixture(scope="module")
def stream(folder):
    """Return 80 samples of the uninterrupted stream, more than three epochs."""
    batches = take(make_loader(folder), 10)
    assert [batch.position for batch in batches] == list(range(0, 80, 8))
    return comparable_samples(batches)


# Stream


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker")
@pytest.mark.parametrize("workers", [0, 2, 3])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_resuming_anywhere_with_any_workers_and_ranks_equals_the_uninterrupted_stream(
    folder, stream, workers, world_size
):
    start = int(np.random.default_rng([workers, world_size]).integers(1, 60))
    config = dataclasses.replace(CONFIG, workers=workers)
    ranks = [
        take(make_loader(folder, config, position=start, rank=rank, world_size=world_size), 2)
        for rank in range(world_size)
    ]
    for k in range(2):
        found = comparable_samples(batches[k] for batches in ranks)
        first = start + 8 * k
        assert found == stream[first : first + 8]
        assert [batches[k].position for batches in ranks] == [first + r * 8 // world_size for r in range(world_size)]


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker")
@pytest.mark.parametrize("before, after", [
    ((0, 1), (2, 2)), ((2, 1), (3, 4)), ((3, 2), (0, 1)), ((2, 4), (0, 2)), ((3, 1), (2, 8)), ((0, 2), (3, 1)),
])  # fmt: skip
def test_a_run_may_stop_at_any_step_and_resume_with_other_workers_and_ranks(folder, stream, before, after):
    """before, after: (workers, ranks). Both parts together equal the uninterrupted stream, pixel by pixel."""
    steps = int(np.random.default_rng([*before, *after]).integers(1, 9))
    found, position = [], 0
    for (workers, ranks), count in ((before, steps), (after, 10 - steps)):
        config = dataclasses.replace(CONFIG, workers=workers)
        options = [{"rank": rank, "world_size": ranks, "position": position} for rank in range(ranks)]
        parts = [take(make_loader(folder, config, **each), count) for each in options]
        found += comparable_samples(part[k] for k in range(count) for part in parts)
        position += 8 * count  # a checkpoint stores nothing else
    assert found == stream


def test_every_epoch_has_every_sample_once_with_new_augmentation(stream):
    keys = [sample[0] for sample in stream]
    for epoch in range(3):
        assert sorted(keys[epoch * 23 : (epoch + 1) * 23]) == [f"k{i:02d}" for i in range(23)]
    assert len({sample[2] for sample in stream}) > 75


def test_text_is_the_encoder_output_padded_with_zeros(folder):
    for batch in take(make_loader(folder), 3):
        assert batch.text.shape[1] == batch.text_mask.sum(1).max()
        assert batch.text[~batch.text_mask].abs().sum() == 0
        for j, expected in enumerate(WordEncoder().encode(batch.captions)):
            assert torch.equal(batch.text[j][batch.text_mask[j]], expected.bfloat16().float())


def test_crops_are_aligned_and_flipped_together(folder):
    seen = set()
    for batch in take(make_loader(folder), 10):
        assert batch.image.shape == (8, 3, 16, 16) and batch.low_res.shape == (8, 3, 4, 4)
        assert batch.image.dtype == batch.low_res.dtype == torch.uint8
        reduced = F.interpolate(batch.image.float(), size=(4, 4), mode="area")
        assert (reduced - batch.low_res).abs().max() < 12  # a mirrored or shifted crop is off by up to 60
        for j, key in enumerate(batch.keys):
            whole = torch.from_numpy(picture(int(key[1:]), 32)).permute(2, 0, 1)
            for flipped in (False, True):
                target = batch.image[j].flip(-1) if flipped else batch.image[j]
                seen |= {
                    (top, left, flipped) for top in range(0, 17, 4) for left in range(0, 17, 4)
                    if torch.equal(whole[:, top : top + 16, left : left + 16], target)
                }  # fmt: skip
    assert len(seen) > 35  # of 5 x 5 positions x 2 flips


def test_images_with_captions_that_mention_left_or_right_are_never_flipped(tmp_path):
    captions = ["a cat on the left", "a bright cat", "Right-handed cat", "a copyrighted cat", "the leftmost cat", "cat"]
    with ShardWriter(tmp_path) as writer:
        for i, caption in enumerate(captions):
            writer.write({"__key__": f"k{i}", "png": png(picture(i, 8)), "txt": caption.encode()})
    flipped: dict[int, set[bool]] = {i: set() for i in range(6)}
    for batch in take(open_loader(tmp_path, DataConfig(flip=True, workers=0), resolution=8, batch_size=6, seed=0), 12):
        for key, image in zip(batch.keys, batch.image, strict=True):
            whole = torch.from_numpy(picture(int(key[1:]), 8)).permute(2, 0, 1)
            assert torch.equal(image, whole) or torch.equal(image, whole.flip(-1))
            flipped[int(key[1:])].add(torch.equal(image, whole.flip(-1)))
    assert flipped == {i: {False} if i in (0, 2, 4) else {False, True} for i in range(6)}


def test_full_decoding_equals_bicubic_resizing_of_pillow(tmp_path):
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    Image.fromarray(noise).save(file, "JPEG", quality=95)
    with ShardWriter(tmp_path) as writer:
        writer.write({"__key__": "k", "jpg": file.getvalue()})
    expected = np.asarray(Image.open(file).resize((32, 32), Image.Resampling.BICUBIC)).astype(int)
    apart = {}
    for full in (False, True):
        config = DataConfig(workers=0, full_decode=full)
        image = take(open_loader(tmp_path, config, resolution=32, batch_size=1, seed=0), 1)[0].image[0]
        apart[full] = np.abs(image.permute(1, 2, 0).numpy() - expected).max()
    assert apart[True] <= 2 < apart[False]


def test_images_of_the_right_size_are_unchanged(folder):
    batch = dataset_batch(folder, [4, 20, 4], resolution=32, low_resolution=8, text=Text())
    assert batch.keys == ["k04", "k20", "k04"] and batch.skipped == 0
    for j, i in enumerate((4, 20, 4)):
        assert np.array_equal(batch.image[j].permute(1, 2, 0).numpy(), picture(i, 32))
        assert np.array_equal(batch.low_res[j].permute(1, 2, 0).numpy(), picture(i, 8))
    # There is no image of 16 pixels, so the one of 32 is downsampled.
    medium = dataset_batch(folder, [4], resolution=16)
    assert medium.text is None and medium.low_res is None
    expected = Image.fromarray(picture(4, 32)).resize((16, 16), Image.Resampling.BICUBIC)
    assert np.abs(medium.image[0].permute(1, 2, 0).numpy().astype(int) - np.asarray(expected)).max() <= 1


def test_the_global_random_state_is_unchanged(folder):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    take(make_loader(folder), 2)
    assert torch.equal(torch.rand(3), expected)


def test_the_unconditional_embedding_is_stored(folder):
    dataset = open_split(folder)
    assert torch.equal(Embeddings(dataset, Text()).unconditional(), torch.zeros(1, 8))
    empty = Embeddings(dataset, Text(unconditional="empty")).unconditional()
    assert torch.equal(empty, WordEncoder().encode([""])[0].bfloat16().float())


def test_workers_survive_signals_and_a_script_that_ends_within_a_stream_exits(folder):
    """Runs in a new session and signals its whole process group, as terminals and schedulers do.

    Workers that resize must not wait for threads that existed only in the parent before the fork.
    """
    script = f'''
import signal, subprocess, sys
import torch
sys.path.append({SUPPORT!r})
from loading import DataConfig, open_loader
signal.signal(signal.SIGTERM, lambda *_: None)
signal.signal(signal.SIGINT, lambda *_: None)
torch.set_num_threads(2)
torch.nn.functional.interpolate(torch.rand(8, 3, 256, 256) @ torch.rand(256, 256), size=64, mode="bicubic")
batches = iter(open_loader({str(folder)!r}, DataConfig(workers=2), resolution=16, batch_size=4, seed=0))
print(next(batches).keys, next(batches).keys)  # both workers have started
send = """
import os, signal
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
    os.kill(0, number)
"""
subprocess.run([sys.executable, "-c", send])
for _ in range(30):
    next(batches)
print("still here")
'''
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, start_new_session=True
    )
    assert done.returncode == 0 and done.stderr == "", done
    assert done.stdout.startswith("['k") and done.stdout.endswith("\nstill here\n")


# Bad samples and bad sizes


@pytest.fixture
def damaged(tmp_path):
    """Write 20 samples: k05 is not an image, k11 is too small."""
    with ShardWriter(tmp_path, 6) as writer:
        for i in range(20):
            data = b"\x89PNG broken" if i == 5 else png(picture(i, 4 if i == 11 else 8))
            writer.write({"__key__": f"k{i:02d}", "png": data, "txt": b"x"})
    return tmp_path


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_sample_is_replaced_logged_and_counted(damaged, workers, caplog):
    config = DataConfig(workers=workers, window=2)
    options = {"resolution": 8, "batch_size": 4, "seed": 1}
    with caplog.at_level(logging.WARNING):
        batches = take(open_loader(damaged, config, **options), 10)  # two epochs
    keys = [key for batch in batches for key in batch.keys]
    order = np.concatenate([epoch_order(1, epoch, np.array([6, 6, 6, 2]), 2) for epoch in range(3)])
    for position, key in enumerate(keys):
        candidates = [i for i in order[position:] if i not in (5, 11)]
        assert key == f"k{candidates[0]:02d}"
    assert sum(batch.skipped for batch in batches) == len(caplog.messages) >= 4
    assert any("k05" in m and "00000.tar" in m for m in caplog.messages)
    assert any("k11" in m and "fewer than 8" in m for m in caplog.messages)
    resumed = take(open_loader(damaged, DataConfig(workers=0, window=2), **options, position=12), 3)
    assert [batch.keys for batch in resumed] == [batch.keys for batch in batches[3:6]]
    with pytest.raises(UserError, match=r"k05 in .*00000\.tar"):
        dataset_batch(damaged, [5], resolution=8)


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_bad_samples_are_a_user_error(damaged, workers):
    config = DataConfig(workers=workers, max_bad=0.01)
    with pytest.raises(UserError, match=r"samples are bad .*k\d\d in"):
        take(open_loader(damaged, config, resolution=8, batch_size=4, seed=1), 100)
    with pytest.raises(UserError, match="in a row"):  # all images are too small
        take(open_loader(damaged, config, resolution=64, batch_size=4, seed=1), 100)


@pytest.mark.parametrize("options, word", [
    ({"batch_size": 6, "world_size": 4}, "6 does not divide among 4"),
    ({"low_resolution": 12}, "32 is not a multiple of low_resolution 12"),
    ({"config": DataConfig(crop=18)}, "crop 18"),
    ({"config": DataConfig(crop=64)}, "crop 64"),
    ({"split": "heldout"}, "heldout"),
    ({"config": DataConfig(window=0)}, "window 0"),
    ({"batch_size": 0}, "batch size 0"),
])  # fmt: skip
def test_unsuitable_resolutions_are_rejected(folder, options, word):
    with pytest.raises(UserError, match=word):
        make_loader(folder, **options)


def test_models_without_text_need_no_sidecar(damaged):
    assert take(open_loader(damaged, DataConfig(workers=0), resolution=8, batch_size=4, seed=1), 1)[0].text is None
    with pytest.raises(UserError, match=f"no text embeddings of 'tests/fake' .*; run `imagen data encode {damaged}"):
        open_loader(damaged, DataConfig(), resolution=8, batch_size=4, seed=1, text=Text())


def test_a_shard_lost_during_training_is_one_line_from_a_worker_too(damaged):
    config = DataConfig(workers=1)
    stream = open_loader(damaged, config, resolution=8, batch_size=4, seed=1)
    for tar in damaged.glob("*.tar"):
        tar.unlink()
    with pytest.raises(UserError, match=r"^cannot read .*\.tar: No such file or directory$"):
        take(stream, 1)


def test_a_pickled_dataset_gives_the_same_samples(folder):
    """Spawned workers receive the data set as a pickle."""
    copy = pickle.loads(pickle.dumps(make_loader(folder).stream))
    assert comparable_samples([copy.__getitems__(list(range(8)))]) == comparable_samples(take(make_loader(folder), 1))
    assert isinstance(copy.reader.dataset, ShardedDataset)


def test_grey_images_are_the_luma_of_colour_images(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    grey = decode(file.getvalue(), channels=1)
    assert grey.shape == (1, 64, 64)
    luma = pixels @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601-7, 2.5.1
    assert np.abs(grey[0].numpy() - luma).max() <= 1
