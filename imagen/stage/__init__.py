"""One stage of a cascade: the inputs of its U-Net, its denoiser and its loss, shared by training and sampling.

config.py    stages and their sampling defaults
inputs.py    pixels, padded text, low-resolution images with conditioning augmentation
detail.py    images to the detail that some super-resolution stages generate, and back
denoiser.py  U-Net -> x0 estimate -> guided -> thresholded
loss.py      forward process and loss
sampling.py  a stage with its weights: from noise to an image
compiled.py  a sampler's steps as compiled functions
network.py   the U-Net on a device: placement, format, compilation
weights.py   the U-Net from its tensors
editing.py   image-to-image and inpainting
tiles.py     large images tile by tile
resize.py    upsampling
"""
