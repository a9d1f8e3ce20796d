"""Test `imagen sample`: invalid requests, full disks, and regenerated images."""

import json
import re

import pytest
from command_line import run_imagen
from damage import max_file_size, read_files, write_noise_image
from PIL import Image

from imagen.cli.sampling import COMPILED_IMAGES, compiles
from imagen.pictures import read_metadata


@pytest.mark.parametrize(
    "options, message",
    [
        (["--stages", "3"], "stages is 3; this cascade has 2 stages (64, 256), so choose 1 to 2"),
        (["--stages", "0"], "choose 1 to 2"),
        (["--guidance", "nan"], "guidance is nan; it must be a finite number"),
        (["--guidance", "1,2,3"], "3 values of guidance, but 2 stages (64, 256) run"),
        (["--steps", "0"], "steps is 0"),
        (["--low-res-noise", "1.5"], "low_res_noise is 1.5; it must be from 0 to 1"),
        (["--low-res-noise", "0.2", "--stages", "1"], "omit --low-res-noise: no super-resolution stage of"),
        (["--tile", "none,512", "--stages", "1"], "omit --tile: no super-resolution stage of"),
        (["--sampler", "ddmp"], "unknown sampler 'ddmp'; did you mean 'ddpm'"),
        (["--size", "250", "256"], "size is 250x256 (height x width), but sides must be divisible by 32; nearest"),
        (["--size", "0", "256"], "'0' is not a whole number of 1 or more"),
        (["--seed", "-1"], "seed -1 is negative"),
        (["--prompts", "missing.txt"], "--prompts: missing.txt does not exist"),
        (["--prompts", __file__[:-3]], "does not exist"),
        (["bad \udcff bytes"], "is not UTF-8"),
    ],
)
def test_invalid_requests_are_rejected(artifacts, error_of, tmp_path, options, message):
    error = error_of("sample", artifacts / "cascade", "a cat", "--out", tmp_path / "o", *options)
    assert message in error
    assert not (tmp_path / "o").exists()


def test_a_binary_prompt_file_is_rejected(artifacts, error_of, tmp_path):
    (tmp_path / "p").write_bytes(b"caf\xe9")
    assert "is not a text file in UTF-8" in error_of(
        "sample", artifacts / "base", "--prompts", tmp_path / "p", "--out", tmp_path
    )
    (tmp_path / "p").write_text("\n \n")
    assert "no prompts" in error_of("sample", artifacts / "base", "--prompts", tmp_path / "p", "--out", tmp_path / "o")


def test_images_are_not_overwritten(artifacts, imagen, error_of, tmp_path):
    one = ["--stages", 1, "--steps", 1, "--out", tmp_path / "o"]
    imagen("sample", artifacts / "cascade", "", *one)  # an empty prompt is valid
    before = read_files(tmp_path)
    assert "made with another prompt ('', not 'a dog'); choose another" in error_of(
        "sample", artifacts / "cascade", "a dog", *one
    )
    assert read_files(tmp_path) == before
    (tmp_path / "file").touch()
    assert "cannot create the folder" in error_of("sample", artifacts / "cascade", "", *one[:-1], tmp_path / "file")
    assert "cannot create the folder" in error_of(
        "sample", artifacts / "cascade", "", *one[:-1], tmp_path / "file" / "x"
    )


def test_a_full_disk_while_sampling_is_a_user_error(artifacts, imagen, tmp_path):
    arguments = ["sample", artifacts / "base", "", "--n", 2, "--steps", 1, "--out", tmp_path]
    with max_file_size(1000):
        done = run_imagen(*arguments)
    lines = [line for line in re.split(r"[\r\n]+", done.err) if line and "%|" not in line]  # without progress bars
    assert done.code == 2 and len(lines) == 1, done.err
    assert re.search(rf"cannot write {tmp_path}/0000.png: File too large; free some space", lines[0])
    assert list(tmp_path.iterdir()) == []
    imagen(*arguments)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_prompt_file_is_sampled_and_one_image_regenerated(artifacts, imagen, error_of, tmp_path):
    rows = [{"prompt": "a cat", "seed": 3}, {"prompt": "a dog on a red background", "negative": "blue"}]
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    options = ["--n", 2, "--steps", "2", "--guidance", 3, "--guidance-interval", "-5:5", "--batch-size", 3]
    imagen("sample", artifacts / "base", "--prompts", tmp_path / "p.jsonl", *options, "--out", tmp_path / "o")
    again = ["sample", artifacts / "base", "--from", tmp_path / "o" / "0002.png", "--out", tmp_path / "again"]
    imagen(*again)
    assert (tmp_path / "again" / "0000.png").read_bytes() == (tmp_path / "o" / "0002.png").read_bytes()
    sample = ["sample", artifacts / "base", "--prompts", tmp_path / "p.jsonl", *options]
    sample[sample.index("--steps") + 1] = "3"
    assert "made with another setting steps of stage 64 (2, not 3)" in error_of(*sample, "--out", tmp_path / "o")
    assert "--vary makes variations" in error_of(
        "sample", artifacts / "base", "a cat", "--vary", 0.5, "--out", tmp_path
    )
    assert "omit other prompts" in error_of(*again, "a cat")
    assert "omit --guidance-rescale" in error_of(*again, "--guidance-rescale", "0.5")
    write_noise_image(tmp_path / "plain.png")
    assert "has no imagen metadata" in error_of(*again[:3], tmp_path / "plain.png", *again[4:])


def test_a_masked_region_is_inpainted(artifacts, imagen, tmp_path):
    init, mask = write_noise_image(tmp_path / "init.png", (256, 256)), tmp_path / "mask.png"
    Image.new("L", (256, 256)).save(mask)
    imagen(
        *("sample", artifacts / "cascade", "a cat", "--init", init, "--mask", mask, "--strength", "0.5,1"),
        *("--steps", 2, "--out", tmp_path / "o"),
    )
    assert Image.open(tmp_path / "o" / "0000.png").convert("RGB").tobytes() == Image.open(init).tobytes()


def test_pictures_larger_than_memory(artifacts, error_of, tmp_path):
    done = run_imagen("sample", artifacts / "base", "", "--size", 8_000_000, 8_000_000, "--out", tmp_path)
    assert done.code == 2 and done.err.rstrip().endswith("or smaller images") and "Traceback" not in done.err


@pytest.mark.parametrize("device, setting, images, expected", [
    ("cuda", None, COMPILED_IMAGES, True),
    ("cuda:1", None, COMPILED_IMAGES - 1, False),
    ("cpu", None, 10 * COMPILED_IMAGES, False),
    ("cuda", True, 1, True),
    ("cpu", True, 1, True),
    ("cuda", False, 10 * COMPILED_IMAGES, False),
])  # fmt: skip
def test_large_jobs_on_a_gpu_are_compiled(monkeypatch, device, setting, images, expected):
    monkeypatch.setattr("imagen.models.compiling.HAS_TRITON", True)
    assert compiles(device, setting, images) is expected


def test_options_of_the_sampler_reach_it_and_the_provenance(artifacts, imagen, error_of, tmp_path):
    base = ["sample", artifacts / "cascade", "a cat", "--stages", 1, "--steps", 1, "--sampler", "ddim"]
    imagen(*base, "--sampler-options", "eta=0.5", "--out", tmp_path / "out")
    assert read_metadata(tmp_path / "out" / "0000.png")["stages"][0]["sampling"]["eta"] == 0.5
    for value, message in (("eta=2", "eta is 2.0"), ("etta=1", "no option 'etta'"), ("eta", "is not NAME=VALUE")):
        assert message in error_of(*base, "--sampler-options", value, "--out", tmp_path / "none")
