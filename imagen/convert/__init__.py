"""Convert weights of other libraries: import DeepFloyd IF, export to diffusers.

structure.py  diffusers' `unet/config.json` and our `UNetConfig`
names.py      tensor names of the U-Net
scheduler.py  `scheduler_config.json` and our schedule, objective and thresholding
deepfloyd.py  pipeline folders to a cascade
original.py   IF's original format to the format of diffusers
diffusers.py  a cascade to pipeline folders

The diffusers library is not needed: the code reads and writes JSON and safetensors files, and reads YAML and a file of
tensors in the original format.
"""
