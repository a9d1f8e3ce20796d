import dataclasses
import re

import numpy as np
import pytest
import torch
from safetensors import safe_open

from imagen.data.embeddings import Embeddings, sidecar_path, slug, unconditional
from imagen.data.encode import encode_shards
from imagen.data.shards import ShardWriter, index_path, open_split
from imagen.errors import UserError

CAPTIONS = ["a red apple", "", "a steam train on a table", "Äpfel", "one", "two words"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text:
    encoder: str = "some/encoder-xl"
    revision: str = "main"
    width: int = 8
    max_tokens: int = 16
    unconditional: str = "zeros"


class FakeEncoder:
    def __init__(self, **changes):
        self.config = Text(**changes)
        self.batches: list[list[str]] = []

    def encode(self, captions):
        self.batches.append(captions)
        return [
            torch.linspace(-3, len(c) + 0.1, (1 + len(c)) * self.config.width).view(-1, self.config.width)
            for c in captions
        ]


@pytest.fixture
def folder(tmp_path):
    for split in ("train", "heldout"):
        with ShardWriter(tmp_path / split, 4) as writer:
            for i, caption in enumerate(CAPTIONS):
                writer.write({"__key__": f"k{i}", "txt": caption.encode()})
    return tmp_path


def refused(folder, text, *words):
    with pytest.raises(UserError) as error:
        embeddings = Embeddings(open_split(folder), text)
        for i, caption in enumerate(CAPTIONS):
            embeddings.tokens(i, caption)
    message = str(error.value)
    assert "\n" not in message and all(str(word) in message for word in words), message


def test_embeddings_are_read_back_as_bfloat16(folder):
    encoder = FakeEncoder()
    assert encode_shards(folder, encoder, batch_size=2, progress=False) == 4
    for split in ("train", "heldout"):
        embeddings = Embeddings(open_split(folder, split), Text())
        for i, caption in enumerate(CAPTIONS):
            expected = encoder.encode([caption])[0]
            tokens = embeddings.tokens(i, caption)
            assert tokens.dtype == torch.float32 and torch.equal(tokens, expected.bfloat16().float())


def test_the_file_is_ordinary_safetensors_with_a_telling_header(folder):
    encode_shards(folder, FakeEncoder(), progress=False)
    path = folder / "train" / "00000.some-encoder-xl.text.safetensors"
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
    assert torch.equal(bits, FakeEncoder().encode([""])[0].bfloat16())


def test_batches_hold_captions_of_like_length(folder):
    encoder = FakeEncoder()
    encode_shards(folder / "train", encoder, batch_size=2, progress=False)
    assert [batch for batch in encoder.batches if batch != [""]][:2] == [[CAPTIONS[2], CAPTIONS[0]], [CAPTIONS[3], ""]]


def test_only_what_is_missing_or_stale_is_encoded_again(folder):
    encode_shards(folder, FakeEncoder(), progress=False)
    assert encode_shards(folder, FakeEncoder(), progress=False) == 0
    tar = folder / "train" / "00001.tar"
    path = sidecar_path(tar, Text().encoder)
    whole = path.read_bytes()
    for broken in (whole[:-3], b"", None):
        path.unlink()
        if broken is not None:
            path.write_bytes(broken)
            refused(folder, Text(), path, "imagen data encode")
        assert encode_shards(folder, FakeEncoder(), progress=False) == 1
        Embeddings(open_split(folder), Text()).tokens(4, CAPTIONS[4])
    assert encode_shards(folder, FakeEncoder(revision="v2"), progress=False) == 4
    assert encode_shards(folder, FakeEncoder(encoder="other"), progress=False) == 4
    assert encode_shards(folder, FakeEncoder(revision="v2"), progress=False) == 0  # two encoders' live side by side


@pytest.mark.parametrize("change", [{"revision": "v2"}, {"max_tokens": 77}, {"width": 16}])
def test_other_settings_are_refused_with_both_sides_named(folder, change):
    encode_shards(folder, FakeEncoder(), progress=False)
    ((name, value),) = change.items()
    stored = getattr(Text(), name)
    command = f"imagen data encode {folder} --encoder some/encoder-xl"
    refused(folder, Text(**change), "00000.some-encoder-xl.text", name, f"{stored}", f"{value}", command)


def test_another_encoder_is_refused_with_both_sides_named(folder):
    refused(folder, Text(), "has no text embeddings", "imagen data encode")
    encode_shards(folder, FakeEncoder(), progress=False)
    refused(folder, Text(encoder="other/one"), "some/encoder-xl", "other/one", "--encoder other/one")


def test_captions_that_changed_are_refused_and_encoded_again(folder):
    encode_shards(folder, FakeEncoder(), progress=False)
    changed = [*CAPTIONS[:4], "two words", "one"]  # the same captions in another order
    with ShardWriter(folder / "new", 4) as writer:
        for i, caption in enumerate(changed):
            writer.write({"__key__": f"k{i}", "txt": caption.encode()})
    tar = folder / "train" / "00001.tar"
    (folder / "new" / "00001.tar").replace(tar)
    index_path(folder / "new" / "00001.tar").replace(index_path(tar))
    with pytest.raises(UserError, match=r"00001\.some-encoder-xl.*'k4' had another caption.*imagen data encode"):
        Embeddings(open_split(folder), Text()).tokens(4, "two words")
    assert encode_shards(folder, FakeEncoder(), progress=False) == 1
    Embeddings(open_split(folder), Text()).tokens(4, "two words")


def test_embeddings_that_are_not_finite_are_refused_by_key(folder):
    class Broken(FakeEncoder):
        def encode(self, captions):
            found = super().encode(captions)
            for caption, tokens in zip(captions, found, strict=True):
                if caption == "Äpfel":
                    tokens[1, 3] = float("nan")
            return found

    with pytest.raises(UserError, match="NaN or infinity for sample 'k3'"):
        encode_shards(folder, Broken(), progress=False)
    assert not list(folder.rglob("*.text.safetensors"))


def test_an_encoder_of_another_width_is_refused(folder):
    encoder = FakeEncoder()
    encoder.encode = lambda captions: [torch.zeros(2, 5) for _ in captions]
    with pytest.raises(UserError, match=r"5 numbers a token, text\.width is 8"):
        encode_shards(folder, encoder, progress=False)


def test_shards_without_captions_are_refused(tmp_path):
    with ShardWriter(tmp_path) as writer:
        writer.write({"__key__": "k", "png": b"x"})
    with pytest.raises(UserError, match=r"00000\.tar has no captions"):
        encode_shards(tmp_path, FakeEncoder(), progress=False)


def test_encoding_indexes_what_has_no_index(folder):
    for path in folder.rglob("*.index.safetensors"):
        path.unlink()
    assert encode_shards(folder, FakeEncoder(), progress=False) == 4
    assert len(open_split(folder)) == len(CAPTIONS)


def test_unconditional_and_slug(folder):
    encode_shards(folder, FakeEncoder(), progress=False)
    assert torch.equal(unconditional(folder, Text()), torch.zeros(1, 8))
    stored = unconditional(folder, Text(unconditional="empty"), split="heldout")
    assert torch.equal(stored, FakeEncoder().encode([""])[0].bfloat16().float())
    assert slug("/home/me/../t5 v1.1") == "home-me-..-t5-v1.1"
