"""Augmentation: identity, inverse, alignment, replay, batch against one-by-one, and physical distances."""

import math
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from handful import settings as plain
from handful.batches import IGNORE
from handful.data.augment.alignment import read, relate, undo_geometry
from handful.data.augment.geometry import (
    Geometry,
    apply_geometry,
    displacement,
    identity_geometry,
    moved,
    sample_geometry,
    source_margin,
    source_points,
)
from handful.data.augment.intensity import Intensity, apply_intensity, sample_intensity
from handful.data.augment.settings import AugmentSettings
from handful.errors import UsageError

PATCHES = [(18, 27), (12, 17, 22)]
both_dims = pytest.mark.parametrize("patch", PATCHES, ids=["2d", "3d"])

PROBABILITIES = [field.name for field in fields(AugmentSettings) if field.name.startswith("p_")]
NEVER = AugmentSettings(**dict.fromkeys(PROBABILITIES, 0.0))
ALWAYS = AugmentSettings(**dict.fromkeys(PROBABILITIES, 1.0))
AFFINE = replace(ALWAYS, p_elastic=0.0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(
    settings: AugmentSettings, patch: tuple[int, ...], *, batch: int = 3, seed: int = 0, **over: Any
) -> Geometry:
    given: dict[str, Any] = {"spacing_mm": (1.0,) * len(patch), "mirror": (True,) * len(patch)} | over
    return sample_geometry(settings, batch=batch, patch=patch, generator=seeded(seed), **given)


def larger(patch: tuple[int, ...], by: int = 10) -> tuple[int, ...]:
    return tuple(size + by for size in patch)


def centre_crop(x: Tensor, patch: tuple[int, ...]) -> Tensor:
    for axis, size in enumerate(patch, start=x.ndim - len(patch)):
        x = x.narrow(axis, (x.shape[axis] - size) // 2, size)
    return x


def smooth(batch: int, size: tuple[int, ...], *, channels: int = 1, seed: int = 0) -> Tensor:
    """Sums of long waves: images that linear interpolation can follow."""
    generator = seeded(seed)
    places = torch.stack(torch.meshgrid(*[torch.arange(s) for s in size], indexing="ij"), -1).float()
    waves = torch.rand(len(size), 6 * batch * channels, generator=generator) - 0.5  # radians a voxel
    phases = 6.28 * torch.rand(waves.shape[1], generator=generator)
    image = (places @ waves + phases).cos().unflatten(-1, (batch, channels, 6)).sum(-1)
    return image.movedim((-2, -1), (0, 1)).contiguous()


def row(parameters: Any, index: int) -> Any:
    return type(parameters)(*(field[index : index + 1] for field in parameters))


def interior(patch: tuple[int, ...], by: int = 3) -> tuple[slice, ...]:
    return (..., *[slice(by, size - by) for size in patch])


# Geometry


@both_dims
@pytest.mark.parametrize("extra", [0, 6, 7])
def test_no_geometry_is_exactly_the_centre_crop(patch, extra):
    image, label = (
        smooth(3, larger(patch, extra), channels=2),
        torch.randint(-1, 3, (3, *larger(patch, extra))),
    )
    for geometry in (draw(NEVER, patch), identity_geometry(3, len(patch))):
        new_image, new_label = apply_geometry(geometry, image, label, patch=patch, classes=3)
        assert torch.equal(new_image, centre_crop(image, patch))
        assert torch.equal(new_label, centre_crop(label, patch))


@both_dims
@pytest.mark.parametrize("extra", [0, 6, 7])
@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_resampling_agrees_with_the_copy(patch, extra, mode):
    source = larger(patch, extra)
    image, label = smooth(2, source), torch.randint(-1, 3, (2, *source))
    geometry = draw(replace(NEVER, p_mirror=0.5), patch, batch=2)
    copied = apply_geometry(geometry, image, label, patch=patch)
    barely = geometry._replace(shift=torch.full((2, len(patch)), 1e-6))
    resampled = apply_geometry(barely, image, label, patch=patch, mode=mode, classes=3)
    assert moved(barely).all()
    assert torch.allclose(resampled[0], copied[0], atol=1e-4)
    assert torch.equal(resampled[1], copied[1])


@both_dims
def test_mirror_twice_is_the_identity_and_mirror_is_a_flip(patch):
    image, label = smooth(1, patch), torch.randint(0, 3, (1, *patch))
    for axis in range(len(patch)):
        flips = [a == axis for a in range(len(patch))]
        geometry = identity_geometry(1, len(patch), mirror=flips)
        once = apply_geometry(geometry, image, label, patch=patch)
        assert torch.equal(once[0], image.flip(axis - len(patch)))
        twice = apply_geometry(geometry, *once, patch=patch)
        assert torch.equal(twice[0], image)
        assert torch.equal(twice[1], label)


@both_dims
def test_affine_and_mirror_are_undone(patch):
    source = larger(patch, 0)
    image = smooth(4, source)
    geometry = draw(replace(AFFINE, scale=(0.95, 1.05), rotation_degrees=15), patch, batch=4)
    view, _ = apply_geometry(geometry, image, patch=patch)
    back, inside = undo_geometry(geometry, view, source=source)
    assert inside.float().mean() > 0.6
    assert (back * ~inside.unsqueeze(1)).abs().max() == 0
    error = ((back - image).abs() * inside.unsqueeze(1))[interior(patch)]
    assert error.max() < 0.25 * image.std()
    assert error.mean() < 0.05 * image.std()


@both_dims
@pytest.mark.parametrize("extra", [4, 5])
def test_undoing_a_mirrored_crop_is_exact(patch, extra):
    source = larger(patch, extra)
    image = smooth(2, source)
    geometry = identity_geometry(2, len(patch), mirror=[True] * len(patch))
    view, _ = apply_geometry(geometry, image, patch=patch)
    back, inside = undo_geometry(geometry, view, source=source)
    assert int(inside[0].sum()) == math.prod(patch)
    assert torch.allclose(back, image * inside.unsqueeze(1), atol=1e-4)


@both_dims
def test_elastic_is_inverted_to_a_hundredth_of_a_voxel(patch):
    first, second = draw(ALWAYS, patch, seed=1), draw(ALWAYS, patch, seed=2)
    there, inside = relate(first, second, patch=patch)
    assert 0.3 < inside.float().mean() < 1
    # Where the second view says it looks must be where the first one looks.
    lands = read(source_points(second, patch=patch).movedim(-1, 1), there).movedim(1, -1)
    error = (lands - source_points(first, patch=patch)).norm(dim=-1)[inside]
    assert error.max() < 0.05
    assert error.mean() < 0.01
    points, all_inside = relate(first, first, patch=patch)
    own = source_points(identity_geometry(3, len(patch)), patch=patch)
    assert (points - own).abs().max() < 0.02
    assert all_inside.float().mean() > 0.9


@both_dims
def test_two_views_show_the_same_where_related(patch):
    mild = replace(ALWAYS, scale=(0.9, 1.1), rotation_degrees=10)
    first, second = draw(mild, patch, seed=3), draw(mild, patch, seed=4)
    image = smooth(3, larger(patch, 14))
    (one, _), (two, _) = (apply_geometry(g, image, patch=patch) for g in (first, second))
    points, inside = relate(first, second, patch=patch)
    error = ((read(two, points) - one).abs() * inside.unsqueeze(1)).sum() / inside.sum()
    unrelated = ((two - one).abs() * inside.unsqueeze(1)).sum() / inside.sum()
    assert error < 0.1 * unrelated


@both_dims
def test_undoing_and_reading_pass_gradients(patch):
    geometry = draw(ALWAYS, patch)
    maps = torch.randn(3, 2, *patch, requires_grad=True)
    back, _ = undo_geometry(geometry, maps, source=patch)
    points, _ = relate(geometry, draw(ALWAYS, patch, seed=1), patch=patch)
    (back.square().mean() + read(maps, points).square().mean()).backward()
    assert maps.grad is not None
    assert maps.grad.abs().sum() > 0


@both_dims
@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_label_stays_aligned_with_image(patch, mode):
    image = smooth(6, larger(patch))
    label = (image[:, 0] > 0.3).long()
    new_image, new_label = apply_geometry(
        draw(ALWAYS, patch, batch=6), image, label, patch=patch, outside=0, mode=mode, classes=2
    )
    seen = new_image[:, 0] > 0.3
    dice = 2 * (seen & (new_label == 1)).sum() / (seen.sum() + (new_label == 1).sum())
    assert dice > (0.96 if mode == "linear" else 0.93)


@both_dims
@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_where_the_image_is_one_class_so_is_the_label(patch, mode):
    label = (smooth(4, larger(patch), seed=1)[:, 0] > 0.2).long() + (
        smooth(4, larger(patch))[:, 0] > 0.4
    ).long()
    image, new = apply_geometry(
        draw(ALWAYS, patch, batch=4),
        label.unsqueeze(1).float().sub(1),
        label,
        patch=patch,
        mode=mode,
        classes=3,
    )
    # Values -1 and 1 are the extremes: an interpolated voxel has them only when all its neighbours do.
    for value in (-1, 1):
        pure = (image[:, 0] - value).abs() < 1e-6
        pure &= new != IGNORE
        assert pure.any()
        assert (new[pure] == value + 1).all()


@both_dims
@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_outside_and_ignored_voxels(patch, mode):
    geometry = identity_geometry(2, len(patch))._replace(shift=torch.full((2, len(patch)), 4.0))
    label = torch.ones(2, *patch, dtype=torch.int64)
    label[0] = IGNORE
    _, new = apply_geometry(
        geometry, label.unsqueeze(1).float(), label, patch=patch, outside=-7, mode=mode, classes=2
    )
    inside = tuple(slice(0, size - 4) for size in patch)
    assert (new[0][inside] == IGNORE).all()
    assert (new[1][inside] == 1).all()
    assert int((new == -7).sum()) == 2 * (math.prod(patch) - math.prod(size - 4 for size in patch))


@both_dims
def test_a_source_smaller_than_the_patch_is_padded(patch):
    source = tuple(size - 4 for size in patch)
    image, label = smooth(2, source), torch.randint(0, 2, (2, *source))
    geometry = identity_geometry(2, len(patch))
    new_image, new_label = apply_geometry(geometry, image, label, patch=patch)
    assert torch.allclose(centre_crop(new_image, source), image, atol=1e-4)
    assert torch.equal(centre_crop(new_label, source), label)
    assert int((new_label == IGNORE).sum()) == 2 * (math.prod(patch) - math.prod(source))
    assert apply_geometry(geometry, image, patch=patch, padding="zeros")[0][..., 0].abs().max() == 0


@both_dims
def test_batch_equals_one_by_one(patch):
    image, label = smooth(5, larger(patch), channels=2), torch.randint(0, 3, (5, *larger(patch)))
    geometry = draw(replace(ALWAYS, p_rotation=0.5, p_scale=0.3, p_elastic=0.4, p_shift=0.3), patch, batch=5)
    intensity = sample_intensity(
        replace(ALWAYS, p_noise=0.5, p_blur=0.4), batch=5, channels=2, generator=seeded()
    )
    whole_image, whole_label = apply_geometry(geometry, image, label, patch=patch, classes=3)
    whole_image = apply_intensity(intensity, whole_image)
    for i in range(5):
        one, one_label = apply_geometry(
            row(geometry, i), image[i : i + 1], label[i : i + 1], patch=patch, classes=3
        )
        one = apply_intensity(row(intensity, i), one)
        assert torch.allclose(one[0], whole_image[i], atol=1e-5)
        assert torch.equal(one_label[0], whole_label[i])


@both_dims
def test_same_seed_same_parameters_and_replay_is_the_same(patch):
    image = smooth(3, larger(patch))
    results = []
    for seed in (5, 5, 6):
        generator = seeded(seed)
        geometry = sample_geometry(
            ALWAYS,
            batch=3,
            patch=patch,
            spacing_mm=(1.0,) * len(patch),
            mirror=(True,) * len(patch),
            generator=generator,
        )
        intensity = sample_intensity(ALWAYS, batch=3, channels=1, generator=generator)
        view = apply_intensity(intensity, apply_geometry(geometry, image, patch=patch)[0])
        again = apply_intensity(intensity, apply_geometry(geometry, image, patch=patch)[0])
        assert torch.equal(view, again)
        results.append((*geometry, *intensity, view))
    assert all(torch.equal(a, b) for a, b in zip(results[0], results[1]))
    assert not torch.equal(results[0][-1], results[2][-1])


def test_probabilities_do_not_change_how_much_randomness_is_used():
    states = []
    for settings in (NEVER, ALWAYS):
        generator = seeded()
        sample_geometry(
            settings, batch=2, patch=(9, 13), spacing_mm=(1, 1), mirror=(False, True), generator=generator
        )
        sample_intensity(settings, batch=2, channels=3, generator=generator)
        states.append(generator.get_state())
    assert torch.equal(*states)


@both_dims
def test_drawn_geometry_stays_in_its_ranges(patch):
    batch, dims = 4000, len(patch)
    allowed = (False, *[True] * (dims - 1))
    geometry = draw(replace(ALWAYS, p_mirror=0.5, p_scale=0.5), patch, batch=batch, mirror=allowed)
    assert not geometry.mirror[:, 0].any()
    assert torch.allclose(geometry.mirror[:, 1:].float().mean(0), torch.full((dims - 1,), 0.5), atol=0.03)
    size = torch.linalg.det(geometry.matrix) ** (-1 / dims)
    scaled = (size - 1).abs() > 1e-5
    assert abs(scaled.float().mean() - 0.5) < 0.03
    assert 0.7 - 1e-4 <= size.min() < 0.71
    assert 1.39 < size.max() <= 1.4 + 1e-4
    turn = geometry.matrix * size[:, None, None]
    assert torch.allclose(turn @ turn.mT, torch.eye(dims).expand_as(turn), atol=1e-4)
    if dims == 2:
        angle = torch.rad2deg(torch.atan2(turn[:, 1, 0], turn[:, 0, 0]))
        assert 29 < angle.abs().max() <= 30 + 1e-3
        assert abs(angle.mean()) < 1
    assert (geometry.shift.abs() <= 0.05 * torch.tensor(patch) + 1e-4).all()
    assert (geometry.elastic.flatten(1).abs().amax(1) <= 0.25 * max(patch)).all()


@both_dims
def test_elastic_does_not_fold(patch):
    geometry = draw(replace(NEVER, p_elastic=1.0, elastic_strength=(0.39, 0.39)), patch, batch=50)
    field = displacement(geometry.elastic, patch=patch)
    assert field.abs().max() > 0.3  # it does bend
    for axis in range(len(patch)):
        assert (field[:, axis].diff(dim=axis + 1) > -1).all()


def test_rotation_turns_millimetres():
    """A line along H seen after turning 90 degrees lies along W with the same length in mm."""
    spacing = (2.0, 1.0)
    image = torch.zeros(1, 1, 41, 61)
    image[0, 0, 10:31, 30] = 1  # 21 voxels of 2 mm
    quarter = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    ratio = torch.tensor(spacing) / torch.tensor(spacing)[:, None]
    geometry = identity_geometry(1, 2)._replace(matrix=(quarter * ratio)[None])
    turned, _ = apply_geometry(geometry, image, patch=(41, 61))
    along = turned[0, 0].sum(0)
    rows = (along > 1e-3).sum().item()
    assert rows * spacing[1] == pytest.approx(21 * spacing[0], abs=2 * spacing[1])
    assert (turned[0, 0].sum(1) > 1e-3).sum() == 1


@both_dims
def test_drawn_rotations_keep_distances_in_mm(patch):
    spacing = torch.tensor([2.5, 1.0, 1.4][: len(patch)])
    geometry = draw(replace(NEVER, p_rotation=1.0), patch, batch=50, spacing_mm=tuple(spacing.tolist()))
    points = source_points(geometry, patch=patch) * spacing
    straight = source_points(identity_geometry(50, len(patch)), patch=patch) * spacing
    corner = (0,) * len(patch)
    lengths = (points - points[(slice(None), *corner)].reshape(50, *[1] * len(patch), -1)).norm(dim=-1)
    expected = (straight - straight[(slice(None), *corner)].reshape(50, *[1] * len(patch), -1)).norm(dim=-1)
    assert moved(geometry).all()
    assert torch.allclose(lengths, expected, atol=1e-3)


@pytest.mark.parametrize("turned", [0.0, 0.15, 1.0])
def test_a_share_of_the_rotations_goes_all_the_way_round(turned):
    limit = math.radians(AFFINE.rotation_degrees)
    settings = replace(AFFINE, p_rotation=0.5, scale=(1, 1))
    matrix = draw(settings, PATCHES[0], batch=20_000, turned=turned, mirror=(False, False)).matrix
    angle = torch.atan2(matrix[:, 1, 0], matrix[:, 0, 0])
    within, beyond = angle[(angle != 0) & (angle.abs() <= limit + 1e-5)], angle[angle.abs() > limit + 1e-5]
    assert abs((angle == 0).float().mean() - 0.5) < 0.02, "as often as without"
    assert abs(len(beyond) / (len(within) + len(beyond)) - turned) < 0.02
    for part, low, high in ((within, 0.0, limit), (beyond, limit, math.pi)):
        if len(part):
            assert abs((part > 0).float().mean() - 0.5) < 0.05, "either way"
            quarters = torch.histc(part.abs(), 4, low, high) / len(part)
            assert (quarters - 0.25).abs().max() < 0.05, "every angle alike"


def test_turning_some_further_leaves_all_others_as_they_are():
    near, far = (draw(AFFINE, PATCHES[1], batch=500, turned=turned) for turned in (0.0, 0.15))
    assert torch.equal(near.mirror, far.mirror)
    assert torch.equal(near.shift, far.shift)
    assert torch.allclose(torch.linalg.det(near.matrix), torch.linalg.det(far.matrix), rtol=1e-4)


def test_coarse_axes_are_only_mirrored():
    patch, spacing = (7, 20, 26), (10.0, 1.4, 1.4)
    geometry = draw(ALWAYS, patch, batch=20, spacing_mm=spacing)
    points = source_points(geometry, patch=patch)
    own = source_points(identity_geometry(20, 3, mirror=[True] * 3), patch=patch)
    assert torch.equal(points[..., 0], own[..., 0])
    assert geometry.elastic.shape[2] == 1
    assert source_margin(ALWAYS, patch, spacing)[0] == 0
    assert source_margin(ALWAYS, patch, spacing)[1] > 0
    intensity = sample_intensity(ALWAYS, batch=20, channels=1, generator=seeded(), spacing_mm=spacing)
    assert (intensity.blur[..., 0] == 0).all()
    assert (intensity.zoom[..., 0] == 1).all()
    assert (intensity.blur[..., 1:] > 0).all()


@both_dims
def test_the_source_margin_holds_what_is_read(patch):
    spacing = (1.0, 1.3, 0.8)[: len(patch)]
    generous = replace(ALWAYS, source_factor=9.0)
    margin = source_margin(generous, patch, spacing)
    assert all(extra % 2 == 0 for extra in margin)
    reach = source_points(draw(generous, patch, batch=500, spacing_mm=spacing), patch=patch).abs()
    half = (torch.tensor(patch) + torch.tensor(margin)) / 2
    assert (reach.flatten(0, -2).amax(0) <= half).all()
    assert source_margin(NEVER, patch, spacing) == (0,) * len(patch)
    capped = source_margin(ALWAYS, patch, spacing)
    assert all(extra <= 0.4 * size + 1 for extra, size in zip(capped, patch))


# Intensity


def nothing(batch: int, channels: int) -> Intensity:
    return sample_intensity(NEVER, batch=batch, channels=channels, generator=seeded())


@both_dims
def test_no_intensity_change_is_exact_and_a_copy(patch):
    image = torch.randn(3, 2, *patch, generator=seeded())
    new = apply_intensity(nothing(3, 2), image)
    assert torch.equal(new, image)
    new += 1
    assert not torch.equal(new, image)


NEUTRAL = {
    "p_noise": {"noise": (0.0, 0.0)},
    "p_blur": {"blur": (0.0, 0.0)},
    "p_low_resolution": {"low_resolution": (1.0, 1.0)},
    "p_brightness": {"gain": (1.0, 1.0), "offset": (0.0, 0.0)},
    "p_contrast": {"contrast": (1.0, 1.0)},
    "p_gamma": {"gamma": (1.0, 1.0)},
}


@both_dims
@pytest.mark.parametrize("name", NEUTRAL)
def test_neutral_values_are_identities_even_beside_others(patch, name):
    image = torch.randn(2, 1, *patch, generator=seeded())
    settings = replace(NEVER, **{name: 1.0}, **NEUTRAL[name])
    assert torch.equal(
        apply_intensity(sample_intensity(settings, batch=2, channels=1, generator=seeded()), image), image
    )
    settings = replace(NEVER, **{name: 1.0})
    changed = sample_intensity(settings, batch=2, channels=1, generator=seeded())
    rest = nothing(2, 1)
    mixed = Intensity(*(torch.cat((a[:1], b[1:])) for a, b in zip(changed, rest)))
    new = apply_intensity(mixed, image)
    assert torch.equal(new[1], image[1])
    assert not torch.allclose(new[0], image[0])


@both_dims
def test_blur_agrees_with_convolution_and_keeps_constants(patch):
    sigma = 0.8
    blur = nothing(2, 1)._replace(blur=torch.full((2, 1, 3), sigma))
    image = torch.zeros(2, 1, *patch)
    centre = tuple(size // 2 for size in patch)
    image[(slice(None), 0, *centre)] = 1
    new = apply_intensity(blur, image)
    distances = torch.stack(
        torch.meshgrid(*[torch.arange(size) - c for size, c in zip(patch, centre)], indexing="ij")
    )
    expected = torch.exp(-(distances**2).sum(0) / (2 * sigma**2))
    assert torch.allclose(new[0, 0], expected / expected.sum(), atol=1e-4)
    assert torch.allclose(
        apply_intensity(blur, torch.full_like(image, 3.0)), torch.full_like(image, 3.0), atol=1e-5
    )


@both_dims
@pytest.mark.parametrize("zoom", [0.5, 0.75])
def test_low_resolution_agrees_with_interpolate(patch, zoom):
    """Sizes and factors where every nearest voxel is unambiguous."""
    image = torch.randn(1, 2, *patch, generator=seeded())
    lower = nothing(1, 2)._replace(zoom=torch.full((1, 2, 3), zoom))
    small = F.interpolate(image, [round(size * zoom) for size in patch], mode="nearest-exact")
    back = F.interpolate(
        small, patch, mode="bilinear" if len(patch) == 2 else "trilinear", align_corners=False
    )
    assert torch.allclose(apply_intensity(lower, image), back, atol=1e-5)


@both_dims
def test_contrast_and_gamma_keep_what_they_promise(patch):
    image = torch.randn(4, 1, *patch, generator=seeded())
    axes = tuple(range(2, image.ndim))
    contrast = nothing(4, 1)._replace(contrast=torch.tensor([0.6, 0.8, 1.3, 2.0])[:, None])
    new = apply_intensity(contrast, image)
    assert (new.amax(axes) <= image.amax(axes)).all()
    assert (new.amin(axes) >= image.amin(axes)).all()
    assert (new.std(axes)[:2] < image.std(axes)[:2]).all()
    assert (new.std(axes)[2:] > image.std(axes)[2:]).all()

    gamma = nothing(4, 1)._replace(
        gamma=torch.tensor([0.7, 1.5, 0.7, 1.5])[:, None],
        inverted=torch.tensor([False, False, True, True])[:, None],
    )
    kept = apply_intensity(gamma, image)
    assert torch.allclose(kept.mean(axes), image.mean(axes), atol=1e-4)
    assert torch.allclose(kept.std(axes), image.std(axes), atol=1e-4)
    free = apply_intensity(gamma._replace(keep=torch.zeros(4, 1, dtype=torch.bool)), image)
    assert torch.allclose(free.amin(axes), image.amin(axes), atol=1e-5)
    assert torch.allclose(free.amax(axes), image.amax(axes), atol=1e-5)
    for new in (kept, free):  # a grey-value curve keeps the order of the voxels
        for i in range(4):
            order = image[i].flatten().argsort()
            assert (new[i].flatten()[order].diff() >= -1e-5).all()
    # Inverted gamma of -x is minus gamma of x.
    twice = torch.cat((image[:2], -image[:2]))
    upright, upside_down = apply_intensity(gamma, twice).chunk(2)
    assert torch.allclose(upside_down, -upright, atol=1e-4)


def test_brightness_and_noise_are_what_they_say():
    image = torch.randn(3, 2, 64, 80, generator=seeded())
    bright = nothing(3, 2)._replace(gain=torch.full((3, 2), 1.2), offset=torch.full((3, 2), -0.1))
    assert torch.allclose(apply_intensity(bright, image), image * 1.2 - 0.1)
    seeds = torch.tensor([[1, 2], [3, 4], [1, 5]])
    noisy = apply_intensity(nothing(3, 2)._replace(noise=torch.full((3, 2), 0.5), seed=seeds), image) - image
    assert torch.allclose(noisy.std((2, 3)), torch.full((3, 2), 0.5), atol=0.02)
    assert torch.allclose(noisy[0, 0], noisy[2, 0], atol=1e-6)
    assert abs(torch.corrcoef(noisy.flatten(2).flatten(0, 1))[0, 1]) < 0.05


@both_dims
def test_a_constant_image_stays_finite(patch):
    intensity = sample_intensity(
        replace(ALWAYS, p_noise=0, p_brightness=0), batch=4, channels=1, generator=seeded()
    )
    image = torch.full((4, 1, *patch), -2.0)
    assert torch.allclose(apply_intensity(intensity, image), image, atol=1e-4)


def test_drawn_intensity_stays_in_its_ranges():
    settings = AugmentSettings()
    drawn = sample_intensity(settings, batch=5000, channels=2, generator=seeded())
    cases = [
        (drawn.noise, settings.noise, 0.0, settings.p_noise),
        (drawn.blur[..., 1], settings.blur, 0.0, settings.p_blur),
        (drawn.zoom[..., 2], settings.low_resolution, 1.0, settings.p_low_resolution),
        (drawn.gain, settings.gain, 1.0, settings.p_brightness),
        (drawn.offset, settings.offset, 0.0, settings.p_brightness),
        (drawn.contrast, settings.contrast, 1.0, settings.p_contrast),
        (drawn.gamma, settings.gamma, 1.0, settings.p_gamma),
    ]
    assert len(cases) == 7
    for values, (low, high), neutral, probability in cases:
        changed = values[values != neutral]
        assert abs(len(changed) / values.numel() - probability) < 0.02
        width = high - low
        assert low - 1e-5 <= changed.min() < low + 0.05 * width
        assert high - 0.05 * width < changed.max() <= high + 1e-5
    assert abs(drawn.inverted.float().mean() - settings.gamma_inverted) < 0.02
    assert drawn.seed.unique().numel() == 10000


# Devices, types, errors


@both_dims
def test_half_precision_sources_and_autocast(patch):
    image, label = smooth(2, larger(patch)), torch.randint(0, 3, (2, *larger(patch)), dtype=torch.uint8)
    geometry, intensity = (
        draw(ALWAYS, patch, batch=2),
        sample_intensity(ALWAYS, batch=2, channels=1, generator=seeded()),
    )
    full = apply_intensity(intensity, apply_geometry(geometry, image, patch=patch)[0])
    view, new_label = apply_geometry(geometry, image.half(), label, patch=patch)
    assert view.dtype == torch.float32
    assert new_label.dtype == torch.int64
    assert torch.allclose(apply_intensity(intensity, view), full, atol=0.02)
    image.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = apply_intensity(intensity, apply_geometry(geometry, image, patch=patch)[0])
    assert torch.equal(cast, full)
    assert not cast.requires_grad


@pytest.mark.gpu
@both_dims
def test_devices_agree_except_for_noise(patch):
    settings = replace(ALWAYS, p_noise=0.0)
    image, label = smooth(3, larger(patch)), torch.randint(0, 3, (3, *larger(patch)))
    geometry, intensity = (
        draw(settings, patch),
        sample_intensity(settings, batch=3, channels=1, generator=seeded()),
    )
    views = []
    for device in ("cpu", "cuda"):
        view, new = apply_geometry(geometry, image.to(device), label.to(device), patch=patch, classes=3)
        views.append((apply_intensity(intensity, view).cpu(), new.cpu()))
    assert torch.allclose(views[0][0], views[1][0], atol=1e-2)
    assert (views[0][1] == views[1][1]).float().mean() > 0.999


def test_parameters_survive_storing(tmp_path):
    geometry, intensity = (
        draw(ALWAYS, (12, 17, 22)),
        sample_intensity(ALWAYS, batch=3, channels=2, generator=seeded()),
    )
    torch.save({"geometry": geometry._asdict(), "intensity": intensity._asdict()}, tmp_path / "parameters.pt")
    stored = torch.load(tmp_path / "parameters.pt", weights_only=True)
    assert all(torch.equal(a, b) for a, b in zip(Geometry(**stored["geometry"]), geometry))
    assert all(torch.equal(a, b) for a, b in zip(Intensity(**stored["intensity"]), intensity))


def test_settings_are_built_and_refused():
    built = plain.build(AugmentSettings, {"scale": [0.9, 1.1], "p_noise": 0}, where="--set")
    assert built == AugmentSettings(scale=(0.9, 1.1), p_noise=0.0)
    wrong = [
        {"p_noise": 1.5},
        {"scale": (1.2, 0.8)},
        {"gamma": (0.0, 1.0)},
        {"elastic_strength": (0.0, 0.5)},
        {"low_resolution": (0.5, 2.0)},
        {"noise": (-1.0, 0.1)},
        {"rotation_degrees": 270.0},
        {"source_factor": 0.5},
        {"shift": -0.1},
        {"elastic_knots": 0},
        {"anisotropy": 0.5},
    ]
    for values in wrong:
        with pytest.raises(UsageError, match=f"'{next(iter(values))}'"):
            AugmentSettings(**values)
    assert len(wrong) == 11


def test_wrong_shapes_are_named():
    geometry = identity_geometry(2, 2)
    with pytest.raises(ValueError, match="2 samples of 2 axes"):
        apply_geometry(geometry, torch.zeros(3, 1, 8, 9), patch=(8, 9))
    with pytest.raises(ValueError, match="label"):
        apply_geometry(
            geometry, torch.zeros(2, 1, 8, 9), torch.zeros(2, 9, 8, dtype=torch.int64), patch=(8, 9)
        )
    with pytest.raises(ValueError, match="classes=K"):
        apply_geometry(geometry, torch.zeros(2, 1, 8, 9), patch=(8, 9), mode="linear")
    with pytest.raises(ValueError, match="same axes"):
        draw(NEVER, (8, 9), spacing_mm=(1.0,))
    with pytest.raises(ValueError, match=r"\(B, C\)"):
        apply_intensity(nothing(2, 1), torch.zeros(2, 3, 8, 9))
