"""Thin-plate and diffeomorphic warps against their published numbers, and their laws."""

import pytest
import torch

from golden_values import golden
from handful.data.augment.diffeomorphic import diffeomorphic_grid, sample_velocity, warp
from handful.data.augment.thin_plate import control_points, sample_thin_plate, thin_plate_grid


def identity(height: int, width: int) -> torch.Tensor:
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    return torch.stack((x, y), -1)[None]


def test_diffeomorphic_warp_is_the_published_one() -> None:
    g = golden("mona_advmorph")
    grid = diffeomorphic_grid(g["velocity"], (32, 32), strength=float(g["epsilon"]), form="official")
    torch.testing.assert_close(grid.movedim(-1, 1), g["deformation"], atol=1e-5, rtol=0)
    torch.testing.assert_close(grid - identity(32, 32), g["displacement"], atol=1e-5, rtol=0)
    torch.testing.assert_close(warp(g["image"], grid), g["warped"], atol=1e-5, rtol=0)
    repaired = diffeomorphic_grid(g["velocity"], (32, 32), strength=float(g["epsilon"]))
    assert 1e-5 < (repaired - grid).abs().max() < 2e-3, "one step of 256 apart"


def test_diffeomorphic_warp_does_not_fold_and_zero_velocity_is_the_identity() -> None:
    velocity = sample_velocity(3, (6, 5), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(velocity.flatten(1).norm(dim=1), torch.ones(3))
    grid = diffeomorphic_grid(velocity, (40, 30))
    torch.testing.assert_close(
        diffeomorphic_grid(velocity * 0, (40, 30)), identity(40, 30).expand(3, -1, -1, -1), atol=5e-5, rtol=0
    )
    inner = grid[:, 2:-2, 2:-2]
    along_x, along_y = inner[:, :-1].diff(dim=2), inner[:, :, :-1].diff(dim=1)
    area = along_x[..., 0] * along_y[..., 1] - along_x[..., 1] * along_y[..., 0]
    assert (area > 0).all()
    assert (grid - identity(40, 30)).abs().max() > 0.01
    with pytest.raises(ValueError, match="a velocity must be"):
        diffeomorphic_grid(velocity[:, :1], (4, 6))


def test_thin_plate_grid_is_the_published_one() -> None:
    g = golden("mona_eqv")
    assert torch.equal(control_points(), g["target_control_points"])
    grid = thin_plate_grid(g["source_control_points"], (16, 16))
    torch.testing.assert_close(grid, g["grid"], atol=1e-5, rtol=0)
    torch.testing.assert_close(warp(g["image"], grid), g["image_tps"], atol=5e-5, rtol=0)


def test_thin_plate_passes_through_its_points_and_keeps_lines() -> None:
    still = control_points().expand(2, -1, -1)
    torch.testing.assert_close(
        thin_plate_grid(still, (9, 13)), identity(9, 13).expand(2, -1, -1, -1), atol=4e-6, rtol=0
    )
    source = sample_thin_plate(3, generator=torch.Generator().manual_seed(0), jitter=0.1)
    grid = thin_plate_grid(source, (9, 13))  # the control points are every 2nd row and 3rd column
    torch.testing.assert_close(grid[:, ::2, ::3].transpose(1, 2).flatten(1, 2), source, atol=1e-5, rtol=1e-5)
    turned = torch.einsum("pd,de->pe", control_points(), torch.tensor([[0.6, 0.3], [-0.2, 0.9]])) + 0.1
    straight = identity(9, 13) @ torch.tensor([[0.6, 0.3], [-0.2, 0.9]]) + 0.1
    torch.testing.assert_close(thin_plate_grid(turned[None], (9, 13)), straight, atol=1e-5, rtol=0)


def test_thin_plate_draws_stay_in_their_range() -> None:
    generator = torch.Generator().manual_seed(0)
    mirrored = 0
    for _ in range(20):
        points = sample_thin_plate(4, generator=generator, jitter=0.0)
        centre = points.mean(1)
        assert centre.abs().max() <= 0.1 + 1e-6
        size = (points - centre[:, None]).norm(dim=2).amax(1) / 2**0.5
        assert size.min() >= 1 / 1.2 - 1e-5
        assert size.max() <= 1 / 0.8 + 1e-5
        edge_x, edge_y = points[:, 20] - points[:, 0], points[:, 4] - points[:, 0]
        turn = edge_x[:, 0] * edge_y[:, 1] - edge_x[:, 1] * edge_y[:, 0]
        assert (turn > 0).all() or (turn < 0).all(), "the whole batch is mirrored, or none of it"
        mirrored += bool((turn < 0).all())
    assert 3 < mirrored < 17


def test_a_warped_mask_stays_a_mask() -> None:
    generator = torch.Generator().manual_seed(0)
    mask = (torch.rand(4, 1, 20, 30, generator=generator) < 0.5).float()
    for grid in (
        thin_plate_grid(sample_thin_plate(4, generator=generator), (20, 30)),
        diffeomorphic_grid(sample_velocity(4, (5, 6), generator=generator), (20, 30)),
    ):
        warped = warp(mask, grid)
        assert warped.min() >= 0
        assert warped.max() <= 1 + 1e-6


def test_in_3d_every_slice_is_warped_like_an_image() -> None:
    generator = torch.Generator().manual_seed(0)
    volume = torch.randn(2, 3, 4, 9, 7, generator=generator)
    grid = thin_plate_grid(sample_thin_plate(2, generator=generator), (9, 7))
    for mode in ("bilinear", "nearest"):
        slices = torch.stack([warp(volume[:, :, k], grid, mode=mode) for k in range(4)], dim=2)
        assert torch.equal(warp(volume, grid, mode=mode), slices)
