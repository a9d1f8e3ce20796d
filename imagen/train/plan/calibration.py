"""What a plan cannot count and takes from measurements, each with the date and the device of it, or "not measured"."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Calibrated:
    value: float
    measured: str
    what: str


CALIBRATION = {
    "mfu": Calibrated(0.4, "not measured", "part of the stated peak that is reached, recomputation included"),
    "reserved": Calibrated(0.08, "not measured", "of memory: context, NCCL, libraries' workspaces, gaps"),
}
