"""Weights of other libraries: DeepFloyd IF in, diffusers out.

structure.py  a U-Net's `config.json` as diffusers writes it, and our `UNetConfig`
names.py      the names of its tensors
scheduler.py  `scheduler_config.json`, and our schedule, objective and thresholds
deepfloyd.py  pipeline folders to a cascade
original.py   IF's first format, in terms of what diffusers writes
diffusers.py  a cascade to pipeline folders

Nothing here needs the diffusers library: JSON and safetensors are read and written, and of the first format YAML and
tensors alone.
"""
