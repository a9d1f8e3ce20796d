"""A picture's noise is its own."""

import torch

from imagen.diffusion.noise import PictureNoise


def test_noise_does_not_depend_on_the_batch():
    together = PictureNoise([7, 8, 9], (3, 4, 5))
    first, second = together(), together()
    assert first.shape == (3, 3, 4, 5) and first.dtype == torch.float32
    for i, seed in enumerate([7, 8, 9]):
        alone = PictureNoise([seed], (3, 4, 5))
        assert torch.equal(alone()[0], first[i]) and torch.equal(alone()[0], second[i])
    assert not torch.equal(first, second)


def test_seeds_and_streams_are_independent():
    noises = [PictureNoise([seed], (2000,), stream=stream)()[0] for seed in (0, 1, 2**40) for stream in (0, 1)]
    correlation = torch.corrcoef(torch.stack(noises)) - torch.eye(6)
    assert correlation.abs().max() < 0.1
    values = torch.stack(noises)
    assert values.mean().abs() < 0.05 and (values.std() - 1).abs() < 0.05
