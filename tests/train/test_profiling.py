"""Test that each rank writes a trace of the requested steps."""

import json

import pytest
from ranks import run_on_ranks
from toy import experiment, train_quietly

from imagen.cli.parser import parse
from imagen.errors import UserError
from imagen.train.ranks import process_group

WHAT = experiment(steps=6, log_every=0, gap_samples=1, checkpoint_every=2)


def traced(run):
    """Return the number of traced steps by file, and check that every step computes a loss."""
    found = {}
    for path in sorted((run / "profile").iterdir()):
        events = json.loads(path.read_text())["traceEvents"]
        steps = {event["name"] for event in events if event.get("cat") == "user_annotation"}
        assert any(event["name"] == "aten::convolution_backward" for event in events)
        found[path.name] = len([name for name in steps if name.startswith("ProfilerStep#")])
    return found


def test_steps_in_the_middle_and_to_the_end(shards, tmp_path):
    reported = []
    train_quietly(WHAT, shards, tmp_path / "a", profile=(3, 4), report=reported.append)
    assert traced(tmp_path / "a") == {"steps-3-4-rank-0.json": 2}
    assert f"wrote the profile of steps 3 to 4 to {tmp_path / 'a' / 'profile'}" in reported
    train_quietly(WHAT, shards, tmp_path / "b", profile=(6, 6))
    assert traced(tmp_path / "b") == {"steps-6-6-rank-0.json": 1}


def test_first_step_has_no_warm_up_and_a_resumed_run_traces_the_rest(shards, tmp_path):
    short = experiment(steps=2, log_every=0, gap_samples=1)
    train_quietly(short, shards, tmp_path, profile=(1, 1))
    assert traced(tmp_path) == {"steps-1-1-rank-0.json": 1}
    reported = []
    train_quietly(WHAT, shards, tmp_path, profile=(2, 4), report=reported.append)  # from step 3 on
    assert traced(tmp_path) == {"steps-1-1-rank-0.json": 1, "steps-3-4-rank-0.json": 2}
    train_quietly(
        experiment(steps=7, log_every=0, gap_samples=1), shards, tmp_path, profile=(2, 4), report=reported.append
    )
    assert reported.count("steps 2 to 4 are not profiled: they were trained earlier") == 1
    train_quietly(
        experiment(steps=7, log_every=0, gap_samples=1), shards, tmp_path, profile=(2, 4)
    )  # nothing left to train
    assert len(traced(tmp_path)) == 2


def test_stopping_early_writes_the_traced_steps(shards, tmp_path):
    def stop(line):
        if line.startswith("step 2/"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_quietly(experiment(steps=6, log_every=2, gap_samples=1), shards, tmp_path, profile=(2, 5), report=stop)
    assert traced(tmp_path) == {"steps-2-2-rank-0.json": 1}


def test_a_full_disk_does_not_end_the_run(shards, tmp_path):
    (tmp_path / "profile").write_text("in the way")
    reported = []
    assert train_quietly(WHAT, shards, tmp_path, profile=(2, 3), report=reported.append).finished
    assert any(line.startswith(f"cannot write {tmp_path / 'profile'}") for line in reported)


def profile_on(shards, run):
    with process_group() as ranks:
        train_quietly(WHAT, shards, run, profile=(2, 3), ranks=ranks)


def test_each_rank_writes_its_own_trace(shards, tmp_path):
    run_on_ranks(2, profile_on, shards, tmp_path)
    assert traced(tmp_path) == {f"steps-2-3-rank-{rank}.json": 2 for rank in (0, 1)}


def test_invalid_spans_are_rejected(shards, tmp_path):
    for span in ((5, 7), (0, 2), (3, 2)):
        with pytest.raises(UserError, match=rf"--profile {span[0]}:{span[1]}: this run has steps 1 to 6"):
            train_quietly(WHAT, shards, tmp_path / "none", profile=span)
    assert not (tmp_path / "none").exists()
    for text in ("10", "13:10", "0:2", "a:b", "1:2:3", ":", "-1:2"):
        with pytest.raises(UserError, match=r"--profile: .* is not FIRST:LAST, such as 10:13"):
            parse(["train", "debug_64", "--data", "d", "--out", "o", f"--profile={text}"])
    assert parse(["train", "debug_64", "--data", "d", "--out", "o", "--profile", "10:13"]).profile == (10, 13)
