"""Build small text encoders with random weights, in the format of transformers."""

from pathlib import Path

import torch

from imagen.text.config import TextConfig

WORDS = "a red green blue apple train fruit octopus on the table steam crimson".split()  # noqa: SIM905
CAPTIONS = ["a red apple", "a", "the green octopus on a blue table", "steam train"]


def save_tokenizer(folder: Path) -> None:
    """Write a tokenizer for the words in WORDS to `folder`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)


def tiny_encoder(kind: str) -> torch.nn.Module:
    """Return a T5 (`t5`, `t5-v1.1`) or a DeBERTa-v2 (`deberta`) of width 32 with random weights."""
    from transformers import DebertaV2Config, DebertaV2Model, T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    size = len(WORDS) + 3
    if kind == "deberta":
        config = DebertaV2Config(
            vocab_size=size, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
            relative_attention=True, position_buckets=8, pos_att_type=["p2c", "c2p"], position_biased_input=False,
            pad_token_id=0,
        )  # fmt: skip
        return DebertaV2Model(config)
    # With its decoder, as T5 is published: loading must use the encoder alone.
    config = T5Config(
        vocab_size=size, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0,
        feed_forward_proj="gated-gelu" if kind == "t5-v1.1" else "relu", tie_word_embeddings=kind == "t5",
    )  # fmt: skip
    return T5ForConditionalGeneration(config)


def text_config(folder, **changes) -> TextConfig:
    """Return the config of the tiny encoder in `folder`."""
    return TextConfig(**{"encoder": str(folder), "width": 32, "max_tokens": 16} | changes)
