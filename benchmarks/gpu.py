"""Measure a GPU in ten minutes: training and sampling at full size, and memory compared with the plan.

    python benchmarks/gpu.py [--section NAME ...] [--out DIR] [--packages DIR] [--dry-run]

Each section runs in a separate process with a time limit. Its rows are written to DIR/gpu.json when it ends, so an
interrupted benchmark leaves the results of the completed sections. A case that exceeds the memory gets the row "out of
memory". Needs torch 2.11 and the checkout. --packages names a folder of additional packages (`pip install --target`),
such as diffusers for comparison. --dry-run runs every section at tiny sizes on the CPU; its times mean nothing.

Times are medians of CUDA events. MFU counts the matrix products that training needs (`imagen.train.flops`), relative to
the manufacturer's stated peak. Weights initialized to zero get small random values, and inputs are random.
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
# Time limit of each section in seconds, most important first. Their sum is nine minutes.
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
        rows, ended = run_section(section, options)
        results[section] = {"rows": rows, "ended": ended, "seconds": round(time.monotonic() - began, 1)}
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(results, indent=2))
        os.replace(temporary, path)
        print(f"\n== {section}: {ended}, {results[section]['seconds']} s", flush=True)
        for row in rows:
            print("  " + ", ".join(f"{name} {formatted(value)}" for name, value in row.items()), flush=True)
    print(f"\nwritten: {path}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--section", nargs="+", choices=LIMITS, metavar="NAME", help=f"default: all of {', '.join(LIMITS)}"
    )
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", Path(__file__).parent / "gpu")))
    parser.add_argument("--packages", type=Path, help="folder of packages that are not installed")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument("--run", choices=LIMITS, help=argparse.SUPPRESS)
    return parser.parse_args()


def run_section(section: str, options: argparse.Namespace) -> tuple[list[dict[str, Any]], str]:
    """Run a section in a new process; return its rows, and "done" or the reason why it ended early."""
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
    """Run the section `options.run` in this process, and print its rows for `run_section`."""
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


def formatted(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def timed(function: Callable[[], object], device: Any, repeats: int = 20, warm_up: int = 3) -> float:
    """Return the median duration of `function` in milliseconds, by CUDA events on a GPU."""
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
    """Return the peak of allocated and reserved memory in GiB; nothing on a CPU."""
    import torch

    if device.type != "cuda":
        return {}
    gib = 2**30
    allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    return {"allocated_gib": allocated / gib, "reserved_gib": reserved / gib}


def or_out_of_memory(row: Callable[[], dict[str, Any]], **about: Any) -> dict[str, Any]:
    """Return `about` and the fields of `row`, or the result "out of memory"."""
    import torch

    try:
        return {**about, **row()}
    except torch.OutOfMemoryError:
        return {**about, "result": "out of memory"}
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


# --- the card ---


def card(device: Any, dry: bool) -> Rows:
    """Measure peak throughput of matrix products and copies, our kernels and torch's, and attention backends."""
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

        def torch_norm(x: Any = x, weight: Any = weight, bias: Any = bias) -> Any:
            return F.silu(F.group_norm(x.float(), 32, weight.float(), bias.float())).to(x.dtype)

        def forward_backward(function: Any, dy: Any = dy, leaves: Any = leaves) -> Any:
            return torch.autograd.grad(function(), leaves, dy)

        wide = [value.detach().double().requires_grad_() for value in leaves]
        exact = F.silu(F.group_norm(wide[0], 32, wide[1], wide[2]))
        pairs = zip(forward_backward(ours), torch.autograd.grad(exact, wide, dy.double()), strict=True)
        errors = [float((a.double() - b).norm() / b.norm()) for a, b in [(ours().detach(), exact.detach()), *pairs]]
        yield {
            "group_norm": list(shape),
            "kernel": "triton" if uses_triton(device) else "reference",
            "largest_error": max(errors),
            "ours_ms": timed(partial(forward_backward, ours), device),
            "torch_ms": timed(partial(forward_backward, torch_norm), device),
            "bytes_moved_if_16_each": 16 * x.numel(),
        }
    shape = (2, 3, 8, 8) if dry else (6, 3, 256, 256)
    noise, expected = philox.normal(shape, 7, 100, 1, device), philox.normal(shape, 7, 100, 1, "cpu")
    yield {
        "noise": list(shape),
        "largest_difference_from_cpu": float((noise.cpu() - expected).abs().max()),
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
                row[how] = None  # the backend does not support these inputs
        yield row


# --- training ---


class Training:
    """The trainer's step on random images, without the loader."""

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

        self.experiment = experiment = preset(name)
        self.batch, self.device, self.number = batch, device, 0
        with device:
            self.unet = UNet(experiment.stage.unet)
        fill_zeros(self.unet)
        self.unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        dtype = autocast_dtype(device, "bf16")
        low_precision = device.type == "cuda"
        self.copy = LowPrecisionCopy(self.unet, torch.bfloat16) if low_precision else None
        parallel = replace(experiment.parallel, compile=compiled, shard=1)
        parallelize(self.unet if self.copy is None else self.copy.network, parallel, None)
        self.autocast = nullcontext if low_precision else partial(autocast, device, dtype)
        self.optimizer = build_optimizer(self.unet.named_parameters(), experiment.optim)
        self.ema = Ema(self.unet, 0.9999)
        text = experiment.text
        self.forward_process = ForwardProcess(
            experiment.stage,
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
        pending = launch_step(
            self.unet,
            [batch],
            1,
            self.forward_process,
            self.optimizer,
            clip_norm=1.0,
            autocast=self.autocast,
            copy=self.copy,
        )
        self.ema.update(self.unet, self.number)
        return pending


def fill_zeros(unet: Any) -> None:
    """Set parameters that are zero to small random values."""
    import torch

    with torch.no_grad():
        for parameter in unet.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)


def training(name: str, batch: int, device: Any, compiled: bool, dry: bool) -> dict[str, Any]:
    """Measure the training step of preset `name`: time, throughput, MFU, memory, synchronisations and kernels."""
    import torch

    from imagen.gpus import identify_gpu
    from imagen.train.flops import image_flops, meta_unet

    began = time.monotonic()
    step = Training(name, batch, device, compiled)
    first = step().result()
    started_s = time.monotonic() - began
    ms = timed(step, device, 1 if dry else 10, 1)
    flops = image_flops(meta_unet(step.experiment), step.experiment, backward=True) * batch
    row = {"start_s": started_s, "ms": ms, "images_per_s": 1e3 * batch / ms, "loss": sum(first.losses) / batch}
    gpu = None if dry else identify_gpu(torch.cuda.get_device_name())
    if gpu is not None and gpu.tflops is not None:
        row["mfu"] = flops / (ms / 1e3) / (gpu.tflops * 1e12)
    row |= memory(device)
    if not dry:
        row["synchronisations"] = synchronisations(step)
        row["kernels"], row["slowest"] = slowest_kernels(step)
    return row


def synchronisations(step: Callable[[], object]) -> int:
    """Count the synchronisations with the device that torch reports during a step."""
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


def slowest_kernels(step: Callable[[], object], most: int = 6) -> tuple[int, list[str]]:
    """Return the number of kernel launches of a step, and the `most` slowest kernels with their share of its time."""
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


def planned_memory(name: str, batch: int) -> dict[str, Any]:
    """Return the peak memory in GiB that `imagen plan` predicts for one GPU."""
    from imagen.presets import preset
    from imagen.train.plan import plan

    experiment = preset(name)
    experiment = replace(experiment, train=replace(experiment.train, batch_size=batch, micro_batch=batch))
    experiment = replace(experiment, parallel=replace(experiment.parallel, shard=1))
    return {"planned_gib": plan(experiment, 1, "b200")["memory"]["peak"] / 2**30}


def train_rows(cases: list[tuple[str, int, bool]], device: Any, dry: bool) -> Rows:
    """Measure each case, (preset, batch, compiled), and predict its memory. dry: use a tiny preset instead."""
    for name, batch, compiled in [("debug_64", 2, False)] if dry else cases:
        about = {"preset": name, "batch": batch, "compiled": compiled}
        row = or_out_of_memory(partial(training, name, batch, device, compiled, dry), **about)
        yield row
        if "ms" in row and not compiled:
            yield {"preset": name, "batch": batch, **or_out_of_memory(partial(planned_memory, name, batch))}


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
    """Measure a guided step of a stage shaped like DeepFloyd IF-I-M, ours and diffusers', for one and eight images."""
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
        network, precision_context = Network(unet, options).to_device(device, dtype)
        for batch in (1,) if dry else (1, 8):
            text, null = torch.randn(2, batch, 77, stage.unet.text_width, device=device)
            x, noise = torch.randn(2, batch, 3, 64, 64, device=device)
            conditioning = Conditioning({"text": text}, {"text": null})
            denoise = build_denoiser(
                build_predict(network.eval(), precision_context), stage, stage.sampling, conditioning
            )

            def step(denoise: Any = denoise, x: Any = x, noise: Any = noise) -> Any:
                return create_sampler("ddpm").sample(denoise, x, levels, noise=lambda: noise)

            row = {"ms": timed(step, device, 2 if dry else 20)}
            row["steps_per_s"] = 1e3 / row["ms"]
            yield {"ours": "compiled, CUDA graph" if options else "eager", "batch": batch, **row, **memory(device)}

            # Complete steps as `imagen sample --compile` runs them: guidance, threshold and update in the same graph.
            steps = 2 if dry else 20
            sampling = replace(stage.sampling, steps=steps)
            sampled = Stage(stage, unet, compiled=options)

            def sample(sampled: Any = sampled, text: Any = text, null: Any = null, sampling: Any = sampling) -> Any:
                texts, precision = list(text), "fp32" if dry else "bf16"
                inputs = {"texts": texts, "unconditional": null[0], "device": device, "precision": precision}
                return sampled.sample(range(len(texts)), size=(64, 64), settings=sampling, **inputs)

            row = {"ms": timed(sample, device, 1 if dry else 3) / steps}
            row["steps_per_s"] = 1e3 / row["ms"]
            yield {"ours": f"`Stage.sample`, {'compiled steps' if options else 'eager'}", "batch": batch, **row}
    if dry:
        return
    try:
        from diffusers import DDPMScheduler  # noqa: F401
    except ImportError as error:
        yield {"diffusers": f"not installed ({error}): see --packages"}
        return
    with tempfile.TemporaryDirectory() as folder:
        if_step.write_stage(Path(folder), 192)
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
    """Return a stage config with the structure of IF-I-M, with `channels` in the first level."""
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
    """Measure sampling with each stage of a cascade 64 -> 256 -> 1024 with random weights, at few steps."""
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

        def sample(config: Any = config, unet: Any = unet, texts: Any = texts, settings: Any = settings) -> Any:
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
        row = or_out_of_memory(
            lambda sample=sample, began=began: {"images": sample(), "first_s": time.monotonic() - began}
        )
        if (images := row.pop("images", None)) is not None:
            began = time.monotonic()
            sample()
            row["ms_per_step"] = 1e3 * (time.monotonic() - began) / steps
            low = images
        yield {"stage": name, "images": batch, **row, **memory(device)}
        if images is None:
            return


# --- the trainer ---


def trainer(device: Any, dry: bool) -> Rows:
    """Run the trainer on shards of random images: 200 steps with a grid and a checkpoint, then a resumed run."""
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
    experiment = preset(name)
    experiment = replace(
        experiment,
        train=replace(
            experiment.train,
            steps=steps,
            batch_size=batch,
            log_every=max(1, steps // 4),
            gap_every=0,
            sample_every=0,
            checkpoint_every=max(1, steps // 2),
            gap_samples=4,
        ),
        data=replace(experiment.data, workers=0 if dry else 8),
        stage=replace(experiment.stage, sampling=replace(experiment.stage.sampling, steps=2 if dry else 20)),
    )
    assert experiment.text is not None
    encoder = RandomText(experiment.text)
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
        for part in ("first run", "resumed run"):
            began = time.monotonic()
            ended = train_run(experiment, data, run, ranks=Ranks(device), report=lambda line: None)
            last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
            fields = ("loss", "images_per_s", "data_wait", "mfu", "memory_gb")
            row = {name: last[name] for name in fields if name in last}
            yield {"trainer": part, "step": ended.step, "seconds": time.monotonic() - began, **row}
        assert to_json(experiment)


class RandomText:
    """Replaces a text encoder by random embeddings of the same dimension."""

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
