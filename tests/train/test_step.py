"""Test the training step: noise, text dropout, gradient, and non-finite values."""

import copy
import json
import math
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from run_state import assert_same, last_checkpoint
from steps import build_forward_process, load_batches, randomize_zero_layers
from toy import TRAIN, UNET, experiment, train_quietly

from imagen.data.loading.config import DataConfig
from imagen.data.loading.loader import Loader
from imagen.diffusion import randomness
from imagen.diffusion.objective import ObjectiveConfig
from imagen.diffusion.schedule import ScheduleConfig, build_schedule, diffuse, noise_label
from imagen.errors import UserError
from imagen.models.unet import UNet
from imagen.stage.inputs import drop_text
from imagen.stage.resize import upsample
from imagen.train.callbacks import Callback
from imagen.train.config import OptimConfig
from imagen.train.optim import build_optimizer
from imagen.train.step import clip_gradients, total_norm, training_step
from imagen.train.validation import ConditionalGap, with_other_captions

SR_UNET = replace(UNET, low_res=True)


def trained(unet, what, batches, **options):
    """Run one step, and return the model's gradients before the optimizer clears them."""
    optimizer = build_optimizer(unet.named_parameters(), what.optim)
    gradients = {}
    optimizer.optimizers[0].register_step_pre_hook(
        lambda *_: gradients.update({n: p.grad.clone() for n, p in unet.named_parameters() if p.grad is not None})
    )
    result = training_step(
        unet,
        batches,
        len(batches),
        build_forward_process(what),
        optimizer,
        clip_norm=1e9,
        autocast=nullcontext,
        **options,
    )
    return result, gradients


# --- randomness ---


def test_random_numbers_depend_only_on_position_seed_and_purpose():
    whole = randomness.normal((3, 4, 4), 5, range(100, 108), randomness.EPS)
    part = randomness.normal((3, 4, 4), 5, range(104, 106), randomness.EPS)
    assert torch.equal(whole[4:6], part)
    assert not torch.equal(whole, randomness.normal((3, 4, 4), 6, range(100, 108), randomness.EPS))
    assert not torch.equal(whole, randomness.normal((3, 4, 4), 5, range(100, 108), randomness.LOW_RES_EPS))


def test_random_numbers_have_their_distributions():
    """Checks moments and correlations within 4 standard errors of those of independent samples."""
    eps = randomness.normal((64,), 0, range(1000), randomness.EPS)
    assert abs(eps.mean()) < 4 / math.sqrt(eps.numel())
    assert abs(eps.square().mean() - 1) < 4 * math.sqrt(2 / eps.numel())
    assert abs((eps[1:] * eps[:-1]).mean()) < 4 / math.sqrt(eps.numel())
    u = randomness.uniform(0, range(4000), randomness.TEXT_DROPOUT)
    counts = torch.histc(u, 10, 0, 1)
    assert ((counts - 400).square() / 400).sum() < 27.9  # chi-squared of 9 degrees, p = 0.001
    assert abs(torch.corrcoef(torch.stack([u[1:], u[:-1]]))[0, 1]) < 4 / math.sqrt(len(u))


@pytest.mark.parametrize("ranks, accumulation", [(1, 4), (2, 1), (2, 2)])
def test_samples_are_noised_the_same_however_the_batch_is_split(shards, ranks, accumulation):
    what = experiment(unet=SR_UNET, low_resolution=8)
    noise, steps = build_forward_process(what), 3
    whole = [noise(batch) for batch in load_batches(shards, what, steps)]
    micro = what.train.batch_size // accumulation
    parts = {}
    for rank in range(ranks):
        for batch in load_batches(shards, what, steps * accumulation, batch_size=micro, rank=rank, world_size=ranks):
            parts[batch.position] = noise(batch)
    for name in ("x_BCHW", "eps_BCHW", "t_B", "logsnr_B"):
        split = torch.cat([getattr(parts[position], name) for position in sorted(parts)])
        assert torch.equal(split, torch.cat([getattr(step, name) for step in whole])), name
    for name in ("low_res", "low_res_noise"):
        split = torch.cat([parts[position].conditions[name] for position in sorted(parts)])
        assert torch.equal(split, torch.cat([step.conditions[name] for step in whole])), name
    dropped = [(part.conditions["text"][:, 0] == 7).all(1) for _, part in sorted(parts.items())]
    assert torch.equal(torch.cat(dropped), torch.cat([(s.conditions["text"][:, 0] == 7).all(1) for s in whole]))


def test_times_are_stratified_over_the_batch_and_change_with_the_step(shards):
    what = experiment()
    first, second = (build_forward_process(what)(batch).t_B for batch in load_batches(shards, what, 2))
    for times in (first, second):
        assert torch.equal((times * len(times)).floor().long().sort().values, torch.arange(len(times)))
    assert not torch.equal(first, second)


# --- inputs of the network ---


def test_base_inputs_equal_the_equation(shards):
    what = experiment()
    (batch,) = load_batches(shards, what, 1)
    noised = build_forward_process(what)(batch)
    assert noised.x0_BCHW.min() >= -1 and noised.x0_BCHW.max() <= 1
    assert torch.equal(noised.x0_BCHW, batch.image.float() / 127.5 - 1)
    t = noised.t_B.double()
    alpha, sigma = torch.cos(torch.pi / 2 * t), torch.sin(torch.pi / 2 * t)  # the cosine schedule
    expected = alpha[:, None, None, None] * noised.x0_BCHW + sigma[:, None, None, None] * noised.eps_BCHW
    torch.testing.assert_close(noised.x_BCHW.double(), expected, rtol=0, atol=5e-3)  # the ends of t are truncated
    assert noised.x_BCHW.is_contiguous(memory_format=torch.channels_last)


def test_super_resolution_inputs(shards):
    what = experiment(unet=SR_UNET, low_resolution=8, data=DataConfig(workers=0, crop=8))
    (batch,) = load_batches(shards, what, 1)
    assert batch.image.shape[-1] == 8 and batch.low_res.shape[-1] == 4
    noise = build_forward_process(what)
    given = noise(batch).conditions
    positions = range(8)
    level = randomness.uniform(0, positions, randomness.LOW_RES_LEVEL)
    logsnr = build_schedule(what.stage.low_res_schedule, 16)(level).float()
    eps = randomness.normal((3, 8, 8), 0, positions, randomness.LOW_RES_EPS)
    clean = upsample(batch.low_res.float() / 127.5 - 1, (8, 8))
    torch.testing.assert_close(given["low_res"], diffuse(clean, eps, logsnr))
    torch.testing.assert_close(given["low_res_noise"], noise_label(logsnr))


def test_detail_is_the_difference_from_the_upsampled_clean_image(shards):
    what = experiment(unet=SR_UNET, low_resolution=8)
    what = replace(what, stage=replace(what.stage, detail_std=0.1))
    (batch,) = load_batches(shards, what, 1)
    noised = build_forward_process(what)(batch)
    clean = batch.image.float() / 127.5 - 1
    upsampled = upsample(batch.low_res.float() / 127.5 - 1, (16, 16))
    torch.testing.assert_close(upsampled + 0.1 * noised.x0_BCHW, clean, rtol=0, atol=1e-6)
    torch.testing.assert_close(noised.x_BCHW, diffuse(noised.x0_BCHW, noised.eps_BCHW, noised.logsnr_B))
    plain = build_forward_process(replace(what, stage=replace(what.stage, detail_std=None)))(batch)
    for name in ("low_res", "low_res_noise"):  # the low-resolution input does not change
        assert torch.equal(noised.conditions[name], plain.conditions[name])


def test_training_may_use_its_own_noise_schedule(shards):
    plain, shifted = experiment(), experiment(schedule=ScheduleConfig(shift_reference=8))
    (batch,) = load_batches(shards, plain, 1)
    a, b = build_forward_process(plain)(batch), build_forward_process(shifted)(batch)
    assert torch.equal(a.t_B, b.t_B)
    torch.testing.assert_close(b.logsnr_B - a.logsnr_B, torch.full((8,), 2 * math.log(8 / 16)))


def test_dropped_text_is_the_unconditional_embedding_with_its_mask():
    text = torch.arange(1.0, 13).reshape(3, 2, 2)
    mask = torch.tensor([[True, True], [True, False], [True, True]])
    null = -torch.ones(3, 2)  # longer than the batch: the batch is padded
    out, out_mask = drop_text(text, mask, torch.tensor([False, True, False]), null)
    assert torch.equal(out[1], null) and out_mask[1].all()
    assert torch.equal(out[0], torch.cat([text[0], torch.zeros(1, 2)]))
    assert out_mask[0].tolist() == [True, True, False]
    out, out_mask = drop_text(text, mask, torch.tensor([True, False, False]), null[:1])  # shorter: it is padded
    assert out[0].tolist() == [[-1, -1], [0, 0]] and out_mask[0].tolist() == [True, False]
    assert torch.equal(out[1:], text[1:]) and torch.equal(out_mask[1:], mask[1:])


def test_text_is_dropped_at_its_rate(shards):
    what = experiment()
    noise = build_forward_process(what, text_dropout=0.3)
    dropped = [(noise(b).conditions["text"][:, 0] == 7).all(1) for b in load_batches(shards, what, 100)]
    assert abs(torch.cat(dropped).float().mean() - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 800)


# --- the step ---


def test_accumulation_gives_the_same_gradient(shards):
    what = experiment()
    unet = randomize_zero_layers(UNet(UNET))
    whole, expected = trained(copy.deepcopy(unet), what, load_batches(shards, what, 1))
    split, gradients = trained(copy.deepcopy(unet), what, load_batches(shards, what, 4, batch_size=2))
    assert split.losses == pytest.approx(whole.losses, rel=1e-5)
    assert split.grad_norm == pytest.approx(whole.grad_norm, rel=1e-5)
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=0, atol=1e-6)
    assert max(gradient.abs().max() for gradient in expected.values()) > 1e-2


def test_gradient_is_clipped_as_torch_does():
    torch.manual_seed(0)
    mine = torch.nn.Linear(8, 8)
    for scale, clipped in ((10.0, True), (1e-3, False)):
        for parameter in mine.parameters():
            parameter.grad = scale * torch.randn_like(parameter)
        before = mine.weight.grad.clone()
        reference = copy.deepcopy(mine)
        for a, b in zip(reference.parameters(), mine.parameters(), strict=True):
            a.grad = b.grad.clone()
        norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
        parameters = list(mine.parameters())
        assert clip_gradients(parameters, 1.0, 1.0, total_norm(parameters)) == pytest.approx(norm.item())
        torch.testing.assert_close(mine.weight.grad, reference.weight.grad)
        assert torch.equal(mine.weight.grad, before) != clipped


def test_nonfinite_step_is_not_applied_and_names_the_sample(shards):
    what = experiment()
    unet = randomize_zero_layers(UNet(UNET))
    (batch,) = load_batches(shards, what, 1)
    bad = batch.text.clone()
    bad[3] = torch.nan
    before = copy.deepcopy(unet.state_dict())
    optimizer = build_optimizer(unet.named_parameters(), what.optim)
    plain = build_forward_process(what, text_dropout=0)
    result = training_step(unet, [replace(batch, text=bad)], 8, plain, optimizer, clip_norm=1.0, autocast=nullcontext)
    assert result.problem == f"the loss is not finite for {batch.keys[3]}"
    assert all(torch.equal(unet.state_dict()[name], value) for name, value in before.items())
    assert not any(part.state for part in optimizer.optimizers)
    assert all(parameter.grad is None for parameter in unet.parameters())


class Poisoned(Loader):
    """A loader with NaN text at position 16 (the third step), and in all steps from position 40 on."""

    def __iter__(self):
        for batch in super().__iter__():
            if self.dataset.folder.name == "train" and (batch.position == 16 or batch.position >= 40):
                text = batch.text.clone()
                text[0] = torch.nan
                batch = replace(batch, text=text)
            yield batch


def test_a_run_skips_non_finite_steps_and_stops_after_many(shards, tmp_path, monkeypatch):
    monkeypatch.setattr("imagen.train.data.Loader", Poisoned)
    reported = []
    what = experiment(text_dropout=0.0, log_every=1, max_nonfinite=3)
    with pytest.raises(UserError, match=r"step 8: the loss is not finite for train\d+; 3 consecutive steps"):
        train_quietly(what, shards, tmp_path, report=reported.append)
    skipped = [line for line in reported if "step skipped" in line]
    assert [line.split(":")[0] for line in skipped] == ["step 3", "step 6", "step 7"]
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[2]["loss"] is None and rows[2]["nonfinite"] == 1
    assert rows[3]["loss"] > 0 and "nonfinite" not in rows[3]


def test_a_run_that_stopped_before_its_first_update_resumes(shards, tmp_path, monkeypatch):
    class Poisoned(Loader):
        def __iter__(self):
            for batch in super().__iter__():
                bad = self.dataset.folder.name == "train" and batch.position == 0
                yield replace(batch, text=batch.text * torch.nan) if bad else batch

    monkeypatch.setattr("imagen.train.data.Loader", Poisoned)
    what = experiment(text_dropout=0.0, steps=3, gap_every=0)
    train_quietly(what, shards, tmp_path / "whole")
    train_quietly(experiment(text_dropout=0.0, steps=1, gap_every=0), shards, tmp_path / "parts")
    assert not last_checkpoint(tmp_path / "parts")["optimizer"]
    assert train_quietly(what, shards, tmp_path / "parts").step == 3
    assert_same(last_checkpoint(tmp_path / "parts"), last_checkpoint(tmp_path / "whole"))


# --- the conditional gap ---


class Oracle(torch.nn.Module):
    """Predicts the exact noise of the image that belongs to the caption."""

    def __init__(self, eps_of_text):
        super().__init__()
        self.eps_of_text = eps_of_text

    def forward(self, x_BCHW, noise_B, text, text_mask):
        found = [self.eps_of_text.get(row.sum().item()) for row in text]
        return torch.stack([x if eps is None else eps for x, eps in zip(x_BCHW * 0, found, strict=True)])


def test_gap_of_a_network_that_ignores_text_is_zero(shards):
    what = experiment()
    gap = ConditionalGap(load_batches(shards, what, 4), build_forward_process(what, batch_size=32, text_dropout=0))

    class IgnoresText(torch.nn.Module):
        def forward(self, x_BCHW, noise_B, text, text_mask):
            return 0.5 * x_BCHW

    value, loss = gap.measure(IgnoresText(), nullcontext)
    assert value == 0 and loss > 0


def test_gap_of_a_network_that_uses_text(shards):
    what = experiment()
    (batch,) = load_batches(shards, what, 1)
    batch = replace(batch, text=batch.text + torch.arange(8.0)[:, None, None])  # makes every caption unique
    plain = build_forward_process(what, text_dropout=0)
    noised = plain(batch)
    true = {row.sum().item(): eps for row, eps in zip(noised.conditions["text"], noised.eps_BCHW, strict=True)}
    moved = plain(with_other_captions(batch)).conditions["text"]
    for row in moved:
        assert row.sum().item() in true
    # With another image's caption the oracle predicts that image's noise: |eps - eps'|^2 = 2 on average.
    gap, loss = ConditionalGap([batch], plain).measure(Oracle(true), nullcontext)
    assert loss == 0
    assert gap == pytest.approx(2, rel=0.1)


def test_training_learns_text_and_shuffled_captions_do_not(shards, tmp_path):
    # At high noise, most of the x0 loss comes from the colour, which the caption gives; of the eps loss, very little.
    optim = OptimConfig(lr=3e-3, warmup_steps=10, schedule="constant")
    what = experiment(
        optim=optim, steps=120, checkpoint_every=120, ema_decay=0.9, gap_samples=64, log_every=0, gap_every=0
    )
    what = replace(what, stage=replace(what.stage, objective=ObjectiveConfig(prediction="x0")))
    gaps = {}
    for shuffled in (False, True):
        run = tmp_path / str(shuffled)
        train_quietly(replace(what, train=replace(what.train, shuffle_captions=shuffled)), shards, run)
        gaps[shuffled] = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["conditional_gap"]
    assert gaps[False] > 0.02 > 5 * abs(gaps[True]), gaps


# --- callbacks and config ---


def test_callbacks_get_ema_weights(shards, tmp_path):
    seen, exported = {}, []

    class Sampled(Callback):
        every = 2

        def on_interval(self, run, step):
            with run.evaluating() as unet:
                assert not unet.training and not torch.is_grad_enabled()
                seen[step] = {name: value.clone() for name, value in unet.state_dict().items()}

        def on_checkpoint(self, run, step):
            assert run.images == 8 * step
            state = run.checkpointer.export()
            assert all(torch.equal(state[name], value) for name, value in seen[step].items())
            exported.append(step)

    train_quietly(experiment(steps=4, checkpoint_every=2), shards, tmp_path, callbacks=[Sampled()])
    assert exported == [2, 4]


def test_bf16_trains(shards, tmp_path):
    train_quietly(experiment(steps=2, precision="bf16", log_every=1), shards, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < row["loss"] < 3 for row in rows)


def test_inconsistent_experiments_are_user_errors(shards, tmp_path):
    for what, message in (
        (experiment(micro_batch=3), "do not divide into micro-batches of 3; set train.micro_batch to 2"),
        (experiment(unet=replace(UNET, text_width=9)), "text_width is 9"),
        (experiment(low_resolution=8), "low_res is False"),
        (experiment(micro_batch=1, shuffle_captions=True), "shuffle_captions"),
    ):
        with pytest.raises(UserError, match=message):
            train_quietly(what, shards, tmp_path)


def test_unconditional_training(shards, tmp_path):
    what = replace(experiment(steps=2, log_every=1), text=None)
    unet = replace(UNET, text_width=None, levels=tuple(replace(level, attention="none") for level in UNET.levels))
    train_quietly(replace(what, stage=replace(what.stage, unet=unet)), shards, tmp_path)
    assert "conditional_gap" not in (tmp_path / "metrics.jsonl").read_text()
    assert TRAIN.gap_samples  # with text, the toy experiment would measure the gap
