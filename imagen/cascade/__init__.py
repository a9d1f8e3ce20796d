"""Cascades: prompt to image through several stages.

cascade.py     the cascade: load, save, sample
options.py     the keyword arguments of a request, with their documentation
prompts.py     texts and embeddings
request.py     a request with every default filled in and every mistake found
sizes.py       heights and widths of the stages
memory.py      how much memory a request takes, and requests cut to a bound
pipeline.py    a request through the stages
texts.py       prompts to embeddings
output.py      images to a folder, resumable, on several ranks
upscaling.py   files of any size through the super-resolution stages
provenance.py  what a PNG says of how it was made
remake.py      an image again, from its provenance
storage.py     the CASCADE folder: load, save, export one stage
assembly.py    several cascades joined into one
halve.py       weights in 16 bits
hub.py         cascades on the Hugging Face hub; card.py, their model cards
"""

from imagen.cascade.assembly import assemble
from imagen.cascade.cascade import Cascade
from imagen.cascade.output import write_regenerated, write_request, write_samples
from imagen.cascade.pipeline import Preview
from imagen.cascade.provenance import read_provenance
from imagen.cascade.remake import regenerate_request
from imagen.cascade.request import Request
from imagen.cascade.storage import export_stage
from imagen.cascade.upscaling import write_upscaled
from imagen.diffusion.noise import Variation
from imagen.stage.config import SamplingConfig, StageConfig
from imagen.stage.sampling import Stage

Plan = Request  # the name that `imagen.serve` uses

__all__ = [
    "Cascade",
    "Plan",
    "Preview",
    "Request",
    "SamplingConfig",
    "Stage",
    "StageConfig",
    "Variation",
    "assemble",
    "export_stage",
    "read_provenance",
    "regenerate_request",
    "write_regenerated",
    "write_request",
    "write_samples",
    "write_upscaled",
]
