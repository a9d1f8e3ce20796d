"""List the metrics of `imagen evaluate`: the features that each needs, and the function that computes it from them.

Modules are imported inside functions, so that the command line can list the names without loading NumPy.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imagen.errors import UserError, suggest

if TYPE_CHECKING:
    import numpy as np

    from imagen.evaluate.metrics.interval import Interval


@dataclass(frozen=True)
class Features:
    """Hold the features that a metric compares."""

    real_MD: "np.ndarray"
    generated_ND: "np.ndarray"
    captions_ND: "np.ndarray | None" = None  # text embeddings in the same space (CLIP)


@dataclass(frozen=True)
class Metric:
    """Describe one metric, or several that are computed together."""

    names: tuple[str, ...]  # of the values, as reported
    extractor: str
    measure: "Callable[[Features], Sequence[Interval]]"
    help: str
    needs_captions: bool = False
    least: int = 2  # images of each set that the metric needs

    @property
    def is_frechet(self) -> bool:
        """Whether it estimates covariances, which are singular unless there are more images than features."""
        return self.measure is _fid


def _fid(features: Features) -> "list[Interval]":
    from imagen.evaluate.metrics.frechet import frechet_interval

    return [frechet_interval(features.real_MD, features.generated_ND)]


def _kid(features: Features) -> "list[Interval]":
    from imagen.evaluate.metrics.interval import Interval
    from imagen.evaluate.metrics.kernel import kid_interval

    return [Interval(*(1000 * value for value in kid_interval(features.real_MD, features.generated_ND)))]


def _manifold(features: Features) -> "list[Interval]":
    from imagen.evaluate.metrics.manifold import manifold

    return list(manifold(features.real_MD, features.generated_ND))


def _cmmd(features: Features) -> "list[Interval]":
    from imagen.evaluate.metrics.kernel import cmmd_interval

    return [cmmd_interval(features.real_MD, features.generated_ND)]


def _clip_score(features: Features) -> "list[Interval]":
    import numpy as np

    from imagen.evaluate.metrics.interval import bootstrap

    assert features.captions_ND is not None
    a, b = features.generated_ND.astype(np.float64), features.captions_ND.astype(np.float64)
    cosines_N = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return [bootstrap(lambda values: float(100 * values.clip(0).mean()), cosines_N)]


def _psnr(features: Features) -> "list[Interval]":
    return [_mean(features.generated_ND[:, 0])]


def _ssim(features: Features) -> "list[Interval]":
    return [_mean(features.generated_ND[:, 1])]


def _mean(values_N: "np.ndarray") -> "Interval":
    from imagen.evaluate.metrics.interval import Interval

    return Interval.of_values(values_N.tolist())


_PRDC = ("precision", "recall", "density", "coverage")
METRICS: dict[str, Metric] = {
    "fid": Metric(("fid",), "inception", _fid, "Fréchet distance of Inception features (1706.08500)"),
    "kid": Metric(
        ("kid",), "inception", _kid, "1000 times the kernel distance of the same features (1801.01401)", least=4
    ),
    "prdc": Metric(_PRDC, "inception", _manifold, "precision, recall, density, coverage (2002.09797)", least=6),
    "fd_dinov2": Metric(("fd_dinov2",), "dinov2", _fid, "Fréchet distance of DINOv2 features (2306.04675)"),
    "kd_dinov2": Metric(("kd_dinov2",), "dinov2", _kid, "1000 times the kernel distance of the same features", least=4),
    "cmmd": Metric(("cmmd",), "clip", _cmmd, "maximum mean discrepancy of CLIP features (2401.09603)"),
    "clip": Metric(
        ("clip",), "clip", _clip_score, "CLIP score: 100 times the cosine with captions", needs_captions=True
    ),
    "psnr": Metric(("psnr",), "pairs", _psnr, "peak signal-to-noise ratio to the true images, dB"),
    "ssim": Metric(("ssim",), "pairs", _ssim, "structural similarity to the true images"),
    "fd_efficientnet": Metric(("fd_efficientnet",), "efficientnet", _fid, "Fréchet distance of EfficientNet-Lite0"),
    "kd_efficientnet": Metric(
        ("kd_efficientnet",), "efficientnet", _kid, "1000 times the kernel distance of the same", least=4
    ),
}


def find_metric(name: str) -> Metric:
    """Return the metric of that name. Raises UserError with the nearest name if there is none."""
    if name not in METRICS:
        raise UserError(f"unknown metric {name!r}{suggest(name, METRICS, 'known: ' + ', '.join(METRICS))}")
    return METRICS[name]
