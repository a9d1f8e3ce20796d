"""Define the configuration of LoRA training."""

from dataclasses import dataclass

from imagen import limits
from imagen.errors import UserError

# Queries, keys, values and outputs of all attention to pixels and text, and the projection of text before it.
ATTENTION = ("*.attention.to_*", "*.attention.context_k", "*.attention.context_v")


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Configure the adapters that are trained in place of the U-Net's weights (2106.09685)."""

    rank: int = 0  # r of the factors A and B; 0: no adapters, the weights themselves are trained
    alpha: float | None = None  # the change of a weight is alpha / rank * B A; None: alpha is the rank
    # fnmatch patterns of modules with adapters: linear layers and convolutions of the U-Net, by their names
    targets: tuple[str, ...] = ATTENTION
    convolutions: bool = False  # also adapt the convolutions of all residual blocks: more capacity, larger files

    def check(self) -> None:
        """Raise UserError, naming the field, for a value out of range."""
        limits.check(self, limits.LORA, "lora.")
        if self.rank and not self.targets and not self.convolutions:
            raise UserError("lora.targets is empty and lora.convolutions false: there is nothing to adapt")

    @property
    def scale(self) -> float:
        """Return alpha / rank."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    @property
    def patterns(self) -> tuple[str, ...]:
        """Return all patterns of adapted modules."""
        return (*self.targets, *CONVOLUTIONS) if self.convolutions else self.targets


CONVOLUTIONS = ("*.conv1", "*.conv2", "*.shortcut")
