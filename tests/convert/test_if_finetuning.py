"""Fine-tune small stages of DeepFloyd IF's kind: losses and images against diffusers' own."""

import dataclasses
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from command_line import run_imagen
from finetuning import train_together
from PIL import Image
from ranks import run_on_ranks
from torch import Tensor

from imagen.cascade import Cascade
from imagen.convert.deepfloyd import convert_deepfloyd
from imagen.convert.diffusers import convert_diffusers
from imagen.data.shards.writer import ShardWriter
from imagen.diffusion import randomness
from imagen.lora import LoraConfig
from imagen.presets import preset
from imagen.stage.inputs import to_images
from imagen.train.experiment import Experiment
from imagen.train.finetune import start_from
from imagen.train.run import train_run
from imagen.train.trainer import Trainer

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("tokenizers")

from pipeline_images import difference, diffusers_images, our_images  # noqa: E402
from pipelines import WORDS, save_pipeline  # noqa: E402

STEPS = 3


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pipelines")
    made = [save_pipeline(folder / f"IF-{stage}", stage) for stage in (1, 2)]
    (made[0] / "LICENSE.md").write_text("terms")
    return made


@pytest.fixture(scope="module")
def cascade(pipelines: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("converted") / "cascade"
    convert_deepfloyd(pipelines, out)
    return out


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of 32 x 32 pixels with captions of the encoder's words, and no embeddings."""
    folder = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(0)
    with ShardWriter(folder / "train") as writer:
        for number in range(24):
            file = io.BytesIO()
            rough = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
            rough.resize((32, 32), Image.Resampling.BICUBIC).save(file, "png")
            caption = " ".join(rng.choice(WORDS, 3)).capitalize()
            writer.write({"__key__": f"{number:03d}", "32.png": file.getvalue(), "txt": caption.encode()})
    return folder


def finetuning(cascade: Path, resolution: int, *, lora: int = 0, **train: Any) -> Experiment:
    what = start_from(preset("finetune"), f"{cascade}#{resolution}")
    sampling = dataclasses.replace(what.stage.sampling, steps=2)  # of sample grids
    fast = {
        "steps": STEPS,
        "batch_size": 4,
        "precision": "fp32",
        "text_dropout": 0.5,
        "log_every": 1,
        "sample_every": 0,
        "gap_samples": 4,
    }
    optim = dataclasses.replace(what.optim, lr=2e-3 if lora else 2e-4, warmup_steps=1, eps=1e-4)
    return dataclasses.replace(
        what,
        stage=dataclasses.replace(what.stage, sampling=sampling),
        data=dataclasses.replace(what.data, workers=0),
        train=dataclasses.replace(what.train, **{**fast, **train}),
        optim=optim,
        lora=LoraConfig(rank=lora, convolutions=True),
    )


def reference_loss(pipeline: Path, text_folder: Path, batch: Any, noised: Any, seed: int, variance: float) -> Tensor:
    """Return the loss of each sample as diffusers' U-Net and schedulers give it, for the same noise and steps."""
    kind = diffusers.IFPipeline if batch.low_res is None else diffusers.IFSuperResolutionPipeline
    pipe, text = kind.from_pretrained(pipeline), diffusers.IFPipeline.from_pretrained(text_folder)
    positions = range(batch.position, batch.position + len(batch))
    dropped = randomness.uniform(seed, positions, randomness.TEXT_DROPOUT) < 0.5
    captions = ["" if drop else caption for drop, caption in zip(dropped, batch.captions, strict=True)]
    assert 0 < dropped.sum() < len(dropped)
    embeddings, _ = text.encode_prompt(captions, do_classifier_free_guidance=False, device="cpu")

    scheduler, n = pipe.scheduler, noised.label_B.long()
    assert n.min() > 0  # diffusers' variance has another definition at step 0
    x0, eps = batch.image.float() / 127.5 - 1, noised.eps_BCHW
    x_t = scheduler.add_noise(x0, eps, n)
    inputs, labels = x_t, None
    if batch.low_res is not None:
        small = batch.low_res.float() / 127.5 - 1
        large = F.interpolate(small, x0.shape[-2:], mode="bilinear", align_corners=True)
        levels = randomness.uniform(seed, positions, randomness.LOW_RES_LEVEL)
        labels = (levels * 1000).long()
        noise = randomness.normal(x0.shape[1:], seed, positions, randomness.LOW_RES_EPS)
        inputs = torch.cat([x_t, pipe.image_noising_scheduler.add_noise(large, noise, labels)], 1)
    with torch.no_grad():
        out = pipe.unet(inputs, n, encoder_hidden_states=embeddings, class_labels=labels).sample
    mean, v = out.chunk(2, 1)
    mse = (mean - eps).square().flatten(1).mean(1)
    bits = torch.stack([_kl_bits(scheduler, int(n[i]), x0[i], x_t[i], mean[i], v[i]) for i in range(len(n))])
    return mse + variance * 1000 * bits


def _kl_bits(scheduler: Any, n: int, x0: Tensor, x_t: Tensor, eps: Tensor, v: Tensor) -> Tensor:
    """Return KL(q || p) of the step from n to n - 1 (2102.09672, eq. 5 and 15), in bits per dimension."""
    products = scheduler.alphas_cumprod.double()
    ac, before, beta = products[n], products[n - 1], scheduler.betas.double()[n]
    log_q = (beta * (1 - before) / (1 - ac)).log()
    log_p = scheduler._get_variance(n, predicted_variance=v.double())

    def posterior_mean(x0: Tensor) -> Tensor:
        return (before.sqrt() * beta * x0 + (1 - beta).sqrt() * (1 - before) * x_t) / (1 - ac)

    guess = (x_t - (1 - ac).sqrt() * eps) / ac.sqrt()
    distance = (posterior_mean(x0.double()) - posterior_mean(guess.double())).square()
    kl = 0.5 * (log_p - log_q - 1 + (log_q - log_p).exp() + distance * (-log_p).exp())
    return (kl.mean() / math.log(2)).float()


@pytest.mark.parametrize("variance", [0.001, 0.0], ids=["hybrid", "mean"])
@pytest.mark.parametrize("stage", [0, 1], ids=["I", "II"])
def test_the_first_loss_is_that_of_diffusers(
    pipelines: list[Path], cascade: Path, shards: Path, tmp_path: Path, stage: int, variance: float
) -> None:
    what = finetuning(cascade, (16, 32)[stage], batch_size=8)
    assert what.stage.objective.variance_weight == 0.001 and what.data.on_the_fly
    objective = dataclasses.replace(what.stage.objective, variance_weight=variance)
    what = dataclasses.replace(what, stage=dataclasses.replace(what.stage, objective=objective))
    run = Trainer(what, shards, tmp_path, report=lambda line: None).run
    batch = next(iter(run.batches()))
    noised = run.forward_process(batch)
    with torch.no_grad():
        found = run.forward_process.loss(run.unet, noised).total
    expected = reference_loss(pipelines[stage], pipelines[0], batch, noised, what.train.seed, variance)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def runs(cascade: Path, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    for name, resolution, lora in (("full-I", 16, 0), ("lora-I", 16, 4), ("full-II", 32, 0), ("lora-II", 32, 4)):
        grids = {"sample_every": STEPS} if name == "lora-II" else {}
        train_run(finetuning(cascade, resolution, lora=lora, **grids), shards, folder / name, report=lambda line: None)
    assert list((folder / "lora-II" / "samples").iterdir())
    return {path.name: path for path in folder.iterdir()}


def start(resolution: int) -> list[Image.Image] | None:
    torch.manual_seed(0)
    size = (2, 3, resolution // 2, resolution // 2)
    return None if resolution == 16 else to_images(torch.randint(256, size, dtype=torch.uint8))


@pytest.mark.parametrize("name", ["full-I", "lora-I", "full-II", "lora-II"])
def test_the_pipeline_of_a_fine_tuned_stage_gives_the_same_images(
    monkeypatch: pytest.MonkeyPatch, pipelines: list[Path], runs: dict[str, Path], tmp_path: Path, name: str
) -> None:
    (exported,) = convert_diffusers(runs[name], tmp_path / "out")
    assert (exported / "LICENSE.md").read_text() == "terms"
    original = diffusers.IFPipeline.from_pretrained(pipelines[0])
    text = {"tokenizer": original.tokenizer, "text_encoder": original.text_encoder}
    image = start(32 if name.endswith("II") else 16)
    options = {} if image is None else {"start": image}
    (made,) = our_images(monkeypatch, Cascade.load(runs[name]), 5, **options)
    assert difference(made, diffusers_images(monkeypatch, exported, image, 5, **text)) < 1e-3
    before = diffusers_images(
        monkeypatch, pipelines[len(name.partition("-")[2]) - 1], image, 5, **(text if image else {})
    )
    assert difference(made, before) > 3e-3


@pytest.mark.parametrize("name", ["lora-I", "lora-II"])
def test_diffusers_loads_the_adapter(
    monkeypatch: pytest.MonkeyPatch, pipelines: list[Path], cascade: Path, runs: dict[str, Path], name: str
) -> None:
    """In its own format, at a weight of 0.8, beside `imagen sample --lora FILE:0.8`."""
    peft = pytest.importorskip("peft")
    stage = 1 if name.endswith("II") else 0
    unet = diffusers.UNet2DConditionModel.from_pretrained(pipelines[stage] / "unet")
    unet.load_lora_adapter(runs[name] / "lora.safetensors", prefix="unet", adapter_name="style")
    for module in unet.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            module.set_scale("style", 0.8)  # diffusers' own set_adapters fails for stage II's list of blocks
    image = start(32 if stage else 16)
    original = diffusers.IFPipeline.from_pretrained(pipelines[0])
    text = {"tokenizer": original.tokenizer, "text_encoder": original.text_encoder}
    expected = diffusers_images(monkeypatch, pipelines[stage], image, 5, unet=unet, **text)
    model = Cascade.load(cascade)
    model.load_lora(runs[name] / "lora.safetensors", name="style", resolution=32 if stage else 16)
    options: dict[str, Any] = {"start": image} if image else {"stages": 1}
    (made,) = our_images(monkeypatch, model, 5, lora={"style": 0.8}, **options)
    assert difference(made, expected) < 1e-3
    (plain,) = our_images(monkeypatch, model, 5, **options)
    assert difference(made, plain) > 3e-3


def test_on_two_ranks(cascade: Path, shards: Path, runs: dict[str, Path], tmp_path: Path) -> None:
    whats = [finetuning(cascade, 16, lora=lora) for lora in (0, 4)]
    run_on_ranks(2, train_together, whats, shards, tmp_path, timeout=120)
    for number, name in enumerate(("full-I", "lora-I")):
        alone = Cascade.load(runs[name]).stages[0].unet.state_dict()
        for key, value in Cascade.load(tmp_path / str(number)).stages[0].unet.state_dict().items():
            torch.testing.assert_close(value, alone[key], rtol=0, atol=2e-4)


@pytest.mark.slow
def test_fifty_steps(
    monkeypatch: pytest.MonkeyPatch, pipelines: list[Path], cascade: Path, shards: Path, tmp_path: Path
) -> None:
    """Both stages, all weights and LoRA, alone and on two ranks: diffusers gives the images of each export."""
    kinds = [(resolution, lora) for resolution in (16, 32) for lora in (0, 4)]
    whats = [finetuning(cascade, resolution, lora=lora, steps=50) for resolution, lora in kinds]
    for number, what in enumerate(whats):
        train_run(what, shards, tmp_path / "alone" / str(number), report=lambda line: None)
    run_on_ranks(2, train_together, whats, shards, tmp_path / "together", timeout=1200)
    original = diffusers.IFPipeline.from_pretrained(pipelines[0])
    text = {"tokenizer": original.tokenizer, "text_encoder": original.text_encoder}
    for folder in ("alone", "together"):
        for number, (resolution, _) in enumerate(kinds):
            run, image = tmp_path / folder / str(number), start(resolution)
            (exported,) = convert_diffusers(run, tmp_path / "out" / folder / str(number))
            (made,) = our_images(monkeypatch, Cascade.load(run), 10, **({} if image is None else {"start": image}))
            assert difference(made, diffusers_images(monkeypatch, exported, image, 10, **text)) < 1e-3
            before = diffusers_images(monkeypatch, pipelines[resolution // 32], image, 10, **(text if image else {}))
            assert difference(made, before) > 3e-3


def test_stored_embeddings_are_refused(cascade: Path, shards: Path, tmp_path: Path) -> None:
    options = ("--init", f"{cascade}#16", "--data", shards, "--out", tmp_path / "run", "--device", "cpu")
    done = run_imagen("train", "finetune", *options, "--data.on_the_fly", "false")
    assert done.code == 2 and "set data.on_the_fly to true" in done.err, done
