"""What augmentation costs, transform by transform, beside a per-sample MONAI pipeline; and what it looks like.

    python benchmarks/augmentation.py                          # the tables
    python benchmarks/augmentation.py --sheet out.png --volume image.nii.gz [--slice-axis 2]

Each of several seeds (one batch each) is timed a few times and its fastest counts, so that other programs on the
machine disturb little; the table shows the mean over the seeds.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from handful.data.augment.geometry import apply_geometry, sample_geometry, source_margin
from handful.data.augment.intensity import apply_intensity, sample_intensity
from handful.data.augment.settings import AugmentSettings

PROBABILITIES = [field.name for field in fields(AugmentSettings) if field.name.startswith("p_")]
NEVER = AugmentSettings(**dict.fromkeys(PROBABILITIES, 0.0))
SHAPES = {"3D, batch 2, 40 x 56 x 40": (2, (40, 56, 40)), "2D, batch 8, 144 x 144": (8, (144, 144))}


def augment(
    settings: AugmentSettings,
    image: Tensor,
    label: Tensor,
    patch: tuple[int, ...],
    generator: torch.Generator,
    *,
    classes: int = 3,
    mode: Any = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Sample and apply everything, as the training loop does."""
    batch, dims = len(image), len(patch)
    geometry = sample_geometry(
        settings,
        batch=batch,
        patch=patch,
        spacing_mm=(1.0,) * dims,
        mirror=(True,) * dims,
        generator=generator,
    )
    intensity = sample_intensity(settings, batch=batch, channels=image.shape[1], generator=generator)
    view, target = apply_geometry(geometry, image, label, patch=patch, classes=classes, mode=mode)
    return apply_intensity(intensity, view), target


def milliseconds(call: Callable[[int], object], *, seeds: int, device: torch.device) -> float:
    """Time ``call(seed)``: the mean over seeds of the fastest of four."""
    best = [float("inf")] * seeds
    for _ in range(4):
        for seed in range(seeds):
            start = time.perf_counter()
            call(seed)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            best[seed] = min(best[seed], 1e3 * (time.perf_counter() - start))
    return mean(best)


def table(
    title: str, batch: int, patch: tuple[int, ...], *, device: torch.device, seeds: int, monai: bool
) -> None:
    """Print the cost of each transform at probability 1, of all, and of the defaults."""
    settings = AugmentSettings()
    source = tuple(a + b for a, b in zip(patch, source_margin(settings, patch, (1.0,) * len(patch))))
    image = torch.randn(batch, 1, *source, device=device)
    label = torch.randint(0, 3, (batch, *source), device=device)

    def run(chosen: AugmentSettings, **given: Any) -> float:
        def once(seed: int) -> object:
            return augment(chosen, image, label, patch, torch.Generator().manual_seed(seed), **given)

        return milliseconds(once, seeds=seeds, device=device)

    def line(what: str, cost: float, remark: str = "") -> None:
        print(f"{what:44s}{cost:10.2f}{remark}")

    print(
        f"\n{title} from {' x '.join(map(str, source))}, {device}, {torch.get_num_threads()} threads, ms a batch"
    )
    nothing = run(NEVER)
    line("crop, copy and sampling of parameters", nothing)
    for name in PROBABILITIES:
        cost = run(replace(NEVER, **{name: 1.0})) - nothing
        line(f"+ {name[2:].replace('_', ' ')}, every sample", cost)
    for classes in (3, 5, 15):
        for mode in ("linear", "nearest"):
            cost = run(replace(NEVER, p_rotation=1.0), classes=classes, mode=mode)
            line(f"rotation, {mode} label of {classes} classes", cost)
    line("everything, every sample", run(AugmentSettings(**dict.fromkeys(PROBABILITIES, 1.0))))
    ours = run(settings)
    line("defaults", ours)
    if monai:
        pipeline = monai_pipeline(settings, patch)
        items = [
            {"image": image[i].cpu(), "label": label[i].unsqueeze(0).float().cpu()} for i in range(batch)
        ]

        def theirs(seed: int) -> object:
            pipeline.set_random_state(seed)
            done = [pipeline(dict(item)) for item in items]
            return torch.stack([item["image"] for item in done]), torch.stack(
                [item["label"] for item in done]
            )

        cost = milliseconds(theirs, seeds=seeds, device=torch.device("cpu"))
        line("MONAI, per sample on the CPU", cost, f"   ratio {cost / ours:.1f}")


def monai_pipeline(settings: AugmentSettings, patch: tuple[int, ...], *, labelled: bool = True) -> Any:
    """Compose MONAI's dictionary transforms with the same content and probabilities; ``labelled`` moves labels too."""
    from monai import transforms as m

    image = ["image"]
    keys = [*image, "label"] if labelled else image
    dims = len(patch)
    angle = settings.rotation_degrees * 3.14159 / 180
    moving = 1 - (1 - settings.p_rotation) * (1 - settings.p_scale) * (1 - settings.p_shift) * (
        1 - settings.p_elastic
    )
    common = {
        "keys": keys,
        "prob": moving,
        "rotate_range": [angle] * (1 if dims == 2 else 3),
        "scale_range": [(1 / settings.scale[1] - 1, 1 / settings.scale[0] - 1)] * dims,
        "translate_range": [settings.shift * size for size in patch],
        "spatial_size": patch,
        "mode": ["bilinear", "nearest"][: len(keys)],
        "padding_mode": "border",
    }
    if dims == 2:
        warp = m.Rand2DElasticd(spacing=(patch[0] / 4, patch[1] / 4), magnitude_range=(0, 4), **common)
    else:
        warp = m.Rand3DElasticd(sigma_range=(5, 7), magnitude_range=(50, 150), **common)
    return m.Compose(
        [
            warp,
            *[m.RandFlipd(keys, prob=settings.p_mirror, spatial_axis=axis) for axis in range(dims)],
            m.RandGaussianSmoothd(
                image,
                prob=settings.p_blur,
                sigma_x=settings.blur,
                sigma_y=settings.blur,
                sigma_z=settings.blur,
            ),
            m.RandSimulateLowResolutiond(
                image,
                prob=settings.p_low_resolution,
                zoom_range=settings.low_resolution,
                upsample_mode="bilinear" if dims == 2 else "trilinear",
            ),
            m.RandGaussianNoised(image, prob=settings.p_noise, std=settings.noise[1]),
            m.RandScaleIntensityd(image, factors=0.25, prob=settings.p_brightness),
            m.RandScaleIntensityFixedMeand(
                image, factors=0.25, preserve_range=True, prob=settings.p_contrast
            ),
            m.RandAdjustContrastd(image, prob=settings.p_gamma, gamma=settings.gamma, retain_stats=True),
        ]
    )


def sheet(path: Path, volume: Path | None, *, slice_axis: int, settings: AugmentSettings, flat: bool) -> None:
    """Save twelve augmented middle slices (the first is untouched) of a volume, or of blobs if there is none."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    if volume is None:
        grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, s) for s in (48, 64, 52)], indexing="ij"))
        array = sum(np.exp(-((grid - c) ** 2).sum(0) / 0.1) for c in np.array([[[[0.2]]], [[[-0.4]]]]))
        spacing: tuple[float, ...] = (1.0, 1.0, 1.0)
    else:
        import nibabel

        file = nibabel.load(volume)
        array = np.moveaxis(np.asarray(file.dataobj, dtype=np.float32), slice_axis, 0)
        sizes = [float(length) for length in file.header.get_zooms()[:3]]
        spacing = (sizes.pop(slice_axis), *sizes)
    array = (array - array.mean()) / array.std()
    if flat:
        array, spacing = array[len(array) // 2], spacing[1:]
    patch = array.shape
    image = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))[None, None].repeat(
        12, *[1] * (array.ndim + 1)
    )
    generator = torch.Generator().manual_seed(1)
    geometry = sample_geometry(
        settings, batch=12, patch=patch, spacing_mm=spacing, mirror=(False,) * len(patch), generator=generator
    )
    intensity = sample_intensity(settings, batch=12, channels=1, generator=generator, spacing_mm=spacing)
    view, _ = apply_geometry(geometry, image, patch=patch, padding=settings.padding)
    view = apply_intensity(intensity, view)
    view[0] = image[0]
    figure, axes = plt.subplots(3, 4, figsize=(12, 9))
    for axis, item in zip(axes.flat, view[:, 0]):
        axis.imshow(item if flat else item[len(item) // 2], cmap="gray", vmin=array.min(), vmax=array.max())
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=70)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--no-monai", action="store_true")
    parser.add_argument("--sheet", type=Path, help="save a picture instead of timing")
    parser.add_argument("--volume", type=Path, help="NIfTI file for the picture")
    parser.add_argument("--slice-axis", type=int, default=2)
    parser.add_argument("--flat", action="store_true", help="augment the slice in 2D")
    parser.add_argument("--always", action="store_true", help="every transform on every picture")
    parser.add_argument("--padding", default=AugmentSettings().padding)
    given = parser.parse_args()
    if given.sheet:
        always = dict.fromkeys(PROBABILITIES, 1.0) if given.always else {}
        settings = AugmentSettings(padding=given.padding, **always)
        sheet(given.sheet, given.volume, slice_axis=given.slice_axis, settings=settings, flat=given.flat)
        return
    torch.set_num_threads(given.threads)
    for title, (batch, patch) in SHAPES.items():
        table(
            title,
            batch,
            patch,
            device=torch.device(given.device),
            seeds=given.seeds,
            monai=not given.no_monai,
        )


if __name__ == "__main__":
    main()
