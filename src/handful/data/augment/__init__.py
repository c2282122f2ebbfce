"""Augmentation: parameters sampled once as data, then applied to a whole batch on the training device.

``settings`` says how often and how far; ``geometry`` moves voxels in one resampling; ``intensity`` changes their
values; ``alignment`` relates views to their source and to each other. Settings need no torch, so nothing is
imported here.

Example:
    >>> import torch
    >>> from handful.data.augment.geometry import apply_geometry, sample_geometry
    >>> from handful.data.augment.intensity import apply_intensity, sample_intensity
    >>> from handful.data.augment.settings import AugmentSettings
    >>> settings, generator = AugmentSettings(), torch.Generator().manual_seed(0)
    >>> patch, spacing_mm = (40, 56), (1.0, 1.0)
    >>> geometry = sample_geometry(
    ...     settings, batch=2, patch=patch, spacing_mm=spacing_mm, mirror=(False, True), generator=generator
    ... )
    >>> intensity = sample_intensity(settings, batch=2, channels=1, generator=generator, spacing_mm=spacing_mm)
    >>> image, label = torch.randn(2, 1, 56, 78), torch.zeros(2, 56, 78, dtype=torch.int64)
    >>> view, target = apply_geometry(geometry, image, label, patch=patch, classes=3)
    >>> apply_intensity(intensity, view).shape, target.shape
    (torch.Size([2, 1, 40, 56]), torch.Size([2, 40, 56]))
"""
