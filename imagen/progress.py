"""Progress bars on stderr, and a switch that hides them all."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_hidden = False


def progress_bar(*, disable: bool = False, **options: Any) -> Any:
    """A tqdm bar; options as for `tqdm.tqdm`. It shows nothing if `disable` is set, or within `hidden_bars`."""
    from tqdm import tqdm

    return tqdm(disable=disable or _hidden, **options)


@contextmanager
def hidden_bars() -> Iterator[None]:
    """Hide the bars that are opened within the block, in this process."""
    global _hidden
    before, _hidden = _hidden, True
    try:
        yield
    finally:
        _hidden = before
