"""Laws of PIRL: pieces come from their image, order does not leak, the loss is two contrasts."""

from dataclasses import replace

import pytest
import torch

from handful.errors import DataError, UsageError
from handful.losses.identity import queue_info_nce
from handful.methods.pirl import PIRL, Settings, cut, piece_sides
from handful.networks.memory import overlap
from handful.networks.unet import UNet
from test_methods import phantom_source


def made(dims: int, **settings: object) -> PIRL:
    torch.manual_seed(0)
    network = UNet(dims=dims, in_channels=1, classes=3, widths=(4, 6), blocks=1)
    return PIRL(network, Settings(**{"width": 5, "batch": 6, **settings}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("patch", "grid", "stride", "expected"),
    [
        ((224, 160), 3, (32, 32), (64, 64)),  # cells of 53 hold one stride: two overlap
        ((225, 225), 3, (5, 5), (75, 75)),
        ((96, 96, 48), 2, (16, 16, 16), (48, 48, 32)),
        ((16, 96, 48), 2, (16, 16, 16), (16, 48, 32)),  # one stride along the first axis: not cut
        ((8, 12, 8), 2, (4, 4, 4), (4, 8, 4)),
    ],
)
def test_sides_of_pieces(
    patch: tuple[int, ...], grid: int, stride: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    assert piece_sides(patch, grid=grid, stride=stride) == expected


def test_pieces_that_would_be_one_voxel_are_refused() -> None:
    with pytest.raises(UsageError, match="too small for 3 pieces an axis"):
        piece_sides((64, 64), grid=3, stride=(32, 32))


@pytest.mark.parametrize(
    ("size", "sides", "grid"), [((17, 12), (4, 3), 3), ((9, 12), (4, 8), 2), ((8, 14, 10), (3, 7, 4), 2)]
)
def test_every_piece_lies_in_its_cell(size: tuple[int, ...], sides: tuple[int, ...], grid: int) -> None:
    dims = len(size)
    where = torch.stack(torch.meshgrid(*[torch.arange(float(n)) for n in size], indexing="ij"))[None]
    places = set()
    for seed in range(6):
        pieces = cut(where, grid=grid, sides=sides, generator=torch.Generator().manual_seed(seed))
        assert pieces.shape == (1, grid**dims, dims, *sides)
        corners = pieces[0].flatten(2)[:, :, 0]
        for number, corner in enumerate(corners):
            for axis in range(dims):
                cell = number // grid ** (dims - 1 - axis) % grid
                length, side = size[axis], sides[axis]
                if side <= length // grid:
                    assert cell * length // grid <= corner[axis] <= (cell + 1) * length // grid - side
                else:
                    assert corner[axis] == round(cell * (length - side) / (grid - 1))
            moved = pieces[0, number] - corner.reshape(dims, *[1] * dims)
            assert torch.equal(moved, where[(0, slice(None), *(slice(0, side) for side in sides))])
        places.add(tuple(corners.flatten().tolist()))
    assert len(places) > 1 or all(side >= n // grid for side, n in zip(sides, size, strict=True))


@pytest.mark.parametrize("dims", [2, 3])
def test_a_batch_holds_every_piece_of_its_image_in_another_order(dims: int) -> None:
    method, source = made(dims), phantom_source(dims)
    batch = method.batch(source)
    small = source.smaller(0.75, multiple=method.stride) if dims == 3 else source
    sides = piece_sides(small.patch, grid=method.grid, stride=method.stride)
    upright = cut(batch.image, grid=method.grid, sides=sides, generator=source.generator())
    shuffled = batch.pieces.reshape(upright.shape)
    orders = set()
    for mine, theirs in zip(upright.flatten(2), shuffled.flatten(2), strict=True):
        same = (mine[:, None] == theirs).all(2)
        assert (same.sum(0) >= 1).all()
        assert (same.sum(1) >= 1).all()
        orders.add(tuple(same.int().argmax(1).tolist()))
    assert len(orders) > 1


@pytest.mark.parametrize("memory", [0, 15])
def test_the_loss_is_two_contrasts_with_the_other_view(memory: int) -> None:
    method = made(2, memory=memory, weight=0.3)
    for step in range(3):
        method.step(method.batch(phantom_source(2, step=step)), 0.5)
        method.after_step(0.5)
    batch = method.batch(phantom_source(2, step=3))
    z, target = method.embed(batch.image), method.embed(batch.other)
    pieces = method.piece_head(method.embed.encoder(batch.pieces)[-1])
    joined = method.join(torch.cat(list(pieces.reshape(6, 9, 5).unbind(1)), dim=1))
    negatives, box = target, batch.box
    if memory:
        rows, boxes = method.memory.valid
        assert len(rows) == 15
        negatives, box = torch.cat([target, rows]), torch.cat([batch.box, boxes])
    related = overlap(batch.box, box)
    expected = [
        queue_info_nce(query, target, negatives, temperature=0.07, related=related) for query in (joined, z)
    ]
    output = method.step(batch, 0.5)
    assert output.loss.item() == pytest.approx(0.3 * expected[0].item() + 0.7 * expected[1].item(), rel=1e-5)
    assert output.logs["jigsaw"].item() == pytest.approx(expected[0].item(), rel=1e-5)
    assert sum(output.terms.values()).item() == pytest.approx(output.loss.item())
    assert any(name.startswith("memory") for name in method.state_dict()) == bool(memory)


def test_the_target_gets_no_gradient() -> None:
    method = made(2)
    batch = method.batch(phantom_source(2))
    batch.other.requires_grad_()
    batch.image.requires_grad_()
    method.step(batch, 0.5).loss.backward()
    assert batch.other.grad is None
    assert batch.image.grad.abs().sum() > 0


def test_without_anything_to_tell_apart_it_says_so() -> None:
    source = phantom_source(3)
    alone = replace(source, labelled=source.labelled[:1], unlabelled=[])
    with pytest.raises(DataError, match="all patches it drew overlap"):
        made(3, patch_share=1.0).batch(alone)


@pytest.mark.parametrize("wrong", [{"weight": 0}, {"grid": 1}, {"memory": -1}, {"temperature": 0}])
def test_settings_that_cannot_be_are_said(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Settings(**wrong)  # type: ignore[arg-type]
