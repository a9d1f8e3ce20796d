"""Weights of other libraries: DeepFloyd IF in, diffusers out.

structure.py  a U-Net's `config.json` as diffusers writes it, and our `UNetConfig`
names.py      the names of its tensors
scheduler.py  `scheduler_config.json`, and our schedule, objective and thresholds
deepfloyd.py  pipeline folders to a cascade
diffusers.py  a cascade to pipeline folders

Neither needs the diffusers library: both read and write JSON and safetensors.
"""
