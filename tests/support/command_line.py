"""Run `imagen` commands in this process."""

import contextlib
import io
from typing import NamedTuple

import pytest

from imagen.cli import main


class CommandResult(NamedTuple):
    """The exit code and the output of a command."""

    code: int
    out: str
    err: str


def run_imagen(*arguments: object) -> CommandResult:
    """Run `imagen ARGUMENTS...`."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    texts = [stream.buffer.getvalue().decode() for stream in (out, err)]
    return CommandResult(int(caught.value.code or 0), *texts)
