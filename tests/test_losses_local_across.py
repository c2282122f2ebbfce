"""Hand-computed values and laws of the local contrast across volumes."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from handful.losses import local_contrast, local_contrast_across


def embeddings(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def three_volumes() -> Tensor:
    """The released batch: four partitions of each of three volumes, two partners each."""
    return (torch.arange(12)[:, None] + torch.tensor([4, 8])) % 12


def test_all_equal_is_three_halves_of_the_log_of_nine() -> None:
    neighbours = (torch.arange(13)[:, None] + torch.arange(1, 5)) % 13
    z = torch.ones(12, 13, 6, dtype=torch.float64)
    loss = local_contrast_across(z, z, neighbours, three_volumes())
    assert loss.item() == pytest.approx(1.5 * math.log(9), rel=1e-12)


def test_two_images_of_two_regions_by_hand() -> None:
    """Regions x and y of the first image, and x, y or y, x of its partner, at temperature 1."""
    upright = torch.eye(2, dtype=torch.float64)
    neighbours, partners = torch.tensor([[1], [0]]), torch.tensor([[1], [0]])
    # every positive at cosine 1, both negatives at 0
    z = torch.stack((upright, upright))
    alike = math.log(math.e + 2) - 1
    loss = local_contrast_across(z, z, neighbours, partners, temperature=1)
    assert loss.item() == pytest.approx(alike, rel=1e-12)
    # the partner's region at 0, its neighbour at 1, the own neighbour at 0: log(1 + e + 1)
    z = torch.stack((upright, upright.flip(0)))
    crossed = math.log(2 + math.e)
    loss = local_contrast_across(z, z, neighbours, partners, temperature=1)
    assert loss.item() == pytest.approx((alike + crossed) / 2, rel=1e-12)


def test_it_agrees_with_the_slow_obvious_version() -> None:
    first, second = embeddings(5, 6, 4), embeddings(5, 6, 4, seed=1)
    neighbours = torch.tensor([[1, 3], [0, 2], [5, 4], [0, 5], [2, 1], [3, 2]])
    partners = torch.tensor([[2, 4], [3, -1], [4, 0], [-1, 1], [-1, -1]])
    one, two = F.normalize(first.detach(), dim=2), F.normalize(second.detach(), dim=2)
    total = 0.0
    for image in range(5):
        for region in range(6):
            anchor = one[image, region]
            for other in [two[image], *(one[int(j)] for j in partners[image] if j >= 0)]:
                near = math.exp(float(anchor @ other[region]) / 0.1)
                away = [m[int(n)] for n in neighbours[region] for m in (one[image], other)]
                assert len(away) == 4
                far = sum(math.exp(float(anchor @ n) / 0.1) for n in away)
                total -= math.log(near / (near + far))
    loss = local_contrast_across(first, second, neighbours, partners)
    assert loss.item() == pytest.approx(total / (2 * 5 * 6), rel=1e-9)
    assert local_contrast_across(first * 3, second, neighbours, partners).item() == pytest.approx(
        loss.item(), rel=1e-9
    )
    small = embeddings(3, 3, 2)
    some = torch.tensor([[1], [-1], [0]])
    ring = torch.tensor([[1], [2], [0]])
    assert torch.autograd.gradcheck(
        lambda a, b: local_contrast_across(a, b, ring, some), (small, embeddings(3, 3, 2, seed=1))
    )


def test_without_partners_it_is_one_direction_of_the_local_contrast() -> None:
    first, second = embeddings(3, 6, 4), embeddings(3, 6, 4, seed=1)
    neighbours = (torch.arange(6)[:, None] + torch.arange(1, 4)) % 6
    none = torch.full((3, 2), -1)
    there = local_contrast_across(first, second, neighbours, none)
    back = local_contrast_across(second, first, neighbours, none)
    both = local_contrast(first, second, neighbours)
    assert (there + back).item() == pytest.approx(both.item(), rel=1e-12)
    assert local_contrast_across(first, second, neighbours, none[:, :0]).item() == pytest.approx(there.item())


def test_a_partner_far_away_costs_more_and_gets_a_gradient() -> None:
    first, second = embeddings(2, 6, 4), embeddings(2, 6, 4, seed=1)
    neighbours = (torch.arange(6)[:, None] + 1) % 6
    partners = torch.tensor([[1], [-1]])
    near = first.detach().clone()
    near[1] = near[0]
    assert local_contrast_across(near, second, neighbours, partners) < local_contrast_across(
        first, second, neighbours, partners
    )
    alone = torch.autograd.grad(local_contrast_across(first, second, neighbours, partners * 0 - 1), first)[0]
    both = torch.autograd.grad(local_contrast_across(first, second, neighbours, partners), first)[0]
    # the first image's own pair is as before in both; the second one's embeddings now matter to the first
    assert not torch.allclose(alone[1], both[1])


def test_nothing_to_compare_is_zero_with_a_graph() -> None:
    z = embeddings(2, 3, 4)
    loss = local_contrast_across(z, z, torch.zeros(3, 0, dtype=torch.int64), torch.tensor([[1], [0]]))
    loss.backward()
    assert loss.item() == 0
    assert z.grad is not None
    assert not z.grad.any()


def test_bad_input_is_said() -> None:
    z, ring = embeddings(3, 4, 2), torch.tensor([[1], [2], [3], [0]])
    good = torch.tensor([[1], [2], [0]])
    with pytest.raises(ValueError, match=r"neighbours must be \(R, M\) with R = 4"):
        local_contrast_across(z, z, ring[:3], good)
    with pytest.raises(ValueError, match=r"partners must be \(B, P\) with B = 3"):
        local_contrast_across(z, z, ring, good[:2])
    with pytest.raises(ValueError, match=r"other images of the batch, 0 to 2.*image 1 has 1"):
        local_contrast_across(z, z, ring, torch.tensor([[1], [1], [0]]))
    with pytest.raises(ValueError, match="image 0 has 3"):
        local_contrast_across(z, z, ring, torch.tensor([[3], [2], [0]]))
    with pytest.raises(ValueError, match="same shape"):
        local_contrast_across(z, z[:, :, :1], ring, good)
    with pytest.raises(ValueError, match="temperature must be positive"):
        local_contrast_across(z, z, ring, good, temperature=0)
