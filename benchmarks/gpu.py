"""All that is to be known of a GPU, in ten minutes: training and sampling at full size, memory against the plan.

    python benchmarks/gpu.py [--section NAME ...] [--out DIR] [--packages DIR] [--dry-run]

Each section is a process of its own with a time limit, and its rows are written to DIR/gpu.json when it is done, so
that whatever ends this early leaves what is known by then. What is out of memory says so, in a row. Needs torch 2.11
and the checkout; --packages names a folder of further packages (`pip install --target`), such as diffusers, to compare
with. --dry-run runs every section at tiny sizes on the CPU: what it prints is no measurement.

Times are medians of CUDA events. MFU is of the matrix products that training needs (`imagen.train.flops`), over the
peak that the maker states. Weights that start at zero get small random values, and inputs are random.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

Rows = Iterator[dict[str, Any]]
# Seconds that a section may take, in the order of what matters; together they leave a minute of ten.
LIMITS = {
    "card": 50,
    "train_397m": 130,
    "if_m": 80,
    "train_2b": 80,
    "train_sr": 80,
    "trainer": 70,
    "cascade": 50,
}


def main() -> None:
    options = arguments()
    if options.packages:
        sys.path.append(str(options.packages))
    if options.run:
        run_one(options)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    path, results = options.out / "gpu.json", {}
    for section in options.section or LIMITS:
        began = time.monotonic()
        rows, ended = started(section, options)
        results[section] = {"rows": rows, "ended": ended, "seconds": round(time.monotonic() - began, 1)}
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(results, indent=2))
        os.replace(temporary, path)
        print(f"\n== {section}: {ended}, {results[section]['seconds']} s", flush=True)
        for row in rows:
            print("  " + ", ".join(f"{name} {shown(value)}" for name, value in row.items()), flush=True)
    print(f"\nwritten: {path}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--section", nargs="+", choices=LIMITS, metavar="NAME", help=f"of {', '.join(LIMITS)}")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", Path(__file__).parent / "gpu")))
    parser.add_argument("--packages", type=Path, help="a folder of packages that this Python lacks")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument("--run", choices=LIMITS, help=argparse.SUPPRESS)
    return parser.parse_args()


def started(section: str, options: argparse.Namespace) -> tuple[list[dict[str, Any]], str]:
    """(rows of a section, how it ended), from a process of its own."""
    command = [sys.executable, __file__, "--run", section]
    command += ["--packages", str(options.packages)] if options.packages else []
    command += ["--dry-run"] if options.dry_run else []
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=out, stderr=errors, text=True)
        try:
            code = process.wait(timeout=LIMITS[section])
            ended = "done" if code == 0 else f"exit code {code}"
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            ended = f"stopped after {LIMITS[section]} s"
        out.seek(0)
        errors.seek(0)
        rows = [json.loads(line[4:]) for line in out.read().splitlines() if line.startswith("ROW ")]
        tail = errors.read().strip().splitlines()[-1:]
    return rows, ended if ended == "done" or not tail else f"{ended}: {tail[0][:300]}"


def run_one(options: argparse.Namespace) -> None:
    import torch

    from imagen.devices import set_up

    dry = options.dry_run
    device = torch.device("cpu" if dry else "cuda", None if dry else 0)
    if dry:
        torch.set_num_threads(1)
    elif not torch.cuda.is_available():
        sys.exit("torch sees no NVIDIA GPU; --dry-run runs at tiny sizes on the CPU")
    set_up(device)
    torch.manual_seed(0)
    for row in SECTIONS[options.run](device, dry):
        print("ROW " + json.dumps(row), flush=True)


def shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def timed(function: Callable[[], object], device: Any, repeats: int = 20, warm_up: int = 3) -> float:
    """Median milliseconds of `function`, by events of the device."""
    import torch

    taken = []
    for number in range(warm_up + repeats):
        if device.type == "cuda":
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            began.record()
            function()
            ended.record()
            ended.synchronize()
            taken.append(began.elapsed_time(ended))
        else:
            start = time.perf_counter()
            function()
            taken.append(1e3 * (time.perf_counter() - start))
        if number < warm_up:
            taken.clear()
    return statistics.median(taken)


def memory(device: Any) -> dict[str, float]:
    import torch

    if device.type != "cuda":
        return {}
    gib = 2**30
    allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    return {"allocated_gib": allocated / gib, "reserved_gib": reserved / gib}


def fitting(rows: Callable[[], dict[str, Any]], **about: Any) -> dict[str, Any]:
    """A row, or that there was no memory for it."""
    import torch

    try:
        return {**about, **rows()}
    except torch.OutOfMemoryError:
        return {**about, "result": "out of memory"}
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


# --- the card ---


def card(device: Any, dry: bool) -> Rows:
    """Versions, the two peaks, our kernels against their references and torch's, and what attention runs in."""
    import torch
    import torch.nn.functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from imagen.kernels import HAS_TRITON, group_norm, philox, uses_triton

    row: dict[str, Any] = {"torch": torch.__version__, "triton": HAS_TRITON}
    if not dry:
        facts = torch.cuda.get_device_properties(0)
        row |= {"name": facts.name, "memory_gib": facts.total_memory / 2**30, "cuda": torch.version.cuda}
        row |= {"cudnn": torch.backends.cudnn.version(), "allocator": os.environ.get("PYTORCH_ALLOC_CONF")}
    yield row
    side, count = (128, 2**16) if dry else (8192, 2**30)
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    x, y = torch.randn(count, device=device), torch.empty(count, device=device)
    yield {"matrix_tflops": 2 * side**3 / 1e9 / timed(partial(torch.matmul, a, b), device)}
    yield {"copy_gb_per_s": 2 * x.nbytes / 1e6 / timed(partial(y.copy_, x), device)}
    del a, b, x, y

    shapes = [(2, 32, 8, 8)] if dry else [(16, 224, 64, 64), (16, 896, 8, 8), (4, 128, 256, 256)]
    for shape in shapes:
        x = torch.randn(shape, device=device, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
        weight, bias = (torch.randn(shape[1], device=device, dtype=torch.bfloat16) for _ in range(2))
        dy = torch.randn_like(x)
        leaves = [value.requires_grad_() for value in (x, weight, bias)]

        def ours(x: Any = x, weight: Any = weight, bias: Any = bias) -> Any:
            return group_norm(x, weight, bias, 32, 1e-5, "silu")

        def torchs(x: Any = x, weight: Any = weight, bias: Any = bias) -> Any:
            return F.silu(F.group_norm(x.float(), 32, weight.float(), bias.float())).to(x.dtype)

        def both_ways(function: Any, dy: Any = dy, leaves: Any = leaves) -> Any:
            return torch.autograd.grad(function(), leaves, dy)

        wide = [value.detach().double().requires_grad_() for value in leaves]
        exact = F.silu(F.group_norm(wide[0], 32, wide[1], wide[2]))
        pairs = zip(both_ways(ours), torch.autograd.grad(exact, wide, dy.double()), strict=True)
        errors = [float((a.double() - b).norm() / b.norm()) for a, b in [(ours().detach(), exact.detach()), *pairs]]
        yield {
            "group_norm": list(shape),
            "kernel": "triton" if uses_triton(device) else "reference",
            "largest_error": max(errors),
            "ours_ms": timed(partial(both_ways, ours), device),
            "torch_ms": timed(partial(both_ways, torchs), device),
            "bytes_moved_if_16_each": 16 * x.numel(),
        }
    shape = (2, 3, 8, 8) if dry else (6, 3, 256, 256)
    drawn, expected = philox.normal(shape, 7, 100, 1, device), philox.normal(shape, 7, 100, 1, "cpu")
    yield {
        "noise": list(shape),
        "largest_difference_from_cpu": float((drawn.cpu() - expected).abs().max()),
        "ms": timed(lambda: philox.normal(shape, 7, 100, 1, device), device),
    }
    B, heads, queries, keys, c = (1, 2, 16, 20, 8) if dry else (16, 14, 1024, 1152, 32)
    q, k, v = (torch.randn(B, heads, n, c, device=device, dtype=torch.bfloat16) for n in (queries, keys, keys))
    mask = torch.ones(B, 1, 1, keys, device=device, dtype=torch.bool)
    for name in ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH"):
        row = {"attention": name, "shape": [B, heads, queries, keys, c]}
        for how, given in (("masked_ms", mask), ("plain_ms", None)):
            try:
                with sdpa_kernel(getattr(SDPBackend, name)):
                    row[how] = timed(partial(F.scaled_dot_product_attention, q, k, v, attn_mask=given), device, 5, 1)
            except RuntimeError:
                row[how] = None  # it does not take this
        yield row


# --- training ---


class Training:
    """The trainer's step on random pictures, without the loader."""

    def __init__(self, name: str, batch: int, device: Any, compiled: bool) -> None:
        import torch

        from imagen.models.unet import UNet
        from imagen.precision import autocast, autocast_dtype
        from imagen.presets import preset
        from imagen.stage.loss import ForwardProcess
        from imagen.train.ema import Ema
        from imagen.train.low_precision import LowPrecisionCopy
        from imagen.train.optim import build_optimizer
        from imagen.train.parallel import parallelize

        self.experiment = what = preset(name)
        self.batch, self.device, self.number = batch, device, 0
        with device:
            self.unet = UNet(what.stage.unet)
        fill_zeros(self.unet)
        self.unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        dtype = autocast_dtype(device, "bf16")
        halved = device.type == "cuda"
        self.copy = LowPrecisionCopy(self.unet, torch.bfloat16) if halved else None
        parallel = replace(what.parallel, compile=compiled, shard=1)
        parallelize(self.unet if self.copy is None else self.copy.network, parallel, None)
        self.autocast = nullcontext if halved else partial(autocast, device, dtype)
        self.optimizer = build_optimizer(self.unet.named_parameters(), what.optim)
        self.ema = Ema(self.unet, 0.9999)
        text = what.text
        self.noising = ForwardProcess(
            *(what.stage,),
            seed=0,
            batch_size=batch,
            device=device,
            unconditional_LD=None if text is None else torch.zeros(1, text.width),
            text_dropout=0.1,
            text_length=0 if text is None else text.max_tokens,
        )

    def __call__(self) -> Any:
        from imagen.train.step import launch_step
        from imagen.train.throughput import random_batch

        self.number += 1
        batch = random_batch(self.experiment, self.number * self.batch, self.batch)
        batch = batch.pin_memory() if self.device.type == "cuda" else batch
        self.optimizer.set_learning_rate(1e-6)
        launched = launch_step(
            self.unet,
            [batch],
            1,
            self.noising,
            self.optimizer,
            clip_norm=1.0,
            autocast=self.autocast,
            copy=self.copy,
        )
        self.ema.update(self.unet, self.number)
        return launched


def fill_zeros(unet: Any) -> None:
    import torch

    with torch.no_grad():
        for parameter in unet.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)


def training(name: str, batch: int, device: Any, compiled: bool, dry: bool) -> dict[str, Any]:
    import torch

    from imagen.gpus import identify_gpu
    from imagen.train.flops import meta_unet, picture_flops

    began = time.monotonic()
    step = Training(name, batch, device, compiled)
    first = step().result()
    started_s = time.monotonic() - began
    ms = timed(step, device, 1 if dry else 10, 1)
    flops = picture_flops(meta_unet(step.experiment), step.experiment, backward=True) * batch
    row = {"start_s": started_s, "ms": ms, "images_per_s": 1e3 * batch / ms, "loss": sum(first.losses) / batch}
    gpu = None if dry else identify_gpu(torch.cuda.get_device_name())
    if gpu is not None and gpu.tflops is not None:
        row["mfu"] = flops / (ms / 1e3) / (gpu.tflops * 1e12)
    row |= memory(device)
    if not dry:
        row["synchronisations"] = synchronisations(step)
        row["kernels"], row["slowest"] = busiest(step)
    return row


def synchronisations(step: Callable[[], object]) -> int:
    """How often a step waits for the device, as torch finds it."""
    import warnings

    import torch

    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(warning.message) for warning in caught)


def busiest(step: Callable[[], object], most: int = 6) -> tuple[int, list[str]]:
    """(kernels of a step, those that take most of its time, with their share)."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        step()
        torch.cuda.synchronize()
    kernels = [event for event in found.key_averages() if event.self_device_time_total > 0]
    total = sum(event.self_device_time_total for event in kernels)
    kernels.sort(key=lambda event: -event.self_device_time_total)
    slowest = [f"{event.key[:60]} {event.self_device_time_total / total:.0%}" for event in kernels[:most]]
    return sum(event.count for event in kernels), slowest


def planned(name: str, batch: int) -> dict[str, Any]:
    """What the plan says a GPU needs for it."""
    from imagen.presets import preset
    from imagen.train.plan import plan

    what = preset(name)
    what = replace(what, train=replace(what.train, batch_size=batch, micro_batch=batch))
    what = replace(what, parallel=replace(what.parallel, shard=1))
    found = plan(what, 1, "b200")["memory"]
    return {"planned_gib": found["peak"] / 2**30}


def train_rows(cases: list[tuple[str, int, bool]], device: Any, dry: bool) -> Rows:
    for name, batch, compiled in [("debug_64", 2, False)] if dry else cases:
        about = {"preset": name, "batch": batch, "compiled": compiled}
        row = fitting(partial(training, name, batch, device, compiled, dry), **about)
        yield row
        if "ms" in row and not compiled:
            yield {"preset": name, "batch": batch, **fitting(partial(planned, name, batch))}


def train_397m(device: Any, dry: bool) -> Rows:
    name = "text2im_64_397m"
    yield from train_rows([(name, 16, False), (name, 64, False), (name, 64, True), (name, 16, True)], device, dry)


def train_2b(device: Any, dry: bool) -> Rows:
    name = "text2im_64_2b"
    yield from train_rows([(name, 16, False), (name, 8, False), (name, 32, False), (name, 16, True)], device, dry)


def train_sr(device: Any, dry: bool) -> Rows:
    cases = [("sr_256_600m", 6, False), ("sr_1024_400m", 1, False), ("sr_1024_400m", 8, False)]
    yield from train_rows([*cases, ("sr_256_600m", 6, True)], device, dry)


# --- sampling ---


def if_m(device: Any, dry: bool) -> Rows:
    """A guided step of a stage shaped like DeepFloyd IF-I-M, ours and diffusers'; one picture, then eight."""
    import if_step
    import torch

    from imagen.diffusion.samplers import create_sampler, step_logsnrs
    from imagen.diffusion.schedule import build_schedule
    from imagen.models.unet import UNet
    from imagen.stage.denoiser import Conditioning, build_denoiser, build_predict
    from imagen.stage.network import Network
    from imagen.stage.sampling import Stage

    stage = if_shaped(32 if dry else 192)
    levels = step_logsnrs(build_schedule(stage.schedule, 64), 100)[50:52]
    dtype = None if dry else torch.bfloat16
    for options in [None] if dry else [None, {"mode": "reduce-overhead"}]:
        with torch.device(device):
            unet = UNet(stage.unet).requires_grad_(False)
        fill_zeros(unet)
        network, around = Network(unet, options).to_device(device, dtype)
        for batch in (1,) if dry else (1, 8):
            text, null = torch.randn(2, batch, 77, stage.unet.text_width, device=device)
            x, noise = torch.randn(2, batch, 3, 64, 64, device=device)
            conditioning = Conditioning({"text": text}, {"text": null})
            denoise = build_denoiser(build_predict(network.eval(), around), stage, stage.sampling, conditioning)

            def step(denoise: Any = denoise, x: Any = x, noise: Any = noise) -> Any:
                return create_sampler("ddpm").sample(denoise, x, levels, noise=lambda: noise)

            row = {"ms": timed(step, device, 2 if dry else 20)}
            row["steps_per_s"] = 1e3 / row["ms"]
            yield {"ours": "compiled, CUDA graph" if options else "eager", "batch": batch, **row, **memory(device)}

            # Whole steps as `imagen sample --compile` runs them: guidance, threshold and update in the same graph.
            steps = 2 if dry else 20
            sampling = replace(stage.sampling, steps=steps)
            sampled = Stage(stage, unet, compiled=options)

            def whole(sampled: Any = sampled, text: Any = text, null: Any = null, sampling: Any = sampling) -> Any:
                texts, precision = list(text), "fp32" if dry else "bf16"
                inputs = {"texts": texts, "unconditional": null[0], "device": device, "precision": precision}
                return sampled.sample(range(len(texts)), size=(64, 64), settings=sampling, **inputs)

            row = {"ms": timed(whole, device, 1 if dry else 3) / steps}
            row["steps_per_s"] = 1e3 / row["ms"]
            yield {"ours": f"`Stage.sample`, {'compiled steps' if options else 'eager'}", "batch": batch, **row}
    if dry:
        return
    try:
        from diffusers import DDPMScheduler  # noqa: F401
    except ImportError as error:
        yield {"diffusers": f"not here ({error}): --packages"}
        return
    with tempfile.TemporaryDirectory() as folder:
        if_step.make(Path(folder), 192)
        theirs = if_step.their_network(Path(folder), torch.bfloat16).to(device)
        step = if_step.their_step(theirs, if_step.their_scheduler(Path(folder)))
        x, noise = (value.to(device) for value in if_step.inputs())
        ms = timed(lambda: step(x, noise), device)
        yield {"diffusers": "bf16, eager", "batch": 1, "ms": ms, "steps_per_s": 1e3 / ms}
        theirs.to(memory_format=torch.channels_last)
        theirs.compile(mode="reduce-overhead")
        ms = timed(lambda: step(x, noise), device)
        yield {"diffusers": "bf16, compiled, channels-last", "batch": 1, "ms": ms, "steps_per_s": 1e3 / ms}


def if_shaped(channels: int) -> Any:
    from imagen.diffusion.schedule import ScheduleConfig
    from imagen.models.config import Level, UNetConfig
    from imagen.stage.config import SamplingConfig, StageConfig

    levels = tuple(
        Level(channels=channels * factor, blocks=3, stride=1 if factor == 1 else 2, attention=kind)  # type: ignore[arg-type]
        for factor, kind in ((1, "none"), (2, "fused"), (3, "fused"), (4, "fused"))
    )
    unet = UNetConfig(
        levels=levels,
        resample="residual",
        learned_variance=True,
        text_width=64 if channels < 192 else 4096,
        context_width=4 * channels,
        time_width=4 * channels,
        head_channels=min(64, channels),
        activation="gelu",
        context_norm="group",
    )
    sampling = SamplingConfig(sampler="ddpm", steps=100, guidance=7.0, percentile=0.95, max_scale=1.5)
    return StageConfig(resolution=64, unet=unet, schedule=ScheduleConfig(kind="discrete_cosine"), sampling=sampling)


def cascade(device: Any, dry: bool) -> Rows:
    """Random stages of the jobs' shapes, 64 -> 256 -> 1024: seconds a picture by stage, at few steps."""
    import torch

    from imagen.models.unet import UNet
    from imagen.presets import preset
    from imagen.stage.sampling import Stage

    low, batch = None, 1 if dry else 4
    for name in ("debug_64",) if dry else ("text2im_64_397m", "sr_256_600m", "sr_1024_400m"):
        config = preset(name).stage
        with torch.device(device):
            unet = UNet(config.unet).requires_grad_(False)
        fill_zeros(unet)
        texts = [torch.randn(20, config.unet.text_width) for _ in range(batch)]
        steps = 2 if dry else 10
        settings = replace(config.sampling, steps=steps)
        side = config.resolution

        def made(config: Any = config, unet: Any = unet, texts: Any = texts, settings: Any = settings) -> Any:
            return Stage(config, unet).sample(
                list(range(batch)),
                size=(side, side),  # noqa: B023
                settings=settings,
                texts=texts,
                unconditional=torch.zeros(1, config.unet.text_width),
                text_length=128,
                low_BChw=low,  # noqa: B023
                device=device,
                precision="fp32" if dry else "bf16",
            )

        began = time.monotonic()
        row = fitting(lambda made=made, began=began: {"pictures": made(), "first_s": time.monotonic() - began})
        if (pictures := row.pop("pictures", None)) is not None:
            began = time.monotonic()
            made()
            row["ms_per_step"] = 1e3 * (time.monotonic() - began) / steps
            low = pictures
        yield {"stage": name, "pictures": batch, **row, **memory(device)}
        if pictures is None:
            return


# --- the trainer ---


def trainer(device: Any, dry: bool) -> Rows:
    """The real one on shards of random pictures: 200 steps, a grid, a checkpoint, and a resumed run."""
    import io

    import numpy as np
    from PIL import Image

    from imagen.data.embed.encode import encode_shards
    from imagen.data.shards.writer import ShardWriter
    from imagen.jsonconfig import to_json
    from imagen.presets import preset
    from imagen.train.ranks import Ranks
    from imagen.train.run import train_run

    name, steps, batch = ("debug_64", 2, 2) if dry else ("text2im_64_397m", 200, 16)
    what = preset(name)
    what = replace(
        what,
        train=replace(
            what.train,
            steps=steps,
            batch_size=batch,
            log_every=max(1, steps // 4),
            gap_every=0,
            sample_every=0,
            checkpoint_every=max(1, steps // 2),
            gap_samples=4,
        ),
        data=replace(what.data, workers=0 if dry else 8),
        stage=replace(what.stage, sampling=replace(what.stage.sampling, steps=2 if dry else 20)),
    )
    assert what.text is not None
    encoder = RandomText(what.text)
    with tempfile.TemporaryDirectory() as scratch:
        data, run = Path(scratch, "shards"), Path(scratch, "run")
        rng = np.random.default_rng(0)
        for split, count in (("train", 8 if dry else 512), ("heldout", 4 if dry else 16)):
            with ShardWriter(data / split, 256) as writer:
                for number in range(count):
                    file = io.BytesIO()
                    Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(file, "png")
                    writer.write({"__key__": f"{split}{number:06d}", "64.png": file.getvalue(), "txt": b"x" * number})
        encode_shards(data, encoder, progress=False)
        for part in ("the whole run", "the same command again"):
            began = time.monotonic()
            ended = train_run(what, data, run, ranks=Ranks(device), report=lambda line: None)
            last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
            kept = ("loss", "images_per_s", "data_wait", "mfu", "memory_gb")
            row = {name: last[name] for name in kept if name in last}
            yield {"trainer": part, "step": ended.step, "seconds": time.monotonic() - began, **row}
        assert to_json(what)


class RandomText:
    """In place of a text encoder: random numbers of its width."""

    def __init__(self, config: Any):
        self.config = config

    def lengths(self, captions: list[str]) -> list[int]:
        return [1 + len(caption) % 24 for caption in captions]

    untruncated_lengths = lengths

    def encode(self, captions: list[str]) -> list[Any]:
        import torch

        return [torch.randn(length, self.config.width) for length in self.lengths(captions)]


SECTIONS: dict[str, Callable[[Any, bool], Rows]] = {
    "card": card,
    "train_397m": train_397m,
    "if_m": if_m,
    "train_2b": train_2b,
    "train_sr": train_sr,
    "trainer": trainer,
    "cascade": cascade,
}

if __name__ == "__main__":
    main()
