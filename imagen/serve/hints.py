"""Warn of words in prompts that training never showed, while the images are already being sampled."""

import asyncio
import sys
import threading
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import torch

from imagen.cascade import Cascade, Request
from imagen.text.vocabulary import SHOWN, NearestNames, warning_of

PHRASE = 200  # characters of a phrase that are encoded
CACHED = 1_024  # phrases whose nearest names are in memory
WAITING = 8  # requests that wait for nearest names at the same time; others are warned without them
BATCH = 16  # names that are encoded together
SECONDS = 1.0  # that a request waits for nearest names, after which it is warned without them


class Closed(Exception):
    """Raised in the thread of an object that is closed."""


class Hints:
    """Warn of unknown words. Use it in the event loop; texts are encoded in one thread of its own.

    The names are encoded once, in that thread, from the start. A request has at most `SHOWN` phrases encoded.
    """

    def __init__(self, cascade: Cascade, device: torch.device):
        self.vocabulary = None if cascade.texts is None else cascade.vocabulary
        self._texts, self._device = cascade.texts, device
        self._waiting = 0
        self._closed = threading.Event()
        self._thread = ThreadPoolExecutor(1, "hints")
        self._names = NearestNames(() if self.vocabulary is None else self.vocabulary.names, self._encode)
        self._nearest = lru_cache(CACHED)(self._names)
        if self._names.names:
            self._thread.submit(self._prepare)

    async def warning(self, request: Request) -> str | None:
        """Return a warning of words in the request's first prompt; None if there are none. Raises nothing.

        As in `Cascade.warn`, prompts of requests without the first stage are not checked.
        """
        prompt = request.prompts[0]
        if self.vocabulary is None or request.first_stage > 0 or not isinstance(prompt, str):
            return None
        phrases = await asyncio.to_thread(self.vocabulary.unknown, prompt)
        names = await self._nearest_names([phrase[:PHRASE] for phrase in phrases[:SHOWN]])
        return warning_of(phrases, lambda phrase: names.get(phrase[:PHRASE], []))

    def close(self) -> None:
        """Stop encoding."""
        self._closed.set()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _nearest_names(self, phrases: list[str]) -> dict[str, list[str]]:
        """Return the nearest names of each phrase; {} if that takes too long."""
        if not phrases or not self._names.names or self._waiting >= WAITING or self._closed.is_set():
            return {}
        self._waiting += 1
        try:
            found = asyncio.get_running_loop().run_in_executor(self._thread, self._find, phrases)
            return await asyncio.wait_for(found, SECONDS)
        except asyncio.TimeoutError:
            return {}
        finally:
            self._waiting -= 1

    # --- in the thread ---

    def _prepare(self) -> None:
        self._find([])

    def _find(self, phrases: list[str]) -> dict[str, list[str]]:
        try:
            self._names.encode_names()
            return {phrase: self._nearest(phrase) for phrase in phrases}
        except Closed:
            return {}
        except Exception:  # a hint must not fail a request
            traceback.print_exc(file=sys.stderr)
            return {}

    def _encode(self, texts: Sequence[str]) -> list[torch.Tensor]:
        """Encode texts in batches, so that the engine, which uses the same encoder, waits for one of them at most."""
        assert self._texts is not None
        found = []
        for i in range(0, len(texts), BATCH):
            if self._closed.is_set():
                raise Closed
            found += self._texts.without_storing(texts[i : i + BATCH], self._device)
        return found
