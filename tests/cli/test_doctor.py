"""`imagen doctor`: what is printed, and the exit codes."""

import json

from command_line import run_imagen
from patients import discs, healthy_rows, log_only, write_shards


def test_healthy_shards(tmp_path):
    shards = write_shards(tmp_path / "shards", discs(12))
    done = run_imagen("doctor", shards)
    assert done.code == 0 and f"{shards}: healthy (4 checks)" in done.out and done.err == ""
    assert "captions" in done.out and "good" in done.out


def test_findings_end_with_code_1(tmp_path):
    shards = write_shards(tmp_path / "shards", discs(12), caption=lambda text: "a photo")
    done = run_imagen("doctor", shards)
    assert done.code == 1 and done.err == ""
    assert done.out.startswith("problem: captions-alike (train)\n  100% of the captions are the same: 'a photo'.")
    assert "What to do: Give images captions" in done.out
    assert f"{shards}: 1 problem, 0 warnings (4 checks)" in done.out
    assert run_imagen("doctor", shards, "--quiet") == (1, "", "")

    document = json.loads(run_imagen("doctor", shards, "--json").out)
    assert (document["subject"], document["kind"], document["healthy"]) == (str(shards), "shards", False)
    (finding,) = document["findings"]
    assert finding["name"] == "captions-alike" and finding["numbers"]["most_frequent"] == 1.0
    assert set(finding) == {"name", "severity", "where", "numbers", "explanation", "remedy"}
    measured = {check["name"]: check["measured"] for check in document["checks"]}
    assert measured["captions"] == [
        {"where": "train", "captions": 12, "distinct": 1, "most_frequent": 1.0, "empty": 0.0}
    ]


def test_a_run_without_weights(tmp_path):
    run = log_only(tmp_path / "run", healthy_rows())
    done = run_imagen("doctor", run)
    assert done.code == 0 and "healthy" in done.out and "give --data SHARDS" in done.out


def test_mistakes(tmp_path, error_of):
    assert "absent does not exist; expected a training run, a cascade or shards" in error_of("doctor", "absent")
    (tmp_path / "empty").mkdir()
    assert "no training run (config.json), no cascade" in error_of("doctor", tmp_path / "empty")
    shards = write_shards(tmp_path / "shards", discs(4))
    assert "are shards themselves" in error_of("doctor", shards, "--data", shards)
    run = log_only(tmp_path / "run", healthy_rows())
    assert "nowhere does not exist" in error_of("doctor", run, "--data", tmp_path / "nowhere")
    (run / "config.json").write_text("{}")
    assert "config.json: field 'name' is missing" in error_of("doctor", run)
