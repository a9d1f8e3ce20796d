"""Test that training steps neither wait for the device nor launch many operations."""

from contextlib import nullcontext
from dataclasses import fields, replace

import pytest
import torch
from device_sync import META, PINNED, NoSyncMode, meta_device_as_gpu
from ranks import run_on_ranks
from toy import UNET, experiment

from imagen.data.loading.batches import Batch
from imagen.devices import pin, send
from imagen.models.unet import UNet
from imagen.presets import preset
from imagen.stage.loss import ForwardProcess
from imagen.train.config import OptimConfig, ParallelConfig
from imagen.train.ema import Ema
from imagen.train.layout import named_weights, permuted_weights
from imagen.train.low_precision import LowPrecisionCopy
from imagen.train.optim import build_optimizer
from imagen.train.parallel import build_mesh, parallelize
from imagen.train.ranks import process_group
from imagen.train.sharded import full_tensor
from imagen.train.step import launch_step
from imagen.train.throughput import random_batch
from imagen.train.trainer import Trainer

KINDS = ("adam", "adamw", "adamw int8", "adafactor", "muon")


def optim_config(kind, **fields):
    algorithm, _, state = kind.partition(" ")
    return OptimConfig(algorithm=algorithm, state=state or "float32", **fields)


def in_pinned_memory(batch: Batch) -> Batch:
    """Return `batch` in pinned memory, as a loader's pinning thread does."""

    for field in fields(batch):
        if isinstance(tensor := getattr(batch, field.name), torch.Tensor):
            PINNED[tensor.untyped_storage()._cdata] = tensor
    return batch


class Step:
    """Runs training steps on a meta device."""

    def __init__(self, what, batch_size, accumulation=1):
        with torch.device("meta"):
            self.unet = UNet(what.stage.unet)
        self.what, self.accumulation, self.batch_size = what, accumulation, batch_size
        self.copy = LowPrecisionCopy(self.unet, torch.bfloat16)
        self.optimizer = build_optimizer(self.unet.named_parameters(), what.optim)
        self.ema = Ema(self.unet, 0.999)
        null = None if what.text is None else torch.zeros(1, what.text.width)
        self.noising = ForwardProcess(
            *(what.stage,),
            seed=0,
            batch_size=batch_size * accumulation,
            device=META,
            text_dropout=0.1,
            unconditional_LD=null,
            text_length=24,
        )

    def __call__(self, number):
        batches = [
            in_pinned_memory(
                random_batch(self.what, (number * self.accumulation + part) * self.batch_size, self.batch_size)
            )
            for part in range(self.accumulation)
        ]
        self.optimizer.set_learning_rate(1e-4)
        with NoSyncMode() as mode:
            launch_step(
                self.unet,
                batches,
                self.accumulation,
                self.noising,
                self.optimizer,
                clip_norm=1.0,
                autocast=nullcontext,
                copy=self.copy,
            )
            self.ema.update(self.unet, number + 1)
        return mode


def test_the_mode_finds_waiting_operations():
    x = torch.zeros(2, device=META)
    for waits in (
        lambda: x.sum().item(),
        lambda: torch.zeros(2).to(META),
        lambda: x + torch.zeros(2).to(META, non_blocking=True),
    ):
        with pytest.raises((AssertionError, RuntimeError)), NoSyncMode():
            waits()
    with meta_device_as_gpu(), NoSyncMode():
        send(torch.zeros(2), META)
    assert pin(torch.zeros(2), META).device.type == "cpu"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("low_resolution", [None, 8])
def test_a_training_step_never_waits(kind, low_resolution):
    """Includes the first step, which creates the optimizer's state."""
    what = experiment(unet=replace(UNET, low_res=low_resolution is not None), low_resolution=low_resolution)
    what = replace(what, optim=optim_config(kind, weight_decay=0 if kind == "adam" else 0.1))
    with meta_device_as_gpu():
        step = Step(what, 4, accumulation=2)
        assert all(step(number).operations > 100 for number in range(2))


def test_operations_of_the_397m_step():
    """A step takes at most half of the 3,928 operations that it took under autocast, with torch's norms."""
    with meta_device_as_gpu():
        step = Step(preset("text2im_64_397m"), 2)
        step(0)
        mode = step(1)
    print(mode.operations, sorted(mode.names.items(), key=lambda item: -item[1])[:25])
    assert mode.operations <= 3928 // 2


# --- decisions on the device equal those on the CPU ---


def trained(what, batches, waits, clip_norm=0.05):
    """Train a network on each batch; return the results, and the weights after each step."""
    torch.manual_seed(0)
    unet = UNet(what.stage.unet)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    optimizer = build_optimizer(unet.named_parameters(), what.optim)
    noising = ForwardProcess(what.stage, seed=0, batch_size=4, device=torch.device("cpu"))
    results, weights = [], []
    for batch in batches:
        optimizer.set_learning_rate(what.optim.lr)
        options = {"clip_norm": clip_norm, "autocast": nullcontext, "waits": waits}
        results.append(launch_step(unet, [batch], 1, noising, optimizer, **options).result())
        weights.append([parameter.detach().clone() for parameter in unet.parameters()])
    return results, weights


def distance(weights, others):
    """Return the norm of the difference: elements may differ where rounding changes the sign of a tiny gradient."""
    return torch.linalg.vector_norm(torch.cat([(a - b).flatten() for a, b in zip(weights, others, strict=True)]))


@pytest.mark.parametrize("clip_norm", [0.05, 1e9])
@pytest.mark.parametrize("kind", KINDS)
def test_steps_that_do_not_wait_equal_steps_that_do(kind, clip_norm):
    """The second step is non-finite: it is reported, and changes neither weights nor moments."""
    optim = optim_config(kind, lr=1e-3, eps=1e-4, weight_decay=0 if kind == "adam" else 0.1)
    what = replace(experiment(), optim=optim)
    batches = [random_batch(what, 4 * number, 4) for number in range(4)]
    bad = batches[1].text.clone()
    bad[2] = torch.inf
    batches[1] = replace(batches[1], text=bad)
    (expected, wanted), (results, weights) = (trained(what, batches, waits, clip_norm) for waits in (True, False))
    for one, other in zip(results, expected, strict=True):
        assert one.problem == other.problem and one.applied == other.applied
        assert one.losses == pytest.approx(other.losses, rel=1e-4, nan_ok=True)
        assert one.grad_norm == pytest.approx(other.grad_norm, rel=1e-4, nan_ok=True)
    assert "4" in results[1].problem or results[1].problem.startswith("the loss is not finite for 6")
    assert all(torch.equal(a, b) for a, b in zip(weights[0], weights[1], strict=True))
    for step in (2, 3):
        assert distance(weights[step], wanted[step]) < 3e-2 * distance(weights[step], weights[0])


def test_gradient_of_the_low_precision_copy(monkeypatch):
    """The gradient is the float32 sum over all micro-batches, up to bfloat16 rounding."""
    what = experiment()
    torch.manual_seed(0)
    unet = UNet(UNET)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    batches = [random_batch(what, 4 * number, 4) for number in range(2)]
    noising = ForwardProcess(what.stage, seed=0, batch_size=8, device=torch.device("cpu"))
    gradients = []
    for copy in (None, LowPrecisionCopy(unet, torch.bfloat16)):
        optimizer = build_optimizer(unet.named_parameters(), what.optim)
        optimizer.step = lambda *_: gradients.append([p.grad.clone() for p in unet.parameters()])
        launch_step(unet, batches, 2, noising, optimizer, clip_norm=1e9, autocast=nullcontext, copy=copy)
    assert all(gradient.dtype == torch.float32 for gradient in gradients[1])
    whole, half = (torch.cat([gradient.flatten() for gradient in each]) for each in gradients)
    assert torch.linalg.vector_norm(whole - half) < 0.05 * torch.linalg.vector_norm(whole)


@pytest.mark.parametrize("kind", KINDS)
def test_sharded_steps_that_do_not_wait(kind):
    optim = optim_config(kind, lr=1e-3, eps=1e-4)
    before, alone = run_on_ranks(1, on_ranks, optim)[0]
    _, sharded = run_on_ranks(2, on_ranks, optim)[0]
    assert distance(sharded, alone) < 3e-2 * distance(before, alone)


def on_ranks(optim):
    """Run three steps, the second non-finite; return the full weights before and after."""
    with process_group() as ranks:
        what = replace(experiment(), optim=optim)
        torch.manual_seed(0)
        unet = UNet(UNET)
        before = [weight.detach().clone() for _, weight in named_weights(unet)]
        parallel = ParallelConfig(shard=ranks.world_size)
        network = parallelize(unet, parallel, build_mesh(parallel, "cpu", ranks.world_size), ranks.world_size)
        optimizer = build_optimizer(named_weights(unet), optim, permuted=permuted_weights(unet))
        noising = ForwardProcess(what.stage, seed=0, batch_size=4, device=torch.device("cpu"))
        share = 4 // ranks.world_size
        for number in range(3):
            batch = random_batch(what, 4 * number + share * ranks.rank, share)
            batch = replace(batch, image=torch.full_like(batch.image, 7), text=torch.ones_like(batch.text))
            if number == 1 and ranks.rank == 0:
                batch = replace(batch, text=batch.text * torch.inf)
            optimizer.set_learning_rate(1e-3)
            options = {"clip_norm": 0.05, "autocast": nullcontext, "ranks": ranks, "waits": False}
            result = launch_step(network, [batch], 1, noising, optimizer, **options).result()
            assert result.applied == (number != 1)
        return before, [full_tensor(weight.detach()).clone() for _, weight in named_weights(unet)]


def test_reading_results_late_changes_neither_metrics_nor_weights(shards, tmp_path, rows, monkeypatch):
    """As on a GPU, the next step is launched before a result is read, so a skipped step is reported one step later."""
    what = experiment(steps=9, log_every=3, checkpoint_every=5, gap_every=0, ema_every=2, max_nonfinite=9)
    reported = {}
    for late in (False, True):
        order = []

        def launch(*arguments, late=late, order=order, **options):
            order.append("launch")
            launched = launch_step(*arguments, **options, waits=not late)
            result = launched.result
            launched.result = lambda: order.append("read") or result()
            return launched

        monkeypatch.setattr("imagen.train.trainer.launch_step", launch)
        run = tmp_path / str(late)
        reported[late] = []
        trainer = Trainer(what, shards, run, report=reported[late].append)
        trainer.waits_each_step = not late
        trainer.train()
        assert order.count("read") == order.count("launch") == 9
        ahead = max(order[:end].count("launch") - order[:end].count("read") for end in range(19))
        assert ahead == (2 if late else 1)
    for one, other in zip(rows(tmp_path / "True"), rows(tmp_path / "False"), strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)
    assert reported[True][-1].replace("True", "False") == reported[False][-1]
