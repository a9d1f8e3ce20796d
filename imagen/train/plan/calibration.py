"""What a plan takes from measurements because it cannot count it, with date and device, or "not measured"."""

from dataclasses import dataclass

from imagen.gpus import GIB, Gpu


@dataclass(frozen=True)
class Calibration:
    """One calibrated number."""

    value: float
    measured: str  # date and device
    what: str


CALIBRATION = {
    "mfu": Calibration(0.4, "not measured", "part of the stated peak that is reached, recomputation included"),
    "reserved": Calibration(0.08, "not measured", "of memory: context, NCCL, libraries' workspaces, gaps"),
}
RESERVED = CALIBRATION["reserved"].value


def usable_bytes(gpu: Gpu) -> int:
    """Return the bytes of a GPU that tensors can use."""
    return int(gpu.memory * (1 - RESERVED) * GIB)
