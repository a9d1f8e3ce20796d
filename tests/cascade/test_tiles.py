"""Upsample images of any size: tiles, padding, and the choice of stages."""

import dataclasses

import numpy as np
import pytest
import torch
from cascades import QUICK, cascade, max_difference, noise_image, pixels, recording_cascade, stage
from PIL import Image
from torch import nn

from imagen.cascade import (
    SamplingConfig,
)
from imagen.cascade.upscaling import write_upscaled
from imagen.errors import UserError
from imagen.pictures import read_metadata, read_picture
from imagen.stage.inputs import from_images, from_uint8, to_uint8
from imagen.stage.resize import upsample
from imagen.stage.tiles import Tile, TiledUNet, spans


def test_tiles_cover_the_side():
    assert spans(100, 128, 32) == [(0, 100)]
    assert spans(128, 128, 32) == [(0, 128)]
    assert spans(129, 128, 32) == [(0, 128), (1, 129)]
    assert spans(320, 128, 32) == [(0, 128), (96, 224), (192, 320)]


@pytest.mark.parametrize("size", [(40, 40), (96, 40), (104, 136)])
def test_tiled_equals_untiled_within_the_receptive_field(size):
    """Two strided levels without norms: a total stride of 4, and a receptive field of 8 pixels to each side."""
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


def test_images_of_any_size_are_upsampled_and_cropped(small_cascade, tmp_path):
    for number, size in enumerate([(21, 17), (21, 17), (16, 16), (5, 40)]):
        noise_image(*size, number).save(tmp_path / f"{number}.png")
    files = [tmp_path / f"{number}.png" for number in range(4)]
    paths = write_upscaled(small_cascade, files, tmp_path / "out", n=2, seed=3, batch_size=4, **QUICK)
    assert [read_picture(path).size for path in paths[::2]] == [(42, 34), (42, 34), (32, 32), (10, 80)]
    assert [read_metadata(path)["seed"] for path in paths[:4]] == [3, 4, 3, 4]
    alone = small_cascade.sample([""], start=[read_picture(files[2])], seeds=3, **QUICK)[0]
    assert max_difference(alone, read_picture(paths[4])) <= 1
    content = [path.read_bytes() for path in paths]
    paths[1].unlink()
    write_upscaled(small_cascade, files, tmp_path / "out", n=2, seed=3, batch_size=4, **QUICK)
    assert [path.read_bytes() for path in paths] == content
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(UserError, match=r"text\.png is not a readable image"):
        write_upscaled(small_cascade, [*files, tmp_path / "text.png"], tmp_path / "other", **QUICK)
    assert not (tmp_path / "other").exists()
    with pytest.raises(UserError, match="n is 0; it must be 1 or more"):
        write_upscaled(small_cascade, files, tmp_path / "other", n=0, **QUICK)


def test_all_upscaling_requests_are_checked_before_the_first_is_sampled(tmp_path):
    model, network = recording_cascade(sampling=SamplingConfig(steps=1))
    files = [tmp_path / "small.png", tmp_path / "large.png"]
    noise_image(16, 16).save(files[0])
    noise_image(24, 24).save(files[1])
    out = tmp_path / "out"
    out.mkdir()
    noise_image(8, 8).save(out / "0001.png")
    with pytest.raises(UserError, match=r"0001\.png already exists and has no imagen metadata"):
        write_upscaled(model, files, out, **QUICK)
    assert not network.seen and [path.name for path in out.iterdir()] == ["0001.png"]
    (out / "0001.png").unlink()
    unet = dataclasses.replace(model.stages[0].config.unet, coordinates=True)
    model.stages[0].config = dataclasses.replace(model.stages[0].config, unet=unet)
    with pytest.raises(UserError, match="cannot run on tiles"):  # only the second is larger than a tile
        write_upscaled(model, files, out, tile=64, **QUICK)
    assert not network.seen and not list(out.iterdir())


def test_padding_affects_only_the_border_of_the_image():
    """With a stage that copies its input, the crop equals the upsampled image except for the last pixels."""
    model, _ = recording_cascade(sampling=SamplingConfig(steps=2, low_res_noise=0.0, threshold="static"))
    start = Image.fromarray(np.linspace(0, 255, 18 * 23 * 3).reshape(18, 23, 3).astype(np.uint8))
    (image,) = model.sample([""], start=[start], **QUICK)
    assert image.size == (92, 72)
    expected = to_uint8(upsample(from_uint8(from_images([start], 3)), (72, 92)))[0].permute(1, 2, 0).numpy()
    assert np.abs(pixels(image)[:-8, :-8] - expected[:-8, :-8]).max() <= 1


def test_stages_are_chosen_by_scale():
    model = cascade(stage(16), stage(32, 16), stage(64, 32))
    request = lambda side, scale: model.request([""], start=[noise_image(side, side)], scale=scale, device="cpu")  # noqa: E731
    assert [
        (request(side, scale).first_stage, request(side, scale).crop) for side, scale in ((40, 4), (40, 2), (16, 2))
    ] == [
        (1, (160, 160)),
        (2, (80, 80)),
        (1, (32, 32)),
    ]
