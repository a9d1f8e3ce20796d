"""`imagen train --init`, `imagen subject` and `imagen export --merge` on what users give them."""

import json

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from imagen.data.shards.dataset import open_split
from imagen.pictures import write_png

FAST = ["--data.workers", "0", "--train.batch_size", "4", "--train.gap_samples", "4", "--train.precision", "fp32"]
SMALL_PLAN = ["--train.batch_size", 2, "--micro-batch", 2]


@pytest.fixture
def photos(tmp_path):
    """Three images with a caption for one of them."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "photos"
    for number, size in enumerate(((64, 64), (90, 70), (40, 80))):
        image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
        write_png(folder / f"{number}.png", image)
    (folder / "0.txt").write_text("a photo of sks dog on grass")
    return folder


def test_a_file_of_fine_tuning_keeps_its_own_fields(artifacts, imagen, error_of, tmp_path):
    cascade = f"{artifacts / 'cascade'}#64"
    fields = ["--stage.sampling.guidance", 3, "--stage.objective.min_snr_gamma", 7]
    written, part = tmp_path / "all.toml", tmp_path / "part.toml"
    imagen("config", "finetune", *fields, "--write", written)
    shown = json.loads(imagen("config", written))
    assert shown == json.loads(imagen("config", "finetune", *fields))
    assert (shown["stage"]["sampling"]["guidance"], shown["stage"]["objective"]["min_snr_gamma"]) == (3.0, 7.0)
    again = tmp_path / "config.json"  # as of a run with buckets, which records their sizes
    again.write_text(json.dumps({**shown, "stage": {**shown["stage"], "sizes": [[64, 64], [48, 80]]}}))
    assert json.loads(imagen("config", again))["stage"]["sizes"] == [[64, 64], [48, 80]]
    begins = f'preset = "finetune"\n[init]\nsource = "{cascade}"\n'
    part.write_text(f"{begins}[stage.sampling]\nguidance = 5.0\n")
    changed = json.loads(imagen("config", part))
    assert changed["stage"]["sampling"]["guidance"] == 5.0 and changed["stage"]["unet"] != shown["stage"]["unet"]
    part.write_text(f"{begins}[stage.unet]\ntime_width = 8\n")
    assert "stage.unet.time_width is 8, but the weights of" in error_of("config", part)


def test_a_subject_from_images_to_a_lora(artifacts, photos, imagen, error_of, tmp_path):
    subject = ["subject", photos, "--init", f"{artifacts / 'cascade'}#64", "--out", tmp_path / "run", *FAST]
    options = ["--prior", "a dog", "--prior-count", 4, "--train.sample_every", 0, "--device", "cpu"]
    assert "1.png has no caption: write it to 1.txt, or set --prompt" in error_of(*subject, *options)
    (photos / "1.txt").write_bytes("ein Hund für mich".encode("latin-1"))
    error = error_of(*subject, *options)
    assert "1.png: the caption's bytes are not UTF-8" in error and "(byte 0xfc at 10); correct or remove it" in error
    (photos / "1.txt").unlink()
    (photos / "0.txt").write_bytes(b"\xef\xbb\xbfa photo of sks dog on grass")  # a byte-order mark, as of Notepad
    said = imagen(*subject, *options, "--prompt", "a photo of sks dog", "--train.steps", 1)
    parts = [open_split(tmp_path / "run" / "data" / name) for name in ("subject", "prior")]
    captions = [[part.caption(i) for i in range(len(part))] for part in parts]
    assert captions == [["a photo of sks dog on grass", "a photo of sks dog", "a photo of sks dog"], 4 * ["a dog"]]
    assert "1 of 3 images are smaller than 64 pixels" in said and "lora.safetensors" in said
    assert "3 images of the subject, and 4 of its class: half of the samples" in said
    state = json.loads(next((tmp_path / "run" / "checkpoints").rglob("state.json")).read_text())
    assert state["weights"] == ["1/2", "1/2"]
    assert len(list((tmp_path / "run" / "prior").glob("0*.png"))) == 4
    said = imagen(*subject, *options, "--prompt", "a photo of sks dog", "--train.steps", 2)
    assert "generating" not in said and "all 2 steps are done" in said
    assert "other images, prompts or weights" in error_of(*subject, *options, "--prompt", "other")
    with safe_open(tmp_path / "run" / "lora.safetensors", "pt") as file:
        assert any("conv1.lora_A.weight" in key for key in file.keys())  # noqa: SIM118
    lora = ["--lora", f"{tmp_path / 'run' / 'lora.safetensors'}:0.8"]
    imagen(
        "sample", artifacts / "cascade", "sks dog", "--stages", 1, "--steps", 1, *lora, "--out", tmp_path / "pictures"
    )
    imagen("export", artifacts / "cascade", "--merge", *lora, "--out", tmp_path / "merged")
    (tmp_path / "notes.safetensors").write_text("precious")
    assert "is not a safetensors file" in error_of("export", tmp_path / "run", "--out", tmp_path / "notes.safetensors")
    assert (tmp_path / "notes.safetensors").read_text() == "precious"
    manifest = json.loads((tmp_path / "merged" / "cascade.json").read_text())
    assert [each["weight"] for each in manifest["stages"][0]["info"]["merged"]] == [0.8]
    assert len(manifest["stages"]) == 2


def test_mistakes_are_named(artifacts, photos, error_of, tmp_path):
    train = ["train", "finetune", "--data", artifacts / "shards", "--out", tmp_path / "run", "--init"]
    assert "has several stages; name one of 64, 256" in error_of(*train, artifacts / "cascade")
    source = f"{artifacts / 'cascade'}#64"
    assert "stage.unet.time_width is 128, but the weights of" in error_of(
        *train, source, "--stage.unet.time_width", 128
    )
    said = error_of("train", "debug_64", "--data", artifacts / "shards", "--out", tmp_path / "run", "--init-partial")
    assert "--init-partial needs --init CASCADE" in said
    export = ["export", artifacts / "base", "--out", tmp_path / "out"]
    assert "--lora needs --merge" in error_of(*export, "--lora", "a.safetensors")
    assert "did not train adapters" in error_of(*export[:-1], tmp_path / "a.safetensors")
    assert "holds no images" in error_of("subject", tmp_path, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_plan_of_a_stage_with_frozen_weights(artifacts, imagen):
    plan = ["plan", "finetune_lora", "--gpu", "cpu", *SMALL_PLAN, "--train.sample_every", 0, "--json", "--init"]
    lora = json.loads(imagen(*plan, f"{artifacts / 'cascade'}#64"))
    full = json.loads(imagen("plan", "finetune", *plan[2:], f"{artifacts / 'cascade'}#64"))
    held = "gradients", "optimizer", "ema"
    assert all(lora["memory"]["held"][kind] < full["memory"]["held"][kind] / 5 for kind in held)


def test_two_plans_of_a_discrete_schedule_in_one_process(artifacts, imagen):
    """Tables of the schedule that were computed on fake tensors are not reused."""
    plan = ["plan", "debug_64", "--gpu", "cpu", *SMALL_PLAN, "--json", "--stage.schedule"]
    schedule = '{"kind": "discrete_cosine"}'
    first, second = (json.loads(imagen(*plan, schedule)) for _ in range(2))
    assert first["memory"] == second["memory"]
