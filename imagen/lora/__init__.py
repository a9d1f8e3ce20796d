"""Low-rank adapters of U-Nets (LoRA, arXiv 2106.09685): W x becomes W x + weight * (alpha / r) B A x.

files.py    read an adapter file in any of the formats that peft, diffusers and kohya's scripts write
apply.py    fit an adapter to a U-Net, and add it to the weights for as long as images are sampled
config.py   configuration of adapters in training
modules.py  layers with a trainable adapter, and their merged weights
write.py    write an adapter file
"""

from imagen.lora.apply import Fitted, applied, fit
from imagen.lora.config import LoraConfig
from imagen.lora.files import Adapter, Factors, read_adapter

__all__ = ["Adapter", "Factors", "Fitted", "LoraConfig", "applied", "fit", "read_adapter"]
