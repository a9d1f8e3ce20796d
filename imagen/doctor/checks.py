"""List all checks, in the order in which they run: causes before symptoms."""

from imagen.doctor.check import Check
from imagen.doctor.data import Captions, Duplicates, Images
from imagen.doctor.embeddings import StoredEmbeddings
from imagen.doctor.log import LearningRate, LossCourse, Steps, TrainingText
from imagen.doctor.loss import ChannelOrder, EmaLoss, NoiseLevels, Overfitting, Prompt
from imagen.doctor.sampling import Guidance, PromptEffect, Samples
from imagen.doctor.upsampling import Upsampling
from imagen.doctor.weights import Activations, EmaDistance, Weights

CHECKS: tuple[Check, ...] = (
    Captions(),
    Images(),
    Duplicates(),
    StoredEmbeddings(),
    TrainingText(),
    LearningRate(),
    Steps(),
    LossCourse(),
    Weights(),
    EmaDistance(),
    Activations(),
    NoiseLevels(),
    Prompt(),
    EmaLoss(),
    ChannelOrder(),
    Overfitting(),
    Samples(),
    PromptEffect(),
    Guidance(),
    Upsampling(),
)
UNREADABLE = "unreadable"  # found by any check that fails on a file
# The names of all findings, each with the checks that report it.
FINDINGS: dict[str, tuple[str, ...]] = {
    UNREADABLE: tuple(check.name for check in CHECKS),
    **{name: tuple(check.name for check in CHECKS if name in check.finds) for check in CHECKS for name in check.finds},
}
