"""MAE: which blocks are hidden, and that nothing of them is seen."""

import dataclasses

import pytest
import torch
from torch import Tensor

from handful.errors import UsageError
from handful.methods.mae import MAE, Batch, Settings, block_mask
from handful.networks.unet import UNet
from test_methods import phantom_source


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def method(**settings: object) -> MAE:
    torch.manual_seed(0)
    return MAE(UNet(dims=3, in_channels=1, classes=3, widths=(4, 6)), Settings(**settings))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("patch", "block", "sides", "blocks"),
    [
        ((64, 96), 16, (16, 16), 24),
        ((40, 56, 40), 16, (10, 14, 10), 64),  # at most a quarter of the patch
        ((18, 8, 40), 4, (4, 2, 4), 200),  # the last block of 18 is cut off
        ((3, 20), 16, (1, 5), 12),  # too small for four blocks
    ],
)
def test_whole_blocks_are_hidden_three_quarters_of_them(
    patch: tuple[int, ...], block: int, sides: tuple[int, ...], blocks: int
) -> None:
    mask = block_mask(5, patch, block=block, ratio=0.75, generator=seeded())
    assert mask.shape == (5, *patch)
    corners = mask[(slice(None), *(slice(None, None, side) for side in sides))]
    assert corners[0].numel() == blocks
    assert (corners.flatten(1).sum(1) == 0.75 * blocks).all()
    for axis, side in enumerate(sides, start=1):
        along = torch.arange(patch[axis - 1])
        assert torch.equal(mask, mask.index_select(axis, along // side * side))
    assert not torch.equal(mask[0], mask[1])


def test_every_block_is_hidden_equally_often_and_never_all_or_none() -> None:
    mask = block_mask(3000, (4, 6), block=1, ratio=0.6, generator=seeded())
    assert torch.allclose(mask.float().mean(0), torch.tensor(14 / 24), atol=0.04)
    for ratio, hidden in ((0.001, 1), (0.999, 23)):
        few = block_mask(3, (4, 6), block=1, ratio=ratio, generator=seeded())
        assert (few.flatten(1).sum(1) == hidden).all()


def captured(trained: MAE, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return what the network gives back, and the loss."""
    seen: list[Tensor] = []
    hook = trained.head.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    loss = trained.step(batch, 0.5).loss
    hook.remove()
    return seen[0].detach(), loss.detach()


def test_hidden_voxels_are_not_seen_and_visible_ones_not_scored() -> None:
    trained = method()
    batch = trained.batch(phantom_source(3))
    hidden = batch.hidden.unsqueeze(1)
    output, loss = captured(trained, batch)
    expected = ((output - batch.image).square() * hidden).sum() / hidden.sum()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    other = batch._replace(image=torch.where(hidden, batch.image + 3, batch.image))
    assert torch.equal(captured(trained, other)[0], output)
    # the same output against another visible part costs the same
    torch.nn.init.zeros_(trained.head.weight)
    other = batch._replace(image=torch.where(hidden, batch.image, batch.image + 3))
    assert torch.equal(captured(trained, other)[1], captured(trained, batch)[1])


def test_it_learns_from_images_without_any_label() -> None:
    source = phantom_source(3)
    batch = method().batch(dataclasses.replace(source, labelled=[]))
    plain = source.view(dataclasses.replace(source, labelled=[]).draw_any(3), intensity=False).image
    assert torch.equal(batch.image, plain)
    assert batch.hidden.float().mean() == pytest.approx(0.75, abs=0.01)


def test_settings_that_hide_nothing_or_everything_are_refused() -> None:
    for wrong in ({"mask_ratio": 0.0}, {"mask_ratio": 1.0}, {"block": 0}):
        with pytest.raises(UsageError, match="mask_ratio must lie between 0 and 1"):
            Settings(**wrong)  # type: ignore[arg-type]
