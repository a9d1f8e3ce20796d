"""Config files: written with explanations, read back, and checked with the file and the field in the message."""

import json
import re
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pytest

from imagen import configtext
from imagen.errors import UserError
from imagen.fielddocs import describe_kind, explanations, field_docs
from imagen.jsonconfig import to_json
from imagen.presets import PRESETS, preset
from imagen.presets.file import read_experiment
from imagen.train import fields_page
from imagen.train.experiment import Experiment, override

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Inner:
    a: int  # a number
    # Of several
    # lines, None: nothing.
    b: float | None = None
    c: Literal["x", "y"] = "x"


@dataclass(frozen=True, kw_only=True)
class Outer:
    # not of the field below

    text: str = "a # b"  # beside it
    inner: Inner | None = None  # maybe
    many: tuple[Inner, ...] = field(default_factory=tuple)  # a list
    small: float = 1e-8
    table: dict[str, float] = field(default_factory=dict)


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_explanations_are_the_comments_of_the_fields():
    assert explanations(Inner) == {"a": "a number", "b": "Of several lines, null: nothing.", "c": ""}
    assert explanations(Outer)["text"] == "beside it"


def test_fields_are_described_with_type_and_default():
    docs = {doc.path: doc for doc in field_docs(Outer)}
    assert list(docs) == [
        *("text", "inner", "inner.a", "inner.b", "inner.c", "many", "many[].a", "many[].b", "many[].c"),
        *("small", "table"),
    ]
    assert docs["inner.b"].kind == "number or null" and docs["many[].c"].kind == "one of x, y"
    assert docs["inner"].section and not docs["small"].section and docs["small"].default == 1e-8
    assert describe_kind(tuple[float, float]) == "list of 2 numbers"


def test_every_field_of_an_experiment_is_explained():
    assert [doc.path for doc in field_docs(Experiment) if not doc.explanation] == []


def test_toml_as_written():
    value = Outer(inner=Inner(a=1), many=(Inner(a=2, b=0.5), Inner(a=3)), table={"eta": 0.5})
    assert configtext.to_toml(value) == "\n".join(
        [
            'text = "a # b"  # beside it',
            "small = 1.0e-08",
            'table = { "eta" = 0.5 }',
            "",
            "# maybe",
            "[inner]",
            "a = 1  # a number",
            'b = "null"  # Of several lines, null: nothing.',
            'c = "x"  # one of x, y',
            "",
            "# a list",
            "[[many]]",
            "a = 2  # a number",
            "b = 0.5  # Of several lines, null: nothing.",
            'c = "x"  # one of x, y',
            "[[many]]",
            "a = 3",
            'b = "null"',
            'c = "x"',
            "",
        ]
    )


@pytest.mark.parametrize("suffix", [".toml", ".yaml", ".json"])
@pytest.mark.parametrize("name", PRESETS)
def test_a_written_preset_is_read_back_as_it_is(tmp_path, name, suffix):
    path = written(tmp_path / f"mine{suffix}", configtext.to_text(preset(name), suffix))
    assert read_experiment(path) == preset(name)


@pytest.mark.parametrize("suffix", [".toml", ".yaml"])
def test_unusual_values_are_read_back(tmp_path, suffix):
    what = override(
        preset("debug_64"),
        [
            *("--name", 'a "b" # \\ é \x7f\n😀 no', "--optim.eps", "1e-300", "--data.cache", "~/x"),
            *("--train.ema_decays", "[0.5]", "--train.schedule", '{"shift_reference": 8}'),
        ],
    )
    what = replace(what, text=None, stage=replace(what.stage, unet=preset("emoji_1024").stage.unet, low_resolution=16))
    path = written(tmp_path / f"mine{suffix}", configtext.to_text(what, suffix))
    assert read_experiment(path) == what


def test_changes_to_a_preset(tmp_path):
    base = preset("debug_64")
    toml = written(
        tmp_path / "a.toml",
        'preset = "debug_64"\nname = "mine"\n[train]\nbatch_size = 4\nschedule = {shift_reference = 8}\n'
        '[stage.schedule]\nshift_reference = "null"\n',
    )
    yaml = written(
        tmp_path / "a.yml",
        "preset: debug_64\nname: mine\ntrain: {batch_size: 4, schedule: {shift_reference: 8}}\n"
        "stage:\n  schedule: {shift_reference: null}\n",
    )
    changes = ["--name", "mine", "--train.batch_size", "4", "--train.schedule", '{"shift_reference": 8}']
    expected = override(base, [*changes, "--stage.schedule.shift_reference", "null"])
    assert read_experiment(toml) == read_experiment(yaml) == expected != base


def test_numbers_in_yaml_may_have_no_dot(tmp_path):
    path = written(tmp_path / "a.yaml", "preset: debug_64\noptim: {lr: 1e-4}\n")
    assert read_experiment(path).optim.lr == 1e-4


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.toml", 'preset = "debug_64"\n[optim]\nlrr = 1', r"a\.toml: unknown field 'optim\.lrr'; did you mean 'lr'"),
        ("a.toml", 'preset = "debug_64"\n[optim]\nlr = "fast"', r"a\.toml: optim\.lr is 'fast'; it must be a finite"),
        ("a.toml", 'preset = "debug_64"\n[optim]\nlr = -1', r"a\.toml: optim\.lr is -1; it must be above 0"),
        ("a.toml", 'preset = "debug_64"\n[optim]\nlr = "null"', r"a\.toml: optim\.lr is 'null'"),
        ("a.toml", 'preset = "debug_64"\n[data]\ncrop = 2024-01-01', r"a\.toml: data\.crop is .*2024.*whole number"),
        ("a.toml", 'preset = "debug64"', r"a\.toml: unknown preset 'debug64'; did you mean 'debug_64'"),
        ("a.toml", "preset = 64", r"a\.toml: preset is 64; it must be the name of a preset"),
        ("a.toml", "preset debug_64", r"a\.toml is not TOML: .*line 1"),
        ("a.toml", "[train]\nsteps = 5", r'a\.toml has neither a preset nor a stage: begin with preset = "NAME"'),
        ("a.yaml", "a: [1", r"a\.yaml is not YAML: .*line 1"),
        ("a.yaml", "train: {steps: 1}\ntrain: {steps: 2}", r"a\.yaml is not YAML: 'train' is given twice, in line 2"),
        ("a.yaml", "a: &a 1\nb: *a", r"a\.yaml is not YAML: aliases"),
        ("a.yaml", "- 1", r"a\.yaml holds no fields"),
        ("a.json", '{"train": NaN}', r"a\.json is not JSON: NaN"),
        ("a.ini", "", r"a\.ini: config files end in \.toml, \.json, \.yaml, \.yml"),
    ],
)
def test_mistakes_name_file_and_field(tmp_path, name, text, message):
    with pytest.raises(UserError, match=message):
        read_experiment(written(tmp_path / name, text))


def test_a_file_that_does_not_exist(tmp_path):
    with pytest.raises(UserError, match=r"none\.toml does not exist"):
        read_experiment(tmp_path / "none.toml")


def test_the_command_writes_reads_and_explains(imagen, error_of, tmp_path):
    path = tmp_path / "my.toml"
    assert "train it: imagen train" in imagen("config", "debug_64", "--write", path, "--optim.lr", "2e-4")
    assert imagen("config", "debug_64", "--write", path, "--optim.lr", "2e-4")  # again, with the same content
    assert imagen("config", path) == imagen("config", "debug_64", "--optim.lr", "2e-4")
    assert json.loads(imagen("config", path, "--optim.lr", "1"))["optim"]["lr"] == 1
    assert "it exists, and what you changed in it would be lost" in error_of("config", "debug_64", "--write", path)
    assert "config files end in" in error_of("config", "debug_64", "--write", tmp_path / "my.ini")
    assert "JSON has no comments" in imagen("config", "debug_64", "--write", tmp_path / "my.json")
    assert "optim.lr (number): learning rate" in imagen("config", "debug_64", "--explain", "lr")
    assert "did you mean 'steps'" in error_of("config", "debug_64", "--explain", "step_s")
    path.write_text(path.read_text().replace("lr = 0.0002", "lr = 0.0"))
    data = ("--data", tmp_path, "--out", tmp_path / "run")
    assert f"{path}: optim.lr is 0; it must be above 0" in error_of("train", path, *data)
    assert f"{path}: optim.lr is 0; it must be above 0" in error_of("plan", path)


@pytest.mark.parametrize("number", [0, 1])
def test_the_files_of_the_how_to_page(tmp_path, number):
    page = (ROOT / "docs" / "howto" / "training.md").read_text()
    text = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)[number]
    found = read_experiment(written(tmp_path / "my.toml", text))
    if number == 0:
        assert (found.name, found.train.batch_size, found.optim.lr) == ("my_64", 64, 5e-4)
    else:
        assert [level.channels for level in found.stage.unet.levels] == [64, 128, 256]


def test_the_config_of_a_run_is_a_config_file(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(to_json(preset("debug_256")), indent=2))
    assert read_experiment(path) == preset("debug_256")


def test_the_page_of_fields_is_up_to_date():
    """`python -m imagen.train.fields_page > docs/reference/fields.md` writes it."""
    assert (ROOT / "docs" / "reference" / "fields.md").read_text() == fields_page.page()


def test_a_package_without_sources_has_no_explanations(monkeypatch):
    def missing(cls):
        raise OSError("could not get source code")

    monkeypatch.setattr("inspect.getsource", missing)
    assert explanations.__wrapped__(Inner) == {"a": "", "b": "", "c": ""}


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib")
def test_toml_is_valid_for_others():
    import tomllib

    assert tomllib.loads(configtext.to_toml(preset("sr_1024_400m")))["data"]["crop"] == 256
