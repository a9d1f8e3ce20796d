"""Check the weights of each stage: finite, not constant, in the range of their number format; and activations."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from imagen.doctor.finding import Finding, Measured, Numbers, Severity, Skip
from imagen.doctor.network import noised_inputs
from imagen.doctor.subject import Subject

HALF_MOST = 65504.0  # the largest float16
HALF_NORMAL = 2.0**-14  # below it float16 loses digits
SUBNORMAL = 0.25  # tolerated share of a stage's float16 weights that have lost digits
DISTANCE = 0.5  # of raw weights and EMA, relative to the raw weights


class Weights:
    """Judge every tensor of every stage."""

    name, title, slow = "weights", "weights: finite, not constant, in range", False
    finds = ("weights-not-finite", "weights-zero", "weights-constant", "weights-subnormal", "weights-beyond-float16")

    def __call__(self, subject: Subject) -> Iterator[Measured]:
        if not subject.stages:
            raise Skip("needs a network")
        for index, config in enumerate(subject.stages):
            yield _judge(f"stage {config.resolution}", subject.tensors(index))


def _judge(where: str, tensors: dict[str, Tensor]) -> Measured:
    floats = {name: value for name, value in tensors.items() if value.is_floating_point() and value.numel()}
    formats = sorted({str(value.dtype).removeprefix("torch.") for value in floats.values()})
    numel = sum(value.numel() for value in floats.values())
    broken = [name for name, value in floats.items() if not bool(value.isfinite().all())]
    matrices = {name: value for name, value in floats.items() if value.ndim > 1 and value.numel() > 1}
    same = {name: value for name, value in matrices.items() if bool((value == value.flatten()[0]).all())}
    zero = [name for name, value in same.items() if not bool(value.any())]
    constant = [name for name in same if name not in zero and name not in broken]
    largest = max(float(value.float().nan_to_num(0, 0, 0).abs().max()) for value in floats.values())
    halves = [value for value in matrices.values() if value.dtype == torch.float16]
    lost = sum(int(((value != 0) & (value.abs() < HALF_NORMAL)).sum()) for value in halves)
    share = lost / max(1, sum(value.numel() for value in halves))
    numbers: Numbers = {"parameters": numel, "format": "+".join(formats), "largest": round(largest, 3)}
    if halves:
        numbers["subnormal"] = round(share, 4)
    findings = []

    def find(name: str, more: Numbers, explanation: str, remedy: str, severity: Severity = "problem") -> None:
        findings.append(
            Finding(
                name=name,
                severity=severity,
                where=where,
                numbers=numbers | more,
                explanation=explanation,
                remedy=remedy,
            )
        )

    if broken:
        find(
            "weights-not-finite",
            {"tensors": len(broken), "first": broken[0]},
            f"{_several(broken, len(floats))} NaN or infinity: every sample is NaN.",
            "Export again from a checkpoint before training diverged (`imagen export RUN --step N`); if weights were "
            "converted to float16, convert from the float32 original.",
        )
    if zero:
        output = any(name.endswith("conv_out.weight") for name in zero)
        find(
            "weights-zero",
            {"tensors": len(zero), "first": zero[0]},
            f"{_several(zero, len(matrices))} nothing but zeros"
            + (": the network outputs 0 for every input." if output else ", so these layers have no effect."),
            "These layers start at zero and were never trained: train the run, or look for parts of the weights that "
            "were not copied.",
        )
    if constant:
        find(
            "weights-constant",
            {"tensors": len(constant), "first": constant[0]},
            f"{_several(constant, len(matrices))} one number everywhere.",
            "Trained layers are never constant: the file was written or converted wrongly. Convert or export again.",
        )
    if share > SUBNORMAL:
        find(
            "weights-subnormal",
            {},
            f"{share:.0%} of the float16 weights are below {HALF_NORMAL:.1g} in magnitude, where float16 loses digits.",
            "Store the weights in bfloat16 or float32.",
            "warning",
        )
    if largest > HALF_MOST:
        find(
            "weights-beyond-float16",
            {},
            f"The largest weight is {largest:.3g}; float16 ends at {HALF_MOST:.0f}, and trained weights rarely exceed "
            "10.",
            "Training has diverged, or a layer was overwritten: go back to an earlier checkpoint.",
        )
    return Measured(where=where, numbers=numbers, findings=tuple(findings))


def _several(names: list[str], count: int) -> str:
    which = f"Tensor {names[0]!r} holds" if len(names) == 1 else f"{len(names)} of {count} tensors hold"
    return which if len(names) == 1 else f"{which} (such as {names[0]!r})"


class EmaDistance:
    """Judge the distance of the EMA from the weights that the optimizer updates."""

    name, title, slow = "EMA weights", "distance of the EMA from the raw weights", False
    finds = ("ema-far",)

    def __call__(self, subject: Subject) -> Iterator[Measured]:
        raw, ema = subject.training.weights("model"), subject.training.weights("ema")
        pairs = [(raw[name].float(), ema[name].float()) for name in raw if raw[name].is_floating_point()]
        norm = sum(float(a.square().sum()) for a, _ in pairs) ** 0.5
        distance = sum(float((a - b).square().sum()) for a, b in pairs) ** 0.5 / max(norm, 1e-30)
        numbers: Numbers = {"distance": round(distance, 4)}
        findings = []
        if not distance < DISTANCE:
            findings.append(
                Finding(
                    name="ema-far",
                    severity="warning",
                    where="checkpoint",
                    numbers=numbers,
                    explanation=f"The EMA differs from the raw weights by {distance:.0%} of their norm.",
                    remedy="Train longer or with a lower --optim.lr; in a new run choose a shorter EMA "
                    "(--train.ema_decay 0.999, or 0.99 below 1,000 steps).",
                )
            )
        yield Measured(where="checkpoint", numbers=numbers, findings=tuple(findings))


class Activations:
    """Judge whether activations fit the range of float16."""

    name, title, slow = "activations", "activations: range of float16", False
    finds = ("activations-overflow",)

    def __call__(self, subject: Subject) -> Iterator[Measured]:
        if not subject.stages:
            raise Skip("needs a network")
        for index, stage in enumerate(subject.cascade.stages):
            largest, name = self._largest(subject, index)
            where = f"stage {stage.config.resolution}"
            numbers: Numbers = {"largest": round(largest, 2), "layer": name, "limit": HALF_MOST}
            findings = []
            if largest > HALF_MOST:
                findings.append(
                    Finding(
                        name="activations-overflow",
                        severity="warning",
                        where=where,
                        numbers=numbers,
                        explanation=f"Layer {name!r} outputs values up to {largest:.3g}; in float16 they become "
                        "infinite and the samples NaN.",
                        remedy="Sample with --precision fp32 or bf16.",
                    )
                )
            yield Measured(where=where, numbers=numbers, findings=tuple(findings))

    def _largest(self, subject: Subject, index: int) -> tuple[float, str]:
        """Return the largest magnitude of any layer's output in float32, at three noise levels, and the layer."""
        stage, found = subject.cascade.stages[index], [(0.0, "")]

        def watch(name: str) -> object:
            def hook(module: nn.Module, inputs: object, output: object) -> None:
                if isinstance(output, Tensor) and output.numel():
                    found.append((float(output.abs().max().nan_to_num(0.0, 0.0, 0.0)), name))

            return hook

        unet = stage.unet
        leaves = [(name, module) for name, module in unet.named_modules() if not any(module.children())]
        hooks = [module.register_forward_hook(watch(name)) for name, module in leaves]  # type: ignore[arg-type]
        try:
            with torch.no_grad(), stage.loaded_unet(subject.device, None) as predict:
                for logsnr in (-6.0, 0.0, 6.0):
                    x_BCHW, label_B, conditions = noised_inputs(subject, index, logsnr)
                    predict(x_BCHW, label_B, **conditions)
        finally:
            for hook in hooks:
                hook.remove()
        return max(found)
