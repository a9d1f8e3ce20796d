"""What a plan says of memory is what real ranks allocate."""

import dataclasses
from functools import partial

import numpy as np
import pytest
import torch
from ranks import run_on_ranks

from imagen.config import override
from imagen.data.loader import Batch
from imagen.models.precision import autocast
from imagen.models.unet import UNet
from imagen.presets import preset
from imagen.train.ema import Ema
from imagen.train.noising import Noising
from imagen.train.optim import build_optimizer
from imagen.train.parallel import build_mesh, parallelize
from imagen.train.plan.rehearsal import Rehearsal
from imagen.train.ranks import Ranks, joined
from imagen.train.state import materialise, run_tensors
from imagen.train.step import training_step

MICRO = 4


def experiment(*fields):
    """debug_64 with AdamW, wide enough for activations to count."""
    return override(preset("debug_64"), ["--optim.algorithm", "adamw", *fields])


def own_bytes(tensors):
    """Bytes of the storages on this rank."""
    parts = [tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in tensors]
    return sum({part.untyped_storage().data_ptr(): part.untyped_storage().nbytes() for part in parts}.values())


def real_batches(what, count, size):
    text = what.text
    for part in range(count):
        pictures = torch.randint(0, 256, (size, 3, 64, 64), dtype=torch.uint8)
        embeddings = torch.randn(size, text.max_tokens, text.width)
        mask = torch.ones(size, text.max_tokens, dtype=torch.bool)
        yield Batch(part * size, [""] * size, [""] * size, pictures, None, embeddings, mask)


class Marked(Noising):
    """Leaves a mark in the profile at the end of each forward pass."""

    def loss(self, *args):
        value = super().loss(*args)
        with torch.profiler.record_function("forward is over"):
            return value


class Watched:
    def __init__(self, optimizer, unet):
        self.optimizer, self.unet, self.gradients = optimizer, unet, 0

    def step(self):
        self.gradients = own_bytes([parameter.grad for parameter in self.unet.parameters()])
        self.optimizer.step()

    def zero_grad(self):
        self.optimizer.zero_grad()


def measure(what, dtype):
    """One rank's bytes: what it holds, and what torch's CPU allocator gave out beyond that at the end of the forward
    pass and at most, in the second step of training."""
    with joined() as ranks:
        size = what.train.batch_size // ranks.world_size
        count, micro = (1, size) if what.train.micro_batch is None else (size // what.train.micro_batch, what.train.micro_batch)
        mesh = build_mesh(what.parallel, "cpu", ranks.world_size)
        unet = UNet(what.stage.unet)
        if mesh is None:
            unet.to(memory_format=torch.channels_last)
        network = parallelize(unet, what.parallel, mesh, ranks.world_size, dtype=dtype)
        optimizer = build_optimizer(unet.named_parameters(), what.optim)
        ema = Ema(unet, 0.999)
        watched = Watched(optimizer, unet)
        noising = Marked(
            what.stage,
            seed=0,
            batch_size=what.train.batch_size,
            device=torch.device("cpu"),
            unconditional_LD=torch.zeros(1, what.text.width),
            text_dropout=0.1,
        )

        def step():
            training_step(
                network,
                real_batches(what, count, micro),
                count,
                noising,
                watched,
                clip_norm=1e-3,
                autocast=partial(autocast, "cpu", dtype),
                ranks=ranks,
            )
            ema.update(unet, 1)

        step()
        activities = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
            step()
        events = sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns())
        total, totals, marks = 0, [], []
        for event in events:
            if event.name() == "[memory]":
                total += event.nbytes()
                totals.append(total)
            elif event.name() == "forward is over":
                marks.append(total)
        tensors = run_tensors(unet, ema, optimizer)
        held = {
            "parameters": own_bytes(unet.parameters()),
            "gradients": watched.gradients,
            "optimizer": own_bytes(tensors["optimizer"].values()),
            "ema": own_bytes(ema.weights.values()),
        }
        return held, marks, max(totals)
