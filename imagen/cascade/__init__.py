"""A cascade: stages, conditioning noise, prompt to picture.

config.py        what a stage is and how it is sampled
storage.py       the CASCADE folder: load, save, export one stage, assemble
hub.py           cascades on the Hugging Face hub
plan.py          a request with every default filled in and every mistake found
conditioning.py  what a stage is told: its text, and the picture before it, noised
cascade.py       the cascade itself: a plan to pictures
output.py        pictures to a folder, resumable
"""

from imagen.cascade.cascade import Cascade, Preview
from imagen.cascade.config import SamplingConfig, StageConfig
from imagen.cascade.output import write_samples
from imagen.cascade.plan import Plan
from imagen.cascade.stage import Stage
from imagen.cascade.storage import assemble, export_stage

__all__ = [
    "Cascade",
    "Plan",
    "Preview",
    "SamplingConfig",
    "Stage",
    "StageConfig",
    "assemble",
    "export_stage",
    "write_samples",
]
