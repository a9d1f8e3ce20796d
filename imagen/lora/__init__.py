"""Low-rank adapters of U-Nets (LoRA, arXiv 2106.09685): W x becomes W x + weight * (alpha / r) B A x.

files.py    reads an adapter file in any of the formats of peft, diffusers and kohya's scripts
apply.py    fits an adapter to a U-Net, and adds it to the weights while images are sampled
config.py   configuration of adapters in training
modules.py  layers with a trainable adapter, and their merged weights
write.py    writes an adapter file
"""

from imagen.lora.apply import Fitted, applied, fit
from imagen.lora.config import LoraConfig
from imagen.lora.files import Adapter, Factors, adapter_name, read_adapter

__all__ = ["Adapter", "Factors", "Fitted", "LoraConfig", "adapter_name", "applied", "fit", "read_adapter"]
