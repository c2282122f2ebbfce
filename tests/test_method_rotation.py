"""Laws of the rotation task: turns are a group's rotations, labels say which, patches stay turnable."""

from dataclasses import replace

import pytest
import torch

from handful.data.augment.settings import AugmentSettings
from handful.data.sampling import Source
from handful.errors import UsageError
from handful.methods.rotation import Rotation, Settings, turned, turning_axes, turns
from handful.networks.unet import UNet
from test_methods import phantom_source

STILL = AugmentSettings(
    p_rotation=0, p_scale=0, p_shift=0, p_elastic=0, p_noise=0, p_blur=0, p_low_resolution=0, p_brightness=0,
    p_contrast=0, p_gamma=0,
)  # fmt: skip


def made(dims: int, **settings: object) -> Rotation:
    network = UNet(dims=dims, in_channels=1, classes=3, widths=(4, 6), blocks=1)
    return Rotation(network, Settings(**settings))  # type: ignore[arg-type]


def still(dims: int, spacing_mm: tuple[float, ...] = (1.0, 1.0, 1.0), **changes: object) -> Source:
    source = phantom_source(dims)
    cases = [replace(case, spacing_mm=spacing_mm) for case in source.labelled]
    return replace(source, labelled=cases, unlabelled=[], augment=STILL, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(("dims", "count"), [(2, 4), (3, 10)])
def test_turns_are_distinct_rotations(dims: int, count: int) -> None:
    """A turn is a rotation if it moves the axes by a matrix of determinant 1."""
    grid = torch.stack(
        torch.meshgrid(*[torch.arange(3.0) - 1] * dims, indexing="ij")
    )  # (dims, *S): where one is
    seen = set()
    for turn in turns(dims):
        moved = turned(grid[None], turn)[0]
        ends = [
            moved[(slice(None), *[2 if other == axis else 1 for other in range(dims)])]
            for axis in range(dims)
        ]
        matrix = torch.stack(ends)
        assert torch.linalg.det(matrix).item() == pytest.approx(1)
        quarters = torch.linalg.matrix_power(matrix, 4)
        assert torch.equal(quarters, torch.eye(dims))
        seen.add(tuple(matrix.flatten().tolist()))
    assert len(seen) == len(turns(dims)) == count
    assert turns(dims)[0].quarters == 0


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("every_turn", [True, False])
def test_turning_back_by_the_label_gives_the_upright_patches(dims: int, every_turn: bool) -> None:
    source = still(dims)
    method = made(dims, every_turn=every_turn, batch=12, patch_share=1.0)
    batch = method.batch(source)
    patch = batch.image.shape[2:]
    assert len(set(patch)) == 1
    upright = replace(source, patch=tuple(patch), mirror=(False,) * dims)
    expected = upright.view(upright.draw_any(12)).image
    kinds = len(turns(dims))
    if every_turn:
        assert batch.turn.tolist() == [number for number in range(kinds) for _ in range(12)]
    else:
        counts = torch.bincount(batch.turn, minlength=kinds)
        assert counts.max() - counts.min() <= 1
    for row, (image, number) in enumerate(zip(batch.image, batch.turn.tolist(), strict=True)):
        turn = turns(dims)[number]
        back = turned(image[None], turn._replace(quarters=-turn.quarters))[0]
        assert torch.equal(back, expected[row % 12])


@pytest.mark.parametrize(
    ("patch", "spacing", "stride", "expected"),
    [
        ((160, 192), (1, 1), (32, 32), ((0, 1), 160)),
        ((160, 200), (1, 1), (32, 8), ((0, 1), 160)),
        ((96, 160, 160), (1, 1, 1), (16, 16, 16), ((0, 1, 2), 96)),
        (
            (24, 80, 40),
            (1, 1, 1),
            (4, 8, 8),
            ((1, 2), 40),
        ),  # a cube of 24 would leave a third of the longest side
        ((40, 80, 72), (1.04, 1, 1), (4, 8, 16), ((1, 2), 64)),
        ((64, 80, 72), (1.04, 1, 1), (4, 8, 16), ((0, 1, 2), 64)),
        ((64, 80, 72), (3, 1, 1), (4, 8, 8), ((1, 2), 72)),
        ((64, 80, 72), (1, 1, 4), (4, 8, 8), ((0, 1), 64)),
        ((64, 80, 72), (1, 2, 4), (4, 8, 8), ((), 0)),
        ((160, 24), (1, 1), (32, 8), ((), 0)),
    ],
)
def test_which_axes_turn(
    patch: tuple[int, ...], spacing: tuple[float, ...], stride: tuple[int, ...], expected: tuple[object, int]
) -> None:
    assert turning_axes(patch, spacing_mm=spacing, stride=stride) == expected


def test_thick_slices_are_turned_within_the_slice_and_by_halves_otherwise() -> None:
    batch = made(3, every_turn=True, batch=2, patch_share=1.0).batch(still(3, (4.0, 1.0, 1.0)))
    assert batch.image.shape[2:] == (8, 12, 12)
    possible = [turns(3)[number] for number in batch.turn.unique().tolist()]
    assert [turn for turn in possible if turn.quarters in (1, 3)] == [((1, 2), 1), ((1, 2), 3)]
    assert len(possible) == 6


def test_mirroring_is_off_because_two_mirrors_are_a_half_turn() -> None:
    mirrored = still(2, mirror=(True, True))
    always = replace(mirrored, augment=replace(STILL, p_mirror=1.0))
    assert torch.equal(made(2).batch(always).image, made(2).batch(still(2)).image)


def test_a_plan_that_turns_all_the_way_round_is_not_followed() -> None:
    augment = replace(STILL, p_rotation=1.0, rotation_degrees=10.0)
    upright, around = (replace(still(2), augment=augment, turned=share) for share in (0.0, 1.0))
    assert torch.equal(made(2).batch(around).image, made(2).batch(upright).image)


def test_an_augmentation_that_turns_as_far_is_refused() -> None:
    with pytest.raises(UsageError, match="below 45"):
        made(2).batch(replace(still(2), augment=AugmentSettings(rotation_degrees=180)))
    made(2).batch(replace(still(2), augment=AugmentSettings(rotation_degrees=180, p_rotation=0)))


def test_chance_is_the_logarithm_of_the_classes() -> None:
    for dims in (2, 3):
        method = made(dims)
        torch.nn.init.zeros_(method.head.weight)
        torch.nn.init.zeros_(method.head.bias)
        output = method.step(method.batch(phantom_source(dims)), 0.0)
        assert output.loss.item() == pytest.approx(
            torch.tensor(float(len(turns(dims)))).log().item(), rel=1e-6
        )
