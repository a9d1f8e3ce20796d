"""Save and resume the training of a recogniser: one safetensors file with weights, AdamW's moments and the step."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from imagen.emoji.recogniser import Recogniser
from imagen.errors import UserError
from imagen.files import replacing
from imagen.tensors import save_tensors

MOMENTS = ("exp_avg", "exp_avg_sq")


def save_training(
    path: Path, network: Recogniser, optimizer: torch.optim.Optimizer, step: int, about: dict[str, str]
) -> None:
    """Write the state after `step` steps, at least one. about: what another training would have differently."""
    named = dict(network.named_parameters())
    tensors: dict[str, Tensor] = dict(named)
    for name, parameter in named.items():
        tensors |= {f"{moment} {name}": optimizer.state[parameter][moment] for moment in MOMENTS}
    with replacing(path) as temporary:
        save_tensors(tensors, temporary, {**about, "step": str(step)})


def resume_training(path: Path, network: Recogniser, optimizer: torch.optim.Optimizer, about: dict[str, str]) -> int:
    """Load the state in `path`; return its step, 0 if there is no file.

    Raises UserError if the file is damaged or of another training.
    """
    if not path.is_file():
        return 0
    named = dict(network.named_parameters())
    try:
        with safe_open(path, "pt") as file:
            saved = dict(file.metadata() or {})
            step = int(saved.pop("step"))
            if saved != about:
                raise UserError(f"{path} is of a training with other drawings or settings; delete it to start again")
            for name, parameter in named.items():
                moments = {moment: _like(parameter, file.get_tensor(f"{moment} {name}")) for moment in MOMENTS}
                optimizer.state[parameter] = {"step": torch.tensor(float(step)), **moments}
                parameter.data.copy_(_like(parameter, file.get_tensor(name)))
    except (KeyError, ValueError, OSError, SafetensorError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it to start again") from None
    return step


def _like(parameter: Tensor, value: Tensor) -> Tensor:
    if value.shape != parameter.shape or value.dtype != parameter.dtype:
        raise ValueError("a tensor has another shape or type")
    return value
