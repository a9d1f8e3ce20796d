"""What a plan cannot count and takes from measurements, each with the date and the device of it, or "not measured"."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Calibration:
    value: float
    measured: str
    what: str


CALIBRATION = {
    "mfu": Calibration(0.4, "not measured", "part of the stated peak that is reached, recomputation included"),
    "reserved": Calibration(0.08, "not measured", "of memory: context, NCCL, libraries' workspaces, gaps"),
}
