"""Check that absurd or hostile options fail immediately, with one line and exit code 2."""

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from command_line import run_imagen
from PIL import Image

from imagen.cli import failures
from imagen.errors import COMPARED, UserError, suggest
from imagen.presets import description
from imagen.torchrun import Launch, check_rendezvous, read_launch

DEEP = "[" * 900 + "]" * 900
DEEPER = "[" * 100_000
WORD, WORDS = "a" * 1_200_000, "cat " * 300_000


@pytest.mark.parametrize(
    "line, message",
    [
        ("--n 1000000000000", "'1000000000000' is too many; at most 1,000,000,000"),
        ("--n 1e12", "'1e12' is not a whole number of 1 or more"),
        ("--n " + "9" * 5000, "'9+'... is too many"),
        ("--n 2000000", "2,000,000 x 1 = 2,000,000 images; one command samples at most 1,000,000"),
        ("--steps 100000", "steps is 100000; it must be at most 10000"),
        ("--steps 1e30", "'1e30' is not whole numbers"),
        ("--steps " + "9" * 5000, "is not whole numbers"),
        ("--guidance 1e39", r"guidance is 1e\+39; it must be at least -1000 and at most 1000"),
        ("--guidance 1e400", "guidance is inf; it must be a finite number"),
        ("--guidance-interval -5:1e400", "'-5:1e400' is not LOW:HIGH"),
        ("--guidance-rescale 1e400", "guidance_rescale is inf"),
        ("--damping 1e400", "damping is inf"),
        ("--strength 1e400", "strength applies to an init image"),
        ("--vary 1e400", "'1e400' is not a number"),
        ("--vram 1e400", "'1e400' is not a number"),
        ("--vram=-1e300", "vram is -1e.300; it must be above 0"),
        ("--seed 1e5", "invalid whole value|is not a whole number"),
        ("--seed " + "9" * 5000, "is not a whole number below 2.63"),
        ("--stages 99999999999999999999", "is not a whole number below 2.63"),
        ("--size 99999999999 64", "--size: '99999999999' is too many"),
        ("--batch-size 99999999999", "is too many"),
        ("--micro-batch 99999999999", "is too many"),
        ("--tile 99999999999", "is too many"),
        ("--device cpu:7", "--device cpu:7: not available here; this machine has cpu"),
        ("--device hpu", "--device hpu: "),
        ("--device privateuseone", "--device privateuseone: "),
        ("--device meta", "--device meta: "),
        ("--device cuda:99999999999999999999", "--device cuda:9+: "),
        ("--device =", "--device =: no such device"),
        ("--out a\0b", "contains a zero byte"),
        ("--out a\udcffb", "is not UTF-8"),
        ("--negative a\udcffb", "is not UTF-8"),
    ],
)
def test_absurd_options_of_sample_are_rejected(artifacts, error_of, tmp_path, monkeypatch, line, message):
    monkeypatch.chdir(tmp_path)
    words = line.split() if line.isprintable() else line.split(" ", 1)
    assert re.search(message, error_of("sample", artifacts / "base", "cat", "--out", tmp_path / "o", *words))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("prompt", [WORD, WORDS, "\N{OCTOPUS}" * 300_000])
def test_prompts_of_a_megabyte_are_rejected(artifacts, error_of, tmp_path, prompt):
    picture = tmp_path / "a.png"
    Image.new("RGB", (64, 64)).save(picture)
    for line in (
        ("sample", artifacts / "base", prompt),
        ("sample", artifacts / "base", "cat", "--negative", prompt),
        ("upscale", artifacts / "sr", picture, "--prompt", prompt),
    ):
        error = error_of(*line, "--out", tmp_path / "o")
        assert "has 1,200,000 characters; at most 10,000" in error or "has 300,000 characters; at most 10,000" in error
        assert len(error) < 300 and not (tmp_path / "o").exists()


def test_long_prompts_are_sampled(artifacts, imagen, tmp_path):
    for number, prompt in enumerate(("cat " * 2500, "a" * 10_000)):
        imagen("sample", artifacts / "base", prompt, "--steps", 1, "--out", tmp_path / str(number))
        with Image.open(tmp_path / str(number) / "sheet.png") as sheet:
            assert sheet.height < 1000  # its caption is truncated


@pytest.mark.parametrize("kind", ["pipe", "folder", "/dev/zero", "socket"])
def test_paths_that_are_not_regular_files_are_not_opened(artifacts, error_of, tmp_path, monkeypatch, kind):
    import socket

    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    os.mkdir("folder")
    Image.new("RGB", (64, 64)).save("good.png")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        name = {"pipe": "a pipe", "folder": "a folder", "/dev/zero": "a device", "socket": "a socket"}[kind]
        for line in (
            ("sample", artifacts / "base", "--prompts", kind),
            ("sample", artifacts / "base", "cat", "--init", kind),
            ("sample", artifacts / "base", "cat", "--init", "good.png", "--mask", kind),
            ("sample", artifacts / "base", "--from", kind),
            ("upscale", artifacts / "sr", "good.png", kind),
        ):
            assert f"{kind} is {name}, not a file" in error_of(*line, "--out", "o"), line
    assert not os.path.exists("o")


@pytest.mark.parametrize(
    "field, value",
    [
        *(("train.steps", "1e400"), ("optim.lr", "1e400"), ("data.max_enlargement", "1e400"), ("train.seed", "1e400")),
        *(("train.steps", "9" * 400), ("train.batch_size", "9" * 12), ("train.micro_batch", "9" * 400)),
        *(("data.workers", "1000000"), ("train.gap_samples", "1e9"), ("data.cache_gb", "1e308")),
        *(("train.steps", DEEP), ("train.ema_decays", DEEP), ("stage.unet.levels", DEEP), ("data.crop", DEEPER)),
        *(("data.cache", '"\\ud800"'), ("text", DEEPER), ("stage.sampling.guidance", "1e39")),
        *(("stage.sampling.steps", "100000"), ("stage.sampling.logsnr_range", "[-1e400, 1e400]")),
    ],
)
def test_absurd_config_values_are_rejected(artifacts, error_of, tmp_path, field, value):
    last = field.rsplit(".", 1)[-1]
    for line in (
        ("config", "debug_256"),
        ("train", "debug_256", "--data", artifacts / "shards", "--out", tmp_path / "r"),
    ):
        error = error_of(*line, f"--{field}", value)
        assert last in error and len(error) < 400
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    "line, message",
    [
        ("data emoji --out o --sizes 100000", "at most 8,192"),
        ("data emoji --out o --variants 1000000000000", "is too many"),
        ("data emoji --out o --relations 1e400", "'1e400' is not a number"),
        ("data build x --out o --workers 1000000", "at most 1,024"),
        ("data bench x --workers 1000000", "data.workers is 1,000,000; it must be at least 0 and at most 1024"),
        ("data bench x --seconds 1e400", "'1e400' is not a number above 0"),
        ("train debug_64 --data x --out o --minutes 1e300", "'1e300' is too much"),
        ("train debug_64 --data x --out o --profile 1:" + "9" * 5000, "is not FIRST:LAST"),
        ("demo --out o --minutes 1e300", "'1e300' is too much"),
        ("export x --out o --step 1e400", "is not a whole number"),
        ("export x --out o --decay 1e400", "is not a number"),
        ("plan debug_64 --gpus 1000000000000", "is too many"),
        ("plan debug_64 --mfu 1e400", "is not a number"),
    ],
)
def test_absurd_options_of_other_commands_are_rejected(error_of, tmp_path, monkeypatch, line, message):
    monkeypatch.chdir(tmp_path)
    assert message in error_of(*line.split())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "variables, message",
    [
        ({"RANK": "abc"}, "the environment variable RANK is 'abc'; it must be a whole number, here 0"),
        ({"RANK": "1"}, "RANK is '1'; it must be a whole number, here 0"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0'; it must be a whole number, here from 1 to 1000000"),
        ({"WORLD_SIZE": "-1"}, "WORLD_SIZE is '-1'"),
        ({"WORLD_SIZE": "9" * 5000}, "WORLD_SIZE is '99999"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK is '2'; it must be a whole number, here from 0 to 1"),
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "1.5"}, "LOCAL_RANK is '1.5'"),
        ({"WORLD_SIZE": "2"}, "MASTER_ADDR is not set"),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}, "MASTER_PORT is ''"),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "http"}, "MASTER_PORT is 'http'"),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "70000"}, "here from 1 to 65535"),
    ],
)
def test_invalid_launch_variables_are_rejected(artifacts, error_of, tmp_path, monkeypatch, variables, message):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    train = ("train", "debug_64", "--data", artifacts / "shards", "--out", tmp_path / "o")
    sample = ("sample", artifacts / "base", "cat", "--out", tmp_path / "o")  # `sample` does not form a process group
    commands = [train] if "MASTER_ADDR" in variables or "MASTER_ADDR" in message else [train, sample]
    for line in commands:
        assert message in error_of(*line)
    assert not (tmp_path / "o").exists()


def test_launch_variables_of_torchrun_are_read(monkeypatch):
    assert read_launch() == Launch(0, 1, 0)
    for name, value in {"WORLD_SIZE": "16", "RANK": "9", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    check_rendezvous()
    assert read_launch() == Launch(9, 16, 1)


def test_curves_that_cannot_be_drawn_are_user_errors(error_of, tmp_path):
    (tmp_path / "config.json").write_text('{"name": "debug_64"}')
    metrics = tmp_path / "metrics.jsonl"
    good = '{"step": 1, "images": 4, "loss": 0.5}\n'
    for text, out, message in (
        (good, "c.xyz", "c.xyz: curves are plotted as .png, .svg, .pdf"),
        (good + "{", "c.png", "metrics.jsonl, line 2, is damaged: "),
        (good + "[1]\n", "c.png", "metrics.jsonl, line 2, is damaged: it is not an object with step, images"),
        (good + '{"step": 2}\n', "c.png", "metrics.jsonl, line 2, is damaged: it is not an object with step, images"),
        ('{"step": 1, "images": "x"}', "c.png", "metrics.jsonl is damaged: images of row 1 is not a number"),
        (good + "[" * 100_000, "c.png", "nested more than 100 deep"),
    ):
        metrics.write_text(text)
        assert message in error_of("compare", tmp_path, "--out", tmp_path / out)
    metrics.write_text(good)
    for row, message in (
        ('{"step": 1}', "evaluation.jsonl, line 1, is damaged: it is not an object with step, guidance, steps"),
        ('{"step": 1, "guidance": 1, "steps": 1, "single": 3}', "evaluation.jsonl is damaged: row 1 lacks images"),
    ):
        (tmp_path / "evaluation.jsonl").write_text(row)
        assert message in error_of("compare", tmp_path, "--out", tmp_path / "c.png")


@pytest.mark.parametrize(
    "more, message",
    [
        (["--n", 1], "(--n) is 1; it must be at least 2"),
        (["--n", 10**6], "(--n) is 1,000,000; it must be at least 2 and at most 10000"),
        (["--n", 2, "--objects", 1], "needs two objects or more"),
        (["--n", 5000, "--objects", "all"], "5000 held-out prompts requested, but there are only"),
        (["--n", 2, "--guidance", "2,1e39"], "guidance is 1e+39"),
        (["--n", 2, "--steps", 100_000], "steps is 100000"),
    ],
)
def test_evaluations_that_cannot_finish_are_rejected_before_sampling(artifacts, error_of, monkeypatch, more, message):
    pytest.importorskip("emoji")

    def draw(*_arguments, **_options):
        raise AssertionError("no image may be sampled")

    monkeypatch.setattr("imagen.cascade.cascade.Cascade.run", draw)
    assert message in error_of("evaluate-emoji", artifacts / "base", *more)


# --- bugs and other errors ---


@pytest.fixture
def failing(monkeypatch, tmp_path):
    """Make `imagen presets` raise an error, and write bug reports to `tmp_path`."""
    monkeypatch.setattr(failures.tempfile, "tempdir", str(tmp_path))

    def fail_with(error: BaseException):
        def fail(*_arguments, **_options):
            raise error

        monkeypatch.setattr(description, "describe", fail)
        return run_imagen("presets", "--json")

    return fail_with


def test_a_bug_prints_one_line_and_writes_its_traceback_to_a_file(failing, tmp_path):
    done = failing(ZeroDivisionError("1 / 0\nand more \x1b[31m"))
    (report,) = tmp_path.iterdir()
    assert (done.code, done.out) == (1, "")
    assert done.err == (
        f"imagen: this is a bug in imagen: please report it; the traceback is in {report} "
        r"(ZeroDivisionError: 1 / 0 and more \x1b[31m)" + "\n"
    )
    text = report.read_text()
    assert text.startswith("command: imagen presets --json\nversions: imagen ") and "torch 2" in text
    assert "Traceback (most recent call last)" in text and "in fail\n" in text
    assert report.stat().st_mode & 0o077 == 0  # a command line may contain private data


def test_a_bug_on_a_full_disk_prints_one_line(failing, monkeypatch):
    monkeypatch.setattr(failures.tempfile, "tempdir", "/nowhere")
    done = failing(KeyError("x"))
    assert done.code == 1 and done.err.count("\n") == 1
    assert (
        "please report it; its traceback could not be written (No such file or directory); IMAGEN_TRACEBACK=1 shows it"
        in done.err
    )


@pytest.mark.parametrize("error", [ZeroDivisionError("a bug"), UserError("a mistake"), OSError(28, "full")])
def test_debug_mode_raises_every_error_unchanged(failing, monkeypatch, tmp_path, error):
    monkeypatch.setenv("IMAGEN_TRACEBACK", "1")
    with pytest.raises(BaseException) as caught:
        failing(error)
    assert caught.value is error or "did not raise" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_prints_no_traceback(failing):
    assert failing(KeyboardInterrupt()) == (130, "", "")


@pytest.mark.parametrize(
    "error, message",
    [
        (RecursionError("maximum recursion depth exceeded"), "something is nested too deeply to be read"),
        (MemoryError(), "out of memory; use a smaller batch"),
        (OSError(28, "No space left on device"), "cannot continue: No space left on device"),
        (OSError(24, "Too many open files", "a/b"), "a/b: Too many open files"),
        (UserError("x" * 10**6 + " end"), "x [...] x"),
        (UserError("caf\udcff \x1b[2J \u202e"), r"caf\udcff \x1b[2J \u202e"),
    ],
)
def test_user_errors_are_recognised(failing, tmp_path, error, message):
    done = failing(error)
    assert done.code == 2 and done.err.count("\n") == 1 and len(done.err) < 2100
    assert message.replace("x [...] x", " [...] ") in done.err
    assert list(tmp_path.iterdir()) == []


def test_a_bug_in_a_thread_is_reported(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(failures.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(threading, "excepthook", failures.thread_failed)

    def run(error):
        def fail():
            raise error

        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()
        return capsys.readouterr().err

    assert run(OSError(28, "No space left on device")) == ""
    assert re.fullmatch(r"imagen: this is a bug in imagen: .*\(KeyError: 'x'\)\n", run(KeyError("x")))
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("ending", ["| head -c 10", "| true", "> /dev/full", ">&-"])
def test_a_closed_or_full_output_ends_the_command(artifacts, ending):
    """Run in a shell, so that the reader of the pipe can exit."""
    if ending == "> /dev/full" and not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    line = f"{sys.executable} -m imagen data inspect {artifacts / 'shards'} --json {ending}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    expected = "imagen: cannot continue: No space left on device\n" if "full" in ending else ""
    codes = {"| true": {141}, "| head -c 10": {0, 141}, "> /dev/full": {2}, ">&-": {0}}  # 0: head has read it all
    assert done.stderr == expected and done.returncode in codes[ending]


def test_only_the_beginning_of_a_long_word_is_compared():
    name = "a" * COMPARED
    assert suggest(name + "b" * 4_000_000, [name]) == f"; did you mean {name!r}?"
