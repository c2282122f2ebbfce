"""A volume in memory: voxels, and the affine that says where each of them lies in the patient."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

SAME_PLACE = 0.1
"""Two grids are the same if no corner is further apart than this part of a voxel: headers round, voxels do not move."""


@dataclass(frozen=True, eq=False)
class Grid:
    """Where voxels lie.

    Attributes:
        shape: number of voxels (X, Y, Z).
        affine: (4, 4) float64, voxel index -> millimetres, RAS+ (NIfTI's convention).
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxels along X, Y, Z."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @property
    def orientation(self) -> str:
        """Where each axis points to, for example ``LAS``: X to the left, Y to the front, Z to the head."""
        from nibabel.orientations import aff2axcodes

        return "".join(code or "?" for code in aff2axcodes(self.affine))

    @property
    def left_handed(self) -> bool:
        """Whether the three axes form a left-handed system (LAS, RPS, ...)."""
        return bool(np.linalg.det(self.affine[:3, :3]) < 0)

    @property
    def tilt_degrees(self) -> float:
        """Largest angle between an axis of the grid and the patient's axis nearest to it; 0 is not oblique."""
        cosines = np.abs(self.affine[:3, :3]) / np.asarray(self.spacing_mm)
        return float(np.degrees(np.arccos(np.clip(cosines.max(axis=0).min(), 0, 1))))


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxels and their place.

    Attributes:
        array: (C, X, Y, Z); label maps have C = 1.
        affine: (4, 4) float64, voxel index -> millimetres, RAS+.
    """

    array: NDArray[Any]
    affine: NDArray[np.float64]

    @property
    def grid(self) -> Grid:
        """The voxels' places without the voxels."""
        x, y, z = self.array.shape[1:]
        return Grid((x, y, z), self.affine)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels (X, Y, Z)."""
        return self.grid.shape

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxels along X, Y, Z."""
        return self.grid.spacing_mm

    @property
    def orientation(self) -> str:
        """Where each axis points to, for example ``LAS``."""
        return self.grid.orientation


def grid_difference(first: Grid, second: Grid) -> str:
    """Say how two grids differ, in words; "" if they hold the same voxels at the same places.

    Affines may differ by rounding: corners must agree within ``SAME_PLACE`` of the smallest voxel edge.
    """
    if first.shape != second.shape:
        return f"shape {times(first.shape)} against {times(second.shape)}"
    apart_mm = corner_distance_mm(first.shape, first.affine, second.affine)
    if apart_mm <= SAME_PLACE * min(*first.spacing_mm, *second.spacing_mm):
        return ""
    if not np.allclose(first.spacing_mm, second.spacing_mm, rtol=1e-2):
        return f"spacing {times(first.spacing_mm)} mm against {times(second.spacing_mm)} mm"
    if first.orientation != second.orientation:
        return f"orientation {first.orientation} against {second.orientation}"
    return f"affines that place the same voxel up to {apart_mm:.3g} mm apart"


def corner_distance_mm(
    shape: Sequence[int], first: NDArray[np.float64], second: NDArray[np.float64]
) -> float:
    """Return how far apart, at most, two affines place a corner of a grid."""
    corners = np.array([(*corner, 1) for corner in product(*((0, n - 1) for n in shape))], dtype=np.float64)
    return float(np.linalg.norm((corners @ (first - second).T)[:, :3], axis=1).max())


def times(numbers: Iterable[float]) -> str:
    """Write numbers as people write sizes: ``111 x 104 x 10``."""
    return " x ".join(f"{n:.6g}" for n in numbers)
