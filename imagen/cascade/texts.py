"""Encode prompts, each once. The encoder is offloaded while images are sampled."""

import logging
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from imagen.errors import quoted
from imagen.jsonconfig import to_json
from imagen.precision import arithmetic
from imagen.text.config import TextConfig
from imagen.text.encoder import TextEncoder, load_text_encoder
from imagen.text.int8 import quantize_int8
from imagen.text.protocol import Encoder

log = logging.getLogger(__name__)
CACHED = 4096  # embeddings in memory (T5-XXL: at most 2 MB each)


class PromptEncoder:
    """Encode prompts to embeddings [L, D]; "" is `unconditional`.

    encoder: None loads it from `config` at the first prompt. int8: quantize the loaded weights to 8 bits.

    Prompts are encoded one at a time, so that the last bits of an embedding do not depend on other prompts. Any thread
    may call this: a tokenizer raises "Already borrowed" if two threads use it at the same time.
    """

    def __init__(self, config: TextConfig, unconditional: Tensor, encoder: Encoder | None = None, int8: bool = False):
        self.config = config
        self.int8 = int8
        self.encoder = encoder
        self.unconditional = unconditional
        # Whether the encoder remains on the device between prompts, as in a server. A round trip costs 1 s per 10 GB.
        self.resident = False
        self._known: dict[str, Tensor] = {}
        self._lock = threading.Lock()

    def __contains__(self, prompt: str) -> bool:
        return not prompt or prompt in self._known

    def __len__(self) -> int:
        """Return the number of embeddings in memory."""
        return len(self._known)

    def __call__(self, prompts: Sequence[str], device: torch.device, vram: float | None = None) -> dict[str, Tensor]:
        """Return the embeddings of the distinct prompts, on the CPU. Raises UserError if the encoder cannot be loaded.

        vram: bound of device memory in GiB; an encoder that takes more than 9/10 of it runs on the CPU.
        """
        with self._lock:
            return self._encode(list(dict.fromkeys(prompts)), device, vram)

    def without_storing(self, texts: Sequence[str], device: torch.device) -> list[Tensor]:
        """Encode texts that are not prompts, as one batch, which is faster. Raises as `__call__` does."""
        with self._lock:
            return self._computed(list(texts), device, None, together=True)

    def _encode(self, wanted: list[str], device: torch.device, vram: float | None) -> dict[str, Tensor]:
        if missing := [prompt for prompt in wanted if prompt and prompt not in self._known]:
            self._known |= zip(missing, self._computed(missing, device, vram), strict=True)
        found = {prompt: self._known[prompt] if prompt else self.unconditional for prompt in wanted}
        for prompt in list(self._known)[: max(len(self._known) - CACHED, 0)]:
            del self._known[prompt]
        return found

    def _computed(
        self, prompts: list[str], device: torch.device, vram: float | None, *, together: bool = False
    ) -> list[Tensor]:
        if self.encoder is None:
            self.encoder = self._load(device, device if vram is None and not self.int8 else torch.device("cpu"))
        self._move(device if vram is None or self._bytes() < 0.9 * vram * 2**30 else torch.device("cpu"))
        self._warn_of_truncation(prompts)
        found = self.encoder.encode(prompts) if together else [self.encoder.encode([each])[0] for each in prompts]
        if not self.resident:
            self._move(torch.device("cpu"))
        return found

    def _warn_of_truncation(self, prompts: list[str]) -> None:
        """Warn of prompts that a `TextEncoder` truncates; not on a server, whose log must not contain prompts."""
        if self.resident or not isinstance(self.encoder, TextEncoder):
            return
        limit = self.config.max_tokens
        lengths = dict(zip(prompts, self.encoder.untruncated_lengths(prompts), strict=True))
        cut = [prompt for prompt in prompts if lengths[prompt] > limit]
        if cut:
            longest = max(cut, key=lambda prompt: lengths[prompt])
            count = "1 prompt is" if len(cut) == 1 else f"{len(cut):,} prompts are"
            what = f"{count} truncated at the text encoder's limit of {limit} tokens"
            with tqdm.external_write_mode():  # a bar may be on the line
                log.warning("%s; the longest loses %d: %s", what, lengths[longest] - limit, quoted(longest))

    def _load(self, device: torch.device, where: torch.device) -> TextEncoder:
        """Load the encoder to `where`, in the number format for `device`."""
        encoder = load_text_encoder(self.config, where, arithmetic(device).encoder)
        if self.int8:
            quantize_int8(encoder.model)
        return encoder

    def describe(self) -> dict[str, Any]:
        """Return everything that embeddings depend on, as JSON."""
        return {**to_json(self.config), **({"int8": True} if self.int8 else {})}

    def _bytes(self) -> int:
        """Return the bytes of a `TextEncoder`; 0 for another encoder."""
        if not isinstance(self.encoder, TextEncoder):
            return 0
        return sum(tensor.numel() * tensor.element_size() for tensor in self.encoder.model.state_dict().values())

    def _move(self, device: torch.device) -> None:
        """Move a `TextEncoder` to `device`; a round trip costs about 1 s per 10 GB."""
        if isinstance(self.encoder, TextEncoder) and self.encoder.device != device:
            self.encoder.model.to(device)
            self.encoder.device = device
            if device.type == "cpu" and torch.cuda.is_available():
                torch.cuda.empty_cache()
