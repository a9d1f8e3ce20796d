"""Check the number format that is chosen per processor: never one that the processor emulates."""

import os
import subprocess
import sys

import pytest
import torch

from imagen import precision
from imagen.precision import arithmetic, autocast_dtype, precision_name

X86 = pytest.mark.skipif(
    not torch.backends.cpu.get_cpu_capability().startswith("AVX"), reason="these limits apply only to x86 processors"
)


@pytest.fixture(autouse=True)
def clear_measurement():
    precision.cpu_multiplies_bfloat16.cache_clear()
    yield
    precision.cpu_multiplies_bfloat16.cache_clear()


@pytest.fixture
def processor(monkeypatch):
    """Simulate a processor: its instruction sets, and the limit that torch respects."""

    def simulate(capability, amx=False, bf16=False, isa=None, machine="x86_64"):
        monkeypatch.setattr(precision.platform, "machine", lambda: machine)
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16, raising=False)
        monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)
        if isa is None:
            monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
        else:
            monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", isa)
        precision.cpu_multiplies_bfloat16.cache_clear()

    return simulate


@pytest.mark.parametrize(
    "facts, bfloat16",
    [
        ({"capability": "AVX2"}, False),
        ({"capability": "DEFAULT"}, False),
        ({"capability": "AVX512"}, False),
        ({"capability": "AVX512", "bf16": True}, True),
        ({"capability": "AVX512", "amx": True, "bf16": True}, True),
        ({"capability": "AVX512_VNNI", "bf16": True}, True),
        # A processor that has bfloat16, limited to an older instruction set.
        ({"capability": "AVX2", "amx": True, "bf16": True}, False),
        ({"capability": "AVX512", "bf16": True, "isa": "AVX2"}, False),
        ({"capability": "AVX512", "bf16": True, "isa": "avx512_core"}, False),
        ({"capability": "AVX512", "bf16": True, "isa": "AVX512_CORE_BF16"}, True),
    ],
)
def test_known_cpus_are_decided_by_their_instructions(processor, facts, bfloat16):
    processor(**facts)
    found = arithmetic("cpu")
    assert found.network is (torch.bfloat16 if bfloat16 else None)
    assert found.matrices is (torch.bfloat16 if bfloat16 else torch.float32)
    assert found.encoder is torch.float32


@pytest.mark.parametrize("faster", [True, False])
def test_other_cpus_are_decided_by_a_measurement(processor, monkeypatch, faster):
    processor("DEFAULT", machine="arm64")
    monkeypatch.setattr(precision, "bfloat16_is_faster", lambda: faster)
    assert (arithmetic("cpu").network is torch.bfloat16) == faster


def test_the_measurement_returns_a_bool():
    assert precision.bfloat16_is_faster(side=64, rounds=2) in (True, False)


@pytest.mark.parametrize("ampere", [True, False])
def test_gpus_use_low_precision(monkeypatch, ampere):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: ampere or including_emulation)
    found = arithmetic("cuda:1")
    half = torch.bfloat16 if ampere else torch.float16
    whole = torch.bfloat16 if ampere else torch.float32  # T5 and Newton-Schulz exceed the range of float16
    assert (found.network, found.encoder, found.matrices) == (half, whole, whole)


def test_apple_gpus_use_float32():
    found = arithmetic("mps")
    assert (found.network, found.encoder, found.matrices) == (None, torch.float32, torch.float32)


def test_precision_names_are_read():
    assert [precision_name(autocast_dtype("cpu", name)) for name in ("fp32", "bf16", "fp16")] == [
        "fp32",
        "bf16",
        "fp16",
    ]


@X86
def test_a_processor_limited_to_avx2_computes_nothing_in_bfloat16():
    """A training step with Muon in a process limited to AVX2 creates no low-precision tensor."""
    program = """
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from imagen.presets import preset
from imagen.train.throughput import measure_throughput
from dataclasses import replace

class Watch(TorchDispatchMode):
    seen = set()
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.seen |= {leaf.dtype for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)}
        return out

experiment = preset("emoji_mini_64")
experiment = replace(experiment, train=replace(experiment.train, batch_size=2))
with Watch():
    measure_throughput(experiment, torch.device("cpu"), seconds=0.01)
assert torch.backends.cpu.get_cpu_capability() == "AVX2", torch.backends.cpu.get_cpu_capability()
assert torch.float32 in Watch.seen and not Watch.seen & {torch.bfloat16, torch.float16}, Watch.seen
"""
    environment = os.environ | {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
