"""Test images with several captions: building, encoding, drawing one caption per position, and inspecting."""

import json
import re
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from corpus import encoded, picture
from encoders import Text, WordEncoder
from loading import open_loader
from safetensors import safe_open
from samples import take

from imagen.data.build.dataset import build
from imagen.data.embed.encode import encode_shards
from imagen.data.embed.sidecar import Embeddings, sidecar_path
from imagen.data.loading.config import DataConfig
from imagen.data.loading.loader import Loader
from imagen.data.loading.stream import dataset_batch
from imagen.data.shards.captions import choose, merge, unpack
from imagen.data.shards.dataset import ShardedDataset, open_split
from imagen.data.shards.gallery import write_gallery
from imagen.data.shards.index import index_path
from imagen.data.shards.inspect import inspect
from imagen.data.shards.writer import ShardWriter
from imagen.errors import UserError
from imagen.train.on_the_fly import EncodingLoader

WANTED = {i: [f"caption {j} of {i}" for j in range(5)] for i in range(3)}


def shuffled_table(root: Path) -> Path:
    """Write a table like COCO's annotations: 3 images with 5 captions each, one per row, in mixed order."""
    (root / "images").mkdir()
    for i in range(3):
        (root / f"images/{i}.png").write_bytes(encoded(picture(i), "PNG"))
    rows = [f"images/{i}.png,caption {j} of {i}\n" for j in range(5) for i in (2, 0, 1)]
    (root / "pairs.csv").write_text("image,caption\n" + "".join(rows))
    return root / "pairs.csv"


def build_dataset(source: Path, out: Path, **options) -> tuple[dict, ShardedDataset]:
    result = build(source, out, workers=1, progress=False, **options)
    return result, ShardedDataset(out)


def by_number(data: ShardedDataset) -> dict[int, list[str]]:
    return {int(data.caption(i).split()[-1]): data.captions(i) for i in range(len(data))}


def test_a_table_with_several_rows_per_image_gives_samples_with_lists(tmp_path):
    result, data = build_dataset(shuffled_table(tmp_path), tmp_path / "s")
    assert (result["records"], result["samples"], result["captions"], result["rejected"]) == (3, 3, 15, {})
    assert by_number(data) == WANTED
    with tarfile.open(data.tar_path(0)) as tar:  # the tar holds each image once, and .txt has the first caption
        names = [name.rpartition(".")[2] for name in tar.getnames()]
        assert Counter(names) == {"png": 3, "txt": 3, "json": 3}
        key = data.key(0)
        first, all_of_it = (tar.extractfile(f"{key}.{name}").read() for name in ("txt", "json"))
    assert json.loads(all_of_it) == {"captions": data.captions(0)} and first.decode() == data.captions(0)[0]


def test_keep_duplicates_makes_each_row_a_sample(tmp_path):
    result, data = build_dataset(shuffled_table(tmp_path), tmp_path / "s", keep_duplicates=True)
    assert (result["samples"], result["captions"]) == (15, 15)
    assert all(len(data.captions(i)) == 1 for i in range(15))


def test_lists_in_jsonl_give_the_same_samples(tmp_path):
    shuffled_table(tmp_path)
    rows = [{"image": f"images/{i}.png", "caption": captions} for i, captions in WANTED.items()]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result, data = build_dataset(tmp_path / "t.jsonl", tmp_path / "s")
    assert (result["records"], result["captions"]) == (3, 15) and by_number(data) == WANTED


def test_a_bad_caption_among_good_ones_is_omitted_and_listed(tmp_path):
    shuffled_table(tmp_path)
    lists = [["a\0b", "good 0", " ", "good 0 ", "better 0"], ["\x07", ""], ["x" * 2001, "good 2"]]
    rows = [{"image": f"images/{i}.png", "captions": some} for i, some in enumerate(lists)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result, data = build_dataset(tmp_path / "t.jsonl", tmp_path / "s")
    assert [data.captions(i) for i in range(len(data))] == [["good 0", "better 0"], ["good 2"]]
    assert data.extensions(1) == ["png", "txt"]
    assert result["rejected"] == {"caption of several": 3, "control characters": 1}
    assert result["records"] == 3 + 3  # one per image, and one per omitted caption
    listed = [json.loads(line) for line in (tmp_path / "s/00000.rejected.jsonl").read_text().splitlines()]
    assert [(row["origin"], row["detail"]) for row in listed if row["reason"] == "caption of several"] == [
        ("t.jsonl, line 1", "caption 1 of 5: '\\x00' at character 1 (control characters)"),
        ("t.jsonl, line 1", "caption 3 of 5: only white space (empty caption)"),
        ("t.jsonl, line 3", "caption 1 of 2: 2001 characters, the limit is 2000 (long caption)"),
    ]


def test_duplicates_are_removed_with_all_their_captions(tmp_path):
    table = shuffled_table(tmp_path)
    (tmp_path / "images/copy.png").write_bytes((tmp_path / "images/1.png").read_bytes())
    table.write_text(table.read_text() + "images/copy.png,one\nimages/copy.png,two\n")
    result, data = build_dataset(table, tmp_path / "s")
    assert (result["samples"], result["captions"], result["rejected"]) == (3, 15, {"duplicate": 1})
    assert by_number(data) == WANTED


# Existing shards


def shards(folder: Path, lists: list[list[str]], members: dict[int, bytes] | None = None) -> Path:
    """Write shards of two samples. members: JSON members by sample number that replace those for the lists."""
    with ShardWriter(folder, 2) as writer:
        for i, captions in enumerate(lists):
            sample = {"__key__": f"k{i}", "png": encoded(picture(i), "PNG"), "txt": captions[0].encode()}
            data = (members or {}).get(i) or (
                json.dumps({"captions": captions}).encode() if len(captions) > 1 else None
            )
            writer.write(sample | ({"json": data} if data else {}))
    return folder


@pytest.mark.parametrize(
    "member, captions",
    [
        ({"captions": ["first", "second"]}, ["first", "second"]),
        ({"captions": ["other", " first ", "other", "", 5, None, "\ufeffthird"]}, ["first", "other", "third"]),
        ({"captions": ["half of a pair \ud83d", "\U0001f600"]}, ["first", "half of a pair \ufffd", "\U0001f600"]),
        ({"captions": "text"}, ["first"]),
        ({"captions": {"a": "b"}}, ["first"]),
        ({"caption": "img2dataset's", "url": "u", "exif": '{"captions": ["x"]}'}, ["first"]),
        ([{"captions": ["x"]}], ["first"]),
    ],
)
def test_json_members_of_all_kinds_are_read(tmp_path, member, captions):
    shards(tmp_path, [["first"]], {0: json.dumps(member).encode()})
    assert ShardedDataset(tmp_path).captions(0) == captions
    assert encode_shards(tmp_path, WordEncoder(), progress=False) == 1


def test_invalid_json_members_are_ignored():
    for data in (b"", b"\xff", b'{"captions": ["cut', b'{"captions": ' + b"[" * 100_000, b'"captions"'):
        assert unpack(data) == []
    assert merge("a", ["a", "b"]) == ["a", "b"]


def test_shards_in_place_are_checked_with_all_captions(tmp_path):
    lists = [["zero", "null"], ["one"], ["two", "deux"], ["three", "trois\0"]]
    shards(tmp_path / "s", lists, {2: b'{"captions": ["two", ""], "url": "u"}'})
    result = build(tmp_path / "s", workers=1, progress=False)
    data = ShardedDataset(tmp_path / "s")
    assert [data.captions(i) for i in range(len(data))] == [["zero", "null"], ["one"], ["two"]]
    assert result["rejected"] == {"caption of several": 2, "control characters": 1} and result["captions"] == 4
    copied, data = build_dataset(tmp_path / "s", tmp_path / "copied", copy=True)
    assert [data.captions(i) for i in range(len(data))] == [["zero", "null"], ["one"], ["two"], ["three"]]
    assert copied["captions"] == 5


# Embeddings


LISTS = [["a b", "c", "d e f"], ["g"], ["", "h i"], ["j k", "l"], ["m n o"]]


def test_each_caption_has_its_embedding(tmp_path):
    shards(tmp_path, LISTS)
    encoder = WordEncoder()
    assert encode_shards(tmp_path, encoder, progress=False) == 3
    assert encode_shards(tmp_path, encoder, progress=False) == 0
    embeddings = Embeddings(open_split(tmp_path), Text())
    for i, captions in enumerate(LISTS):
        for number, caption in enumerate(captions):
            expected = encoder.encode([caption])[0].bfloat16().float()
            assert torch.equal(embeddings.tokens(i, caption, number), expected)
    formats = []
    for shard in range(3):
        with safe_open(sidecar_path(embeddings.dataset.tar_path(shard), Text()), "np") as file:
            formats.append((file.metadata()["format"], sorted(file.keys())))
            if shard == 0:
                assert file.get_tensor("first_caption").tolist() == [0, 3, 4]
                assert len(file.get_tensor("caption_hash")) == 4 and len(file.get_tensor("offsets")) == 5
    plain = ["caption_hash", "offsets", "tokens", "unconditional"]
    list_format = ("imagen-text-2", sorted([*plain, "first_caption"]))
    # One caption each: the same format as before.
    assert formats == [list_format, list_format, ("imagen-text-1", plain)]


def test_added_captions_are_detected_and_encoded(tmp_path):
    shards(tmp_path / "a", [["a", "b"], ["c"]])
    shards(tmp_path / "b", [["a"], ["c"]])
    encode_shards(tmp_path / "b", WordEncoder(), progress=False)
    for name in ("00000.tar", index_path(Path("00000.tar")).name):
        (tmp_path / "b" / name).write_bytes((tmp_path / "a" / name).read_bytes())
    embeddings = Embeddings(open_split(tmp_path / "b"), Text())
    assert embeddings.tokens(0, "a").shape == (2, 8)
    with pytest.raises(UserError, match=r"does not belong to its shard: sample 'k0' had another caption"):
        embeddings.tokens(0, "b", 1)
    assert encode_shards(tmp_path / "b", WordEncoder(), progress=False) == 1
    assert Embeddings(open_split(tmp_path / "b"), Text()).tokens(0, "b", 1).shape == (2, 8)
    first = next((tmp_path / "b").glob("*.text.safetensors"))
    data = bytearray(first.read_bytes())
    begin = data.index(b"imagen-text-2")
    data[begin : begin + 13] = b"imagen-text-9"
    first.write_bytes(data)
    with pytest.raises(UserError, match="has the format 'imagen-text-9'"):
        Embeddings(open_split(tmp_path / "b"), Text())


# The stream


def make_loader(folder: Path, workers: int = 0, **options) -> Loader:
    config = DataConfig(workers=workers, flip=True, window=2)
    return open_loader(folder, config, **{"resolution": 64, "text": Text(), "batch_size": 4, "seed": 5} | options)


def comparable_samples(batches) -> list[tuple]:
    return [
        (batch.keys[j], batch.captions[j], batch.image[j].numpy().tobytes(),
         batch.text[j][batch.text_mask[j]].numpy().tobytes())
        for batch in batches for j in range(len(batch))
    ]  # fmt: skip


@pytest.fixture(scope="module")
def several_captions(tmp_path_factory):
    folder = shards(tmp_path_factory.mktemp("several"), LISTS)
    encode_shards(folder, WordEncoder(), progress=False)
    return folder


@pytest.fixture(scope="module")
def stream(several_captions):
    return comparable_samples(take(make_loader(several_captions), 40))


def test_each_position_draws_one_caption_and_all_are_about_equally_frequent(several_captions, stream):
    counts = Counter((key, caption) for key, caption, *_ in stream)
    for i, captions in enumerate(LISTS):
        found = [counts[f"k{i}", caption] for caption in captions]
        assert sum(found) == 160 // len(LISTS) and min(found) >= 32 / len(captions) / 2
    encoder = WordEncoder()
    for _, caption, _, text in stream:
        assert text == encoder.encode([caption])[0].bfloat16().float().numpy().tobytes()
    numbers = [choose(5, position, 3) for position in range(3000)]
    assert all(900 < count < 1100 for count in Counter(numbers).values()) and set(numbers) == {0, 1, 2}
    assert choose(5, 7, 1) == 0 and numbers != [choose(6, position, 3) for position in range(3000)]


@pytest.mark.parametrize("workers, ranks", [(0, 1), (2, 1), (0, 2), (1, 4)])
def test_resuming_on_any_number_of_workers_and_ranks_draws_the_same(several_captions, stream, workers, ranks):
    position, batches = 12, 6
    parts = [
        take(make_loader(several_captions, workers, position=position, rank=r, world_size=ranks), batches)
        for r in range(ranks)
    ]
    resumed = [
        sample for step in range(batches) for r in range(ranks) for sample in comparable_samples([parts[r][step]])
    ]
    assert resumed == stream[position : position + 4 * batches]


def test_encoding_on_the_fly_draws_the_same(several_captions, stream):
    encoding = EncodingLoader(make_loader(several_captions, text=None), WordEncoder())
    assert comparable_samples(take(encoding, 40)) == stream


def test_the_seed_determines_the_captions_and_single_captions_change_nothing_else(several_captions, tmp_path, stream):
    assert [s[1] for s in comparable_samples(take(make_loader(several_captions, seed=6), 40))] != [s[1] for s in stream]
    one = shards(tmp_path / "one", [captions[:1] for captions in LISTS])
    encode_shards(one, WordEncoder(), progress=False)
    # The same images and flips.
    assert [(s[0], s[2]) for s in comparable_samples(take(make_loader(one), 40))] == [(s[0], s[2]) for s in stream]


def test_the_drawn_caption_alone_decides_whether_an_image_may_be_mirrored(tmp_path):
    shards(tmp_path, [["a cat on the left", "a cat"]])
    encode_shards(tmp_path, WordEncoder(), progress=False)
    batches = take(make_loader(tmp_path, batch_size=8), 20)
    (upright,) = dataset_batch(tmp_path, [0], resolution=64).image
    mirrored: dict[str, list[bool]] = {"a cat on the left": [], "a cat": []}
    for batch in batches:
        for caption, image in zip(batch.captions, batch.image, strict=True):
            mirrored[caption].append(not torch.equal(image, upright))
    assert not any(mirrored["a cat on the left"]) and len(mirrored["a cat on the left"]) > 50
    assert 20 < sum(mirrored["a cat"]) < len(mirrored["a cat"]) - 20


def test_validation_uses_first_captions(several_captions):
    batch = dataset_batch(several_captions, [0, 2, 3], resolution=64, text=Text())
    assert batch.captions == ["a b", "", "j k"]
    assert np.array_equal(batch.text_mask.sum(1), [3, 1, 3])


# Inspection


def test_inspect_and_the_gallery_show_all_captions(several_captions, tmp_path):
    summary = inspect(several_captions)
    train = summary["splits"]["train"]
    assert (train["samples"], train["with_several"], train["captions_looked_at"]) == (5, 3, 9)
    assert sum(count for *_, count in train["captions"]) == 9
    assert train["embeddings"][0]["samples"] == 5
    write_gallery(tmp_path / "page.html", several_captions, summary)
    page = re.sub(r"\s*(<[^>]*>)\s*", r"\1", (tmp_path / "page.html").read_text())
    assert "<ol><li>a b</li><li>c</li><li>d e f</li></ol>" in page and "<figcaption>g<small>" in page
    many = shards(tmp_path / "many", [[f"<b>{i}" for i in range(13)]])
    write_gallery(tmp_path / "page.html", many, inspect(many))
    page = re.sub(r"\s*(<[^>]*>)\s*", r"\1", (tmp_path / "page.html").read_text())
    assert "<li>&lt;b&gt;9</li></ol>and 3 more" in page and "<li><b>" not in page
