"""Check that a sampler in one file is found by the command line, config checks, documentation and sampling."""

import importlib.util
import runpy
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from cascades import QUICK, cascade
from PIL import Image

from imagen.cli import main
from imagen.diffusion.guidance import Estimate
from imagen.diffusion.samplers import (
    Sampler,
    create_sampler,
    register,
    registry,
    sampler_class,
    sampler_names,
    samplers_table,
)
from imagen.errors import UserError
from imagen.jsonconfig import from_json, to_json
from imagen.pictures import read_metadata
from imagen.stage.config import SamplingConfig

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "sampler.py"


@pytest.fixture
def example(monkeypatch):
    """Register the example's sampler for one test."""
    # Modules are imported only once, so all samplers must register before the registry is patched.
    for name in sampler_names():
        sampler_class(name)
    monkeypatch.setattr(registry, "registered", dict(registry.registered))
    spec = importlib.util.spec_from_file_location("example_sampler", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "example_sampler", module)
    spec.loader.exec_module(module)
    return module.DPMpp2S


def help_of(command: str, capsys) -> str:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    return capsys.readouterr().out


def test_every_module_defines_the_sampler_of_its_name():
    assert {"ddim", "ddpm", "dpmpp_2m", "dpmpp_2m_sde", "heun"} <= set(sampler_names())
    for name in sampler_names():
        assert sampler_class(name).__module__ == f"imagen.diffusion.samplers.{name}"


def test_samplers_are_short_files():
    for path in [*(ROOT / "imagen/diffusion/samplers").glob("*.py"), EXAMPLE]:
        if path.stem not in ("__init__", "base", "registry"):
            assert len(path.read_text().splitlines()) <= 60, path


@pytest.mark.parametrize("command", ["sample", "upscale"])
def test_help_lists_a_registered_sampler(example, command, capsys):
    assert "dpmpp_2s" in " ".join(help_of(command, capsys).split())


def test_help_does_not_list_unregistered_samplers(capsys):
    assert "dpmpp_2s" not in help_of("sample", capsys)


def test_configs_accept_and_check_the_options_of_a_registered_sampler(example):
    config = from_json(SamplingConfig, {"sampler": "dpmpp_2s", "sampler_options": {"middle": 0.3}}, "cascade.json")
    config.check("stage 64")
    assert config.build_sampler() == example(middle=0.3)
    assert from_json(SamplingConfig, to_json(config), "cascade.json") == config
    with pytest.raises(UserError, match=r"^stage 64: middle is 1\.5; it must be above 0 and at most 1$"):
        replace(config, sampler_options={"middle": 1.5}).check("stage 64")
    with pytest.raises(
        UserError, match=r"'dpmpp_2s' has no option 'midle'; did you mean 'middle'\? \(its options are m"
    ):
        replace(config, sampler_options={"midle": 0.5}).check("stage 64")
    with pytest.raises(UserError, match="sampler option middle is nan"):
        replace(config, sampler_options={"middle": float("nan")}).check("stage 64")


def test_config_fields_are_passed_to_samplers_that_have_them():
    config = SamplingConfig(sampler="ddim", eta=0.5, damping=0.25, gamma=0.75)
    assert config.build_sampler() == create_sampler("ddim", {"eta": 0.5, "damping": 0.25})
    assert replace(config, sampler="ddpm").build_sampler() == create_sampler("ddpm", {"gamma": 0.75})
    assert replace(config, sampler="dpmpp_2m_sde").build_sampler() == create_sampler("dpmpp_2m_sde")
    with pytest.raises(UserError, match="stage 64: eta is 2; it must be from 0 to 1"):
        replace(config, eta=2).check("stage 64")


def test_errors_for_unknown_names_suggest_the_closest():
    with pytest.raises(UserError, match=r"x: unknown sampler 'dpmp_2m'; did you mean 'dpmpp_2m'\? \(choose ddim, ddpm"):
        SamplingConfig(sampler="dpmp_2m").check("x")


def test_the_documentation_shows_the_table(example):
    """The site inserts the table of all samplers; the page's source, which GitHub shows, has no outdated row."""
    pages = [path for path in (ROOT / "docs").rglob("*.md") if "<!-- samplers -->" in path.read_text()]
    assert len(pages) == 1, "one page has the table, after the line <!-- samplers -->"
    source, table = pages[0].read_text(), samplers_table()
    shown = source.partition("<!-- samplers -->\n")[2].partition("\n\n")[0].splitlines()
    assert len(shown) > 2 and set(shown) <= set(table.splitlines()), "write samplers_table() into the page"
    assert any(line.startswith("| `dpmpp_2s` | 2 | no | `middle` (0.5) |") for line in table.splitlines())
    site = runpy.run_path(str(ROOT / ".ci" / "mkdocs_hooks.py"))["on_page_markdown"](source, page=None)
    before, _, after = source.partition("\n".join(shown) + "\n")
    assert site == before + table + after


def test_a_registered_sampler_samples_and_its_images_can_be_regenerated(example, tmp_path):
    model = cascade()
    drawn = model.sample(["cat"], sampler=["dpmpp_2s", "ddim"], steps=3, **QUICK)[0]
    assert drawn.tobytes() != model.sample(["cat"], sampler="ddim", steps=3, **QUICK)[0].tobytes()
    other = model.sample(["cat"], sampler="dpmpp_2s", sampler_options={"middle": 1.0}, steps=3, **QUICK)[0]
    assert drawn.tobytes() != other.tobytes()
    model.save(tmp_path / "c")
    line = [str(tmp_path / "c"), "--steps", "2", "--precision", "fp32", "--device", "cpu", "--sampler", "dpmpp_2s"]
    start = tmp_path / "start.png"
    Image.new("RGB", (16, 16), (90, 20, 200)).save(start)
    with pytest.raises(SystemExit) as ended:
        main(["upscale", *line, str(start), "--out", str(tmp_path / "o")])
    assert ended.value.code == 0
    made = read_metadata(tmp_path / "o" / "0000.png")
    assert [stage["sampling"]["sampler"] for stage in made["stages"]] == ["dpmpp_2s"]


def test_invalid_registrations_are_rejected():
    with pytest.raises(ValueError, match="sampler 'ddim' is already registered"):
        sampler_class("ddim")
        register("ddim")(dataclass(frozen=True)(type("Other", (Sampler,), {})))
    with pytest.raises(ValueError, match="is not a dataclass"):
        register("plain")(type("Plain", (Sampler,), {"__doc__": "No @dataclass."}))
    with pytest.raises(ValueError, match="cannot name a sampler"):
        register("my sampler")


def test_undeclared_noise_is_an_error():
    class Noisy(Sampler):
        def step(self, step, /):
            return step.x + step.noise()

    with pytest.raises(ValueError, match="`stochastic`"):
        Noisy().sample(lambda x, logsnr: Estimate(x), torch.zeros(1, 3), [0.0, 1.0])
