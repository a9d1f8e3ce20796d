"""Compare the predicted memory of sampling with torch's allocator, and check requests with a memory limit."""

import dataclasses

import numpy as np
import pytest
import torch
from cascades import QUICK, TEXT, cascade, pixels, stage
from torch import nn

from imagen.cascade import Cascade, SamplingConfig, regenerate_request, write_samples
from imagen.cascade.memory import GIB, step_bytes, weight_bytes
from imagen.cascade.texts import PromptEncoder
from imagen.errors import UserError
from imagen.pictures import read_metadata
from imagen.text.encoder import TextEncoder


def peak_allocated(run) -> int:
    """Return the peak number of bytes that torch's CPU allocator held during `run`."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    events = sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    return max(np.cumsum([event.nbytes() for event in events if event.name() == "[memory]"]))


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("sampler", ["dpmpp_2m", "heun"])
def test_predicted_bytes_equal_the_allocated_bytes(rows, sampler):
    large = stage(64, 32)
    settings = SamplingConfig(sampler=sampler, steps=3, guidance=2.0)
    texts, low = [torch.zeros(8, TEXT.width)] * rows, torch.zeros(rows, 3, 32, 32, dtype=torch.uint8)
    null = torch.zeros(1, TEXT.width)
    request = {"size": (64, 64), "settings": settings, "texts": texts, "unconditional": null, "text_length": 8}
    run = lambda: large.sample(range(rows), low_BChw=low, precision="fp32", **request)  # noqa: E731
    run()
    predicted = step_bytes(large.config, settings, (64, 64), rows, text_tokens=8)
    # Memory outside the network: noise is generated in float64, and the result is rounded to uint8.
    assert predicted == pytest.approx(peak_allocated(run), rel=0.05)


def test_smaller_micro_batches_give_the_same_images():
    two = cascade()
    weights = sum(weight_bytes(part.unet) for part in two.stages)
    needs = [
        step_bytes(part.config, part.config.sampling, (side, side), 4, text_tokens=TEXT.max_tokens)
        for part, side in zip(two.stages, (16, 32), strict=True)
    ]
    assert needs[0] < needs[1]
    limited = two.request(["x"] * 8, vram=(weights + needs[1]) / GIB, device="cpu", precision="fp32")
    assert limited.micro_batch[1] == 4 and limited.micro_batch[0] >= 4 and limited.tiles == (None, None)
    words = [f"picture {i}" for i in range(5)]
    roomy, narrow = (two.sample(words, vram=vram, seeds=range(5), **QUICK) for vram in (64, limited.vram))
    assert max(abs(pixels(a) - pixels(b)).max() for a, b in zip(roomy, narrow, strict=True)) <= 1


def test_an_image_that_does_not_fit_is_tiled_or_rejected():
    wide = cascade(stage(16), stage(64, 16, text=False))
    request = {"size": (256, 512), "device": "cpu", "precision": "fp32"}
    weights = sum(weight_bytes(part.unet) for part in wide.stages)
    need = step_bytes(wide.stages[1].config, wide.stages[1].config.sampling, (256, 512), 1)
    limited = wide.request(["x"], vram=(weights + 0.7 * need) / GIB, **request)
    assert limited.micro_batch == (1, 1) and limited.tiles[0] is None and limited.tiles[1] is not None
    assert limited.tiles[1].side in (128, 256)
    with pytest.raises(UserError, match=r"stage (16|64) takes .* GiB for one image of .*; allow more"):
        wide.request(["x"], vram=weights / GIB, **request)
    with pytest.raises(UserError, match="vram is -1"):
        wide.request(["x"], vram=-1, **request)


class DeviceRecorder(nn.Module):
    """Wraps a network and records the devices to which it is moved."""

    def __init__(self, network: nn.Module, visits: list[str]) -> None:
        super().__init__()
        self.network, self.visits = network, visits

    def to(self, *args, **kwargs):
        if args:
            self.visits.append(str(args[0]))
        return super().to(*args, **kwargs)

    def forward(self, *args, **kwargs):
        return self.network(*args, **kwargs)


def test_offloaded_stages_are_moved_once_for_several_batches():
    two, visits = cascade(), ([], [])
    words = [f"picture {i}" for i in range(6)]
    request = two.request(words, seeds=range(6), batch_size=2, device="cpu", precision="fp32")
    expected = list(two.run(request, progress=False))
    moved = [
        dataclasses.replace(part, unet=DeviceRecorder(part.unet, seen))
        for part, seen in zip(two.stages, visits, strict=True)
    ]
    order: list[int] = []
    offloading = Cascade(moved, text=two.text, unconditional=two.unconditional, encoder=two.texts.encoder)
    found = list(
        offloading.run(
            dataclasses.replace(request, offload=True),
            progress=False,
            on_step=lambda preview: order.append(preview.stage),
        )
    )
    assert order == [0] * 9 + [1] * 9  # three batches of three steps in each
    assert all((pixels(a) == pixels(b)).all() for a, b in zip(found, expected, strict=True))
    assert all(seen[-1] == "cpu" for seen in visits)


def test_a_large_text_encoder_runs_on_the_cpu(monkeypatch):
    config = dataclasses.replace(TEXT, max_tokens=4)
    devices: list[str] = []

    class Model(nn.Linear):
        def to(self, device):
            devices.append(str(device))
            return self

    encoder = TextEncoder(config, None, Model(1024, 256), "cpu")  # 1 MiB
    monkeypatch.setattr(encoder, "encode", lambda prompts: [torch.zeros(1, config.width) for _ in prompts])
    monkeypatch.setattr(encoder, "untruncated_lengths", lambda prompts: [1 for _ in prompts])
    texts, device = PromptEncoder(config, torch.zeros(1, config.width), encoder), torch.device("meta")
    devices.clear()
    texts(["a"], device, 1 / 1024)
    assert devices == []
    texts(["b"], device, 2 / 1024)
    assert devices == ["meta", "cpu"]


def test_an_image_that_cannot_be_written_stops_the_job(tmp_path, monkeypatch):
    from imagen.cascade import output

    write = output.write_png

    def failing(path, image, metadata=None):
        if path.name == "0002.png":
            raise UserError(f"{path}: no space left")
        write(path, image, metadata)

    monkeypatch.setattr(output, "write_png", failing)
    with pytest.raises(UserError, match="no space left"):
        write_samples(cascade(), ["x"] * 6, tmp_path, batch_size=2, **QUICK)
    assert (tmp_path / "0000.png").exists() and (tmp_path / "0001.png").exists()


def test_provenance_records_an_int8_text_encoder(tmp_path):
    (path,) = write_samples(eight := cascade(int8_text=True), ["x"], tmp_path, **QUICK)
    assert read_metadata(path)["text"]["int8"] is True
    assert regenerate_request(eight, path, device="cpu")[1] == 0
    with pytest.raises(UserError, match="another text encoder"):
        regenerate_request(cascade(), path, device="cpu")
