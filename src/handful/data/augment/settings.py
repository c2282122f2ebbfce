"""How often and how far a batch is augmented: nnU-Net's ranges, drawn more often.

nnU-Net's probabilities suit many labels and a quarter of a million steps. With two labels and a few hundred steps the
network learns them by heart, so here most samples are moved and many are recoloured; the choice was made by leaving
one label out of two (docs/benchmarks.md).

References:
    Isensee et al., 2021, nnU-Net, supplementary note 2. https://doi.org/10.1038/s41592-020-01008-z
    Its current values: https://github.com/MIC-DKFZ/nnUNet (``nnUNetTrainer.get_training_transforms``).
"""

from dataclasses import dataclass, fields
from typing import Literal

from handful.errors import UsageError

Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class AugmentSettings:
    """Probabilities and ranges.

    Factors (scale, gain, contrast, gamma) are drawn uniformly in their logarithm, so that halving and doubling are
    equally likely; everything else uniformly. All probabilities 0 means no augmentation.

    Attributes:
        p_rotation, p_scale, p_shift, p_elastic: how often a sample is moved so.
        p_noise, p_blur, p_low_resolution, p_brightness, p_contrast, p_gamma: how often a channel of a sample is
            changed so.
        rotation_degrees: largest angle in each plane, turned in millimetres.
        scale: apparent size of the object; 1.4 makes it larger.
        shift: largest translation, as a fraction of the patch.
        elastic_knots: control distances along the longest axis of the patch; more is a finer bend.
        elastic_strength: largest displacement of a control point, as a fraction of the control distance.
        p_mirror: how often, for each axis the plan allows.
        anisotropy: an axis whose voxels are so many times as long as the shortest is coarse: it is mirrored where
            allowed but never rotated, scaled, shifted, bent, blurred or coarsened, because its few slices carry no
            values in between.
        source_factor: no source crop is larger than this times the patch; what a rare extreme sample reads beyond
            it is outside.
        padding: what the image shows outside the source: its nearest voxel, its reflection, or 0.
        label: ``linear`` interpolates each class and takes the largest (smoother borders), ``nearest`` copies;
            ``auto`` is linear for few classes.
        gain, offset: image * gain + offset (brightness).
        contrast: stretch about the mean, clipped to the old range.
        gamma: exponent on the range mapped to [0, 1].
        gamma_keeps_moments: whether mean and deviation are restored after it.
        gamma_inverted: how often the range is turned upside down around the exponent.
        noise: standard deviation in units of the normalised image.
        blur: standard deviation in voxels.
        low_resolution: fraction of the voxels kept along an axis before interpolating back.
    """

    p_rotation: float = 0.8  # nnU-Net: 0.2
    rotation_degrees: float = 30.0  # nnU-Net, isotropic 3D; its +-180 of 2D is not natural for oriented scans
    p_scale: float = 0.8  # nnU-Net: 0.2
    scale: Range = (0.7, 1.4)  # nnU-Net; one factor for all axes
    p_shift: float = 0.5  # ours: nnU-Net's shift is its random crop
    shift: float = 0.05
    p_elastic: float = 0.8  # nnU-Net version 1: 0.2; off in version 2
    elastic_knots: int = 4
    elastic_strength: Range = (0.0, 0.25)  # below 0.40 a cubic B-spline cannot fold: Choi and Lee, 2000
    p_mirror: float = 0.5  # nnU-Net
    anisotropy: float = 3.0  # nnU-Net's ANISO_THRESHOLD
    source_factor: float = 1.4  # 1/0.7 = 1.43: the smallest scale, nearly all of it
    padding: Literal["border", "reflection", "zeros"] = "border"
    label: Literal["auto", "linear", "nearest"] = "auto"

    p_noise: float = 0.3  # nnU-Net: 0.1
    noise: Range = (0.0, 0.1)  # nnU-Net calls it a variance and uses it as a deviation
    p_blur: float = 0.3  # nnU-Net: 0.2 for a sample, half of its channels
    blur: Range = (0.5, 1.0)  # nnU-Net
    p_low_resolution: float = 0.4  # nnU-Net: 0.25 for a sample, half of its channels
    low_resolution: Range = (0.5, 1.0)  # nnU-Net
    p_brightness: float = 0.5  # nnU-Net: 0.15
    gain: Range = (0.75, 1.25)  # nnU-Net
    offset: Range = (-0.2, 0.2)  # ours: a factor alone leaves a z-scored image's mean at 0
    p_contrast: float = 0.4  # nnU-Net: 0.15
    contrast: Range = (0.75, 1.25)  # nnU-Net
    p_gamma: float = 0.5  # nnU-Net: 0.3 upright and 0.1 inverted
    gamma: Range = (0.7, 1.5)  # nnU-Net
    gamma_inverted: float = 0.25
    gamma_keeps_moments: bool = True  # nnU-Net

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.startswith("p_") or field.name == "gamma_inverted":
                _require(0 <= value <= 1, field.name, value, "a probability between 0 and 1")
            elif isinstance(value, (tuple, list)):
                _require(len(value) == 2 and value[0] <= value[1], field.name, value, "a range (low, high)")
        for name in ("scale", "gain", "contrast", "gamma", "low_resolution"):
            value = getattr(self, name)
            _require(value[0] > 0, name, value, "a range above 0")
        for name in ("noise", "blur", "elastic_strength"):
            value = getattr(self, name)
            _require(value[0] >= 0, name, value, "a range from 0 upwards")
        _require(self.low_resolution[1] <= 1, "low_resolution", self.low_resolution, "a range within (0, 1]")
        _require(
            self.elastic_strength[1] < 0.4,
            "elastic_strength",
            self.elastic_strength,
            "below 0.4 (no folding)",
        )
        _require(0 <= self.rotation_degrees <= 180, "rotation_degrees", self.rotation_degrees, "0 to 180")
        _require(self.shift >= 0, "shift", self.shift, "0 or more")
        _require(self.elastic_knots >= 1, "elastic_knots", self.elastic_knots, "1 or more")
        _require(self.anisotropy >= 1, "anisotropy", self.anisotropy, "1 or more")
        _require(self.source_factor >= 1, "source_factor", self.source_factor, "1 or more")


def fine_axes(settings: AugmentSettings, spacing_mm: tuple[float, ...]) -> tuple[bool, ...]:
    """Say of each axis whether its voxels are short enough to be resampled with the others (not coarse)."""
    return tuple(length <= settings.anisotropy * min(spacing_mm) for length in spacing_mm)


def _require(true: bool, name: str, found: object, allowed: str) -> None:
    if not true:
        raise UsageError(f"augmentation setting '{name}' is {found!r}; it must be {allowed}.")
