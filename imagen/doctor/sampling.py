"""Check samples: noise, grey, all alike, oversaturated, without regard to the prompt."""

import math
from collections.abc import Iterator
from dataclasses import replace

from imagen.cascade import Stage
from imagen.doctor.finding import Finding, Measured, Numbers, Severity, Skip
from imagen.doctor.network import rounded
from imagen.doctor.samples import Drawn, contrast, diversity, draw, roughness, saturated, with_guidance
from imagen.doctor.subject import Subject
from imagen.stage.inputs import from_uint8

IMAGES, SWEPT = 8, 4  # samples, and samples at other guidance scales
NOISE = 0.5  # roughness; white noise has 1
FLAT = 0.03  # contrast: four grey levels
ALIKE, ALIKE_SHARE = 0.06, 0.35  # diversity, absolute and relative to the data's
CLIPPED, SATURATED, CONTRAST = 0.15, 0.25, 1.3  # shares beyond those without guidance; contrast relative to it
IGNORED = 0.01  # difference between the first x0 estimates of two prompts: about one grey level


class Samples:
    """Judge samples of the base stage, or of a run's super-resolution stage: finite, noise, grey, all alike."""

    name, title, slow = "samples", "samples: noise, grey, all alike?", False
    finds = ("samples-not-finite", "samples-are-noise", "samples-grey", "samples-alike")

    def __call__(self, subject: Subject) -> Iterator[Measured]:
        drawn, stage, where = base_samples(subject), subject.cascade.stages[0], stage_name(subject.cascade.stages[0])
        if not bool(drawn.images.isfinite().all()):
            yield measurement(
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
                "See loss by noise level: if the network is no better than trivial, train longer. If it is, the "
                "sampler does not fit it: check prediction type, schedule and steps (try --steps 100 --sampler ddpm)."
            )
        elif spread < alike and len(drawn.images) > 1 and stage.config.low_resolution is None:
            name = "samples-alike"
            text = f"Samples of different prompts and seeds differ by {spread:.3f}" + (
                f", {spread * 127.5:.0f} grey levels."
                if real is None
                else f"; the images of the data by {diversity(real):.3f}."
            )
            remedy = (
                "See conditional gap, captions and duplicates. A network that ignores its prompt or memorised one "
                "image gives such samples; a guidance scale far too high does, too."
            )
        yield measurement(where, numbers, name, text, remedy)


class PromptEffect:
    """Compare the first x0 estimates for different prompts from the same noise."""

    name, title, slow = "prompt", "effect of the prompt on samples", False
    finds = ("prompt-ignored",)

    def __call__(self, subject: Subject) -> Iterator[Measured]:
        check_network(subject)
        stage = subject.cascade.stages[0]
        if stage.config.unet.text_width is None or stage.config.low_resolution is not None:
            raise Skip("no base stage reads text")
        prompts, texts = subject.prompts(0, 4)
        if len(set(prompts)) < 2:
            raise Skip("needs different captions; all are the same")
        # A single step from pure noise returns the first x0 estimate.
        settings = replace(
            stage.config.sampling, guidance=1.0, steps=1, threshold="none", sampler="ddim", spacing="time"
        )
        settings = replace(settings, sampler_options={})
        drawn = draw_samples(subject, stage, [0] * len(texts), texts=texts, settings=settings)
        effect = diversity(drawn.images)
        if not math.isfinite(effect):
            raise Skip("samples are not finite")
        numbers = rounded({"prompts": len(texts), "difference": effect}, 3)
        yield measurement(
            stage_name(stage),
            numbers,
            "prompt-ignored" if not effect > IGNORED else "",
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
        check_network(subject)
        stage = subject.cascade.stages[0]
        own = stage.config.sampling.guidance
        if stage.config.unet.text_width is None or own == 1 or stage.config.low_resolution is not None:
            raise Skip("the base stage is sampled without guidance")
        swept = {own: base_samples(subject).first(SWEPT)}
        for scale in subject.each([1.0, *_between(own)], f"{stage_name(stage)}: guidance"):
            swept[scale] = base_samples(subject, scale)
        plain, mine = swept[1.0], swept[own]
        real = None if subject.data is None else from_uint8(subject.batch(0).image)
        table = {
            f"{scale:g}": rounded({"clipped": d.clipped, "saturated": d.saturated, "contrast": contrast(d.images)}, 3)
            for scale, d in sorted(swept.items())
        }
        numbers: Numbers = {"guidance": own, "clipped": round(mine.clipped, 4), "saturated": round(mine.saturated, 4)}
        numbers["sweep"] = table
        base, usual = plain.saturated, contrast(plain.images)
        if real is not None:
            base, usual = max(base, saturated(real)), max(usual, contrast(real))
            numbers |= rounded({"data_saturated": saturated(real), "data_contrast": contrast(real)}, 3)
        # Clipping alone is harmless where colours are black or white anyway: then the samples do not change.
        clips, harsh = mine.clipped > plain.clipped + CLIPPED, contrast(mine.images) > CONTRAST * usual
        over = mine.saturated > base + SATURATED or (clips and harsh)
        better = [s for s, d in swept.items() if s < own and d.clipped <= plain.clipped + CLIPPED / 2]
        yield measurement(
            stage_name(stage),
            numbers,
            "oversaturated" if over else "",
            f"At guidance scale {own:g}, thresholding clips {mine.clipped:.0%} of the values of x0 estimates "
            f"({plain.clipped:.0%} without guidance). {mine.saturated:.0%} of the values of samples are black or white "
            f"({base:.0%} without guidance{'' if real is None else ' or in the data'}), and their contrast is "
            f"{contrast(mine.images):.2f} ({usual:.2f}).",
            f"Sample with --guidance {max(better, default=1.0):g}, dynamic thresholding (--threshold dynamic) or "
            "--guidance-interval.",
        )


def base_samples(subject: Subject, guidance: float | None = None) -> Drawn:
    """Return samples of the first stage at a guidance scale (default: its own); shared between checks."""
    check_network(subject)
    stage, key = subject.cascade.stages[0], ("base", guidance)
    if key not in subject.cache:
        count = SWEPT if guidance is not None or subject.quick else IMAGES
        low = texts = None
        reads_text = stage.config.unet.text_width is not None
        if stage.config.low_resolution is not None:
            if subject.data is None:
                raise Skip("a super-resolution stage needs images: give --data SHARDS")
            low = subject.batch(0).low_res
            assert low is not None
            low = low[:count]
            texts = [subject.text_of(0, row) for row in range(len(low))] if reads_text else None
            count = len(low)
        elif reads_text:
            texts = subject.prompts(0, count)[1]
            count = len(texts)
        settings = stage.config.sampling if guidance is None else with_guidance(stage.config.sampling, guidance)
        subject.cache[key] = draw_samples(
            subject, stage, list(range(count)), texts=texts, low_BChw=low, settings=settings
        )
    return subject.cache[key]


def draw_samples(subject: Subject, stage: Stage, seeds: list[int], **options: object) -> Drawn:
    null_LD = subject.cascade.unconditional
    return draw(stage, seeds, device=subject.device, dtype=subject.dtype, unconditional=null_LD, **options)  # type: ignore[arg-type]


def _between(own: float) -> list[float]:
    """Return a guidance scale between 1 and `own`, and one above."""
    return [round((1 + own) / 2, 2), round(2 * own, 2)]


def check_network(subject: Subject) -> None:
    if not subject.stages:
        raise Skip("needs a network")


def stage_name(stage: Stage) -> str:
    return f"stage {stage.config.resolution}"


def measurement(
    where: str, numbers: Numbers, name: str, explanation: str, remedy: str, severity: Severity = "problem"
) -> Measured:
    """Return a measurement with one finding, or without if `name` is empty."""
    finding = Finding(
        name=name, severity=severity, where=where, numbers=numbers, explanation=explanation, remedy=remedy
    )
    return Measured(where=where, numbers=numbers, findings=(finding,) if name else ())
