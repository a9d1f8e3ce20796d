"""The device that `--device` names, tried out."""

from imagen.errors import UserError


def choose_device(name: str | None) -> str:
    """`name` if this machine can use it; the default for None. Raises UserError listing what there is."""
    import torch

    from imagen.devices import default_device

    if name is None:
        return default_device()
    try:
        if torch.device(name).type == "cpu" and torch.device(name).index:  # torch takes any number for it
            raise ValueError(name)
        torch.zeros(1, device=name).item()
    except Exception as error:  # of any kind: each backend fails in its own way
        there = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        there += ["mps"] if torch.backends.mps.is_available() else []
        unknown = "no such device" if "device string" in str(error) else "not available here"
        raise UserError(f"--device {name}: {unknown}; this machine has {', '.join(there)}") from None
    return name
