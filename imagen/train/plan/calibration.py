"""Constants of a plan that cannot be counted, with the date and device of their measurement, or "not measured"."""

from dataclasses import dataclass

from imagen.gpus import GIB, Gpu


@dataclass(frozen=True)
class Calibration:
    """A calibrated constant."""

    value: float
    measured: str  # date and device
    what: str


_MEASURED = "2026-11-29, one core of an AMD EPYC"
CALIBRATION = {
    "mfu": Calibration(0.4, "not measured", "achieved share of the stated peak, recomputation included"),
    "reserved": Calibration(0.08, "not measured", "share of memory for context, NCCL, workspaces and fragmentation"),
    # 12 megapixels in 63 to 79 ms, 0.1 in 0.9 to 1.0 ms, for stages of 64 and 256 pixels.
    "decode": Calibration(6.0, _MEASURED, "milliseconds per megapixel of a stored JPEG, in one loader process"),
    "sample": Calibration(0.5, _MEASURED, "milliseconds per image beside decoding, in one loader process"),
}
RESERVED = CALIBRATION["reserved"].value


def usable_bytes(gpu: Gpu) -> int:
    """Return the bytes of a GPU's memory that tensors can use."""
    return int(gpu.memory * (1 - RESERVED) * GIB)
