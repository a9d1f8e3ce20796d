"""Check super-resolution stages: on true low-resolution images, and on those that the stage before generates."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from imagen.cascade import Stage
from imagen.doctor.finding import Measured, Skip
from imagen.doctor.network import rounded
from imagen.doctor.samples import Drawn, roughness
from imagen.doctor.sampling import base_samples, check_network, draw_samples, measurement, stage_name
from imagen.doctor.subject import Subject
from imagen.stage.inputs import from_uint8, to_uint8

TRUE, GENERATED = 8, 2  # images
LOW_SIDE = 64  # largest side of low-resolution images here; larger ones are cropped
DRIFT, DRIFT_RATIO = 0.08, 2.0  # difference of an upsampled image, reduced again, from its input


class Upsampling:
    """Compare super-resolution of generated images with that of true ones."""

    name, title, slow = "super-resolution", "super-resolution of true and of generated images", True
    finds = ("upsampling-drifts", "upsampling-generated")

    def __call__(self, subject: Subject) -> Iterator[Measured]:
        check_network(subject)
        stages = subject.cascade.stages
        if all(stage.config.low_resolution is None for stage in stages):
            raise Skip("there is no super-resolution stage")
        generated = (
            to_uint8(base_samples(subject).images)[:GENERATED] if stages[0].config.low_resolution is None else None
        )
        for index, stage in enumerate(stages):
            if stage.config.low_resolution is None:
                continue
            true = made = None
            reads_text = stage.config.unet.text_width is not None
            if subject.data is not None:
                low = subject.batch(index).low_res
                assert low is not None
                low = _cropped(low[:TRUE], stage)
                texts = [subject.text_of(index, row) for row in range(len(low))] if reads_text else None
                true = self._upsample(subject, stage, low, texts)
            if generated is not None:
                texts = subject.prompts(index, GENERATED)[1] if reads_text else None
                made = self._upsample(subject, stage, _cropped(generated, stage), texts)
            yield self._judge(stage, true, made)
            generated = None if made is None else to_uint8(made[0].images)

    def _upsample(
        self, subject: Subject, stage: Stage, low_BChw: Tensor, texts: list[Tensor] | None
    ) -> tuple[Drawn, float]:
        """Return the output, and its distance from the input after reduction to its size."""
        drawn = draw_samples(subject, stage, list(range(len(low_BChw))), texts=texts, low_BChw=low_BChw)
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
            return measurement(
                stage_name(stage),
                shown,
                "upsampling-generated",
                f"Upsampled images, reduced again, differ from the input by {made[1]:.3f} for generated images and by "
                f"{true[1]:.3f} for true ones: the stage does not tolerate the errors of the stage before.",
                "Sample with more conditioning augmentation (--low-res-noise 0.2 or 0.3), or train the stage on "
                "low-resolution images with such errors.",
            )
        return measurement(
            stage_name(stage),
            shown,
            "upsampling-drifts" if not drift <= DRIFT else "",
            f"Upsampled images, reduced again, differ from their input by {drift:.3f} ({drift * 127.5:.0f} grey "
            "levels): the stage changes colours or content.",
            "Train the stage longer. If it was trained long, check low_res_filter, detail_std and the prediction type.",
        )


def _cropped(image_BChw: Tensor, stage: Stage) -> Tensor:
    """Return the centre of low-resolution images, so that the output is small; whole, where a U-Net needs that."""
    if stage.config.unet.coordinates:
        return image_BChw
    top, left = (max(0, side - LOW_SIDE) // 2 for side in image_BChw.shape[-2:])
    return image_BChw[..., top : top + LOW_SIDE, left : left + LOW_SIDE]
