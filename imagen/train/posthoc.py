"""Choose the length of an EMA after training (EDM2: arXiv 2312.02696, section 3 and appendix C).

During training, EMAs in which the weights of step s have weight s^gamma are tracked, usually for two values of gamma,
and snapshots of them are stored at intervals. A weighted sum of the snapshots approximates the EMA of any other gamma,
at any step with a snapshot.

gamma is specified as sigma_rel, the standard deviation of the profile s^gamma relative to the number of steps. With
sigma_rel 0.05, half of the weight is in the last 4 % of the steps; with 0.10, in the last 8 %.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from torch import Tensor

from imagen.errors import UserError, check_number
from imagen.files import replacing
from imagen.tensors import save_tensors

LONGEST = 12**-0.5  # sigma_rel of gamma 0: the mean over the whole run


def exponent(sigma_rel: float) -> float:
    """Return the gamma >= 0 with sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)) (eq. 126).

    Raises UserError unless 0 < sigma_rel < 0.2887.
    """
    check_number("sigma_rel", sigma_rel, above=0, below=LONGEST)
    shortest, longest = 0.0, 1 / sigma_rel  # sigma_rel is below 1 / gamma and decreases with gamma
    for _ in range(200):
        gamma = (shortest + longest) / 2
        if (gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)) > sigma_rel**2:
            shortest = gamma
        else:
            longest = gamma
    return (shortest + longest) / 2


@dataclass(frozen=True)
class Snapshot:
    """The EMA `name` after `step` steps."""

    name: str
    step: int
    path: Path


def coefficients(
    steps: Sequence[int], sigma_rels: Sequence[float], step: int, sigma_rel: float
) -> tuple[np.ndarray, float]:
    """Return factors with sum 1, for which the weighted sum of the snapshots is nearest to the EMA of `sigma_rel`.

    steps, sigma_rels: of the snapshots. step, sigma_rel: of the EMA to reconstruct. "Nearest" is the mean squared
    difference, over time, between the profiles, the weight of each training step in the average. Profiles are
    polynomials, so all integrals have a closed form (eq. 151, algorithm 3). Also returns the distance: the root of that
    mean square, relative to the EMA's profile. It is about 0 for a good reconstruction, above 0.1 for a bad one.
    """
    t = np.array([*steps, step], dtype=np.float64) / step
    gamma = np.array([exponent(value) for value in (*sigma_rels, sigma_rel)])
    # The integral of (a + 1) t^a / T^(a + 1), up to T, times the same with b and U, up to U.
    both = np.minimum(t[:, None], t)
    products = (gamma[:, None] + 1) * (gamma + 1) / (gamma[:, None] + gamma + 1) / np.maximum(t[:, None], t)
    products *= (both / t[:, None]) ** gamma[:, None] * (both / t) ** gamma
    A, B, wanted = products[:-1, :-1], products[:-1, -1], products[-1, -1]
    c = np.linalg.lstsq(A, B, rcond=None)[0]
    c /= c.sum()
    return c, math.sqrt(max(0.0, wanted - 2 * c @ B + c @ A @ c) / wanted)


def save_snapshot(folder: Path, name: str, step: int, weights: Mapping[str, Tensor]) -> Path:
    """Write FOLDER/NAME/step-NNNNNNNN.safetensors. name: from `build_emas`. Raises UserError on a full disk."""
    path = folder / name / f"step-{step:08d}.safetensors"
    with replacing(path) as temporary:
        save_tensors(weights, temporary)
    return path


def snapshots(folder: Path, kind: str) -> list[Snapshot]:
    """Return the snapshots of EMAs with names that begin with `kind`, oldest first."""
    found = []
    for path in folder.glob(f"{kind}-*/step-*.safetensors"):
        if step := re.fullmatch(r"step-(\d+)\.safetensors", path.name):
            found.append(Snapshot(path.parent.name, int(step[1]), path))
    return sorted(found, key=lambda snapshot: (snapshot.step, snapshot.name))


def forget_snapshots(folder: Path, after: int = 0) -> None:
    """Delete the snapshots of later steps than `after`, which belong to steps that are not part of the run any more."""
    for snapshot in (*snapshots(folder, "decay"), *snapshots(folder, "sigma_rel")):
        if snapshot.step > after:
            snapshot.path.unlink(missing_ok=True)


def tracked(folder: Path, decay: float, step: int | None = None) -> tuple[dict[str, Tensor], int]:
    """Return the snapshot of the EMA with `decay` at `step` (default: the last), float32, and its step.

    Raises UserError if there is no such snapshot, or if it cannot be read.
    """
    every = [snapshot for snapshot in snapshots(folder, "decay") if _value(snapshot) == decay]
    step = _resolve_step(folder, every, f"decay {decay:g}", step)
    (snapshot,) = (snapshot for snapshot in every if snapshot.step == step)
    return _weighted_sum([snapshot], [1.0]), step


def reconstruct(folder: Path, sigma_rel: float, step: int | None = None) -> tuple[dict[str, Tensor], int, float]:
    """Reconstruct the EMA of `sigma_rel` at `step` (default: the last), float32, from the snapshots in `folder`.

    Returns its weights, its step, and its distance (see `coefficients`). Raises UserError if there are no snapshots of
    `step`, or if one cannot be read.
    """
    every = snapshots(folder, "sigma_rel")
    step = _resolve_step(folder, every, "sigma_rel", step)
    used = [snapshot for snapshot in every if snapshot.step <= step]
    c, distance = coefficients([snapshot.step for snapshot in used], [_value(s) for s in used], step, sigma_rel)
    return _weighted_sum(used, c.tolist()), step, distance


def _value(snapshot: Snapshot) -> float:
    try:
        return float(snapshot.name.partition("-")[2])
    except ValueError:
        raise UserError(f"{snapshot.path.parent} is not a folder of EMA snapshots: move it away") from None


def _resolve_step(folder: Path, every: Sequence[Snapshot], what: str, step: int | None) -> int:
    """Return `step` if it has a snapshot; None means the last one. Raises UserError otherwise."""
    steps = sorted({snapshot.step for snapshot in every})
    if not steps:
        raise UserError(f"{folder} contains no EMA snapshots by {what}: see train.ema_snapshot_every")
    if step is None:
        return steps[-1]
    if step not in steps:
        nearest = min(steps, key=lambda known: abs(known - step))
        raise UserError(f"{folder} contains no snapshots of step {step}; the nearest are of step {nearest}")
    return step


def _weighted_sum(used: Sequence[Snapshot], factors: Sequence[float]) -> dict[str, Tensor]:
    """Sum snapshots in float32, one tensor of one snapshot at a time; integer tensors are the last snapshot's."""
    total: dict[str, Tensor] = {}
    for snapshot, factor in zip(used, factors, strict=True):
        try:
            with safe_open(snapshot.path, "pt") as file:
                for name in file.keys():  # noqa: SIM118  # it is no dict
                    value = file.get_tensor(name)
                    if not value.is_floating_point():
                        total[name] = value
                    elif name in total:
                        total[name].add_(value.float(), alpha=factor)
                    else:
                        total[name] = value.float() * factor
        except (OSError, SafetensorError) as error:
            raise UserError(f"{snapshot.path} cannot be read ({error}); move it away to continue without it") from None
    return total
