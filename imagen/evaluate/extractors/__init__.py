"""Feature extractors: networks that turn images into the vectors that metrics compare.

base.py          the interface, and the table of extractors by name
inception.py     Inception v3 of 2015-12-05, for FID and KID as published
hub.py           CLIP and DINOv2 through transformers, from a name or a folder
efficientnet.py  EfficientNet-Lite0 from a PyPI package; not comparable with published numbers
"""

from imagen.evaluate.extractors.base import Extractor, load_extractor

__all__ = ["Extractor", "load_extractor"]
