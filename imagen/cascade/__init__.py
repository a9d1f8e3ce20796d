"""A cascade: stages, conditioning noise, prompt to picture.

storage.py       the CASCADE folder: load, save, export one stage
assembly.py      several joined into one
hub.py           cascades on the Hugging Face hub
plan.py          a request with every default filled in and every mistake found
sizes.py         heights and widths of the stages
texts.py         prompts to embeddings
memory.py        how much memory a request takes, and requests cut to what there is
cascade.py       the cascade itself
running.py       a plan through the stages
output.py        pictures to a folder, resumable, on several ranks
upscaling.py     files of any size to larger ones
remake.py        a picture again, from what its file says
"""

from imagen.cascade.assembly import assemble
from imagen.cascade.cascade import Cascade
from imagen.cascade.output import write_again, write_plan, write_samples
from imagen.cascade.plan import Plan
from imagen.cascade.remake import plan_again, read_made
from imagen.cascade.running import Preview
from imagen.cascade.storage import export_stage
from imagen.cascade.upscaling import write_upscaled
from imagen.diffusion.noise import Variation
from imagen.stage.config import SamplingConfig, StageConfig
from imagen.stage.sampling import Stage

__all__ = [
    "Cascade",
    "Plan",
    "Preview",
    "SamplingConfig",
    "Stage",
    "StageConfig",
    "Variation",
    "assemble",
    "export_stage",
    "plan_again",
    "read_made",
    "write_again",
    "write_plan",
    "write_samples",
    "write_upscaled",
]
