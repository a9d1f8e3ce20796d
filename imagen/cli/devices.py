"""Resolve `--device`, and check that the device works."""

from imagen.errors import UserError


def choose_device(name: str | None) -> str:
    """Return `name` if this machine can use it, or the default device for None.

    Raises UserError, listing the available devices, if it cannot.
    """
    import torch

    from imagen.devices import default_device

    if name is None:
        return default_device()
    try:
        if torch.device(name).type == "cpu" and torch.device(name).index:  # torch accepts any index of a CPU
            raise ValueError(name)
        torch.zeros(1, device=name).item()
    except Exception as error:  # backends raise different exceptions
        there = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        there += ["mps"] if torch.backends.mps.is_available() else []
        unknown = "no such device" if "device string" in str(error) else "not available here"
        raise UserError(f"--device {name}: {unknown}; this machine has {', '.join(there)}") from None
    return name
