"""Noise that is cut off: its bounds, its size, and that it repeats."""

import math

import torch

from handful.data.augment.noise import with_noise


def test_it_stays_within_two_deviations_and_has_the_size_of_such_noise() -> None:
    image = torch.full((2, 1, 100, 170), 3.0)
    noise = with_noise(image, 0.1, generator=torch.Generator().manual_seed(0)) - image
    assert noise.abs().max() <= 0.2 + 1e-6
    # E[min(z^2, 4)] = 1 - 2 P(z > 2) - 4 phi(2) + 8 P(z > 2), with z standard normal
    tail, density = 0.5 * math.erfc(math.sqrt(2)), math.exp(-2) / math.sqrt(2 * math.pi)
    expected = 0.1 * math.sqrt(1 + 6 * tail - 4 * density)
    assert abs(noise.std().item() / expected - 1) < 0.02
    assert abs(noise.mean().item()) < 0.003


def test_it_is_a_function_of_the_generator_and_none_is_none() -> None:
    image = torch.randn(1, 2, 5, 6, generator=torch.Generator().manual_seed(0))
    first, again, other = (
        with_noise(image, 0.3, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(with_noise(image, 0.0, generator=torch.Generator().manual_seed(1)), image)
