"""Check that hardware and system errors are one line with exit code 2."""

import pytest
import torch

from imagen.errors import UserError
from imagen.presets import description


@pytest.mark.parametrize(
    "error, message",
    [
        (OSError(28, "No space left on device", "some/where"), "some/where: No space left on device"),
        (MemoryError(), "out of memory; use a smaller batch"),
        (torch.OutOfMemoryError("CUDA out of memory.\nTried to"), "out of memory; use a smaller batch"),
        (UserError("two\nlines"), "two lines"),
    ],
)
def test_system_errors_are_one_line(monkeypatch, error_of, error, message):
    def fail(*_arguments, **_options):
        raise error

    monkeypatch.setattr(description, "describe", fail)
    assert message in error_of("presets")
