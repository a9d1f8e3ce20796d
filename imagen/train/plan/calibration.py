"""Constants of a plan that cannot be counted, with the date and device of their measurement, or "not measured"."""

from dataclasses import dataclass

from imagen.gpus import GIB, Gpu


@dataclass(frozen=True)
class Calibration:
    """A calibrated constant."""

    value: float
    measured: str  # date and device
    what: str


CALIBRATION = {
    "mfu": Calibration(0.4, "not measured", "achieved share of the stated peak, recomputation included"),
    "reserved": Calibration(0.08, "not measured", "share of memory for context, NCCL, workspaces and fragmentation"),
}
RESERVED = CALIBRATION["reserved"].value


def usable_bytes(gpu: Gpu) -> int:
    """Return the bytes of a GPU's memory that tensors can use."""
    return int(gpu.memory * (1 - RESERVED) * GIB)
