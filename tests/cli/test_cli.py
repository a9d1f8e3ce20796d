"""What goes wrong on the command line: one line, exit code 2, nothing lost."""

import contextlib
import json
import re
import resource
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from imagen import presets
from imagen.cascade.storage import _hash
from imagen.cli.arguments import parse
from imagen.data.shards.index import index_shard
from imagen.emoji.presets import MINILM
from imagen.errors import UserError
from imagen.presets import description
from imagen.train import export

COMMANDS = [
    "",
    "demo",
    "data",
    "data build",
    "data emoji",
    "data encode",
    "data inspect",
    "presets",
    "config",
    "train",
    "assemble",
    "export",
    "sample",
    "evaluate",
    "compare",
]


def files(folder: Path) -> dict[str, bytes]:
    """What must not change: everything but logs, which only grow."""
    found = (path for path in folder.rglob("*") if path.is_file() and "tfevents" not in path.name)
    return {str(path.relative_to(folder)): path.read_bytes() for path in found if path.name != "metrics.jsonl"}


@contextlib.contextmanager
def largest_file(size: int):
    """A write beyond so many bytes fails half-way, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def copy(made, tmp_path):
    """A copy of a part of `made`, to be damaged."""

    def make(name: str) -> Path:
        return Path(shutil.copytree(made / name, tmp_path / name))

    return make


# --- help, and what is mistyped ---


def test_help_is_instant_and_shows_examples():
    script = f"""
import sys
from imagen.cli import main
for command in {[*COMMANDS, "upscale"]!r}:
    try:
        main([*command.split(), "--help"])
    except SystemExit as done:
        assert done.code == 0, command
heavy = {{"torch", "numpy", "PIL", "transformers", "safetensors", "rich", "tqdm"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for example in (
        "imagen train emoji_64 --data",
        "--optim.lr=2e-4",
        "imagen assemble runs/base",
        "--prompts prompts",
    ):
        assert example in done.stdout


@pytest.mark.parametrize(
    "line, message",
    [
        ("", "no command given (see `imagen --help`)"),
        ("data", "no command given (see `imagen data --help`)"),
        ("samle", "unknown command 'samle'; did you mean 'sample'? (see `imagen --help`)"),
        ("data build x --caption-from class", "--caption-from cannot be 'class'; choose folder, name"),
        ("xyz", "unknown command 'xyz'; choose demo, data, presets, "),
        ("data encde x", "unknown command 'encde'; did you mean 'encode'? (see `imagen data --help`)"),
        ("presets --jsn", "unknown argument '--jsn'; did you mean '--json'? (see `imagen presets --help`)"),
        ("presets more", "unknown argument 'more'"),
        ("sample c p", "required: --out (see `imagen sample --help`)"),
        ("sample c p --out o --n 0", "--n: '0' is not a whole number of 1 or more"),
        ("sample c p --out o --batch-size -2", "--batch-size: '-2' is not a whole number"),
        ("sample c p --out o --steps x", "--steps: 'x' is not whole numbers with commas between"),
        ("sample c p --out o --guidance 1,", "--guidance: '1,' is not numbers with commas between"),
        ("sample c p --out o --gidance 3", "unknown argument '--gidance'; did you mean '--guidance'?"),
        ("sample c --out o", "no prompts: give some, or --prompts FILE"),
        ("upscale c --out o", "no pictures to enlarge"),
        ("train debug_64 --data d --out o --minutes nan", "--minutes: 'nan' is not a number above 0"),
        ("config emoji64", "unknown preset 'emoji64'; did you mean 'emoji_64'? (`imagen presets` lists them)"),
        ("config --train.stps 5 debug_64", "unknown field --train.stps; did you mean 'steps'?"),
        ("config debug_64 --data.crop 30 extra", "unexpected argument 'extra'"),
        ("demo --minutes 0 --out o", "--minutes: '0' is not a number above 0"),
    ],
)
def test_mistyped_commands(mistake, line, message):
    assert message in mistake(*line.split())


def test_prompts_may_stand_anywhere():
    for line in ("c a b --steps 3 --out o", "c --steps 3 a --out o b", "--out o c a --steps=3 b"):
        options = parse(["sample", *line.split()])
        assert (str(options.cascade), options.prompts, options.steps) == ("c", ["a", "b"], [3])
    for line in ("--steps 50,20", "--steps 50 20", "--steps=50,20"):
        options = parse(["sample", "c", "--out", "o", *line.split(), "a", "--sampler", "ddim", "ddpm", "b"])
        assert (options.prompts, options.steps, options.sampler) == (["a", "b"], [50, 20], ["ddim", "ddpm"])
    options = parse(["train", "--optim.lr", "-1", "p", "--data", "d", "--out", "o", "--text", "null", "--a.b=c"])
    assert (options.preset, options.overrides) == ("p", ["--optim.lr", "-1", "--a.b=c", "--text", "null"])


def test_presets_and_config(imagen, monkeypatch):
    monkeypatch.setattr(presets, "PRESETS", {"debug_256": presets.PRESETS["debug_256"]})  # all of them take seconds
    assert "debug_256" in imagen("presets")
    rows = json.loads(imagen("presets", "--json"))
    assert all({"name", "parameters", "resolution", "gflop"} <= row.keys() for row in rows)
    shown = json.loads(imagen("config", "--train.steps", "1e2", "debug_256", "--optim.lr=1"))
    assert (shown["train"]["steps"], shown["optim"]["lr"]) == (100, 1.0)


@pytest.mark.parametrize(
    "error, message",
    [
        (OSError(28, "No space left on device", "some/where"), "some/where: No space left on device"),
        (MemoryError(), "out of memory; use a smaller batch"),
        (torch.OutOfMemoryError("CUDA out of memory.\nTried to"), "out of memory; use a smaller batch"),
        (UserError("two\nlines"), "two lines"),
    ],
)
def test_trouble_with_the_machine_is_one_line(monkeypatch, mistake, error, message):
    def fail(*_arguments, **_options):
        raise error

    monkeypatch.setattr(description, "describe", fail)
    assert message in mistake("presets")


# --- config values ---


@pytest.mark.parametrize(
    "field, value",
    [
        *(("optim.lr", "-1"), ("optim.lr", "NaN"), ("optim.betas", "[0.9, 1]"), ("optim.eps", "0")),
        *(("optim.weight_decay", "-1"), ("optim.warmup_steps", "-1"), ("optim.clip_norm", "0")),
        *(("train.steps", "0"), ("train.batch_size", "0"), ("train.micro_batch", "0"), ("train.ema_decay", "1.5")),
        *(("train.text_dropout", "2"), ("train.seed", "-1"), ("train.log_every", "-1"), ("train.gap_samples", "0")),
        *(("train.keep_checkpoints", "0"), ("train.max_nonfinite", "0"), ("train.precision", "fp8")),
        *(("data.crop", "30"), ("data.crop", "512"), ("data.crop", "0"), ("data.workers", "-1"), ("data.window", "0")),
        *(("data.max_bad", "2"), ("data.max_enlargement", "0"), ("text.max_tokens", "0"), ("text.width", "0")),
        *(("stage.resolution", "0"), ("stage.resolution", "252"), ("stage.low_resolution", "48")),
        *(("stage.low_resolution", "null"), ("stage.schedule.logsnr_min", "40"), ("stage.objective.p2_k", "0")),
        *(("stage.sampling.steps", "0"), ("stage.sampling.low_res_noise", "2"), ("stage.sampling.sampler", "dpm")),
        *(("stage.unet.levels.0.channels", "0"), ("stage.unet.levels", "[]"), ("stage.unet.dropout", "1")),
        *(("stage.unet.image_channels", "2"), ("stage.unet.text_width", "100"), ("text", "null")),
        *(("stage.unet.head_channels", "0"), ("stage.unet.time_width", "0"), ("stage.unet.patch", "3")),
    ],
)
def test_values_out_of_range_are_refused_by_name(made, mistake, tmp_path, field, value):
    out = tmp_path / "run"
    said = mistake("train", "debug_256", "--data", made / "shards", "--out", out, f"--{field}", value)
    names = {"stage.unet.patch": "stage.resolution", "text": "stage.unet.text_width"}
    last = names.get(field, field).rsplit(".", 1)[-1]
    assert (last in said and "stage.unet.levels" not in field) or "level" in said
    assert not out.exists()


def test_a_batch_that_does_not_divide(mistake):
    assert "train.batch_size 8 gives each rank 8 samples, which do not divide into micro-batches of 3" in mistake(
        "config", "debug_64", "--train.micro_batch", 3
    )


# --- data ---


def damage_tar(folder: Path) -> None:
    (tar,) = (folder / "train").glob("*.tar")
    tar.write_bytes(tar.read_bytes()[:-20_000])


def corrupt_pictures(folder: Path) -> None:
    (tar,) = (folder / "train").glob("*.tar")
    data = bytearray(tar.read_bytes())
    with tarfile.open(tar) as archive:
        for member in archive:
            if member.name.endswith(".png"):
                data[member.offset_data : member.offset_data + 100] = bytes(100)
    tar.write_bytes(data)


def damage(pattern: str, change):
    def apply(folder: Path) -> None:
        (path,) = (folder / "train").glob(pattern)
        change(path)

    return apply


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def garble(path: Path) -> None:
    path.write_bytes(b"\xff" * 200)


@pytest.mark.parametrize(
    "spoil, message",
    [
        (shutil.rmtree, "does not exist; make shards of your pictures with `imagen data build`, or draw"),
        (lambda f: shutil.rmtree(f / "train") or (f / "train").mkdir(), "holds no shards"),
        (damage_tar, "cut off or replaced; copy it again"),
        (corrupt_pictures, "not a whole picture"),
        (damage("*.tar", Path.unlink), "is missing though its index is there"),
        (damage("*.index.safetensors", Path.unlink), "index.safetensors is missing; run `imagen data encode"),
        (damage("*.index.safetensors", cut), "index.safetensors is truncated"),
        (damage("*.index.safetensors", garble), "index.safetensors is corrupt"),
        (damage("*.text.safetensors", Path.unlink), "has no text embeddings of"),
        (damage("*.text.safetensors", cut), "text.safetensors is truncated"),
        (damage("*.text.safetensors", garble), "text.safetensors is corrupt"),
    ],
)
def test_damaged_data(copy, mistake, quick, tmp_path, spoil, message):
    shards = copy("shards")
    spoil(shards)
    said = mistake("train", "debug_64", "--data", shards, "--out", tmp_path / "run", *quick, "--train.steps", 2)
    assert message in said and str(shards) in said


@pytest.mark.parametrize(
    "options, message",
    [
        (["--text.encoder", "t5-small"], "no .* of 't5-small' .*; run `imagen data encode .* --encoder t5-small"),
        (["--text.max_tokens", "77"], r"no .* \(00000\..*\.77\.text\..*\), only 00000\..*; run .* --max-tokens 77`"),
        (["--text.revision", "v2"], r"no .* \(00000\..*@v2\..*\), only 00000\..*; run .* --revision v2"),
        (["--text.width", "512", "--stage.unet.text_width", "512"], "made with width '384', the run wants '512'"),
    ],
)
def test_embeddings_of_another_encoder(made, mistake, tmp_path, options, message):
    said = mistake("train", "debug_64", "--data", made / "shards", "--out", tmp_path / "run", *options)
    assert re.search(message, said)


def test_pictures_that_are_too_small(made, mistake, tmp_path):
    said = mistake("train", "debug_1024", "--data", made / "shards", "--out", tmp_path / "run")
    assert "00000.tar" in said and "1024" in said


def test_encoding(made, copy, imagen, mistake, tmp_path):
    shards, tokens = copy("shards"), MINILM.max_tokens
    assert "samples, every shard was encoded already by" in imagen("data", "encode", shards, "--max-tokens", tokens)
    assert "nowhere does not exist" in mistake("data", "encode", tmp_path / "nowhere")
    assert "no/such" in mistake("data", "encode", shards, "--encoder", tmp_path / "no" / "such")
    assert "not a whole number" in mistake("data", "encode", shards, "--batch-tokens", 0)
    (tmp_path / "silent").mkdir()
    (tmp_path / "k.png").write_bytes(b"x")
    with tarfile.open(tmp_path / "silent" / "00000.tar", "w") as tar:
        tar.add(tmp_path / "k.png", "k.png")
    index_shard(tmp_path / "silent" / "00000.tar")
    assert "00000.tar has no captions" in mistake("data", "encode", tmp_path / "silent")
    assert "another" in mistake("data", "emoji", "--out", made / "shards", "--objects", 3)


# --- runs ---


def test_a_run_of_another_config_or_a_file(made, copy, mistake, quick, tmp_path):
    run = copy("base")
    before = files(run)
    train = ["train", "debug_64", "--data", made / "shards", *quick, "--train.steps", 4]
    assert "was begun with train.seed = 0, not 5" in mistake(*train, "--out", run, "--train.seed", 5)
    assert "was begun with" in mistake("train", "debug_256", "--data", made / "shards", "--out", run, *quick)
    assert files(run) == before
    (tmp_path / "file").touch()
    assert "is not a folder; choose another place" in mistake(*train, "--out", tmp_path / "file")


def test_two_processes_in_one_run(made, copy, mistake, quick):
    run = copy("base")
    script = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print('held'); input()"
    with subprocess.Popen(
        [sys.executable, "-u", "-c", script, run / ".lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        said = mistake("train", "debug_64", "--data", made / "shards", "--out", run, *quick, "--train.steps", 8)
        holder.communicate("\n")
    assert "another process is training in" in said


@pytest.mark.parametrize("limit, what", [(100_000, "checkpoints"), (8_000_000, "export")])
def test_a_disk_that_is_full_while_training(made, copy, mistake, imagen, quick, monkeypatch, limit, what):
    """The checkpoint is larger than the export: for that one the limit is set when its turn comes."""
    run = copy("base")
    before = files(run)
    train = ["train", "debug_64", "--data", made / "shards", "--out", run, *quick, "--train.steps", 8]
    if what == "checkpoints":
        monkeypatch.setattr(export, "export_stage", lambda *_, **__: None)  # it would fail first: checkpoints take time
        with largest_file(limit):
            said = mistake(*train)
        monkeypatch.undo()
    else:
        original = export.export_stage

        def export_stage(*arguments, **options):
            with largest_file(100_000):
                original(*arguments, **options)

        monkeypatch.setattr(export, "export_stage", export_stage)
        said = mistake(*train)
        monkeypatch.undo()
    assert re.search(rf"cannot write {run}/{what}/.*: .*File too large.*; free some space", said)
    after = files(run)
    kept = [name for name in before if what in name]
    assert kept and {name: after[name] for name in kept} == {name: before[name] for name in kept}
    assert not [name for name in after if name.endswith((".tmp", "-new"))]
    assert "all 8 steps are done" in imagen(*train)  # when there is space again


def test_devices(made, mistake, tmp_path):
    sample = ["sample", made / "base", "cat", "--out", tmp_path / "o", "--device"]
    for name in ("nonsense", "cuda:99", "meta", "cpu:x"):
        assert re.search(
            rf"--device {name}: (no such device|not available here); this machine has cpu", mistake(*sample, name)
        )
    if not torch.cuda.is_available():
        train = ["train", "debug_64", "--data", made / "shards", "--out", tmp_path / "r"]
        assert "--device cuda: not available here" in mistake(*train, "--device", "cuda")
    assert not (tmp_path / "o").exists() and not (tmp_path / "r").exists()


# --- cascades ---


def edit(change):
    def apply(folder: Path) -> None:
        value = json.loads((folder / "cascade.json").read_text())
        change(value)
        (folder / "cascade.json").write_text(json.dumps(value))

    return apply


def broken_weights(folder: Path) -> None:
    """No safetensors file at all, though its hash is right."""
    (path,) = folder.glob("stage-256-*")
    path.write_bytes(b"nonsense")
    edit(lambda value: value["stages"][1].update(sha256=_hash(path)))(folder)


def other_weights(folder: Path) -> None:
    (path,) = folder.glob("stage-256-*")
    tensors = load_file(path)
    tensors.pop("conv_in.bias")
    save_file(tensors, path)
    edit(lambda value: value["stages"][1].update(sha256=_hash(path)))(folder)


@pytest.mark.parametrize(
    "spoil, message",
    [
        (shutil.rmtree, "does not exist; expected a cascade or a training run"),
        (lambda f: (f / "cascade.json").unlink(), "is not a cascade"),
        (lambda f: (f / "cascade.json").write_text("{"), "cascade.json is not valid JSON"),
        (edit(lambda v: v["stages"][0]["config"].update(resolutio=1)), "unknown field 'stages[0].config.resolutio'"),
        (edit(lambda v: v["stages"][0].update(sha256="0" * 64)), "is damaged or was replaced: its sha256 is"),
        (edit(lambda v: v["stages"].reverse()), "is a base stage; only the first stage can be one"),
        (edit(lambda v: v["stages"][1]["config"].update(low_resolution=32)), "enlarges 32 pictures"),
        (edit(lambda v: v["text"]["config"].update(width=512)), "unet.text_width is 384 but"),
        (edit(lambda v: v.update(format=7)), "this version of imagen reads 1"),
        (lambda f: next(f.glob("stage-256-*")).unlink(), "is missing; cascade.json names it"),
        (lambda f: cut(next(f.glob("stage-256-*"))), "is damaged or was replaced"),
        (broken_weights, "is not a safetensors file"),
        (other_weights, "tensor 'conv_in.bias' is missing"),
    ],
)
def test_damaged_cascades(copy, mistake, tmp_path, spoil, message):
    cascade = copy("cascade")
    spoil(cascade)
    said = mistake("sample", cascade, "a cat", "--out", tmp_path / "o")
    assert message in said and str(cascade) in said
    assert not (tmp_path / "o").exists()


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
    assert "cannot make the folder" in mistake("sample", made / "cascade", "", *one[:-1], tmp_path / "file")
    assert "cannot make the folder" in mistake("sample", made / "cascade", "", *one[:-1], tmp_path / "file" / "x")


def test_a_disk_that_is_full_while_sampling(made, imagen, tmp_path):
    from command_line import command

    arguments = ["sample", made / "base", "", "--n", 2, "--steps", 1, "--out", tmp_path]
    with largest_file(1000):
        done = command(*arguments)
    lines = [line for line in re.split(r"[\r\n]+", done.err) if line and "%|" not in line]  # but for bars
    assert done.code == 2 and len(lines) == 1, done.err
    assert re.search(rf"cannot write {tmp_path}/0000.png: File too large; free some space", lines[0])
    assert list(tmp_path.iterdir()) == []
    imagen(*arguments)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_disk_that_is_full_while_assembling(made, mistake, tmp_path):
    with largest_file(100_000):
        said = mistake("assemble", made / "base", "--out", tmp_path / "c")
    assert "free some space" in said and not list((tmp_path / "c").glob("cascade.json"))
    assert not [path for path in (tmp_path / "c").iterdir() if path.name.endswith(".tmp")]


def test_stages_that_do_not_fit(made, copy, mistake, tmp_path):
    base, sr = made / "base", made / "sr"
    other = copy("sr")
    edit(lambda v: v["text"]["config"].update(encoder="t5-small"))(other / "export")
    for runs, message in (
        ((sr, base), "is a base stage; only the first stage can be one"),
        ((sr,), "cannot come first"),
        ((base, base), "only the first stage can be one"),
        ((base, sr, sr), "enlarges 64 pictures, but the stage before it makes 256"),
        ((base, other), "text encoder is 't5-small', not 'sentence-transformers/all-MiniLM-L6-v2'"),
        ((base, tmp_path / "none"), "none does not exist"),
        ((base, made / "shards"), "is not a cascade"),
    ):
        assert message in mistake("assemble", *runs, "--out", tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_assembling_overwrites_nothing_else(made, copy, imagen, mistake, tmp_path):
    run, cascade = copy("base"), copy("cascade")
    before = files(tmp_path)
    assert "is a training run; choose another folder" in mistake("assemble", run, made / "sr", "--out", run)
    assert "holds a cascade of stages [64, 256], not [64]" in mistake("assemble", run, "--out", cascade)
    assert "is not empty and no cascade" in mistake("assemble", run, "--out", tmp_path)
    imagen("assemble", run, made / "sr", "--out", cascade)  # the same again
    assert files(tmp_path) == before


# --- enlarging ---


def picture(path: Path, size: tuple[int, int] = (64, 64)) -> Path:
    Image.effect_noise(size, 60).convert("RGB").save(path)
    return path


def test_pictures_that_cannot_be_enlarged(made, mistake, tmp_path, monkeypatch):
    good = picture(tmp_path / "good.png")
    truncated, text = tmp_path / "cut.png", tmp_path / "text.png"
    truncated.write_bytes(good.read_bytes()[:2000])
    text.write_text("hello")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    bomb = picture(tmp_path / "bomb.png", (200, 200))
    for cascade, pictures, message in (
        ("sr", [tmp_path / "none.png"], "none.png does not exist"),
        ("sr", [truncated], "cut.png is not a picture that can be read"),
        ("sr", [good, text], "text.png is not a picture that can be read"),
        ("sr", [tmp_path], "is a folder, not a file"),
        ("sr", [bomb], "bomb.png is not a picture that can be read: Image size .* exceeds limit"),
        ("base", [good], "nothing to enlarge with"),
    ):
        assert re.search(message, mistake("upscale", made / cascade, *pictures, "--out", tmp_path / "o"))
    assert "no base stage" in mistake("sample", made / "sr", "cat", "--out", tmp_path / "o")
    assert not (tmp_path / "o").exists()


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
    assert "says nothing of how it was made" in mistake(*again[:3], tmp_path / "plain.png", *again[4:])


def test_a_picture_is_painted_anew_under_a_mask(made, imagen, tmp_path):
    init, mask = picture(tmp_path / "init.png", (256, 256)), tmp_path / "mask.png"
    Image.new("L", (256, 256)).save(mask)
    imagen(
        *("sample", made / "cascade", "a cat", "--init", init, "--mask", mask, "--strength", "0.5", "1"),
        *("--steps", 2, "--out", tmp_path / "o"),
    )
    assert Image.open(tmp_path / "o" / "0000.png").convert("RGB").tobytes() == Image.open(init).tobytes()


def test_pictures_larger_than_memory(made, mistake, tmp_path):
    from command_line import command

    done = command("sample", made / "base", "", "--size", 8_000_000, 8_000_000, "--out", tmp_path)
    assert done.code == 2 and done.err.rstrip().endswith("or smaller pictures") and "Traceback" not in done.err
