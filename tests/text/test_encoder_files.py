"""Check that invalid encoder folders, which are untrusted, give a one-line error before transformers reads them."""

import contextlib
import json
import os
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_encoders import CAPTIONS, save_tokenizer, text_config, tiny_encoder

from imagen.errors import UserError
from imagen.text import files as encoder_files
from imagen.text.encoder import encoder_config, load_text_encoder

DEEP = '{"a":' * 900 + "1" + "}" * 900
DEEPER = '{"a":' * 100_000


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Create valid folders of T5 and DeBERTa-v2."""
    folders = {}
    for kind in ("t5-v1.1", "deberta"):
        folders[kind] = tmp_path_factory.mktemp(kind) / "encoder"
        tiny_encoder(kind).save_pretrained(folders[kind])
        save_tokenizer(folders[kind])
    return folders


@pytest.fixture(params=["t5-v1.1", "deberta"])
def folder(request, models, tmp_path):
    return shutil.copytree(models[request.param], tmp_path / "encoder")


def edit(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def assert_rejected(folder, message: str, both: bool = True) -> None:
    """Assert that loading the encoder fails with `message`; if `both`, reading only its width fails too."""
    for attempt in (load_text_encoder, lambda config: encoder_config(config.encoder))[: 1 + both]:
        with pytest.raises(UserError, match=message) as caught:
            attempt(text_config(folder))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("num_hidden_layers", 10**9, "num_hidden_layers is 1,000,000,000; it must be at least 1 and at most 1024"),
        ("num_layers", 10**400, "num_layers is about 10.400; it must be at least 1"),
        ("num_layers", "2", "num_layers is '2'; it must be a whole number"),
        ("num_layers", 2.5, "num_layers is 2.5; it must be a whole number"),
        ("num_layers", True, "num_layers is True; it must be a whole number"),
        ("num_layers", {"a": 1}, 'num_layers is {"a": 1}; it must be a whole number'),
        ("num_hidden_layers", 0, "num_hidden_layers is 0; it must be at least 1"),
        ("hidden_size", -32, "hidden_size is -32; it must be at least 1"),
        ("d_model", 2**40, "d_model is about|d_model is 1,099,511,627,776; it must be at least 1 and at most 65536"),
        ("vocab_size", 10**9, "vocab_size is 1,000,000,000; it must be"),
        ("num_labels", 10**9, "num_labels is 1,000,000,000; it must be"),
        ("num_blocks_of_some_kind", 10**6, "num_blocks_of_some_kind is 1,000,000; it must be .* at most 1024"),
        ("text_config", {"inner": [{"encoder_layers": 10**9}]}, r"text_config.inner\[0\].encoder_layers is 1,000,000"),
        ("something", 10**12, "something is 1,000,000,000,000; it must be"),
        ("model_type", 5, "model_type is 5; it must be the name"),
        ("model_type", ["t5"], "model_type is .*t5.*; it must be the name"),
        ("model_type", None, "model_type is null; it must be the name"),
        ("model_type", "no_such_model", "no_such_model"),
        ("architectures", 7, "architectures is 7; it must be a list of names"),
        ("architectures", "T5EncoderModel", "architectures is 'T5EncoderModel'; it must be a list of names"),
        ("architectures", [7], "architectures is .7.; it must be a list of names"),
        ("is_encoder_decoder", "no", "is_encoder_decoder is 'no'; it must be true or false"),
        ("dtype", "os", "dtype is 'os'; it must be one of float64, float32"),
        ("torch_dtype", ["float32"], "torch_dtype is .*; it must be one of"),
        ("attn_implementation", "somebody/kernel", "attn_implementation is 'somebody/kernel'; downloaded kernels"),
        ("_attn_implementation", {"": "a/b"}, "_attn_implementation is .*; downloaded kernels"),
        ("text_config", {"experts_implementation": "a/b"}, "downloaded kernels"),
        ("quantization_config", {"quant_method": "bitsandbytes"}, "quantization_config is set; only plain weights"),
        ("transformers_weights", "../x.safetensors", "transformers_weights is set; only plain weights"),
    ],
)  # fmt: skip
def test_invalid_fields_of_config_are_rejected(folder, field, value, message):
    edit(folder / "config.json", **{field: value})
    assert_rejected(folder, message)


@pytest.mark.parametrize(
    "text, message",
    [
        (DEEP, "not valid JSON: it is nested more than 100 deep"),
        (DEEPER, "not valid JSON"),
        ("[1]", "config.json is not a JSON object"),
        ("5", "config.json is not a JSON object"),
        ("", "not valid JSON"),
        ("\ud800", "not valid JSON"),
        ('{"model_type": "t5", "dropout_rate": NaN}', "NaN is not a finite number"),
        ('{"model_type": "t5", "dropout_rate": 1e400}', "1e400 is not a finite number"),
        (" " * 5_000_000, "larger than 4,194,304 bytes"),
    ],
    ids=["deep", "deeper", "list", "number", "empty", "bytes", "nan", "infinite", "large"],
)
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_invalid_json_is_rejected(models, tmp_path, file, text, message):
    folder = shutil.copytree(models["t5-v1.1"], tmp_path / "encoder")
    (folder / file).write_bytes(text.encode("utf-8", "surrogatepass"))
    message = message.replace("config.json", file)
    assert_rejected(folder, "not valid JSON" if file != "config.json" and len(text) == 5_000_000 else message)


@pytest.mark.parametrize(
    "field, value",
    [
        ("dropout_rate", 7.5),
        ("dropout_rate", "much"),
        ("layer_norm_epsilon", "small"),
        ("layer_norm_epsilon", None),
        ("d_ff", 47),
        ("num_heads", 3),
        ("feed_forward_proj", 5),
        ("feed_forward_proj", "gated-nothing"),
        ("relative_attention_num_buckets", 1),
        ("pad_token_id", 10**9),
        ("to_dict", 5),
        ("vocab_size", 2**22),
        ("num_layers", 1024),
        ("id2label", 5),
        ("auto_map", {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}),
    ],
)
def test_fields_that_only_affect_the_model_load_or_are_rejected(models, tmp_path, field, value):
    """Such a folder loads or is a one-line error, and no code in it runs."""
    folder = shutil.copytree(models["t5-v1.1"], tmp_path / "encoder")
    (folder / "evil.py").write_text("import pathlib; pathlib.Path(__file__).with_name('ran').touch()\n")
    edit(folder / "config.json", **{field: value})
    try:
        load_text_encoder(text_config(folder)).encode(CAPTIONS)
    except UserError as error:
        assert "\n" not in str(error) and str(error).startswith("cannot load the text encoder")
    assert not (folder / "ran").exists()


def test_remote_code_is_never_executed(folder):
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\n")
    code = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model", "AutoTokenizer": ["evil.T", None]}
    edit(folder / "config.json", model_type="evil", auto_map=code)
    assert_rejected(folder, "it needs code from its repository .auto_map., which is never run")
    edit(folder / "config.json", model_type="t5")
    edit(folder / "tokenizer_config.json", tokenizer_class="Evil", auto_map={"AutoTokenizer": ["evil.T", None]})
    with contextlib.suppress(UserError):  # T5 loads with the class of transformers
        load_text_encoder(text_config(folder))
    assert not (folder / "ran").exists() and not any("evil" in name for name in sys.modules)


@pytest.mark.parametrize(
    "weight_map, message",
    [
        ({"a": "pytorch_model.bin"}, "weight_map names 'pytorch_model.bin'; only .safetensors beside it"),
        ({"a": "../other/model.safetensors"}, "weight_map names '../other/model.safetensors'; only"),
        ({"a": "/etc/passwd"}, "weight_map names '/etc/passwd'"),
        ({"a": 5}, "weight_map names 5"),
        ({"a": ["model.safetensors"]}, "weight_map names "),
        ({}, "weight_map is {}"),
        ([], r"weight_map is \[\]"),
        (None, "weight_map is null"),
    ],
)
def test_an_index_that_points_outside_the_folder_is_rejected(folder, weight_map, message):
    torch.save({"a": torch.zeros(1)}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert_rejected(folder, message)


def test_sharded_weights_load(folder):
    [before] = load_text_encoder(text_config(folder)).encode(CAPTIONS[:1])
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / file, {"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": {name: file for file in parts for name in parts[file]}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    torch.save({"a": torch.zeros(1)}, folder / "pytorch_model.bin")  # a pickle beside safetensors is ignored
    assert torch.equal(load_text_encoder(text_config(folder)).encode(CAPTIONS[:1])[0], before)
    (folder / "two.safetensors").unlink()
    assert_rejected(folder, "two.safetensors", both=False)


def test_pickled_weights_are_not_opened(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"never read")
    assert_rejected(
        folder, "contains no model.safetensors; pytorch_model.bin is a pickle, which may run code", both=False
    )


class TestWeights:
    def test_missing_weights_are_rejected(self, folder):
        """transformers would silently initialise missing weights randomly."""
        tensors = load_file(folder / "model.safetensors")
        name = next(
            name for name in sorted(tensors) if "ncoder" in name and "layer" in name and tensors[name].ndim == 2
        )
        del tensors[name]
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        assert_rejected(folder, f"its weights lack '{name}'; they do not fit its config.json", both=False)

    def test_weights_of_another_size_are_rejected(self, folder):
        config = json.loads((folder / "config.json").read_text())
        edit(folder / "config.json", vocab_size=config["vocab_size"] + 8)
        assert_rejected(folder, "size|shape|mismatch", both=False)

    def test_a_model_much_larger_than_its_weights_is_rejected(self, folder):
        edit(folder / "config.json", vocab_size=4_000_000)
        assert_rejected(folder, "describes a model of 128,.* parameters, but its weight files have", both=False)

    def test_non_finite_weights_are_rejected(self, folder):
        tensors = {
            name: torch.full_like(tensor, torch.nan) for name, tensor in load_file(folder / "model.safetensors").items()
        }
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        assert_rejected(folder, "it returns values that are not finite", both=False)


class TestTokenizers:
    @pytest.mark.parametrize(
        "text", ["", "{}", "[]", DEEP, DEEPER, '{"version": "1.0", "model": {"type": "WordLevel"}}']
    )
    def test_invalid_tokenizers_are_rejected(self, folder, text):
        (folder / "tokenizer.json").write_text(text)
        assert_rejected(folder, "cannot load the text encoder", both=False)

    def test_a_missing_padding_token_is_replaced_by_the_end_token(self, folder):
        edit(folder / "tokenizer_config.json", pad_token=None)
        assert load_text_encoder(text_config(folder)).tokenizer.pad_token == "</s>"
        edit(folder / "tokenizer_config.json", eos_token=None)
        assert_rejected(folder, "its tokenizer has neither a padding token nor an end token", both=False)

    def test_a_tokenizer_of_another_encoder_is_rejected(self, folder):
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        tokenizer["model"]["vocab"]["elephant"] = 5_000
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
        assert_rejected(folder, "its tokenizer has .* tokens, but its model has .*; they do not match", both=False)

    def test_tokenizers_that_expand_captions_are_rejected(self, folder):
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        double = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
        tokenizer["normalizer"] = {"type": "Sequence", "normalizers": [double] * 3}
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
        load_text_encoder(text_config(folder))
        tokenizer["normalizer"]["normalizers"] *= 10
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
        assert_rejected(folder, "its normalizers can make a caption 177,147 times as long")

    @pytest.mark.parametrize("value", [5, ["T5Tokenizer"], {"a": "b"}])
    def test_unsupported_tokenizer_classes_are_rejected(self, folder, value):
        edit(folder / "tokenizer_config.json", tokenizer_class=value)
        assert_rejected(folder, "tokenizer_class is .*; it must be a name")

    def test_files_outside_the_folder_are_not_read(self, folder, tmp_path):
        (tmp_path / "vocabulary").touch()
        edit(folder / "tokenizer_config.json", vocab_file=str(tmp_path / "vocabulary"))
        assert_rejected(folder, "vocab_file is .*; a tokenizer's files must be in the same folder")
        edit(folder / "tokenizer_config.json", vocab_file="/where/it/was/made/vocab.txt")
        load_text_encoder(text_config(folder))

    def test_huge_tokenizers_are_rejected(self, folder):
        with open(folder / "vocab.txt", "wb") as file:
            file.truncate(encoder_files.MOST_VOCABULARY + 1)
        assert_rejected(folder, "vocab.txt has 134,217,729 bytes; the limit for such files")

    def test_the_tokenizer_beside_the_encoder_of_a_pipeline_is_checked(self, models, tmp_path):
        shutil.copytree(models["t5-v1.1"], tmp_path / "text_encoder")
        shutil.copytree(models["t5-v1.1"], tmp_path / "tokenizer")
        load_text_encoder(text_config(tmp_path))
        (tmp_path / "tokenizer" / "tokenizer_config.json").write_text(DEEP)
        assert_rejected(tmp_path, "nested more than 100 deep")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("name", ["config.json", "vocab.txt", "model.safetensors", "spiece.model", "tokenizer.json"])
def test_pipes_do_not_block(folder, name):
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    assert_rejected(folder, f"{name} is neither a file nor a folder")


def test_adapters_are_rejected(folder):
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "somebody/else"}')
    assert_rejected(folder, "adapters are not supported")


@pytest.mark.parametrize("kind", ["bert", "bert-of-masked-language", "roberta", "clip", "mt5", "distilbert"])
def test_other_encoders_load(tmp_path, kind):
    """Published models may have an unused head, no pooler, or a decoder."""
    import transformers

    size = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0}
    size |= {"intermediate_size": 48, "max_position_embeddings": 64}
    t5 = {"vocab_size": 40, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    torch.manual_seed(0)
    model = {
        "bert": lambda: transformers.BertModel(transformers.BertConfig(**size)),
        "bert-of-masked-language": lambda: transformers.BertForMaskedLM(transformers.BertConfig(**size)),
        "roberta": lambda: transformers.RobertaForMaskedLM(transformers.RobertaConfig(**size)),
        "clip": lambda: transformers.CLIPTextModel(transformers.CLIPTextConfig(**size, eos_token_id=1)),
        "mt5": lambda: transformers.MT5ForConditionalGeneration(transformers.MT5Config(**t5)),
        "distilbert": lambda: transformers.DistilBertModel(
            transformers.DistilBertConfig(vocab_size=40, dim=32, n_layers=2, n_heads=4, hidden_dim=48, pad_token_id=0)
        ),
    }[kind]().eval()
    model.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    assert encoder_config(str(tmp_path)).width == 32
    (text_LD,) = load_text_encoder(text_config(tmp_path)).encode(["a red apple"])
    assert text_LD.shape == (4, 32) and text_LD.isfinite().all()
    ids, mask = torch.tensor([[3, 4, 7, 1]]), torch.ones(1, 4, dtype=torch.int64)
    body = model.get_encoder() if kind == "mt5" else getattr(model, model.base_model_prefix, model)
    with torch.no_grad():
        torch.testing.assert_close(text_LD, body(input_ids=ids, attention_mask=mask).last_hidden_state[0])


def test_the_limit_of_tokens_counts_positions_of_padding(tmp_path):
    import transformers

    size = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "pad_token_id": 1}
    config = transformers.RobertaConfig(**size, intermediate_size=48, max_position_embeddings=20)
    model = transformers.RobertaModel(config).eval()
    model.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    with pytest.raises(UserError, match="takes at most 18 tokens"):
        load_text_encoder(text_config(tmp_path, max_tokens=19))
    load_text_encoder(text_config(tmp_path, max_tokens=18))
    with torch.no_grad():
        model(input_ids=torch.full((1, 18), 5))
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, 19), 5))


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "t5", "d_model": 4096, "d_ff": 10240, "d_kv": 64, "num_layers": 24, "num_heads": 64,
         "vocab_size": 32128, "relative_attention_num_buckets": 32, "n_positions": 512, "architectures": ["T5"]},
        {"model_type": "deberta-v2", "hidden_size": 1536, "num_hidden_layers": 48, "vocab_size": 128100,
         "type_vocab_size": 0, "max_relative_positions": -1, "position_buckets": 256, "attention_head_size": 64},
        {"model_type": "deberta", "position_buckets": -1},
        {"model_type": "gemma2", "rope_theta": 10_000_000, "max_position_embeddings": 131_072,
         "torch_dtype": "bfloat16", "num_hidden_layers": 46, "bos_token_id": 2, "quantization_config": None},
        {"model_type": "bert", "label2id": {f"layer {i}": i for i in range(5000)}, "_attn_implementation": "sdpa"},
    ],
)  # fmt: skip
def test_published_configs_are_accepted(config):
    encoder_files.check_config(config, "config.json")


def test_a_missing_folder_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"/none' \(revision main\): there is no such folder$"):
        encoder_config(f"{tmp_path}/none")
