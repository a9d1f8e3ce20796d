"""Check that `--json` prints exactly one document on stdout, and that `--quiet` prints only errors."""

import json
import logging

import pytest
from command_line import CommandResult, run_imagen
from damage import write_noise_image

from imagen import presets


def json_output(done: CommandResult):
    assert done.code == 0, done.err
    return json.loads(done.out)


def assert_silent(*arguments: object) -> None:
    assert run_imagen(*arguments, "--quiet") == (0, "", "")


def test_train_sample_upscale_and_assemble_print_json(artifacts, quick_options, tmp_path):
    run, out = tmp_path / "run", tmp_path / "o"
    train = ["train", "debug_64", "--data", artifacts / "shards", "--out", run, *quick_options, "--train.steps"]
    done = run_imagen(*train, 1, "--json")
    assert json_output(done) == {"run": str(run), "step": 1, "images": 4, "finished": True} | {
        "reason": json.loads(done.out)["reason"]
    }
    assert "step 1: loss" in done.err  # progress goes to stderr, so that stdout is valid JSON
    assert_silent(*train, 2)

    sample = ["sample", artifacts / "cascade", "a cat", "--stages", 1, "--steps", 1, "--n", 2, "--out", out]
    made_images = {"out": str(out), "images": [f"{out}/0000.png", f"{out}/0001.png"], "sheet": f"{out}/sheet.png"}
    assert json_output(run_imagen(*sample, "--json")) == made_images
    assert_silent(*sample[:-1], tmp_path / "p")
    done = run_imagen(*sample, "--json", "--quiet")
    assert json_output(done) == made_images and done.err == ""

    image = write_noise_image(tmp_path / "a.png")
    upscale = ["upscale", artifacts / "sr", image, "--steps", 1, "--out", tmp_path / "u"]
    assert json_output(run_imagen(*upscale, "--json"))["images"] == [f"{tmp_path}/u/0000.png"]
    assert_silent(*upscale)

    joined = ["assemble", artifacts / "base", artifacts / "sr", "--out", tmp_path / "c"]
    runs = [str(artifacts / "base"), str(artifacts / "sr")]
    assert json_output(run_imagen(*joined, "--json")) == {"out": f"{tmp_path}/c", "runs": runs, "pushed": None}
    assert_silent(*joined)

    export = ["export", run, "--out", tmp_path / "e"]
    assert json_output(run_imagen(*export, "--json"))["out"] == f"{tmp_path}/e"
    assert_silent(*export)


def test_data_commands_print_json(artifacts, tmp_path):
    (tmp_path / "source").mkdir()
    for i in range(3):
        write_noise_image(tmp_path / "source" / f"{i}.png")
        (tmp_path / "source" / f"{i}.txt").write_text(f"caption {i}")
    write_noise_image(tmp_path / "source" / "small.png", (8, 8))
    (tmp_path / "source" / "small.txt").write_text("small")
    out = tmp_path / "shards"
    build = ["data", "build", tmp_path / "source", "--out", out, "--workers", 1]
    built = json_output(run_imagen(*build, "--json"))
    assert (built["out"], built["samples"], built["records"], sum(built["rejected"].values())) == (str(out), 3, 4, 1)
    assert_silent(*build)

    encoded = json_output(run_imagen("data", "encode", out, "--json"))
    assert (encoded["samples"], encoded["shards_encoded"], encoded["captions_cut"]) == (3, 1, 0)
    assert_silent("data", "encode", out)
    assert_silent("data", "inspect", out)
    bench = ["data", "bench", artifacts / "shards", "--seconds", 0.1, "--workers", 0]
    assert json_output(run_imagen(*bench, "--json"))["images_per_s"] > 0
    assert_silent(*bench)

    emoji = ["data", "emoji", "--objects", 1, "--sizes", 64, "--variants", 1, "--out"]
    drawn = json_output(run_imagen(*emoji, tmp_path / "emoji", "--json"))
    assert drawn["samples"]["train"] == 11 and drawn["samples"]["heldout"] == 1
    assert_silent(*emoji, tmp_path / "other")


def test_presets_config_and_plan_print_json(monkeypatch):
    monkeypatch.setattr(presets, "PRESETS", {"debug_64": presets.PRESETS["debug_64"]})
    assert_silent("presets")
    config = json_output(run_imagen("config", "debug_64", "--json"))
    assert config == json_output(run_imagen("config", "debug_64")) and config["name"] == "debug_64"
    assert_silent("config", "debug_64")
    plan = ["plan", "debug_64", "--gpu", "cpu", "--micro-batch", 8]
    assert json_output(run_imagen(*plan, "--json"))["gpus"] == 1
    assert_silent(*plan)


def test_evaluate_prints_json(artifacts):
    evaluate = ["evaluate-emoji", artifacts / "cascade", "--n", 2, "--steps", 1, "--objects", 4, "--guidance", "1,2"]
    assert [row["guidance"] for row in json_output(run_imagen(*evaluate, "--json"))] == [1, 2]
    assert_silent(*evaluate)
    suite = ["evaluate", artifacts / "cascade", "--suite", "imagen200", "--out", artifacts / "suite"]
    done = run_imagen(*suite, "--metrics", "fid", "--split", "train")
    assert done.code == 2 and "--metrics is for comparisons with shards; leave it out" in done.err


def test_warnings_are_not_printed_with_quiet(artifacts, tmp_path, caplog):
    sample = ["sample", artifacts / "base", "a zeppelin", "--steps", 1, "--out", tmp_path]
    assert_silent(*sample)
    assert not caplog.records and not logging.root.manager.disable
    run_imagen(*sample)
    assert "never trained on 'zeppelin'" in caplog.text


def test_progress_messages_go_to_stderr(monkeypatch, tmp_path):
    def run_demo(out, **_options):
        print("looking at this machine")
        return {"colour_accuracy": 0.5}

    monkeypatch.setattr("imagen.emoji.demo.run_demo", run_demo)
    assert run_imagen("demo", "--out", tmp_path) == (0, "looking at this machine\n", "")
    done = run_imagen("demo", "--out", tmp_path, "--json")
    assert (json_output(done), done.err) == ({"colour_accuracy": 0.5}, "looking at this machine\n")
    assert_silent("demo", "--out", tmp_path)


@pytest.mark.parametrize("options", [["--json"], ["--quiet"], ["--json", "--quiet"]])
def test_errors_are_always_printed(options):
    done = run_imagen("presets", *options, "extra")
    assert (done.code, done.out) == (2, "") and done.err.startswith("imagen: unknown argument 'extra'")
    done = run_imagen("data", "inspect", "absent", *options)
    assert (done.code, done.out) == (2, "") and "absent does not exist" in done.err and done.err.count("\n") == 1
