"""Cascades, which turn prompts into images through several stages.

cascade.py     the cascade: load, save, sample
options.py     the keyword arguments of a request, with their documentation
prompts.py     checks of prompts: texts and embeddings
request.py     a request with all defaults filled in and all arguments checked
per_stage.py   options with one value per stage
fast.py        settings and adapters for few steps
sizes.py       heights and widths of the stages
memory.py      counts the memory of a request, and makes requests fit a bound
pipeline.py    runs a request through the stages
texts.py       encodes prompts
output.py      images to a folder, resumable, on several ranks
upscaling.py   upsamples image files of any size
provenance.py  the metadata of a PNG that allows it to be regenerated
remake.py      regenerates an image from its provenance
storage.py     reads and writes the CASCADE folder; exports one stage
assembly.py    joins several cascades into one
float16.py     stores weights in float16
hub.py         cascades on the Hugging Face hub
card.py        their model cards
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

__all__ = [
    "Cascade",
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
