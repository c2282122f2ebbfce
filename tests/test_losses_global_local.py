"""Hand-computed values and laws of the original global and local contrast."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from handful.losses.contrastive import nt_xent
from handful.losses.global_local import (
    global_contrast,
    local_contrast,
    nearest_regions,
    region_corners,
    regions,
)


def embeddings(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def slow_global(z: Tensor, partition: list[int], partner: list[int] | None) -> float:
    batch, views, _ = z.shape
    unit = F.normalize(z.detach(), dim=2)

    def term(a: tuple[int, int], b: tuple[int, int]) -> float:
        near = math.exp(float(unit[a] @ unit[b]) / 0.1)
        far = sum(
            math.exp(float(unit[a] @ unit[i, v]) / 0.1)
            for i in range(batch)
            for v in range(views)
            if partition[i] != partition[a[0]]
        )
        return -math.log(near / (near + far))

    def within(i: int) -> list[tuple[tuple[int, int], tuple[int, int]]]:
        return [((i, v), (i, w)) for v in range(views) for w in range(v)]

    pairs = []
    for i in range(batch):
        pairs += within(i) if partner is None else []
        if partner is not None:
            pairs += within(i)
            if partner[i] >= 0:
                pairs += within(partner[i]) + [((i, v), (partner[i], v)) for v in range(views)]
    return sum(term(a, b) + term(b, a) for a, b in pairs) / (batch * views)


def test_one_pair_by_hand() -> None:
    """A pair at cosine 1 and k negatives at cosine 0: log(e + k) - 1 at temperature 1."""
    z = torch.eye(4, dtype=torch.float64)[:, None].expand(4, 2, 4)
    loss = global_contrast(z, torch.arange(4), temperature=1.0)
    assert loss.item() == pytest.approx(math.log(math.e + 6) - 1, rel=1e-9)


def test_collapsed_global_counts_the_negatives() -> None:
    z = torch.ones(4, 3, 5)  # 12 samples of one volume, 9 of them negatives; each is in 2 pairs
    assert global_contrast(z, torch.arange(4)).item() == pytest.approx(2 * math.log(10), rel=1e-6)
    z = torch.ones(8, 3, 5)  # two volumes: 18 negatives
    assert global_contrast(z, torch.arange(8) % 4).item() == pytest.approx(2 * math.log(19), rel=1e-6)


def test_random_global_is_simclr() -> None:
    z = embeddings(5, 2, 6)
    simclr = nt_xent(z[:, 0], z[:, 1], temperature=0.1)
    assert global_contrast(z).item() == pytest.approx(simclr.item(), rel=1e-6)


@pytest.mark.parametrize("partner", [None, [3, 4, 5, 0, 1, 2], [3, -1, 5, 0, 4, -1]])
def test_global_agrees_with_the_slow_obvious_version(partner: list[int] | None) -> None:
    partition = [0, 1, 2, 0, 1, 2]
    for views in (2, 3):
        z = embeddings(6, views, 4)
        index = None if partner is None else torch.tensor(partner)
        loss = global_contrast(z, torch.tensor(partition), partner=index)
        assert loss.item() == pytest.approx(slow_global(z, partition, partner), rel=1e-9)
        loss.backward()
        assert z.grad is not None
        assert torch.isfinite(z.grad).all()
        assert (z.grad != 0).flatten(1).any(1).all()


def test_one_partition_has_no_negatives() -> None:
    z = embeddings(3, 2, 4)
    for loss in (global_contrast(z, torch.zeros(3)), global_contrast(z[:, :1]), global_contrast(z[:0])):
        z.grad = None
        loss.backward()
        assert loss.item() == 0
        assert z.grad is not None
        assert (z.grad == 0).all()


def test_collapsed_local_is_the_log_of_eleven() -> None:
    corners = region_corners((48, 40))
    neighbours = nearest_regions(corners)
    z = torch.ones(2, 13, 6, dtype=torch.float64)
    assert local_contrast(z, z, neighbours).item() == pytest.approx(math.log(11), rel=1e-9)


def test_local_agrees_with_the_slow_obvious_version() -> None:
    first, second = embeddings(2, 13, 5), embeddings(2, 13, 5, seed=1)
    neighbours = nearest_regions(region_corners((20, 30)))
    maps = F.normalize(torch.stack((first, second)).detach(), dim=3)
    terms = []
    for image in range(2):
        for region in range(13):
            for v in (0, 1):
                anchor = maps[v, image, region]
                near = math.exp(float(anchor @ maps[1 - v, image, region]) / 0.1)
                away = [maps[w, image, int(n)] for n in neighbours[region] for w in (0, 1)]
                assert len(away) == 10
                far = sum(math.exp(float(anchor @ other) / 0.1) for other in away)
                terms.append(-math.log(near / (near + far)))
    loss = local_contrast(first, second, neighbours)
    assert loss.item() == pytest.approx(sum(terms) / len(terms), rel=1e-9)
    assert local_contrast(second, first, neighbours).item() == pytest.approx(loss.item(), rel=1e-12)
    assert local_contrast(first * 3, second, neighbours).item() == pytest.approx(loss.item(), rel=1e-9)
    assert torch.autograd.gradcheck(lambda z: local_contrast(z, second, neighbours), first)
    nothing = local_contrast(first, second, neighbours[:, :0])
    nothing.backward()
    assert nothing.item() == 0


@pytest.mark.parametrize("size", [(48, 40), (9, 13)])
def test_regions_lie_inside_and_neighbours_are_others(size: tuple[int, int]) -> None:
    corners = region_corners(size)
    assert corners.shape == (13, 2)
    assert len({tuple(corner) for corner in corners.tolist()}) == 13
    assert corners.min() == 0
    assert (corners.amax(0) + 3 <= torch.tensor(size)).all()
    neighbours = nearest_regions(corners)
    assert neighbours.shape == (13, 5)
    assert all(len(set(row)) == 5 and k not in row for k, row in enumerate(neighbours.tolist()))
    maps = torch.randn(2, 4, *size)
    cut = regions(maps, corners)
    assert cut.shape == (2, 13, 36)
    y, x = corners[5].tolist()
    assert torch.equal(cut[1, 5], maps[1, :, y : y + 3, x : x + 3].flatten())


def test_bad_input_is_said() -> None:
    z = embeddings(4, 2, 3)
    with pytest.raises(ValueError, match="same partition"):
        global_contrast(z, torch.tensor([0, 1, 0, 1]), partner=torch.tensor([1, 0, 3, 2]))
    with pytest.raises(ValueError, match="give the partition too"):
        global_contrast(z, partner=torch.tensor([1, 0, 3, 2]))
    with pytest.raises(ValueError, match=r"partition must be \(4,\)"):
        global_contrast(z, torch.zeros(3))
    with pytest.raises(ValueError, match="temperature must be positive"):
        global_contrast(z, temperature=0)
    with pytest.raises(ValueError, match="neighbours must be"):
        local_contrast(z, z, torch.zeros(5, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"related must be \(4, 4\)"):
        global_contrast(z, related=torch.zeros(3, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="too small for regions of 3"):
        region_corners((2, 30))
    with pytest.raises(ValueError, match="room for 1 regions"):
        region_corners((4, 4))


def test_regions_of_volumes_and_of_short_axes() -> None:
    corners = region_corners((12, 20, 16))
    assert corners.shape == (35, 3)
    assert corners[-1].tolist() == [6, 12, 9]  # three quarters of 8, 16 and 12
    flat = region_corners((3, 20, 16))  # a map of three slices: as in 2D
    assert flat[:, 0].tolist() == [0] * 13
    assert torch.equal(flat[:, 1:], region_corners((20, 16)))
    short = region_corners((8, 6))
    assert len({tuple(corner) for corner in short.tolist()}) == len(short) == 13
    assert regions(torch.zeros(1, 2, 12, 20, 16), corners).shape == (1, 35, 2 * 27)


def test_related_items_are_no_negatives() -> None:
    """Leaving out the items of one other partition is the same as not having them."""
    z, partition = embeddings(4, 2, 3), torch.tensor([0, 1, 2, 3])
    related = torch.zeros(4, 4, dtype=torch.bool)
    related[:3, 3] = related[3, :3] = True
    fewer = (
        global_contrast(z[:3], partition[:3]) * 6
    )  # sums: the fourth item has no negatives left and adds 0
    assert torch.allclose(global_contrast(z, partition, related=related) * 8, fewer)
