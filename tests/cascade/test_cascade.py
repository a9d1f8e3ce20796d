"""Cascade against analytic models, and its promises: pictures independent of batches, folders strict and atomic."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from cascades import QUICK, TEXT, WIDTH, Words, apart, cascade, listener, pixels, stage
from PIL import Image
from torch import Tensor, nn

from imagen.cascade import (
    Cascade,
    SamplingConfig,
    Stage,
    assemble,
    export_stage,
    write_samples,
)
from imagen.diffusion.noise import Variation
from imagen.diffusion.objective import ObjectiveConfig
from imagen.diffusion.schedule import ScheduleConfig, alpha_sigma, build_schedule, noise_label
from imagen.errors import UserError
from imagen.pictures import read_metadata, read_picture
from imagen.stage.inputs import from_uint8, to_uint8
from imagen.stage.resize import upsample


@pytest.fixture(scope="module")
def two() -> Cascade:
    return cascade()


# --- analytic models ---


class Gaussian(nn.Module):
    """The exact x0 estimate for pixels ~ N(mu, s^2), where mu are the first three numbers of the first token."""

    def __init__(self, s: float):
        super().__init__()
        self.s = s

    def forward(self, x: Tensor, noise: Tensor, *, text: Tensor, text_mask: Tensor) -> Tensor:
        logsnr = -2 * (noise.double() * math.pi / 2000).tan().log()
        alpha, sigma = alpha_sigma(logsnr, like=x)
        mu = text[:, 0, :3, None, None].double()
        return mu + alpha * self.s**2 / (alpha**2 * self.s**2 + sigma**2) * (x.double() - alpha * mu)


class Fixed:
    """An encoder whose every prompt is the colour (0.2, -0.1, 0.3)."""

    def encode(self, prompts: list[str]) -> list[Tensor]:
        token = torch.zeros(1, WIDTH)
        token[0, :3] = torch.tensor([0.2, -0.1, 0.3])
        return [token for _ in prompts]


@pytest.mark.parametrize("sampler,steps", [("ddpm", 150), ("ddim", 150), ("dpmpp_2m", 40)])
@pytest.mark.parametrize("w", [1.0, 2.0])
def test_a_gaussian_model_gives_pictures_of_its_mean_and_spread(sampler, steps, w):
    s = 0.1
    config = dataclasses.replace(
        stage(16).config,
        objective=ObjectiveConfig(prediction="x0"),
        sampling=SamplingConfig(sampler=sampler, steps=steps, guidance=w, threshold="none", gamma=0.0),
    )
    model = Cascade([Stage(config, Gaussian(s))], text=TEXT, unconditional=torch.zeros(1, WIDTH), encoder=Fixed())
    images = model.sample(["colour"] * 24, seeds=list(range(24)), batch_size=24, **QUICK)
    values = np.stack([pixels(image) for image in images]) / 127.5 - 1
    # Both halves have the same s, and x0 is linear in mu: guidance moves the mean to 0 + w (mu - 0) exactly.
    # The standard error of a mean is s / sqrt(24 * 256) = 0.0013; one level is 0.0078.
    np.testing.assert_allclose(values.mean((0, 1, 2)), w * np.array([0.2, -0.1, 0.3]), atol=0.006)
    # Finitely many steps make the spread too small; tests/diffusion follow it to convergence.
    np.testing.assert_allclose(values.std((0, 1, 2)), s, rtol=0.15)


@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_conditioning_noise_is_that_of_training(level, kind):
    model, network = listener(low_res_schedule=ScheduleConfig(kind=kind))
    start = Image.new("RGB", (16, 16), (255, 0, 204))
    model.sample([""], start=[start], low_res_noise=level, **QUICK)
    logsnr = build_schedule(ScheduleConfig(kind=kind), 64)(torch.tensor([level], dtype=torch.float64))
    alpha, sigma = alpha_sigma(logsnr)
    torch.testing.assert_close(network.low_res_noise, noise_label(logsnr).float(), rtol=1e-4, atol=1e-3)
    expected = float(alpha) * torch.tensor([1.0, -1.0, 0.6])
    torch.testing.assert_close(network.low_res.mean((0, 2, 3)), expected, rtol=0, atol=0.06 * float(sigma) + 1e-4)
    torch.testing.assert_close(network.low_res.std((2, 3)).mean(), sigma.float()[0], rtol=0.03, atol=1e-5)


def test_conditioning_noise_is_drawn_once_and_is_not_the_noise_of_the_sampler():
    model, network = listener(sampling=SamplingConfig(sampler="ddpm", steps=2, low_res_noise=1.0))
    model.sample([""], start=[Image.new("RGB", (16, 16))], **QUICK)
    first, drawn = network.seen[0].flatten(), network.low_res.flatten()
    correlation = torch.corrcoef(torch.stack([first, drawn]))[0, 1]
    assert abs(float(correlation)) < 5 / first.numel() ** 0.5
    model.sample([""], start=[Image.new("RGB", (16, 16))], steps=1, **QUICK)
    assert torch.equal(drawn, network.low_res.flatten())


def test_only_the_network_is_autocast():
    model, network = listener(sampling=SamplingConfig(steps=3))
    estimates = []
    request = {"start": [Image.new("RGB", (16, 16))], "device": "cpu", "progress": False}
    model.sample([""], precision="bf16", on_step=lambda preview: estimates.append(preview.x0_BCHW), **request)
    assert network.autocast and {x.dtype for x in [*network.seen, *estimates]} == {torch.float32}
    model.sample([""], precision="fp32", **request)
    assert not network.autocast


def test_quantising_is_exact_on_the_values_of_a_png():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(from_uint8(levels)), levels)
    assert to_uint8(torch.tensor([-1.4, 0.499 / 127.5 - 1, 0.501 / 127.5 - 1, 7.0])).tolist() == [0, 0, 1, 255]


def test_a_stage_that_copies_its_input_enlarges_it():
    model, _ = listener(sampling=SamplingConfig(steps=2, low_res_noise=0.0, threshold="static"))
    gradient = Image.fromarray(np.linspace(0, 255, 16 * 24 * 3).reshape(16, 24, 3).astype(np.uint8))
    (image,) = model.sample([""], start=[gradient], **QUICK)
    assert image.size == (96, 64)
    assert np.abs(pixels(image) - pixels(gradient.resize((96, 64), Image.Resampling.BICUBIC))).mean() < 2


@pytest.mark.parametrize("threshold", ["none", "static", "dynamic"])
def test_a_stage_that_adds_no_detail_gives_the_enlarged_picture(threshold):
    class NoDetail(nn.Module):
        def forward(self, x: Tensor, noise: Tensor, *, low_res: Tensor, low_res_noise: Tensor) -> Tensor:
            return torch.zeros_like(x)

    sampling = SamplingConfig(steps=3, low_res_noise=0.5, threshold=threshold)  # the noise is in what it is told alone
    config = dataclasses.replace(listener()[0].stages[0].config, detail_std=0.1, sampling=sampling)
    estimates: list[Tensor] = []
    gradient = Image.fromarray(np.linspace(0, 255, 16 * 24 * 3).reshape(16, 24, 3).astype(np.uint8))
    (image,) = Cascade([Stage(config, NoDetail())]).sample(
        [""], start=[gradient], on_step=lambda preview: estimates.append(preview.x0_BCHW), **QUICK
    )
    enlarged = to_uint8(upsample(from_uint8(torch.from_numpy(np.array(gradient)).permute(2, 0, 1)[None]), (64, 96)))
    assert np.array_equal(pixels(image), enlarged[0].permute(1, 2, 0).numpy())
    assert all(torch.equal(to_uint8(x0), enlarged) for x0 in estimates), "previews are pictures too"


def test_detail_is_added_in_its_unit_and_thresholds_are_limits_of_pixels():
    class Step(nn.Module):  # detail of +3 in the left half, -20 in the right
        def forward(self, x: Tensor, noise: Tensor, *, low_res: Tensor, low_res_noise: Tensor) -> Tensor:
            detail = torch.full_like(x, 3.0)
            detail[..., 32:] = -20
            return detail

    sampling = SamplingConfig(steps=3, threshold="static")
    config = dataclasses.replace(listener()[0].stages[0].config, detail_std=0.1, sampling=sampling)
    (image,) = Cascade([Stage(config, Step())]).sample([""], start=[Image.new("RGB", (16, 16), (128,) * 3)], **QUICK)
    assert set(pixels(image)[:, :32].flatten()) == {round(128 + 0.3 * 127.5)}
    assert set(pixels(image)[:, 32:].flatten()) == {0}


# --- a picture depends on its prompt and its seed alone ---


def test_a_picture_does_not_depend_on_its_batch(two):
    prompts = ["cat", "a very long caption about a dog on a mat", "a hat", "cat", "two words"]
    alone = two.sample(["a hat"], seeds=[5], **QUICK)[0]
    together = two.sample(prompts, seeds=[1, 2, 5, 5, 4], batch_size=5, **QUICK)
    split = two.sample(prompts, seeds=[1, 2, 5, 5, 4], batch_size=2, **QUICK)
    assert apart(alone, together[2]) <= 1
    assert max(apart(a, b) for a, b in zip(together, split, strict=True)) <= 1
    assert apart(together[2], together[3]) > 20, "another prompt must give another picture"
    assert apart(together[0], together[3]) > 20, "another seed must give another picture"
    assert pixels(alone).std() > 10


def test_samplers_with_noise_do_not_depend_on_the_batch(two):
    options = {"sampler": ["ddpm", "ddim"], "steps": [4, 3], **QUICK}
    alone = two.sample(["a hat"], seeds=[5], **options)[0]
    assert apart(alone, two.sample(["cat on mat", "a hat"], seeds=[9, 5], **options)[1]) <= 1


def test_a_longer_unconditional_embedding_is_padded_away():
    stages = (stage(16),)
    model = Cascade(stages, text=TEXT, unconditional=torch.randn(6, WIDTH), encoder=Words())
    short = model.sample(["cat"], seeds=[3], **QUICK)[0]
    assert apart(short, model.sample(["cat", "one two three four five six seven"], seeds=[3, 4], **QUICK)[0]) <= 1


def test_a_prefix_and_its_continuation_give_the_same_as_the_whole(two, tmp_path):
    prompts, seeds = ["a cat", "dog"], [11, 12]
    whole = two.sample(prompts, seeds=seeds, **QUICK)
    first = two.sample(prompts, seeds=seeds, stages=1, **QUICK)
    assert [image.size for image in first + whole] == [(16, 16)] * 2 + [(32, 32)] * 2
    for number, image in enumerate(first):
        image.save(tmp_path / f"{number}.png")
    start = [read_picture(tmp_path / f"{number}.png") for number in range(2)]
    continued = two.sample(prompts, seeds=seeds, start=start, **QUICK)
    alone = cascade(stage(32, 16)).sample(prompts, seeds=seeds, start=start, **QUICK)
    for a, b, c in zip(whole, continued, alone, strict=True):
        assert apart(a, b) == 0 and apart(a, c) == 0


def test_conditioning_noise_changes_the_picture_reproducibly(two):
    make = lambda level: two.sample(["a cat"], low_res_noise=level, **QUICK)[0]  # noqa: E731
    assert apart(make(0.3), make(0.3)) == 0
    assert apart(make(0.0), make(0.3)) > 5


def test_pictures_need_not_be_square(two):
    (image,) = two.sample(["a cat"], size=(32, 48), **QUICK)
    assert image.size == (48, 32)
    with pytest.raises(UserError, match=r"40x50 .* divide by 8; nearest: height 40, width 48 or 56"):
        two.sample(["a cat"], size=(40, 50), **QUICK)


def test_settings_apply_for_each_stage_or_for_all(two):
    plan = two.request(["x"], steps=[2, 9], guidance=3, sampler="ddim")
    assert [(s.steps, s.guidance, s.sampler) for s in plan.settings] == [(2, 3, "ddim"), (9, 3, "ddim")]
    seen = []
    two.sample(["x"] * 3, steps=[2, 3], batch_size=2, on_step=seen.append, **QUICK)
    assert [(p.stage, p.step, p.steps) for p in seen[:5]] == [(0, 0, 2), (0, 1, 2), (1, 0, 3), (1, 1, 3), (1, 2, 3)]
    assert [p.pictures for p in seen[::5]] == [range(2), range(2, 3)]
    assert seen[2].x0_BCHW.shape == (2, 3, 32, 32)


def test_guidance_and_thresholds_reach_the_sampler(two):
    base = dataclasses.replace(two.stages[0].config.sampling, guidance=6.0, steps=4)
    make = lambda **change: two.sample(  # noqa: E731
        ["cat"], stages=1, settings=[dataclasses.replace(base, **change)], **QUICK
    )[0]
    reference = make()
    assert apart(reference, make(guidance=1.0)) > 5
    assert apart(reference, make(threshold="static")) > 1
    assert apart(reference, make(percentile=0.8)) > 1
    assert apart(make(sampler="ddpm", gamma=0.0), make(sampler="ddpm", gamma=1.0)) > 5
    assert apart(make(sampler="ddim", eta=0.0), make(sampler="ddim", eta=1.0)) > 5
    assert apart(make(guidance=1.0), make(guidance_interval=(50.0, 60.0))) <= 1  # it never acts


def test_prompts_are_encoded_once_and_the_empty_one_is_unconditional():
    model = cascade()
    model.sample(["cat", "", "dog", "cat"], batch_size=1, steps=1, **QUICK)
    assert model.texts.encoder.seen == ["cat", "dog"]
    assert apart(*(model.sample([""], guidance=w, steps=2, **QUICK)[0] for w in (1.0, 5.0))) <= 1


def test_sampling_leaves_a_training_network_as_it_was():
    model = cascade(stage(16))
    unet = model.stages[0].unet.train()
    model.sample(["cat"], **QUICK)
    assert unet.training
    unet(torch.randn(1, 3, 16, 16), torch.zeros(1), text=torch.randn(1, 2, WIDTH)).sum().backward()


@pytest.mark.filterwarnings("error")
def test_values_that_are_not_finite_are_no_picture():
    model = cascade(stage(16))
    nn.init.constant_(model.stages[0].unet.conv_out.bias, math.nan)
    with pytest.raises(UserError, match="stage 16 made values that are not finite"):
        model.sample(["cat"], **QUICK)


@pytest.mark.parametrize(
    "request_,message",
    [
        ({"prompts": []}, "no prompts"),
        ({"stages": 3}, r"stages is 3; this cascade has 2 stages \(16, 32\), so choose 1 to 2"),
        ({"stages": 0}, "stages is 0"),
        ({"steps": 0}, "stage 16: steps is 0"),
        ({"steps": [3, -1]}, "stage 32: steps is -1"),
        ({"steps": [3]}, "1 values of steps, but 2 stages"),
        ({"guidance": math.nan}, "guidance is nan"),
        ({"guidance": [1.0, math.inf]}, "stage 32: guidance is inf"),
        ({"low_res_noise": 1.5}, "low_res_noise is 1.5"),
        ({"sampler": "dpm"}, "unknown sampler 'dpm'; did you mean 'ddpm'"),
        ({"seeds": [1, 2]}, "2 seeds for 1 prompts"),
        ({"seeds": -1}, "seed -1 is negative"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"size": (30, 32)}, "nearest: height 24 or 32, width 32"),
        ({"negative": ["a", "b"]}, "2 negative prompts for 1 prompts"),
        ({"guidance_rescale": 2.0}, "guidance_rescale is 2.0; it must be from 0 to 1"),
        ({"guidance_interval": (3.0, -3.0)}, r"guidance_interval is \(3.0, -3.0\)"),
        ({"spacing": "lambda"}, "unknown spacing 'lambda'"),
        ({"strength": 0.5}, "strength says what happens to an init picture"),
        ({"mask": Image.new("L", (8, 8))}, "mask says what happens to an init picture"),
        ({"init": Image.new("RGB", (16, 16)), "strength": 0.0}, "stage 16: strength is 0; it must be above 0"),
        ({"init": Image.new("RGB", (16, 16)), "start": [Image.new("RGB", (16, 16))]}, "give one of the two"),
        ({"seeds": [Variation(1, 2, 1.5)]}, "amount of a variation is 1.5"),
        ({"tile": 8}, "stage 32: tile is 8; it must be 16 or more"),
        ({"start": [Image.new("RGB", (16, 16))], "scale": 8}, r"scale is 8; these stages .* can enlarge by 2"),
        ({"start": [Image.new("RGB", (16, 16))] * 2}, "2 pictures to start from but 1 prompts"),
        ({"start": [Image.new("RGB", (16, 16))], "stages": 1}, "nothing to enlarge with"),
        ({"start": [Image.new("RGB", (16, 16))], "size": (32, 32)}, "leave it out"),
    ],
)
def test_requests_that_cannot_be_met_are_refused(two, request_, message):
    with pytest.raises(UserError, match=message):
        two.sample(**{"prompts": ["cat"], **QUICK, **request_})


def test_an_enlarging_cascade_needs_pictures_and_a_textless_one_no_prompt():
    with pytest.raises(UserError, match="no base stage: it enlarges 16x16"):
        cascade(stage(32, 16)).sample(["cat"], **QUICK)
    with pytest.raises(UserError, match="without text"):
        Cascade([stage(16, text=False)]).sample(["cat"], **QUICK)
    assert Cascade([stage(16, text=False)]).sample([""], **QUICK)[0].size == (16, 16)


# --- folders ---


def folder_of(*stages: Stage, path: Path) -> Path:
    cascade(*stages).save(path)
    return path


def edit(folder: Path, change) -> None:
    """Apply `change` to the parsed cascade.json."""
    value = json.loads((folder / "cascade.json").read_text())
    change(value)
    (folder / "cascade.json").write_text(json.dumps(value))


def test_save_and_load_keep_every_bit(two, tmp_path):
    two.save(tmp_path)
    loaded = Cascade.load(tmp_path)
    assert loaded.text == TEXT and torch.equal(loaded.unconditional, two.unconditional)
    for a, b in zip(two.stages, loaded.stages, strict=True):
        assert (a.config, a.info, a.sha256) == (b.config, b.info, b.sha256)
        for (name, p), (other, q) in zip(a.unet.state_dict().items(), b.unet.state_dict().items(), strict=True):
            assert name == other and torch.equal(p, q)
    loaded.texts.encoder = Words()
    assert apart(two.sample(["cat"], **QUICK)[0], loaded.sample(["cat"], **QUICK)[0]) == 0
    assert len(Cascade.load(tmp_path, stages=1).stages) == 1
    with pytest.raises(UserError, match="choose 1 to 2"):
        Cascade.load(tmp_path, stages=3)


def test_saving_again_leaves_nothing_stale(tmp_path):
    folder_of(stage(16), stage(32, 16), path=tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / ".stage-16-new.123.tmp").write_text("left by a killed process")
    folder_of(stage(16, seed=1), path=tmp_path)
    names = sorted(path.name.split("-")[0] for path in tmp_path.iterdir())
    assert names == ["cascade.json", "notes.txt", "stage", "text"]
    Cascade.load(tmp_path)


def test_an_interrupted_save_leaves_the_old_cascade(tmp_path, monkeypatch):
    folder_of(stage(16), path=tmp_path)
    before = Cascade.load(tmp_path).stages[0].sha256

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("imagen.cascade.storage.write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        folder_of(stage(16, seed=1), path=tmp_path)
    assert Cascade.load(tmp_path).stages[0].sha256 == before


def test_a_run_loads_from_its_export(tmp_path):
    made = stage(16)
    arguments = {"stage": made.config, "text": TEXT, "unconditional": torch.zeros(1, WIDTH), "info": {"step": 1}}
    export_stage(tmp_path / "export", weights=made.unet.state_dict(), **arguments)
    assert Cascade.load(tmp_path).stages[0].info == {"step": 1}
    changed = {key: value + 1 for key, value in made.unet.state_dict().items()}
    export_stage(tmp_path / "export", weights=changed, **{**arguments, "info": {"step": 2}})
    loaded = Cascade.load(tmp_path)
    assert loaded.stages[0].info == {"step": 2}
    assert torch.equal(loaded.stages[0].unet.conv_out.bias, made.unet.conv_out.bias + 1)
    folder_of(stage(16), stage(32, 16), path=tmp_path / "whole")
    with pytest.raises(UserError, match=r"stages \[16, 32\]; export stage 16 elsewhere"):
        export_stage(tmp_path / "whole", weights=changed, **arguments)


def test_a_reader_survives_an_export_in_between(tmp_path, monkeypatch):
    """cascade.json is read, then replaced, and the weights that it named are gone: the reader starts over."""
    import imagen.cascade.cascade as module

    folder_of(stage(16), path=tmp_path)
    original = module.read_tensors

    def late(folder, name, sha256):
        monkeypatch.setattr(module, "read_tensors", original)
        folder_of(stage(16, seed=1), path=tmp_path)
        return original(folder, name, sha256)

    monkeypatch.setattr(module, "read_tensors", late)
    assert torch.equal(Cascade.load(tmp_path).stages[0].unet.conv_in.bias, stage(16, seed=1).unet.conv_in.bias)


def _flip_a_byte(folder: Path, pattern: str) -> None:
    (path,) = folder.glob(pattern)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def raw(folder: Path, old: str, new: str) -> None:
    """Change the text of cascade.json, to what `json.dumps` would not write."""
    text = (folder / "cascade.json").read_text()
    assert old in text
    (folder / "cascade.json").write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    "damage,message",
    [
        (lambda f: (f / "cascade.json").unlink(), "is not a cascade: it holds neither"),
        (lambda f: (f / "cascade.json").write_text("{"), r"cascade\.json is not valid JSON"),
        (lambda f: edit(f, lambda v: v.update(format=9)), r"cascade\.json: field 'format' is 9"),
        (lambda f: edit(f, lambda v: v["stages"][0]["config"].update(resolutoin=3)), "resolutoin'; did you mean"),
        (lambda f: edit(f, lambda v: v["stages"][0]["config"].update(resolution="x")), r"cascade\.json: .*resolution"),
        (lambda f: edit(f, lambda v: v["stages"][0].pop("sha256")), "sha256"),
        (lambda f: edit(f, lambda v: v.update(stages=[])), "no stages"),
        (lambda f: edit(f, lambda v: v["stages"][0].update(weights="../x")), "without a path"),
        (lambda f: edit(f, lambda v: v.update(text=None)), "stage 16: its U-Net reads text"),
        (lambda f: edit(f, lambda v: v["stages"].reverse()), "stage 16: is a base stage"),
        (
            lambda f: edit(f, lambda v: v["stages"][1]["config"].update(low_resolution=8)),
            "stage 32: enlarges 8 pictures",
        ),
        (lambda f: edit(f, lambda v: v["stages"][0]["config"]["sampling"].update(steps=0)), "stage 16: steps is 0"),
        (
            lambda f: edit(f, lambda v: v["stages"][0]["config"]["unet"].update(levels=[])),
            r"cascade\.json: .*one level",
        ),
        (lambda f: edit(f, lambda v: v["stages"][0]["config"].update(resolution=0)), "resolution is 0; it must be at"),
        (
            lambda f: edit(f, lambda v: v["stages"][0]["config"]["unet"]["levels"][0].update(channels=10**9)),
            "channels is 1,000,000,000; it must be at least 1 and at most 65536",
        ),
        (
            lambda f: edit(f, lambda v: v["text"]["config"].update(max_tokens=10**9)),
            "text.max_tokens is 1,000,000,000; it must be",
        ),
        (lambda f: edit(f, lambda v: v.update(stages=v["stages"] * 40)), "the number of stages is 80; it must be"),
        (lambda f: raw(f, '"eta": 0.0', '"eta": 1e400'), "1e400 is not a finite number"),
        (
            lambda f: edit(f, lambda v: v["stages"][0]["config"]["sampling"].update(guidance=1e39)),
            r"guidance is 1e\+39; it must be",
        ),
        (lambda f: raw(f, '"info": {', '"info": {"a": ' + "[" * 900 + "]" * 900 + ", "), "nested more than 100 deep"),
        (lambda f: (f / "cascade.json").write_text("[" * 100_000), "nested more than 100 deep"),
        (lambda f: next(f.glob("stage-32-*")).unlink(), r"stage-32-\w+\.safetensors is missing"),
        (lambda f: next(f.glob("text-*")).unlink(), r"text-\w+\.safetensors is missing"),
        (lambda f: _flip_a_byte(f, "stage-16-*"), r"stage-16-\w+\.safetensors is damaged"),
        (lambda f: _flip_a_byte(f, "text-*"), r"text-\w+\.safetensors is damaged"),
    ],
)
def test_damaged_folders_are_refused(tmp_path, damage, message):
    folder_of(stage(16), stage(32, 16), path=tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        Cascade.load(tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda w: w.pop("conv_out.bias"), "'conv_out.bias' is missing"),
        (lambda w: w.update(extra=torch.zeros(1)), "'extra' is unknown"),
        (lambda w: w.update({"conv_out.bias": torch.zeros(4)}), r"'conv_out.bias' has shape \(4,\), .* wants \(3,\)"),
        (lambda w: w.update({"conv_out.bias": torch.zeros(3, dtype=torch.int8)}), "'conv_out.bias' is of torch.int8"),
    ],
)
def test_weights_of_another_network_are_refused(tmp_path, change, message):
    made = stage(16)
    weights = dict(made.unet.state_dict())
    change(weights)
    unconditional = torch.zeros(1, WIDTH)
    export_stage(tmp_path, stage=made.config, text=TEXT, weights=weights, unconditional=unconditional, info={})
    with pytest.raises(UserError, match=message):
        Cascade.load(tmp_path)


def test_assemble_joins_what_fits(tmp_path, two):
    a, b = folder_of(stage(16), path=tmp_path / "a" / "export"), folder_of(stage(32, 16), path=tmp_path / "b")
    assemble([a.parent, b], tmp_path / "out")
    joined = Cascade.load(tmp_path / "out")
    joined.texts.encoder = Words()
    assert apart(joined.sample(["cat"], **QUICK)[0], two.sample(["cat"], **QUICK)[0]) == 0
    assemble([tmp_path / "out", folder_of(stage(64, 32, text=False), path=tmp_path / "c")], tmp_path / "out")
    assert [s.config.resolution for s in Cascade.load(tmp_path / "out").stages] == [16, 32, 64]
    _flip_a_byte(b, "stage-32-*")
    with pytest.raises(UserError, match="damaged"):
        assemble([a, b], tmp_path / "new")
    with pytest.raises(UserError, match=r"holds a cascade of stages \[16, 32, 64\], not \[16\]"):
        assemble([a], tmp_path / "out")
    assert len(Cascade.load(tmp_path / "out").stages) == 3


def test_assemble_says_what_does_not_fit(tmp_path):
    base, sr = folder_of(stage(16), path=tmp_path / "base"), folder_of(stage(32, 16), path=tmp_path / "sr")
    other = Cascade([stage(32, 16)], text=dataclasses.replace(TEXT, encoder="T5"), unconditional=torch.zeros(1, WIDTH))
    other.save(tmp_path / "t5")
    Cascade([stage(32, 16)], text=TEXT, unconditional=torch.ones(1, WIDTH)).save(tmp_path / "ones")
    gap = folder_of(stage(64, 32), path=tmp_path / "gap")
    out = tmp_path / "out"
    for paths, message in [
        ([], "nothing to assemble"),
        ([sr, base], r"base \(stage 16\): is a base stage"),
        ([sr], "sr cannot come first: its stage 32 enlarges 16"),
        ([base, gap], r"gap \(stage 64\): enlarges 32 pictures, but the stage before it makes 16"),
        ([base, tmp_path / "t5"], "t5 does not fit .*base: text encoder is 'T5', not 'words'"),
        ([base, tmp_path / "ones"], "unconditional embeddings differ"),
        ([base, tmp_path / "none"], "none does not exist"),
    ]:
        with pytest.raises(UserError, match=message):
            assemble(paths, out)
    assert not out.exists()


# --- pictures to a folder ---


def test_write_samples_numbers_resumes_and_refuses(two, tmp_path):
    two.save(tmp_path / "cascade")
    out, request = tmp_path / "out", {"seed": 3, "n": 2, "batch_size": 3, "device": "cpu", "precision": "fp32"}
    paths = write_samples(two, ["a cat", "dog"], out, progress=False, **request)
    assert [path.name for path in paths] == ["0000.png", "0001.png", "0002.png", "0003.png"]
    found = [read_metadata(path) for path in paths]
    assert [(m["prompt"], m["seed"]) for m in found] == [("a cat", 3), ("a cat", 4), ("dog", 3), ("dog", 4)]
    assert found[0]["stages"][1]["weights"] == two.stages[1].sha256
    assert found[0]["stages"][0]["sampling"]["guidance"] == 2.0
    assert apart(read_picture(paths[3]), two.sample(["dog"], seeds=4, **QUICK)[0]) <= 1
    assert (out / "sheet.png").exists()

    before = {path.name: path.stat().st_mtime_ns for path in paths}
    content = paths[1].read_bytes()
    paths[1].unlink()
    write_samples(two, ["a cat", "dog"], out, progress=False, **request)
    after = {path.name: path.stat().st_mtime_ns for path in paths}
    assert [name for name in before if before[name] != after[name]] == ["0001.png"]
    assert apart(read_picture(paths[1]), two.sample(["a cat"], seeds=4, **QUICK)[0]) <= 1
    assert read_metadata(paths[1]) is not None and len(content) > 0

    for prompts, change, message in [
        (["a cow", "dog"], {}, r"0000\.png is there already, made with another prompt \('a cat', not 'a cow'\)"),
        (["a cat", "dog"], {"seed": 4}, "another seed"),
        (["a cat", "dog"], {"steps": 5}, "another stages"),
    ]:
        with pytest.raises(UserError, match=message):
            write_samples(two, prompts, out, progress=False, **{**request, **change})
    Image.new("RGB", (8, 8)).save(paths[2])
    with pytest.raises(UserError, match="says nothing of how it was made"):
        write_samples(two, ["a cat", "dog"], out, progress=False, **request)


def test_write_samples_enlarges_given_pictures(two, tmp_path):
    start = [Image.new("RGB", (24, 16), "red")]
    (path,) = write_samples(two, [""], tmp_path, start=start, progress=False, device="cpu", precision="fp32")
    metadata = read_metadata(path)
    assert read_picture(path).size == (48, 32) and len(metadata["stages"]) == 1 and len(metadata["start"]) == 64
    with pytest.raises(UserError, match="another start"):
        write_samples(two, [""], tmp_path, start=[Image.new("RGB", (24, 16))], device="cpu", precision="fp32")


def test_write_samples_refuses_a_place_that_is_no_folder(two, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot make the folder"):
        write_samples(two, ["x"], tmp_path / "file", device="cpu")
