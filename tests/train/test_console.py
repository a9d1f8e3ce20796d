"""Test the content and the timing of a run's progress lines."""

import io
import time

import pytest
import toy

from imagen.train import console as console_module
from imagen.train.console import Console, console_line, duration
from imagen.train.step import StepResult


class Terminal(io.StringIO):
    def isatty(self):
        return True


def result(loss=0.5):
    return StepResult([loss, loss], [1.0, 1.0], [0.5, 0.5], 1.0, 0, False, None)


@pytest.fixture
def reported():
    return []


def test_first_step_reports_speed_and_time_of_the_next_line(reported):
    with Console(reported.append, 100, log_every=10, stream=io.StringIO()) as console:
        console.stepped(1, result(), seconds_per_step=2.0, seconds_left=200)
        console.stepped(2, result(), 2.0, 198)
    assert reported == ["step 1: loss 0.5000, 2 s per step; next line in about 18 s, end of training in about 3 min"]


def test_resumed_run_counts_to_its_next_logged_step(reported):
    with Console(reported.append, 100, log_every=10, began=39, stream=io.StringIO()) as console:
        console.stepped(40, result(), 0.01, 0.6)
    assert reported == ["step 40: loss 0.5000, 100 steps/s; next line in about 0 s, end of training in about 1 s"]


def test_at_least_one_line_per_minute(reported):
    now = [0.0]
    with Console(reported.append, 100, log_every=0, stream=io.StringIO(), clock=lambda: now[0]) as console:
        for step in range(1, 8):
            now[0] += 25
            console.stepped(step, result(), 25, 25 * (100 - step))
    assert [line.split()[1] for line in reported] == ["1:", "4/100", "7/100"]  # at 25 s, 100 s and 175 s
    assert reported[1] == "step 4/100  loss 0.5000  25 s per step  ETA 40 min"


def test_slow_first_step_is_announced(reported, monkeypatch):
    monkeypatch.setattr(console_module, "PATIENCE", 0.01)
    with Console(reported.append, 10, log_every=1, stream=io.StringIO()) as console:
        while not reported:
            time.sleep(0.01)
        console.stepped(1, result(), 30, 270)
    assert "step 1 takes longer" in reported[0] and reported[1].startswith("step 1: loss")


def test_terminal_has_a_bar_and_no_line_per_minute(reported):
    terminal, now = Terminal(), [0.0]
    with Console(reported.append, 10, log_every=5, stream=terminal, clock=lambda: now[0]) as console:
        for step in range(1, 4):
            now[0] += 100
            console.stepped(step, result(), 1, 10 - step)
        console.row({"step": 3, "loss": 0.5})
    assert "3/10" in terminal.getvalue() and "loss 0.5" in terminal.getvalue()
    assert len(reported) == 2


def test_other_ranks_show_no_bar(reported):
    terminal = Terminal()
    with Console(reported.append, 10, log_every=5, visible=False, stream=terminal) as console:
        console.stepped(1, result(), 1, 9)
    assert terminal.getvalue() == ""


def test_training_reports_its_first_step(shards, tmp_path, reported):
    toy.train_quietly(toy.experiment(steps=3, log_every=0), shards, tmp_path, report=reported.append)
    assert any(line.startswith("step 1: loss") and "end of training in about" in line for line in reported)


def test_format_of_lines():
    row = {"step": 50, "loss": 0.125, "grad_norm": None, "lr": 1e-4, "images_per_s": 61.23, "data_wait": 0.014}
    row |= {"memory_gb": 12.34, "eta_s": 4800}
    expected = "step 50/200  loss 0.1250  lr 1.0e-04  61.2 images/s  12.3 GB  data 1%  ETA 1 h 20 min"
    assert console_line(row, 200) == expected
    row |= {"mfu": 0.4321, "data_wait_rank": 5, "slowest_rank": 3, "slowest_by": 0.123}
    expected = "61.2 images/s  MFU 43.2%  12.3 GB  data 1% (rank 5)  slowest rank 3 by 12%  ETA 1 h 20 min"
    assert console_line(row, 200).endswith(expected)
    assert [duration(s) for s in (12, 300, 3600, 100_000)] == ["12 s", "5 min", "1 h 0 min", "1 d 3 h"]
