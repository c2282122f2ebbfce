"""Corruptions: identity, what each one must keep, batch against one-by-one, replay, and the ranges drawn."""

import math
from collections import Counter
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from handful.data.augment.corruption import (
    EDGE,
    Corruption,
    CorruptionSettings,
    apply_corruption,
    sample_corruption,
)
from handful.errors import UsageError

PATCHES = [(18, 27), (12, 17, 22)]
both_dims = pytest.mark.parametrize("patch", PATCHES, ids=["2d", "3d"])

NEVER = CorruptionSettings(p_shuffle=0.0, p_curve=0.0, p_paint=0.0)
ALWAYS = CorruptionSettings(p_shuffle=1.0, p_curve=1.0, p_paint=1.0, window=0.3)
SHUFFLE = replace(NEVER, p_shuffle=1.0, window=0.3)
CURVE = replace(NEVER, p_curve=1.0)
INSIDE = replace(NEVER, p_paint=1.0, outside=0.0, another=1.0)
OUTSIDE = replace(NEVER, p_paint=1.0, outside=1.0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(settings: CorruptionSettings, patch: tuple[int, ...], **over: Any) -> Corruption:
    given: dict[str, Any] = {"batch": 3, "channels": 2, "generator": seeded()} | over
    return sample_corruption(settings, patch=patch, **given)


def noise(patch: tuple[int, ...], *, batch: int = 3, channels: int = 2) -> Tensor:
    return torch.randn(batch, channels, *patch, generator=seeded(9))


def row(parameters: Corruption, index: int) -> Corruption:
    return Corruption(*(field[index : index + 1] for field in parameters))


def in_boxes(corruption: Corruption, item: int, patch: tuple[int, ...]) -> Tensor:
    """Mark the voxels of the boxes, box by box."""
    mask = torch.zeros(patch, dtype=torch.bool)
    for low, high in zip(corruption.low[item].tolist(), corruption.high[item].tolist()):
        mask[tuple(slice(a, b) for a, b in zip(low, high))] = True
    return mask


@both_dims
def test_no_corruption_is_exact_and_a_copy(patch):
    image = noise(patch)
    new = apply_corruption(draw(NEVER, patch), image)
    assert torch.equal(new, image)
    new += 1
    assert torch.equal(image, noise(patch))
    assert apply_corruption(draw(ALWAYS, patch), image.half()).dtype == torch.float32


@both_dims
@pytest.mark.parametrize("settings", [SHUFFLE, CURVE, INSIDE, OUTSIDE], ids=["shuffle", "curve", "in", "out"])
def test_a_sample_left_alone_stays_exact_beside_others(patch, settings):
    image = noise(patch)
    mixed = Corruption(
        *(torch.cat((a[:1], b[1:])) for a, b in zip(draw(settings, patch), draw(NEVER, patch)))
    )
    new = apply_corruption(mixed, image)
    assert torch.equal(new[1:], image[1:])
    assert not torch.allclose(new[0], image[0])


# Shuffling


@both_dims
def test_shuffling_keeps_the_values_of_every_window(patch):
    image = noise(patch)
    corruption = draw(SHUFFLE, patch)
    new = apply_corruption(corruption, image)
    for item in range(len(image)):
        windows = [corruption.window[item, axis, :size] for axis, size in enumerate(patch)]
        moved = 0
        for numbers in product(*(range(int(along.max()) + 1) for along in windows)):
            voxels = np.ix_(*((along == n).nonzero()[:, 0].numpy() for along, n in zip(windows, numbers)))
            before, after = image[item].numpy()[:, *voxels], new[item].numpy()[:, *voxels]
            assert np.array_equal(np.sort(before.reshape(2, -1)), np.sort(after.reshape(2, -1)))
            moved += int((before != after).sum())
        assert moved > 0.5 * image[item].numel()


@both_dims
def test_channels_are_shuffled_alike_and_windows_have_the_drawn_sides(patch):
    image = noise(patch, channels=1).repeat_interleave(2, dim=1)
    corruption = draw(SHUFFLE, patch)
    new = apply_corruption(corruption, image)
    assert torch.equal(new[:, 0], new[:, 1])
    for axis, size in enumerate(patch):
        numbers = corruption.window[:, axis, :size]
        assert set(numbers.diff(dim=1).unique().tolist()) == {0, 1}
        sides = [max(Counter(along).values()) for along in numbers.tolist()]
        assert max(sides) <= max(2, int(0.3 * size))


def test_every_permutation_of_a_window_is_equally_likely():
    """Windows of 1 x 3 voxels in 8 x 900: each of the six orders in a sixth of them."""
    corruption = draw(NEVER, (8, 900), batch=1, channels=1)
    window = corruption.window.clone()
    window[:, 1] //= 3
    image = torch.arange(3.0).repeat(1, 1, 8, 300)
    new = apply_corruption(corruption._replace(window=window), image).reshape(-1, 3)
    found = Counter(map(tuple, new.tolist()))
    assert len(found) == 6
    for count in found.values():
        assert count / 2400 == pytest.approx(1 / 6, abs=0.03)


# The curve


@both_dims
def test_curves_are_monotone_and_keep_the_ends_of_the_range(patch):
    image = noise(patch, batch=8)
    corruption = draw(CURVE, patch, batch=8)
    assert 0.2 < corruption.inverted.float().mean() < 0.8
    new = apply_corruption(corruption, image)
    for item, channel in product(range(8), range(2)):
        before, order = image[item, channel].flatten().sort()
        after = new[item, channel].flatten()[order]
        ends = after[[0, -1]]
        if corruption.inverted[item, channel]:
            after, ends = -after, ends.flip(0)
        assert (after.diff() >= -1e-5).all()
        assert torch.equal(ends, before[[0, -1]])


def test_a_curve_agrees_with_its_closed_form_and_with_points_along_it():
    """With x1 = 1/3 and x2 = 2/3 the curve is a polynomial in the value itself."""
    value = torch.linspace(0, 1, 300).reshape(1, 1, 10, 30)
    none = draw(NEVER, (10, 30), batch=1, channels=1)

    def bent(*points: float, inverted: bool = False) -> Tensor:
        changed = none._replace(curve=torch.tensor([[points]]), inverted=torch.tensor([[inverted]]))
        return apply_corruption(changed, value)

    closed = 3 * (1 - value) ** 2 * value * 0.9 + 3 * (1 - value) * value**2 * 0.2 + value**3
    assert torch.allclose(bent(1 / 3, 0.9, 2 / 3, 0.2), closed, atol=1e-5)
    assert torch.allclose(bent(1 / 3, 0.9, 2 / 3, 0.2, inverted=True), 1 - closed, atol=1e-5)
    assert torch.allclose(bent(0.4, 0.4, 0.7, 0.7, inverted=True), 1 - value, atol=1e-5)

    x1, y1, x2, y2 = 0.9, 0.1, 0.3, 0.8
    t = np.linspace(0, 1, 200_001)
    x = 3 * (1 - t) ** 2 * t * x1 + 3 * (1 - t) * t**2 * x2 + t**3
    y = 3 * (1 - t) ** 2 * t * y1 + 3 * (1 - t) * t**2 * y2 + t**3
    assert np.allclose(bent(x1, y1, x2, y2).numpy(), np.interp(value.numpy(), x, y), atol=1e-4)


@both_dims
def test_a_fixed_range_clips_and_a_constant_patch_stays(patch):
    image = noise(patch)
    new = apply_corruption(draw(CURVE, patch), image, value_range=(-1.0, 1.0))
    assert new.abs().max() <= 1
    assert new.std() > 0.1
    constant = torch.full((3, 2, *patch), 1.7)
    assert torch.equal(apply_corruption(draw(ALWAYS, patch), constant), constant)


# Painting


@both_dims
def test_in_painting_changes_only_the_boxes_and_out_painting_keeps_only_them(patch):
    image = noise(patch)
    for settings, outside in ((INSIDE, False), (OUTSIDE, True)):
        corruption = draw(settings, patch)
        new = apply_corruption(corruption, image)
        for item in range(3):
            painted = in_boxes(corruption, item, patch) ^ outside
            assert 0.02 < painted.float().mean() < 0.98
            assert torch.equal(new[item, :, ~painted], image[item, :, ~painted])
            assert (new[item, :, painted] != image[item, :, painted]).all()
            assert not torch.equal(new[item, 0, painted], new[item, 1, painted])


def test_painted_noise_is_uniform_over_the_range():
    image = torch.randn(1, 1, 200, 300, generator=seeded())
    image[0, 0, 0, 0], image[0, 0, 0, 1] = -6.0, 10.0
    corruption = draw(OUTSIDE, (200, 300), batch=1, channels=1)
    for value_range, (low, high) in ((None, (-6.0, 10.0)), ((0.0, 1.0), (0.0, 1.0))):
        new = apply_corruption(corruption, image, value_range=value_range)
        drawn = new[0, 0, ~in_boxes(corruption, 0, (200, 300))]
        assert low <= drawn.min() < drawn.max() <= high
        share = torch.histc((drawn - low) / (high - low), bins=10, min=0, max=1) / len(drawn)
        assert torch.allclose(share, torch.full((10,), 0.1), atol=0.01)


@both_dims
def test_boxes_have_the_drawn_sides_and_stay_off_the_border(patch):
    size = torch.tensor(patch)
    for settings, (low, high) in ((INSIDE, INSIDE.box_inside), (OUTSIDE, OUTSIDE.box_outside)):
        corruption = draw(settings, patch, batch=500)
        there = (corruption.high > corruption.low).all(2)
        side = (corruption.high - corruption.low)[there]
        assert (side >= (low * size).round()).all()
        assert (side <= (high * size).round()).all()
        assert (side.amin(0) == (low * size).round()).all()
        assert (side.amax(0) == (high * size).round()).all()
        room = (size - corruption.high)[there].minimum(corruption.low[there])
        assert room.min() >= min(EDGE, min((length - math.ceil(high * length)) // 2 for length in patch))
        count = there.sum(1)
        if settings is INSIDE:
            assert (count == 5).all()
        else:  # one, then each further with probability 0.95
            assert count.min() >= 1
            assert (count == 5).float().mean() == pytest.approx(0.95**4, abs=0.06)


# All together


@both_dims
def test_batch_equals_one_by_one(patch):
    image = noise(patch, batch=6)
    corruption = draw(replace(ALWAYS, p_shuffle=0.5, p_curve=0.6, p_paint=0.7), patch, batch=6)
    whole = apply_corruption(corruption, image)
    assert not torch.equal(whole, image)
    for i in range(6):
        assert torch.equal(apply_corruption(row(corruption, i), image[i : i + 1])[0], whole[i])


@both_dims
def test_same_seed_same_parameters_and_replay_is_the_same(patch):
    image = noise(patch)
    first, again, other = (draw(ALWAYS, patch, generator=seeded(seed)) for seed in (5, 5, 6))
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert torch.equal(apply_corruption(first, image), apply_corruption(first, image))
    assert not torch.equal(apply_corruption(first, image), apply_corruption(other, image))
    spread = image.to(memory_format=torch.channels_last if len(patch) == 2 else torch.channels_last_3d)
    assert torch.equal(apply_corruption(first, spread), apply_corruption(first, image))


def test_probabilities_are_kept_and_do_not_change_how_much_randomness_is_used():
    states = []
    for settings in (NEVER, ALWAYS):
        generator = seeded()
        draw(settings, (9, 13), generator=generator)
        states.append(generator.get_state())
    assert torch.equal(*states)

    settings = CorruptionSettings()
    drawn = draw(settings, (20, 30), batch=4000)
    shuffled = (drawn.window.diff(dim=2)[:, 1] == 0).any(1).float().mean()
    bent = (drawn.curve[:, 0, 0] != drawn.curve[:, 0, 1]).float().mean()
    inside = ((drawn.high > drawn.low).all(2).any(1) & ~drawn.outside).float().mean()
    assert shuffled == pytest.approx(settings.p_shuffle, abs=0.03)
    assert bent == pytest.approx(settings.p_curve, abs=0.03)
    assert drawn.inverted.float().mean() == pytest.approx(settings.p_curve * settings.inverted, abs=0.03)
    assert drawn.outside.float().mean() == pytest.approx(settings.p_paint * settings.outside, abs=0.03)
    # an in-painting whose first coin says stop has no box
    expected = settings.p_paint * (1 - settings.outside) * settings.another
    assert inside == pytest.approx(expected, abs=0.03)


def test_what_does_not_fit_is_refused():
    corruption = draw(ALWAYS, (9, 13))
    for image in (torch.zeros(3, 1, 9, 13), torch.zeros(3, 2, 9, 14), torch.zeros(3, 2, 9, 13, 5)):
        with pytest.raises(ValueError, match="the parameters are for"):
            apply_corruption(corruption, image)
    for wrong in ({"p_curve": 1.2}, {"boxes": 0}, {"box_inside": (0.5, 0.2)}, {"window": 0.0}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            CorruptionSettings(**wrong)
