"""Test help, mistyped commands, and the parsing of command lines."""

import subprocess
import sys
from dataclasses import fields

import pytest

from imagen.cli.fields import SECTIONS
from imagen.cli.parser import parse
from imagen.cli.sampling import one_or_each
from imagen.cli.table import COMMANDS
from imagen.diffusion.samplers.registry import sampler_names
from imagen.errors import UserError
from imagen.train.experiment import Experiment

NAMES = ["", "data", "convert", *(command.name for command in COMMANDS)]


def test_help_is_fast_and_shows_examples():
    script = f"""
import sys
from imagen.cli import main
for command in {NAMES!r}:
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
    for command in COMMANDS:
        assert command.details.splitlines()[-1].lstrip().startswith(("imagen", "fish: imagen")), command.name


@pytest.mark.parametrize(
    "line, message",
    [
        ("", "no command given (see `imagen --help`)"),
        ("data", "no command given (see `imagen data --help`)"),
        ("samle", "unknown command 'samle'; did you mean 'sample'? (see `imagen --help`)"),
        ("data build x --caption-from class", "--caption-from: unknown value 'class'; choose folder, name"),
        ("xyz", "unknown command 'xyz'; choose demo, data, presets, "),
        ("data encde x", "unknown command 'encde'; did you mean 'encode'? (see `imagen data --help`)"),
        ("presets --jsn", "unknown argument '--jsn'; did you mean '--json'? (see `imagen presets --help`)"),
        ("sample c p --otu o", "unknown argument '--otu'; did you mean '--out'? (see `imagen sample --help`)"),
        ("train p --dta d", "unknown argument '--dta'; did you mean '--data'? (see `imagen train --help`)"),
        ("--jsn presets", "unknown argument '--jsn' (see `imagen --help`)"),
        ("sample c p --out o --sampler ddim,ddmp", "--sampler: unknown sampler 'ddmp'; did you mean 'ddpm'?"),
        ("sample c p --out o --spacing tme", "--spacing: unknown spacing 'tme'; did you mean 'time'?"),
        ("sample c p --out o --precision bf61", "--precision: unknown value 'bf61'; did you mean 'bf16'?"),
        ("data encode s --engine rai", "--engine: unknown value 'rai'; did you mean 'ray'?"),
        ("presets more", "unknown argument 'more'"),
        ("sample c p", "required: --out (see `imagen sample --help`)"),
        ("sample c p --out o --n 0", "--n: '0' is not a whole number of 1 or more"),
        ("sample c p --out o --batch-size -2", "--batch-size: '-2' is not a whole number"),
        ("sample c p --out o --steps x", "--steps: 'x' is not whole numbers separated by commas"),
        ("sample c p --out o --guidance 1,", "--guidance: '1,' is not numbers separated by commas"),
        ("sample c p --out o --gidance 3", "unknown argument '--gidance'; did you mean '--guidance'?"),
        ("sample c --out o", "no prompts: give at least one, or --prompts FILE"),
        ("upscale c --out o", "no images to upscale"),
        ("train debug_64 --data d --out o --minutes nan", "--minutes: 'nan' is not a number above 0"),
        ("config emoji64", "unknown preset 'emoji64'; did you mean 'emoji_64'? (`imagen presets` lists them)"),
        ("config --train.stps 5 debug_64", "unknown field --train.stps; did you mean 'steps'?"),
        ("config debug_64 --data.crop 30 extra", "unexpected argument 'extra'"),
        ("demo --minutes 0 --out o", "--minutes: '0' is not a number above 0"),
    ],
)
def test_mistyped_commands_are_rejected(error_of, line, message):
    assert message in error_of(*line.split())


def test_prompts_may_be_anywhere_on_the_line():
    for line in ("c a b --steps 3 --out o", "c --steps 3 a --out o b", "--out o c a --steps=3 b"):
        options = parse(["sample", *line.split()])
        assert (str(options.cascade), options.prompts, options.steps) == ("c", ["a", "b"], [3])
    for prompts in (
        ["1984"],
        ["2", "1"],
        ["ddim"],
        ["all", "none"],
        ["-5"],
        ["-5:5", "-x y"],
        ["--a b"],
        ["a=b", "a, b"],
    ):
        options = parse(["sample", "c", "--out", "o", "--steps", "50", *prompts, "--sampler", "ddpm"])
        assert (options.prompts, options.steps, options.sampler) == (prompts, [50], ["ddpm"])
    options = parse(["sample", "c", "--out", "o", "--", "--stages", "-h"])
    assert (options.prompts, options.stages) == (["--stages", "-h"], None)


def test_lists_are_separated_by_commas_only():
    for line in ("--steps 50,20", "--steps=50,20"):
        options = parse(["sample", "c", "--out", "o", *line.split(), "a", "--sampler", "ddim,ddpm", "b"])
        assert (options.prompts, options.steps, options.sampler) == (["a", "b"], [50, 20], ["ddim", "ddpm"])
    options = parse(["sample", "c", "--out", "o", "--guidance", "2,1.5", "3", "--guidance-interval", "-5:5,all", "4"])
    assert (options.guidance, options.guidance_interval, options.prompts) == ([2, 1.5], [(-5, 5), "all"], ["3", "4"])
    options = parse(["sample", "c", "--out", "o", "--guidance-interval", "all", "a"])
    assert one_or_each(options.guidance_interval) == "all"  # None would be no override
    options = parse(["sample", "c", "--out", "o", "--tile", "none,512", "--vram", "-1e3", "--size", "64", "96", "7"])
    assert (options.tile, options.vram, options.size, options.prompts) == ([None, 512], -1000, [64, 96], ["7"])
    options = parse(["data", "build", "--out", "o", "--sizes", "64,256", "photos"])
    assert (options.sizes, str(options.source)) == ([64, 256], "photos")


@pytest.mark.parametrize("sizes", ["64,256", "64 256", "64, 256"])
def test_emoji_sizes_may_be_separated_by_spaces(sizes):
    """The command has no positional arguments that a size could be mistaken for."""
    if sizes == "64, 256":
        with pytest.raises(UserError, match="--sizes: '' is not a whole number"):
            parse(["data", "emoji", "--out", "o", "--sizes", *sizes.split()])
        return
    options = parse(["data", "emoji", "--out", "o", "--sizes", *sizes.split()])
    assert [size for part in options.sizes for size in part] == [64, 256]


def test_config_fields_are_separated_from_options():
    line = ["train", "--optim.lr", "-1", "p", "--data", "d", "--out", "o", "--text", "null", "--a.b=c"]
    options = parse(line)
    assert (options.preset, options.data) == ("p", ["d"])
    assert options.fields == ["--optim.lr", "-1", "--text", "null", "--a.b=c"]
    assert parse(["config", "--data", "{}", "p"]).fields == ["--data", "{}"]  # `config` has no option of that name
    settable = {field.name for field in fields(Experiment)} - {"init"}  # recorded by the option --init
    assert settable == set(SECTIONS)


def test_help_lists_all_samplers(imagen):
    shown = " ".join(imagen("sample", "--help").split())
    assert f"--sampler NAME,... {', '.join(sampler_names())}" in shown
