"""Check samples: noise, grey, all alike, oversaturated, deaf to the prompt; and super-resolution of generated images."""

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from imagen.cascade import Stage
from imagen.doctor.finding import Finding, Measured, Numbers, Severity, Skip
from imagen.doctor.network import rounded
from imagen.doctor.samples import Drawn, contrast, diversity, draw, roughness, saturated, with_guidance
from imagen.doctor.subject import Subject
from imagen.stage.inputs import from_uint8, to_uint8

IMAGES, SWEPT, UPSAMPLED = 8, 4, 2  # samples of a base stage, at other guidance scales, and of stages above it
LOW_SIDE = 64  # largest side of low-resolution images here; larger ones are cropped
NOISE = 0.5  # roughness; white noise has 1
FLAT = 0.03  # contrast: four grey levels
ALIKE, ALIKE_SHARE = 0.06, 0.35  # diversity, absolute and relative to the data's
CLIPPED, SATURATED = 0.15, 0.25  # shares beyond those without guidance
DEAF = 0.01  # difference between the first x0 estimates of two prompts: about one grey level
DRIFT, DRIFT_RATIO = 0.08, 2.0  # difference of an upsampled image, reduced again, from its input


class Samples:
    """Judge samples of the base stage, or of a run's super-resolution stage: finite, noise, grey, all alike."""

    name, title, slow = "samples", "samples: noise, grey, all alike?", False
    finds = ("samples-not-finite", "samples-are-noise", "samples-grey", "samples-alike")

    def __call__(self, subject: Subject) -> Iterator[Measured]:
        drawn, stage, where = _base(subject), subject.cascade.stages[0], _where(subject.cascade.stages[0])
        if not bool(drawn.images.isfinite().all()):
            yield _measured(
                where,
                {"images": len(drawn.images)},
                "samples-not-finite",
                "Samples contain NaN or infinity.",
                "See findings about weights and activations. Sample with --precision fp32; if that does not help, "
                "export weights from before training diverged (`imagen export RUN --step N`).",
            )
            return
        real = None if subject.data is None else from_uint8(subject.batch(0).image)
        rough, flat, spread = roughness(drawn.images), contrast(drawn.images), diversity(drawn.images)
        numbers = {"images": len(drawn.images), "roughness": rough, "contrast": flat, "diversity": spread}
        limit, alike = NOISE, ALIKE
        if real is not None:
            numbers |= {"data_roughness": roughness(real), "data_contrast": contrast(real)}
            numbers["data_diversity"] = diversity(real)
            limit = max(NOISE, 2 * roughness(real)) if math.isfinite(roughness(real)) else NOISE
            alike = max(1e-3, ALIKE_SHARE * diversity(real))
        numbers = rounded({name: value for name, value in numbers.items() if math.isfinite(value)}, 3)
        name, text, remedy = "", "", ""
        if flat < FLAT and (real is None or contrast(real) > 2 * FLAT):
            name = "samples-grey"
            text = f"Samples are plain areas: their contrast is {flat:.3f}, {flat * 127.5:.1f} grey levels."
            remedy = (
                "See loss by noise level. A network that outputs zero or the mean colour gives such samples: train "
                "longer, and check that the weights are those of a trained run."
            )
        elif rough > limit:
            name = "samples-are-noise"
            text = f"Samples are noise: their roughness is {rough:.2f}; white noise has 1" + (
                "." if real is None else f", the data {numbers.get('data_roughness', 0):.2f}."
            )
            remedy = (
                "See loss by noise level: if the network is no better than trivial, train longer. If it is, the sampler "
                "does not fit it: check prediction type, schedule and steps (try --steps 100 --sampler ddpm)."
            )
        elif spread < alike and len(drawn.images) > 1 and stage.config.low_resolution is None:
            name = "samples-alike"
            text = f"Samples of different prompts and seeds differ by {spread:.3f}" + (
                f", {spread * 127.5:.0f} grey levels." if real is None else f"; the images of the data by {diversity(real):.3f}."
            )
            remedy = (
                "See conditional gap, captions and duplicates. A network that ignores its prompt or memorised one image "
                "gives such samples; a guidance scale far too high does, too."
            )
        yield _measured(where, numbers, name, text, remedy)


class PromptEffect:
    """Compare the first x0 estimates for different prompts from the same noise."""

    name, title, slow = "prompt", "effect of the prompt on samples", False
    finds = ("deaf-to-prompt",)

    def __call__(self, subject: Subject) -> Iterator[Measured]:
        _needs_network(subject)
        stage = subject.cascade.stages[0]
        if stage.config.unet.text_width is None or stage.config.low_resolution is not None:
            raise Skip("no base stage reads text")
        prompts, texts = subject.prompts(0, 4)
        if len(set(prompts)) < 2:
            raise Skip("needs different captions; all are the same")
        # A single step from pure noise returns the first x0 estimate.
        settings = replace(stage.config.sampling, guidance=1.0, steps=1, threshold="none", sampler="ddim", spacing="time")
        settings = replace(settings, sampler_options={})
        drawn = _draw(subject, stage, [0] * len(texts), texts=texts, settings=settings)
        effect = diversity(drawn.images)
        numbers = rounded({"prompts": len(texts), "difference": effect}, 3)
        yield _measured(
            _where(stage),
            numbers,
            "deaf-to-prompt" if not effect > DEAF else "",
            f"From the same noise, {len(texts)} different prompts give estimates that differ by {effect:.4f} "
            f"({effect * 127.5:.2g} grey levels): the network ignores its prompt.",
            "See findings about captions and embeddings first: alike, shuffled, equal or of another encoder. Without "
            "any, train longer.",
        )


class Guidance:
    """Sweep the guidance scale, and measure clipped and saturated values."""

    name, title, slow = "guidance", "guidance: clipped and saturated values", True
    finds = ("oversaturated",)

    def __call__(self, subject: Subject) -> Iterator[Measured]:
        _needs_network(subject)
        stage = subject.cascade.stages[0]
        own = stage.config.sampling.guidance
        if stage.config.unet.text_width is None or own == 1 or stage.config.low_resolution is not None:
            raise Skip("the base stage is sampled without guidance")
        swept = {own: _base(subject).first(SWEPT)}
        for scale in subject.each([1.0, *_between(own)], f"{_where(stage)}: guidance"):
            swept[scale] = _base(subject, scale)
        plain, mine = swept[1.0], swept[own]
        real = None if subject.data is None else saturated(from_uint8(subject.batch(0).image))
        table = {
            f"{scale:g}": rounded({"clipped": d.clipped, "saturated": d.saturated, "contrast": contrast(d.images)}, 3)
            for scale, d in sorted(swept.items())
        }
        numbers: Numbers = {"guidance": own, "clipped": round(mine.clipped, 4), "saturated": round(mine.saturated, 4)}
        numbers["sweep"] = table
        base = plain.saturated if real is None else max(real, plain.saturated)
        if real is not None:
            numbers["data_saturated"] = round(real, 4)
        over = mine.clipped > plain.clipped + CLIPPED or mine.saturated > base + SATURATED
        better = [s for s, d in swept.items() if s < own and d.clipped <= plain.clipped + CLIPPED / 2]
        yield _measured(
            _where(stage),
            numbers,
            "oversaturated" if over else "",
            f"At guidance scale {own:g}, thresholding clips {mine.clipped:.0%} of the values of x0 estimates "
            f"({plain.clipped:.0%} without guidance), and {mine.saturated:.0%} of the values of samples are black or "
            f"white ({base:.0%} {'without guidance' if real is None else 'in the data'}).",
            f"Sample with --guidance {max(better, default=1.0):g}, dynamic thresholding (--threshold dynamic) or "
            "--guidance-interval.",
        )


class Upsampling:
    """Compare super-resolution of generated images with that of true ones."""

    name, title, slow = "super-resolution", "super-resolution of true and of generated images", True
    finds = ("upsampling-drifts", "upsampling-generated")

    def __call__(self, subject: Subject) -> Iterator[Measured]:
        _needs_network(subject)
        stages = subject.cascade.stages
        if all(stage.config.low_resolution is None for stage in stages):
            raise Skip("there is no super-resolution stage")
        generated = to_uint8(_base(subject).images)[:UPSAMPLED] if stages[0].config.low_resolution is None else None
        for index, stage in enumerate(stages):
            if stage.config.low_resolution is None:
                continue
            prompts = subject.prompts(index, IMAGES) if stage.config.unet.text_width is not None else None
            true = None
            if subject.data is not None:
                batch = subject.batch(index)
                assert batch.low_res is not None
                true = self._upsample(subject, stage, batch.low_res[:IMAGES], prompts)
            output, made = None, None
            if generated is not None:
                low = _cropped(generated, stage)
                output = self._upsample(subject, stage, low, prompts)
                made = output
            yield self._judge(stage, true, made)
            generated = None if output is None else to_uint8(output[0].images)

    def _upsample(
        self, subject: Subject, stage: Stage, low_BChw: Tensor, prompts: tuple[list[str], list[Tensor]] | None
    ) -> tuple[Drawn, float]:
        """Return the output, and its distance from the input after reduction to its size."""
        texts = None if prompts is None else [prompts[1][i % len(prompts[1])] for i in range(len(low_BChw))]
        drawn = _draw(subject, stage, list(range(len(low_BChw))), texts=texts, low_BChw=low_BChw)
        size = low_BChw.shape[-2:]
        reduced = torch.nn.functional.interpolate(drawn.images, size=size, mode="area")
        reference = torch.nn.functional.interpolate(
            torch.nn.functional.interpolate(from_uint8(low_BChw), size=drawn.images.shape[-2:], mode="bicubic"),
            size=size,
            mode="area",
        )
        return drawn, float((reduced - reference).square().mean().sqrt())

    def _judge(self, stage: Stage, true: tuple[Drawn, float] | None, made: tuple[Drawn, float] | None) -> Measured:
        numbers: dict[str, float] = {}
        for name, pair in (("true", true), ("generated", made)):
            if pair is not None:
                numbers |= {f"{name}_drift": pair[1], f"{name}_roughness": roughness(pair[0].images)}
        shown = rounded({name: value for name, value in numbers.items() if math.isfinite(value)}, 3)
        drift = numbers.get("true_drift", numbers.get("generated_drift", 0.0))
        if true is not None and made is not None and made[1] > max(DRIFT, DRIFT_RATIO * true[1]):
            return _measured(
                _where(stage),
                shown,
                "upsampling-generated",
                f"Upsampled images, reduced again, differ from the input by {made[1]:.3f} for generated images and by "
                f"{true[1]:.3f} for true ones: the stage does not tolerate the errors of the stage before.",
                "Sample with more conditioning augmentation (--low-res-noise 0.2 or 0.3), or train the stage on "
                "low-resolution images with such errors.",
            )
        return _measured(
            _where(stage),
            shown,
            "upsampling-drifts" if not drift <= DRIFT else "",
            f"Upsampled images, reduced again, differ from their input by {drift:.3f} ({drift * 127.5:.0f} grey levels): "
            "the stage changes colours or content.",
            "Train the stage longer. If it was trained long, check low_res_filter, detail_std and the prediction type.",
        )


def _base(subject: Subject, guidance: float | None = None) -> Drawn:
    """Return samples of the first stage at a guidance scale (default: its own); shared between checks."""
    _needs_network(subject)
    stage, key = subject.cascade.stages[0], ("base", guidance)
    if key not in subject.cache:
        count = SWEPT if guidance is not None or subject.quick else IMAGES
        low = texts = None
        prompts: list[str] = []
        if stage.config.low_resolution is not None:
            if subject.data is None:
                raise Skip("a super-resolution stage needs images: give --data SHARDS")
            low = subject.batch(0).low_res
            assert low is not None
            low = low[:count]
            count = len(low)
        if stage.config.unet.text_width is not None:
            prompts, texts = subject.prompts(0, count)
            count = len(texts)
        settings = stage.config.sampling if guidance is None else with_guidance(stage.config.sampling, guidance)
        subject.cache[key] = _draw(subject, stage, list(range(count)), texts=texts, low_BChw=low, settings=settings)
    return subject.cache[key]


def _draw(subject: Subject, stage: Stage, seeds: list[int], **options: object) -> Drawn:
    null_LD = subject.cascade.unconditional
    return draw(stage, seeds, device=subject.device, dtype=subject.dtype, unconditional=null_LD, **options)  # type: ignore[arg-type]


def _between(own: float) -> list[float]:
    """Return a guidance scale between 1 and `own`, and one above."""
    return [round((1 + own) / 2, 2), round(2 * own, 2)]


def _cropped(image_BChw: Tensor, stage: Stage) -> Tensor:
    """Return the centre of low-resolution images, so that the output is small; whole, where a U-Net needs that."""
    side = image_BChw.shape[-1]
    if stage.config.unet.coordinates or side <= LOW_SIDE:
        return image_BChw
    begin = (side - LOW_SIDE) // 2
    return image_BChw[..., begin : begin + LOW_SIDE, begin : begin + LOW_SIDE]


def _needs_network(subject: Subject) -> None:
    if not subject.stages:
        raise Skip("needs a network")


def _where(stage: Stage) -> str:
    return f"stage {stage.config.resolution}"


def _measured(
    where: str, numbers: Numbers, name: str, explanation: str, remedy: str, severity: Severity = "problem"
) -> Measured:
    """Return a measurement with one finding, or without if `name` is empty."""
    finding = Finding(
        name=name, severity=severity, where=where, numbers=numbers, explanation=explanation, remedy=remedy
    )
    return Measured(where=where, numbers=numbers, findings=(finding,) if name else ())
