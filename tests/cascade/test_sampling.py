"""What may be asked of a cascade beside prompts and seeds: each request against what it must be equal to."""

import dataclasses
import json
import math
import shutil

import numpy as np
import pytest
import torch
from cascades import QUICK, TEXT, WIDTH, Words, apart, cascade, listener, pixels, stage
from PIL import Image
from torch import nn

from imagen.cascade import (
    Cascade,
    SamplingConfig,
    Stage,
    Variation,
    regenerate_request,
    write_regenerated,
    write_samples,
)
from imagen.cascade.upscaling import write_upscaled
from imagen.cli.prompts import Prompt, read_prompts
from imagen.diffusion.guidance import ClassifierFree, Estimate
from imagen.diffusion.noise import PictureNoise
from imagen.diffusion.samplers import create_sampler, sampler_names
from imagen.diffusion.schedule import diffuse
from imagen.errors import UserError
from imagen.pictures import read_metadata, read_picture
from imagen.stage.editing import Edit, InpaintingDenoiser
from imagen.stage.inputs import from_images, from_uint8, to_uint8
from imagen.stage.resize import upsample
from imagen.stage.tiles import Tile, TiledUNet, spans

JOB = {"device": "cpu", "precision": "fp32", "progress": False}


def noisy(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def two() -> Cascade:
    return cascade()


# --- guidance ---


def test_negative_prompts_lead_away(two):
    plain = two.sample(["cat"], **QUICK)[0]
    assert apart(plain, two.sample(["cat"], negative="", **QUICK)[0]) == 0
    assert apart(plain, two.sample(["cat"], negative="dog", **QUICK)[0]) > 5
    # Away from the prompt itself is nowhere: any weight gives what weight 1 gives.
    itself = two.sample(["cat"], negative="cat", guidance=7.0, **QUICK)[0]
    assert apart(itself, two.sample(["cat"], guidance=1.0, **QUICK)[0]) <= 1
    both = two.sample(["cat", "cat"], negative=["dog", ""], **QUICK)
    assert apart(both[1], plain) <= 1 and apart(both[0], plain) > 5


@pytest.mark.parametrize("rescale", [0.0, 0.7, 1.0])
def test_rescaled_guidance_has_the_contrast_of_the_conditional_estimate(rescale):
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    model = lambda x, logsnr, *, text: Estimate(x * text)  # noqa: E731
    cond, uncond = (torch.tensor([a, b]).double().reshape(2, 1, 1, 1) for a, b in ((1.0, 2.0), (0.5, -1.0)))
    logsnr = torch.zeros(2).double()
    guided = ClassifierFree(model, {"text": cond}, {"text": uncond}, 5.0, rescale=rescale)(x, logsnr).x0
    plain = (uncond + 5 * (cond - uncond)) * x
    factor = rescale * (cond * x).std((1, 2, 3)) / plain.std((1, 2, 3)) + (1 - rescale)
    torch.testing.assert_close(guided, plain * factor.reshape(2, 1, 1, 1))


def test_settings_by_name_for_each_stage(two):
    plan = two.request(["x"], guidance_interval=(-3.0, 2.0), guidance_rescale=[0.0, 0.5], spacing="logsnr")
    assert [s.guidance_interval for s in plan.settings] == [(-3.0, 2.0)] * 2
    assert [s.guidance_rescale for s in plan.settings] == [0.0, 0.5]
    plan = two.request(["x"], guidance_interval=[None, (0.0, 1.0)])
    assert [s.guidance_interval for s in plan.settings] == [None, (0.0, 1.0)]
    assert apart(*(two.sample(["x"], spacing=spacing, **QUICK)[0] for spacing in ("time", "logsnr"))) > 1
    with pytest.raises(TypeError, match="no setting 'guidence'; did you mean 'guidance'"):
        two.sample(["x"], guidence=3.0, **QUICK)


# --- variations ---


def test_a_variation_lies_between_two_seeds():
    shape = (3, 64, 64)
    seeds = [1, 2, Variation(1, 2, 0.0), Variation(1, 2, 1.0), Variation(1, 2, 0.3)]
    noise = PictureNoise(seeds, shape, dtype=torch.float64)
    for _ in range(2):  # the second tensor as well
        a, b, first, second, between = noise()
        torch.testing.assert_close(first, a)
        torch.testing.assert_close(second, b)
        torch.testing.assert_close(between, math.cos(0.15 * math.pi) * a + math.sin(0.15 * math.pi) * b)
        assert between.std() == pytest.approx(1, abs=0.02)


def test_more_variation_is_further_away(two, tmp_path):
    paths = write_samples(two, ["cat"], tmp_path, seed=5, n=3, vary=0.2, stages=1, **JOB)
    first, near, other = (read_picture(path) for path in paths)
    assert apart(first, two.sample(["cat"], seeds=5, stages=1, **QUICK)[0]) <= 1
    far = two.sample(["cat"], seeds=6, stages=1, **QUICK)[0]
    assert 0 < np.abs(pixels(first) - pixels(near)).mean() < np.abs(pixels(first) - pixels(far)).mean() / 2
    assert apart(near, other) > 5
    assert read_metadata(paths[1])["variation"] == {"seed": 6, "amount": 0.2}


# --- pictures to begin with ---


def test_strength_is_the_share_of_steps_that_are_taken(two):
    seen = []
    init = noisy(32, 32)
    two.sample(["cat"], init=init, strength=[0.5, 0.25], steps=8, on_step=seen.append, **QUICK)
    assert [(p.stage, p.steps) for p in seen] == [(0, 4)] * 4 + [(1, 2)] * 2
    anew = two.sample(["cat"], **QUICK)[0]
    assert apart(anew, two.sample(["cat"], init=init, **QUICK)[0]) == 0, "all steps from noise alone"


def test_a_picture_that_is_noised_a_little_stays():
    """With the exact estimate of data that is this very picture, and with one that copies it from what it sees."""
    model, _ = listener(sampling=SamplingConfig(steps=10, threshold="none"))
    model.stages[0].config = dataclasses.replace(model.stages[0].config, low_resolution=None)

    class Copy(nn.Module):  # x0 = x_t / alpha
        def forward(self, x, noise, **cond):
            return x / torch.cos(noise * math.pi / 2000).reshape(-1, 1, 1, 1)

    model.stages[0].unet = Copy()
    init = noisy(64, 64)
    close, far = (model.sample([""], init=init, strength=s, **QUICK)[0] for s in (0.1, 0.5))
    near, away = (np.abs(pixels(image) - pixels(init)).mean() for image in (close, far))
    assert 0 < near < away / 2


@pytest.mark.parametrize("name", sampler_names())
def test_known_parts_have_the_noise_of_each_level(name):
    """Inpainting by x0: at every level x is the picture with noise of that level's deviation, and at the end exact."""
    picture = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8).expand(256, 1, 8, 8).double()
    mask = torch.zeros(1, 1, 8, 8).double()
    mask[..., 4:] = 1
    logsnrs = torch.tensor([-8.0, -3.0, 0.0, 1.0, 4.0, math.inf], dtype=torch.float64)
    seen = []
    noise = PictureNoise(range(256), (1, 8, 8), dtype=torch.float64)
    denoise = InpaintingDenoiser(lambda x, logsnr: Estimate(x * 0.1), picture, mask)
    x = diffuse(picture, noise(), logsnrs[:1])
    sampler = create_sampler(name, {"gamma": 0.0} if name == "ddpm" else {})
    out = sampler.sample(denoise, x, logsnrs, noise=noise, on_step=lambda i, n, x, x0: seen.append(x[..., :4]))
    for logsnr, x in zip(logsnrs[1:-1], seen, strict=False):
        alpha, sigma = logsnr.sigmoid().sqrt(), (-logsnr).sigmoid().sqrt()
        residual = x - alpha * picture[..., :4]
        assert float(residual.std()) == pytest.approx(float(sigma), rel=0.05)
        assert abs(float(residual.mean())) < 0.05 * float(sigma)
    torch.testing.assert_close(out[..., :4], picture[..., :4])
    assert (out[..., 4:] - picture[..., 4:]).abs().mean() > 0.1


@pytest.mark.parametrize("detail_std", [None, 0.1])
@pytest.mark.parametrize("threshold", ["none", "dynamic"])
def test_what_the_mask_keeps_is_kept_in_every_stage(detail_std, threshold):
    large = stage(32, 16)
    large.config = dataclasses.replace(large.config, detail_std=detail_std)
    model = cascade(stage(16), large)
    init, mask = noisy(32, 32), Image.new("L", (32, 32))
    mask.paste(255, (0, 0, 16, 32))
    settings = [dataclasses.replace(s.config.sampling, threshold=threshold) for s in model.stages]
    small = model.sample(["cat"], init=init, mask=mask, stages=1, settings=settings[:1], **QUICK)[0]
    result = model.sample(["cat"], init=init, mask=mask, settings=settings, **QUICK)[0]
    assert np.array_equal(pixels(result)[:, 16:], pixels(init)[:, 16:])
    assert apart(result.crop((0, 0, 16, 32)), init.crop((0, 0, 16, 32))) > 20
    reduced = init.resize((16, 16), Image.Resampling.LANCZOS)
    assert np.array_equal(pixels(small)[:, 9:], pixels(reduced)[:, 9:])  # the edge of the mask is soft


def test_init_pictures_keep_their_proportions(two):
    assert two.sample(["cat"], init=noisy(90, 61), strength=0.5, **QUICK)[0].size == (48, 32)
    assert two.sample(["cat"], init=noisy(90, 61), strength=0.5, size=(64, 32), **QUICK)[0].size == (32, 64)


def test_levels_of_an_edit():
    levels = torch.arange(11.0)
    for strength, left in ((1.0, 10), (0.7, 7), (0.3, 3), (0.01, 1)):
        edit = Edit(picture_BCHW=torch.zeros(1, 1, 1, 1), strength=strength)
        assert torch.equal(edit.levels(levels), levels[10 - left :])


# --- any size, tiles ---


def test_tiles_cover_a_side():
    assert spans(100, 128, 32) == [(0, 100)]
    assert spans(128, 128, 32) == [(0, 128)]
    assert spans(129, 128, 32) == [(0, 128), (1, 129)]
    assert spans(320, 128, 32) == [(0, 128), (96, 224), (192, 320)]


@pytest.mark.parametrize("size", [(40, 40), (96, 40), (104, 136)])
def test_tiled_equals_untiled_where_the_network_sees_no_further(size):
    """Two strided levels without norms: 4 pixels to a cell, and a field of 8 pixels to each side."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(6, 8, 4, stride=4), nn.Tanh(), nn.Conv2d(8, 8, 3, padding=1), nn.ConvTranspose2d(8, 3, 4, stride=4)
    ).double()
    called = []

    def network(x, noise, *, low_res, text):
        called.append(x.shape[-2:])
        return net(torch.cat([x, low_res], 1)) * text.mean() + noise.reshape(-1, 1, 1, 1)

    x, low_res = torch.randn(2, 2, 3, *size, dtype=torch.float64)
    cond = {"low_res": low_res, "text": torch.ones(2, 5, 7)}
    whole = network(x, torch.ones(2), **cond)
    called.clear()
    tiled = TiledUNet(network, Tile(side=64, overlap=32))(x, torch.ones(2), **cond)
    torch.testing.assert_close(tiled, whole)
    assert all(height <= 64 and width <= 64 for height, width in called)
    assert len(called) == {40: 1, 96: 2, 104: 12}[size[0]]


def test_pictures_of_any_size_are_enlarged_and_cropped(two, tmp_path):
    for number, size in enumerate([(21, 17), (21, 17), (16, 16), (5, 40)]):
        noisy(*size, number).save(tmp_path / f"{number}.png")
    files = [tmp_path / f"{number}.png" for number in range(4)]
    paths = write_upscaled(two, files, tmp_path / "out", n=2, seed=3, batch_size=4, **JOB)
    assert [read_picture(path).size for path in paths[::2]] == [(42, 34), (42, 34), (32, 32), (10, 80)]
    assert [read_metadata(path)["seed"] for path in paths[:4]] == [3, 4, 3, 4]
    alone = two.sample([""], start=[read_picture(files[2])], seeds=3, **QUICK)[0]
    assert apart(alone, read_picture(paths[4])) <= 1
    content = [path.read_bytes() for path in paths]
    paths[1].unlink()
    write_upscaled(two, files, tmp_path / "out", n=2, seed=3, batch_size=4, **JOB)
    assert [path.read_bytes() for path in paths] == content
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(UserError, match=r"text\.png is not a picture"):
        write_upscaled(two, [*files, tmp_path / "text.png"], tmp_path / "other", **JOB)
    assert not (tmp_path / "other").exists()


def test_padding_does_not_reach_far_into_the_picture():
    """A stage that copies its enlarged input: the crop is the picture enlarged, but for the last pixels."""
    model, _ = listener(sampling=SamplingConfig(steps=2, low_res_noise=0.0, threshold="static"))
    start = Image.fromarray(np.linspace(0, 255, 18 * 23 * 3).reshape(18, 23, 3).astype(np.uint8))
    (image,) = model.sample([""], start=[start], **QUICK)
    assert image.size == (92, 72)
    expected = to_uint8(upsample(from_uint8(from_images([start], 3)), (72, 92)))[0].permute(1, 2, 0).numpy()
    assert np.abs(pixels(image)[:-8, :-8] - expected[:-8, :-8]).max() <= 1


def test_stages_are_chosen_by_scale():
    model = cascade(stage(16), stage(32, 16), stage(64, 32))
    plan = lambda side, scale: model.request([""], start=[noisy(side, side)], scale=scale, device="cpu")  # noqa: E731
    assert [(plan(side, scale).first_stage, plan(side, scale).crop) for side, scale in ((40, 4), (40, 2), (16, 2))] == [
        (1, (160, 160)),
        (2, (80, 80)),
        (1, (32, 32)),
    ]


# --- jobs ---


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_ranks_and_interruptions_make_the_same_files(two, tmp_path):
    two.save(tmp_path / "cascade")  # so that weights have hashes
    prompts = ["cat", "a dog on a mat", "", "cow", "bird", "fish", "a very long caption about a fox"]
    request = {"seed": [7, 7, 1, 2, 3, 4, 5], "n": 1, "batch_size": 2, "negative": "blur", **JOB}
    write_samples(two, prompts, tmp_path / "one", **request)
    for rank in (1, 0):
        write_samples(two, prompts, tmp_path / "ranks", rank=rank, ranks=2, **request)
        assert (tmp_path / "ranks" / "sheet.png").exists() == (rank == 0), "by the last, whichever it is"
    whole = contents(tmp_path / "one")
    assert contents(tmp_path / "ranks") == whole and len(whole) == 8

    shutil.copytree(tmp_path / "one", tmp_path / "stopped")
    for number in (1, 4, 5, 6):  # a part of a batch, a whole one, and the last, which is smaller
        (tmp_path / "stopped" / f"{number:04d}.png").unlink()
    write_samples(two, prompts, tmp_path / "stopped", rank=1, ranks=3, **request)
    write_samples(two, prompts, tmp_path / "stopped", **request)
    assert contents(tmp_path / "stopped") == whole

    alone = two.sample(["cow"], seeds=2, negative="blur", **QUICK)[0]
    assert apart(alone, read_picture(tmp_path / "one" / "0003.png")) <= 1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_picture_is_made_again_bit_by_bit(two, tmp_path, precision):
    two.save(tmp_path / "cascade")
    request = {**JOB, "precision": precision, "batch_size": 5, "micro_batch": [3, 2], "sampler": ["ddpm", "heun"]}
    prompts = ["cat", "dog on a mat", "cow", "a bird", "fish", "fox"]
    paths = write_samples(two, prompts, tmp_path / "o", n=2, vary=0.3, size=(32, 48), negative="blur", **request)
    loaded = Cascade.load(tmp_path / "cascade")
    loaded.texts.encoder = Words()
    for number in (0, 3, 9, 11):
        plan, place = regenerate_request(loaded, paths[number], device="cpu")
        again = write_regenerated(loaded, plan, place, tmp_path / f"again{number}", progress=False)
        assert again.read_bytes() == paths[number].read_bytes()


def test_an_edited_picture_is_made_again_from_the_same_pictures(two, tmp_path):
    two.save(tmp_path / "cascade")
    init, mask = noisy(32, 32), Image.new("L", (32, 32), 128)
    (path,) = write_samples(two, ["cat"], tmp_path / "o", init=init, mask=mask, strength=0.7, **JOB)
    plan, place = regenerate_request(two, path, init=init, mask=mask, device="cpu")
    assert write_regenerated(two, plan, place, tmp_path / "a", progress=False).read_bytes() == path.read_bytes()
    for given, message in (
        ({}, "give its init picture"),
        ({"init": init}, "give its mask"),
        ({"init": noisy(32, 32, 1), "mask": mask}, "that is not its init picture"),
        ({"init": init, "mask": mask, "start": init}, "made without picture|made without the picture"),
    ):
        with pytest.raises(UserError, match=message):
            regenerate_request(two, path, **given)


def test_an_enlarged_picture_is_made_again(two, tmp_path):
    two.save(tmp_path / "cascade")
    noisy(37, 21).save(tmp_path / "photo.png")
    (path,) = write_upscaled(two, [tmp_path / "photo.png"], tmp_path / "o", tile=32, seed=4, **JOB)
    assert read_metadata(path)["tiles"] == [32]
    plan, place = regenerate_request(two, path, start=read_picture(tmp_path / "photo.png"), device="cpu")
    assert write_regenerated(two, plan, place, tmp_path / "a", progress=False).read_bytes() == path.read_bytes()


def test_what_cannot_be_made_again_is_refused(two, tmp_path):
    two.save(tmp_path / "cascade")
    (path,) = write_samples(two, ["cat"], tmp_path / "o", stages=1, **JOB)
    other = cascade(stage(16, seed=9), stage(32, 16))
    other.save(tmp_path / "other")
    with pytest.raises(UserError, match="made by other weights than those of this cascade: 16 "):
        regenerate_request(other, path)
    noisy(8, 8).save(tmp_path / "plain.png")
    with pytest.raises(UserError, match="says nothing of how it was made"):
        regenerate_request(two, tmp_path / "plain.png")


def test_rows_change_nothing_but_memory(two):
    prompts = ["cat", "dog", "cow"]
    calls = []
    seen = lambda preview: calls.append((preview.stage, len(preview.pictures)))  # noqa: E731
    small = two.sample(prompts, micro_batch=[2, 1], steps=1, on_step=seen, **QUICK)
    assert calls == [(0, 2), (0, 1), (1, 1), (1, 1), (1, 1)]
    assert max(apart(a, b) for a, b in zip(small, two.sample(prompts, steps=1, **QUICK), strict=True)) <= 1


def test_prompts_are_encoded_once_and_kept_between_calls():
    words = Words()
    model = Cascade([stage(16)], text=TEXT, unconditional=torch.zeros(1, WIDTH), encoder=words)
    model.sample(["cat", "dog", "cat"], negative="blur", batch_size=1, steps=1, **QUICK)
    model.sample(["dog", "cow"], steps=1, **QUICK)
    assert words.seen == ["cat", "dog", "blur", "cow"]


def test_compiled_networks_give_the_same_pictures():
    model = cascade(stage(16))
    plain = model.sample(["cat"], steps=2, **QUICK)[0]
    model.compile(backend="eager")
    assert apart(plain, model.sample(["cat"], steps=2, **QUICK)[0]) <= 1
    assert not any("_orig_mod" in key for key in model.stages[0].unet.state_dict())


# --- prompt files ---


def test_prompt_files(tmp_path):
    rows = [
        {"prompt": " a cat ", "seed": 3, "negative": "blur"},
        {"prompt": "Ein Café, 猫", "id": 17},
        {"prompt": "", "seed": 0},
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
    (tmp_path / "p.csv").write_text('id,prompt,seed,negative\n1, a cat ,3,blur\n2,"Ein Café, 猫",,\n3,,0,\n', "utf-8")
    expected = [
        Prompt(prompt="a cat", seed=3, negative="blur"),
        Prompt(prompt="Ein Café, 猫"),
        Prompt(prompt="", seed=0),
    ]
    assert read_prompts(tmp_path / "p.jsonl") == read_prompts(tmp_path / "p.csv") == expected
    (tmp_path / "p.txt").write_text("\ufeffa cat\n\n  a dog, black \n", encoding="utf-8")
    assert read_prompts(tmp_path / "p.txt") == [Prompt(prompt="a cat"), Prompt(prompt="a dog, black")]
    (tmp_path / "p.json").write_text(json.dumps(["a cat", {"prompt": "a dog", "seed": 2, "id": [[1]]}]))
    assert read_prompts(tmp_path / "p.json") == [Prompt(prompt="a cat"), Prompt(prompt="a dog", seed=2)]
    # As Parti's prompts are published.
    (tmp_path / "p.tsv").write_text('Prompt\tCategory\r\na sign that says ""STOP""\tWriting\r\n"a ""b"""\tX\r\n')
    assert [row.prompt for row in read_prompts(tmp_path / "p.tsv")] == ['a sign that says ""STOP""', 'a "b"']


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1e", "\r"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_prompts_end_where_lines_do(tmp_path, mark, end):
    prompts = [f"a cat{mark}in a hat", "a dog"]
    (tmp_path / "p.txt").write_bytes((end.join(prompts) + end).encode())
    rows = [json.dumps({"prompt": prompt}, ensure_ascii=False) for prompt in prompts]
    (tmp_path / "p.jsonl").write_bytes((end.join(rows) + end).encode())
    (tmp_path / "p.json").write_bytes(json.dumps(prompts, ensure_ascii=False).encode())
    names = ["p.txt", "p.jsonl", "p.json"]
    if mark != "\r":  # in a table that is refused
        names += ["p.csv", "p.tsv"]
        for name in names[-2:]:
            (tmp_path / name).write_bytes(end.join(["prompt", *prompts]).encode())
    for name in names:
        assert [row.prompt for row in read_prompts(tmp_path / name)] == prompts, name


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": ', r"p\.jsonl, line 2: not valid JSON"),
        ("p.jsonl", '["a"]', "line 1: expected an object"),
        ("p.jsonl", '{"text": "a"}', "line 1: it has no field 'prompt'"),
        ("p.jsonl", '{"prompt": "a", "negatve": "b"}', "unknown field 'negatve'; did you mean 'negative'"),
        ("p.jsonl", '{"prompt": "a", "seed": -1}', "seed is -1; it must be a whole number"),
        ("p.csv", "prompt,seed\na,x\n", "line 2: seed is 'x'"),
        ("p.csv", "caption\na\n", "line 1: a table needs a header with one column 'prompt'; this one has 'caption'"),
        ("p.csv", "prompt,prompt\na,b\n", "line 1: a table needs a header with one column 'prompt'"),
        ("p.csv", 'prompt,seed\na,1\n"a" cat,2\n', "line 3: text behind a closing quote"),
        ("p.csv", 'prompt,seed\n"a cat,1\na dog",2\n', "line 2: .* a quote that this line does not close"),
        ("p.tsv", 'prompt\tseed\n"a cat\t1\na dog"\t2\n', "line 2: .* a quote that this line does not close"),
        ("p.csv", "prompt,seed\na cat, black,1\n", "line 2: 3 cells, but the header has 2"),
        ("p.json", '{"prompt": "a"}', "p.json: expected a list"),
        ("p.json", '["a", 3]', "p.json, prompt 2: expected a text or an object, not 3"),
        ("p.json", '["a"', "p.json: not valid JSON"),
        ("p.json", "[" * 900 + "]" * 900, "p.json: not valid JSON: it is nested more than 100 deep"),
        ("p.jsonl", '{"prompt": ' + "[" * 100_000, "line 1: not valid JSON: it is nested more than 100 deep"),
        ("p.jsonl", '{"prompt": "\\ud800"}', r"line 1: the prompt is not UTF-8: '\\ud800'"),
        ("p.jsonl", '{"prompt": "", "negative": "a\\u0000b"}', r"line 1: negative holds a zero byte"),
        ("p.jsonl", '{"prompt": "a", "seed": ' + "9" * 4000 + "}", r"seed is about 10\^4000; it must be"),
        ("p.csv", "prompt,seed\na," + "9" * 5000, r"seed is '9+'\.\.\.; it must be a whole number"),
        ("p.txt", "a cat\n" + "a" * 1_200_000, "line 2: the prompt has 1,200,000 characters; at most 10,000"),
        ("p.txt", "cat " * 300_000, "line 1: the prompt has 1,200,000 characters; at most 10,000"),
        ("p.xlsx", "prompt", r"p.xlsx: files are read whose names end in \.txt, \.jsonl, \.json, \.csv, \.tsv, or"),
    ],
)
def test_mistakes_in_prompt_files_are_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        read_prompts(tmp_path / name)


def test_stage_alone_needs_no_text_length(two):
    """`Stage.sample` as training calls it."""
    small: Stage = two.stages[0]
    text = torch.randn(3, WIDTH)
    picture = small.sample(
        [0], size=(16, 16), settings=small.config.sampling, texts=[text], unconditional=torch.zeros(1, WIDTH)
    )
    assert picture.shape == (1, 3, 16, 16)
