"""`imagen sample`: requests that cannot be met, full disks, images made again."""

import json
import re

import pytest
from command_line import command
from damage import files, largest_file, picture
from PIL import Image

from imagen.cli.sampling import COMPILED_IMAGES, compiles


@pytest.mark.parametrize(
    "options, message",
    [
        (["--stages", "3"], "stages is 3; this cascade has 2 stages (64, 256), so choose 1 to 2"),
        (["--stages", "0"], "choose 1 to 2"),
        (["--guidance", "nan"], "guidance is nan; it must be a finite number"),
        (["--guidance", "1,2,3"], "3 values of guidance, but 2 stages (64, 256) run"),
        (["--steps", "0"], "steps is 0"),
        (["--low-res-noise", "1.5"], "low_res_noise is 1.5; it must be from 0 to 1"),
        (["--sampler", "ddmp"], "unknown sampler 'ddmp'; did you mean 'ddpm'"),
        (["--size", "250", "256"], "size is 250x256 (height x width), but sides must divide by 32; nearest"),
        (["--size", "0", "256"], "'0' is not a whole number of 1 or more"),
        (["--seed", "-1"], "seed -1 is negative"),
        (["--prompts", "missing.txt"], "--prompts: missing.txt does not exist"),
        (["--prompts", __file__[:-3]], "does not exist"),
        (["bad \udcff bytes"], "is not UTF-8"),
    ],
)
def test_requests_that_cannot_be_met(made, mistake, tmp_path, options, message):
    said = mistake("sample", made / "cascade", "a cat", "--out", tmp_path / "o", *options)
    assert message in said
    assert not (tmp_path / "o").exists()


def test_prompts_of_a_file_that_is_no_text(made, mistake, tmp_path):
    (tmp_path / "p").write_bytes(b"caf\xe9")
    assert "is not a text file in UTF-8" in mistake(
        "sample", made / "base", "--prompts", tmp_path / "p", "--out", tmp_path
    )
    (tmp_path / "p").write_text("\n \n")
    assert "no prompts" in mistake("sample", made / "base", "--prompts", tmp_path / "p", "--out", tmp_path / "o")


def test_pictures_are_not_overwritten(made, imagen, mistake, tmp_path):
    one = ["--stages", 1, "--steps", 1, "--out", tmp_path / "o"]
    imagen("sample", made / "cascade", "", *one)  # no prompt is a prompt, too
    before = files(tmp_path)
    assert "made with another prompt ('', not 'a dog'); choose another" in mistake(
        "sample", made / "cascade", "a dog", *one
    )
    assert files(tmp_path) == before
    (tmp_path / "file").touch()
    assert "cannot create the folder" in mistake("sample", made / "cascade", "", *one[:-1], tmp_path / "file")
    assert "cannot create the folder" in mistake("sample", made / "cascade", "", *one[:-1], tmp_path / "file" / "x")


def test_a_disk_that_is_full_while_sampling(made, imagen, tmp_path):
    arguments = ["sample", made / "base", "", "--n", 2, "--steps", 1, "--out", tmp_path]
    with largest_file(1000):
        done = command(*arguments)
    lines = [line for line in re.split(r"[\r\n]+", done.err) if line and "%|" not in line]  # but for bars
    assert done.code == 2 and len(lines) == 1, done.err
    assert re.search(rf"cannot write {tmp_path}/0000.png: File too large; free some space", lines[0])
    assert list(tmp_path.iterdir()) == []
    imagen(*arguments)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_job_of_a_file_and_one_of_its_pictures_again(made, imagen, mistake, tmp_path):
    rows = [{"prompt": "a cat", "seed": 3}, {"prompt": "a dog on a red background", "negative": "blue"}]
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    options = ["--n", 2, "--steps", "2", "--guidance", 3, "--guidance-interval", "-5:5", "--batch-size", 3]
    imagen("sample", made / "base", "--prompts", tmp_path / "p.jsonl", *options, "--out", tmp_path / "o")
    again = ["sample", made / "base", "--from", tmp_path / "o" / "0002.png", "--out", tmp_path / "again"]
    imagen(*again)
    assert (tmp_path / "again" / "0000.png").read_bytes() == (tmp_path / "o" / "0002.png").read_bytes()
    assert "leave the others out" in mistake(*again, "a cat")
    assert "leave --guidance-rescale out" in mistake(*again, "--guidance-rescale", "0.5")
    picture(tmp_path / "plain.png")
    assert "has no imagen metadata" in mistake(*again[:3], tmp_path / "plain.png", *again[4:])


def test_a_picture_is_painted_anew_under_a_mask(made, imagen, tmp_path):
    init, mask = picture(tmp_path / "init.png", (256, 256)), tmp_path / "mask.png"
    Image.new("L", (256, 256)).save(mask)
    imagen(
        *("sample", made / "cascade", "a cat", "--init", init, "--mask", mask, "--strength", "0.5,1"),
        *("--steps", 2, "--out", tmp_path / "o"),
    )
    assert Image.open(tmp_path / "o" / "0000.png").convert("RGB").tobytes() == Image.open(init).tobytes()


def test_pictures_larger_than_memory(made, mistake, tmp_path):
    done = command("sample", made / "base", "", "--size", 8_000_000, 8_000_000, "--out", tmp_path)
    assert done.code == 2 and done.err.rstrip().endswith("or smaller pictures") and "Traceback" not in done.err


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
