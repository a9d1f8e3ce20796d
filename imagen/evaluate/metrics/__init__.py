"""Distances between sets of images, from features [N, D] of both.

frechet.py      FID and FD: Fréchet distance of two Gaussians, from streamed moments
kernel.py       KID and CMMD: maximum mean discrepancy, with intervals
manifold.py     precision, recall, density, coverage: nearest neighbours
restoration.py  PSNR and colour error against the true images
interval.py     confidence intervals

Each function takes NumPy arrays and computes in float64; where the features come from is `imagen.evaluate.features`.
"""
