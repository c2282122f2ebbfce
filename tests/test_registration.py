"""Laws of registration: it finds what was done, each pair for itself, at any brightness, and counts no padding."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from handful.data.registration import Deformation, local_correlation, register, warp, working_size

SIZE = (14, 22, 18)


def blobs(*, seed: int = 0, size: tuple[int, int, int] = SIZE) -> Tensor:
    """A smooth volume (1, 1, D, H, W) with structure everywhere."""
    noise = torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(seed))
    for _ in range(3):
        noise = F.avg_pool3d(noise, 3, stride=1, padding=1, count_include_pad=False)
    return noise / noise.std()


def moved(volume: Tensor, *, shift: tuple[float, float, float]) -> Tensor:
    """Shift by voxels along W, H, D (grid order)."""
    affine = torch.eye(3, 4)[None].clone()
    affine[0, :, 3] = torch.tensor([2 * s / side for s, side in zip(shift, reversed(volume.shape[2:]))])
    return warp(volume, Deformation(affine, torch.zeros(1, 3, 2, 2, 2)))


def test_nothing_moves_without_a_deformation() -> None:
    volume = blobs()
    still = Deformation(torch.eye(3, 4)[None], torch.zeros(1, 3, 3, 4, 5))
    torch.testing.assert_close(warp(volume, still), volume)


def test_a_whole_voxel_is_a_whole_voxel() -> None:
    volume = blobs()
    torch.testing.assert_close(moved(volume, shift=(2, 0, 0))[..., :-2], volume[..., 2:], atol=1e-4, rtol=0)
    torch.testing.assert_close(
        moved(volume, shift=(0, 0, -1))[:, :, 1:], volume[:, :, :-1], atol=1e-4, rtol=0
    )


def test_a_shift_is_found() -> None:
    volume = blobs()
    other = moved(volume, shift=(2.0, -1.5, 1.0))
    found = warp(volume, register(volume, other))
    inner = (slice(None), slice(None), slice(3, -3), slice(3, -3), slice(3, -3))
    before = (volume - other)[inner].square().mean()
    assert (found - other)[inner].square().mean() < 0.1 * before


def test_a_bend_is_found_that_no_affine_map_makes() -> None:
    volume = blobs()
    bend = torch.zeros(1, 3, 3, 3, 3)
    bend[0, 1, 1, 1, 1] = 0.3  # the middle alone moves, along H
    other = warp(volume, Deformation(torch.eye(3, 4)[None], bend))
    found = register(volume, other)
    straight = found._replace(displacement=torch.zeros_like(found.displacement))
    error, without = ((warp(volume, each) - other).square().mean() for each in (found, straight))
    assert error < 0.3 * (volume - other).square().mean()
    assert error < without


def test_brightness_and_contrast_change_nothing() -> None:
    volume, other = blobs(), blobs(seed=1)
    plain = local_correlation(volume, other, window=5)
    torch.testing.assert_close(local_correlation(3 * volume + 7, other, window=5), plain, atol=5e-3, rtol=0)
    assert 0.9 < float(local_correlation(volume, -2 * volume, window=5)) <= 1
    assert float(local_correlation(volume, torch.ones_like(volume), window=5)) < 1e-3


def test_each_pair_is_found_for_itself() -> None:
    moving, fixed = torch.cat([blobs(), blobs(seed=2)]), torch.cat([blobs(seed=1), blobs(seed=3)])
    together = register(moving, fixed)
    for index in range(2):
        alone = register(moving[index : index + 1], fixed[index : index + 1])
        torch.testing.assert_close(alone.affine[0], together.affine[index], atol=1e-3, rtol=0)
        torch.testing.assert_close(alone.displacement[0], together.displacement[index], atol=2e-2, rtol=0)


def test_what_lies_outside_does_not_count() -> None:
    volume, other = blobs(), moved(blobs(), shift=(1, 1, 0))
    inside = torch.zeros(1, 1, *SIZE)
    inside[:, :, :, :11] = 1
    weighted = local_correlation(volume, other, window=3, weight=inside)
    other[:, :, :, 13:] = 5 * blobs(seed=9)[:, :, :, 13:]  # beyond every window that counts
    torch.testing.assert_close(local_correlation(volume, other, window=3, weight=inside), weighted)


@pytest.mark.parametrize(
    ("size", "spacing", "expected"),
    [
        ((10, 216, 256), (10.0, 1.4, 1.4), (10, 27, 32)),
        ((40, 56, 40), (1, 1, 1), (20, 28, 20)),
        ((8, 9, 10), (1, 1, 1), (8, 9, 10)),
        ((1, 400, 300), (1, 1, 1), (1, 100, 150)),
    ],
)
def test_fine_axes_are_thinned_first(
    size: tuple[int, ...], spacing: tuple[float, ...], expected: tuple[int, ...]
) -> None:
    assert working_size(size, spacing) == expected


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="of one shape"):
        register(blobs(), blobs(size=(14, 22, 16)))
