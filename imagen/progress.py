"""Show progress bars on stderr, or hide them all."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_hidden = False


def progress_bar(*, disable: bool = False, **options: Any) -> Any:
    """Return a tqdm bar; options as for `tqdm.tqdm`. It is hidden if `disable` is set, or within `hidden_bars`."""
    from tqdm import tqdm

    return tqdm(disable=disable or _hidden, **options)


@contextmanager
def hidden_bars() -> Iterator[None]:
    """Hide the progress bars that this process opens within the block."""
    global _hidden
    before, _hidden = _hidden, True
    try:
        yield
    finally:
        _hidden = before
