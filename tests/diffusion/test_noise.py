"""Check that the noise of an image depends only on its seed."""

import pytest
import torch

from imagen.diffusion.noise import PictureNoise, TorchNoise, Variation


@pytest.mark.parametrize("kind", [PictureNoise, TorchNoise])
def test_noise_does_not_depend_on_the_batch(kind):
    seeds = [7, Variation(7, 8, 0.3), 2**63 - 1]
    together = kind(seeds, (3, 4, 5), "cpu", stream=1)
    first, second = together(), together()
    assert first.shape == (3, 3, 4, 5) and first.dtype == torch.float32
    for i, seed in enumerate(seeds):
        alone = kind([seed], (3, 4, 5), "cpu", stream=1)
        assert torch.equal(alone()[0], first[i]) and torch.equal(alone()[0], second[i])
    assert not torch.equal(first, second)


def test_seeds_streams_and_draws_are_independent():
    noises = []
    for seed in (0, 1, 2**40):
        for stream in (0, 1):
            noise = PictureNoise([seed], (2000,), stream=stream)
            noises += [noise()[0], noise()[0]]
    correlation = torch.corrcoef(torch.stack(noises)) - torch.eye(12)
    assert correlation.abs().max() < 0.1
    values = torch.stack(noises)
    assert values.mean().abs() < 0.05 and (values.std() - 1).abs() < 0.05


def test_a_seed_gives_fixed_numbers():
    """Images are regenerated from seeds. Compare up to rounding, since processors round logarithms differently."""
    noise = PictureNoise([7, Variation(7, 8, 0.3)], (1, 2, 2), stream=128)
    wanted = (
        [[-0.23558, 0.349631, 2.638003, 2.886865], [0.164618, -0.07852, 2.605804, 1.58747]],
        [[1.361786, -0.260023, -0.122101, 1.068871], [1.402453, -0.185277, 0.388132, -0.017865]],
    )
    for expected in wanted:
        torch.testing.assert_close(noise().flatten(1), torch.tensor(expected), rtol=0, atol=2e-6)
    old = TorchNoise([7], (1, 2, 2), "cpu", stream=128)().flatten()
    torch.testing.assert_close(old, torch.tensor([0.699396, 0.212804, -0.315351, 0.742868]), rtol=0, atol=2e-6)
