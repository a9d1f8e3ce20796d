"""`--json` prints one document and nothing else on stdout; `--quiet` prints nothing but errors."""

import json

import pytest
from command_line import Done, command
from damage import picture

from imagen import presets


def document(done: Done):
    assert done.code == 0, done.err
    return json.loads(done.out)


def silent(*arguments: object) -> None:
    assert command(*arguments, "--quiet") == (0, "", "")


def test_train_sample_upscale_and_assemble(made, quick, tmp_path):
    run, out = tmp_path / "run", tmp_path / "o"
    train = ["train", "debug_64", "--data", made / "shards", "--out", run, *quick, "--train.steps"]
    done = command(*train, 1, "--json")
    assert document(done) == {"run": str(run), "step": 1, "images": 4, "finished": True} | {
        "reason": json.loads(done.out)["reason"]
    }
    assert "step 1: loss" in done.err  # lines of progress go where they disturb no reader of the document
    silent(*train, 2)

    sample = ["sample", made / "cascade", "a cat", "--stages", 1, "--steps", 1, "--n", 2, "--out", out]
    made_images = {"out": str(out), "images": [f"{out}/0000.png", f"{out}/0001.png"], "sheet": f"{out}/sheet.png"}
    assert document(command(*sample, "--json")) == made_images
    silent(*sample[:-1], tmp_path / "p")
    done = command(*sample, "--json", "--quiet")
    assert document(done) == made_images and done.err == ""

    image = picture(tmp_path / "a.png")
    upscale = ["upscale", made / "sr", image, "--steps", 1, "--out", tmp_path / "u"]
    assert document(command(*upscale, "--json"))["images"] == [f"{tmp_path}/u/0000.png"]
    silent(*upscale)

    joined = ["assemble", made / "base", made / "sr", "--out", tmp_path / "c"]
    runs = [str(made / "base"), str(made / "sr")]
    assert document(command(*joined, "--json")) == {"out": f"{tmp_path}/c", "runs": runs, "pushed": None}
    silent(*joined)

    export = ["export", run, "--out", tmp_path / "e"]
    assert document(command(*export, "--json"))["out"] == f"{tmp_path}/e"
    silent(*export)


def test_data(made, tmp_path):
    (tmp_path / "source").mkdir()
    for i in range(3):
        picture(tmp_path / "source" / f"{i}.png")
        (tmp_path / "source" / f"{i}.txt").write_text(f"caption {i}")
    picture(tmp_path / "source" / "small.png", (8, 8))
    (tmp_path / "source" / "small.txt").write_text("small")
    out = tmp_path / "shards"
    build = ["data", "build", tmp_path / "source", "--out", out, "--workers", 1]
    built = document(command(*build, "--json"))
    assert (built["out"], built["samples"], built["records"], sum(built["rejected"].values())) == (str(out), 3, 4, 1)
    silent(*build)

    encoded = document(command("data", "encode", out, "--json"))
    assert (encoded["samples"], encoded["shards_encoded"], encoded["captions_cut"]) == (3, 1, 0)
    silent("data", "encode", out)
    silent("data", "inspect", out)
    bench = ["data", "bench", made / "shards", "--seconds", 0.1, "--workers", 0]
    assert document(command(*bench, "--json"))["images_per_s"] > 0
    silent(*bench)

    emoji = ["data", "emoji", "--objects", 1, "--sizes", 64, "--variants", 1, "--out"]
    drawn = document(command(*emoji, tmp_path / "emoji", "--json"))
    assert drawn["samples"]["train"] == 11 and drawn["samples"]["heldout"] == 1
    silent(*emoji, tmp_path / "other")


def test_presets_config_and_plan(monkeypatch):
    monkeypatch.setattr(presets, "PRESETS", {"debug_64": presets.PRESETS["debug_64"]})
    silent("presets")
    config = document(command("config", "debug_64", "--json"))
    assert config == document(command("config", "debug_64")) and config["name"] == "debug_64"
    silent("config", "debug_64")
    plan = ["plan", "debug_64", "--gpu", "cpu", "--micro-batch", 8]
    assert document(command(*plan, "--json"))["gpus"] == 1
    silent(*plan)


def test_evaluate(made):
    evaluate = ["evaluate-emoji", made / "cascade", "--n", 2, "--steps", 1, "--objects", 4, "--guidance", "1,2"]
    assert [row["guidance"] for row in document(command(*evaluate, "--json"))] == [1, 2]
    silent(*evaluate)


def test_what_a_command_says_on_the_way_is_on_stderr(monkeypatch, tmp_path):
    def run_demo(out, **_options):
        print("looking at this machine")
        return {"colour_accuracy": 0.5}

    monkeypatch.setattr("imagen.emoji.demo.run_demo", run_demo)
    assert command("demo", "--out", tmp_path) == (0, "looking at this machine\n", "")
    done = command("demo", "--out", tmp_path, "--json")
    assert (document(done), done.err) == ({"colour_accuracy": 0.5}, "looking at this machine\n")
    silent("demo", "--out", tmp_path)


@pytest.mark.parametrize("options", [["--json"], ["--quiet"], ["--json", "--quiet"]])
def test_errors_are_printed_all_the_same(options):
    done = command("presets", *options, "extra")
    assert (done.code, done.out) == (2, "") and done.err.startswith("imagen: unknown argument 'extra'")
    done = command("data", "inspect", "absent", *options)
    assert (done.code, done.out) == (2, "") and "absent does not exist" in done.err and done.err.count("\n") == 1
