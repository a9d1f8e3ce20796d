"""The demo, on a handful of objects and for seconds: that it goes through, goes on, and reports what it saw."""

import json
import os
import signal
import threading
from pathlib import Path

import pytest

from imagen.demo import run_demo
from imagen.errors import UserError


def test_demo_runs_and_goes_on(tmp_path: Path) -> None:
    said: list[str] = []
    first = run_demo(tmp_path / "demo", minutes=0.02, objects=6, prompts=3, pretrained=False, say=said.append)
    second = run_demo(tmp_path / "demo", minutes=0.02, objects=6, prompts=3, pretrained=False, say=said.append)

    assert second["images"] > first["images"] > 0
    assert [row["images"] for row in second["history"]] == [first["images"], second["images"]]
    assert json.loads((tmp_path / "demo" / "summary.json").read_text()) == second
    assert len(second["prompts"]) == 3
    assert second["colour_accuracy"] == sum(row["right"] for row in second["prompts"]) / 3
    page = (tmp_path / "demo" / "index.html").read_text()
    assert all(row["prompt"] in page for row in second["prompts"])
    assert page.count("data:image/png;base64,") == 6  # each at 64 and at 256
    assert (tmp_path / "demo" / "sheet.png").stat().st_size > 1000
    assert any("goes on" in line or "going on" in line for line in said)


def test_ctrl_c_in_the_training_ends_the_demo(tmp_path: Path) -> None:
    said: list[str] = []

    def interrupting(line: str) -> None:
        said.append(line)
        if "parameters on" in line:  # training is about to begin
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()

    with pytest.raises(KeyboardInterrupt):
        run_demo(tmp_path / "demo", minutes=3, objects=6, prompts=3, pretrained=False, say=interrupting)
    assert any("stopped by SIGINT" in line for line in said) and not any(line.startswith("3/4") for line in said)


def test_no_time_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--minutes 0"):
        run_demo(tmp_path / "demo", minutes=0)
    assert not (tmp_path / "demo").exists()
