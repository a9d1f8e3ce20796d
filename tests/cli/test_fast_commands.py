"""`imagen train distill`, `imagen assemble --fast` and `imagen sample --fast`."""

import json

FIELDS = ("--train.steps", 1, "--train.batch_size", 2, "--distill.teacher_steps", 1, "--lora.rank", 2)


def test_from_a_cascade_to_fast_samples(artifacts, imagen, error_of, quick_options, tmp_path):
    init = ["--init", f"{artifacts / 'cascade'}#64", "--data", artifacts / "shards", "--out", tmp_path / "run"]
    imagen("train", "distill", *init, *quick_options, *FIELDS)
    fast = ["assemble", artifacts / "cascade", "--fast", tmp_path / "run", "--fast-steps", "256=1"]
    imagen(*fast, "--out", tmp_path / "fast")
    stages = json.loads((tmp_path / "fast" / "cascade.json").read_text())["stages"]
    assert [stage["fast"]["sampling"]["steps"] for stage in stages] == [4, 1]
    assert [stage["fast"]["lora"] is None for stage in stages] == [False, True]

    imagen("sample", tmp_path / "fast", "a cat", "--fast", "--out", tmp_path / "pictures")
    again = ["sample", tmp_path / "fast", "--from", tmp_path / "pictures" / "0000.png", "--out", tmp_path / "again"]
    imagen(*again)
    first, second = (tmp_path / folder / "0000.png" for folder in ("pictures", "again"))
    assert first.read_bytes() == second.read_bytes()
    imagen("upscale", tmp_path / "fast", first, "--fast", "--scale", 4, "--out", tmp_path / "larger")
    assert "omit --fast" in error_of(*again, "--fast")

    measured = ["evaluate", tmp_path / "fast", "--data", artifacts / "shards", "--stages", 1, "--n", 4, "--fast"]
    measured += ["--metrics", "kd_efficientnet", "--out", tmp_path / "report"]
    report = json.loads(imagen(*measured, "--json"))
    assert [stage["sampling"]["steps"] for stage in report["request"]["stages"]] == [4]
    assert "leave --fast out" in error_of(*measured, "--sweep", "steps=1,2")


def test_mistakes(artifacts, error_of, tmp_path):
    out = ["--out", tmp_path / "out"]
    error = error_of("sample", artifacts / "cascade", "a cat", "--fast", *out)
    assert "of this cascade have no fast settings: train `imagen train distill" in error
    assert not (tmp_path / "out").exists()
    assemble = ["assemble", artifacts / "base", artifacts / "sr", *out]
    assert "'256' is not RESOLUTION=N" in error_of(*assemble, "--fast-steps", "256")
    assert "has no stage 1024, only 64, 256" in error_of(*assemble, "--fast-steps", "1024=2")
    assert "has no lora.safetensors" in error_of(*assemble, "--fast", artifacts / "base")
    assert not (tmp_path / "out").exists()  # nothing is written before the checks
    train = ["train", "distill", "--init", f"{artifacts / 'cascade'}#256", "--data", artifacts / "shards", *out]
    assert "stage 256 is a super-resolution stage" in error_of(*train)
