"""CutMix, CutOut and ClassMix against their published numbers, and the laws of mixing."""

import pytest
import torch

from golden_values import golden
from handful.losses.mixing import (
    box_mask,
    box_masks,
    class_mask,
    erase,
    half_box_mask,
    mixing_weight,
    mixup,
    next_partner,
    paste,
    random_partner,
)


def test_mixing_is_the_published_one() -> None:
    g = golden("mona_mix")
    seen = 0
    for mode in ("cutmix", "classmix"):
        mask = g[f"{mode}_mask"] > 0
        for name in ("data", "target", "conf"):
            assert torch.equal(paste(g[name], mask, next_partner(3)), g[f"{mode}_{name}"])
            seen += 1
    assert seen == 6
    mask = g["cutout_mask"] > 0
    for name, value in (("data", 0), ("target", -1), ("conf", 0)):
        assert torch.equal(erase(g[name], mask, value), g[f"cutout_{name}"])
    # the published masks obey the rules that ours are drawn by
    for mode in ("cutmix", "cutout"):
        assert ((g[f"{mode}_mask"] == 0).flatten(1).double().mean(1) - 0.5).abs().max() < 0.04
    own = class_mask(g["target"], generator=torch.Generator())
    for label_map, mask in [*zip(g["target"], g["classmix_mask"] > 0), *zip(g["target"], own)]:
        chosen = set(label_map[mask].tolist())
        assert len(chosen) == 2
        assert torch.equal(mask, torch.isin(label_map, torch.tensor(sorted(chosen))))


@pytest.mark.parametrize("size", [(256, 256), (40, 56), (24, 40, 32), (1, 30, 40)])
def test_half_boxes_cover_half(size: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    mask = half_box_mask(30, size, generator=generator)
    tolerance = 0.002 if size == (256, 256) else 0.05
    share = (~mask).flatten(1).double().mean(1)
    assert (share - 0.5).abs().max() <= tolerance
    for box in ~mask[:5]:
        where = box.nonzero()
        extent = where.amax(0) - where.amin(0) + 1
        assert extent.prod() == len(where), "a box has no holes"
    assert len({tuple(box.nonzero()[0].tolist()) for box in ~mask}) > 10


def test_boxes_say_what_they_cover() -> None:
    generator = torch.Generator().manual_seed(0)
    for weight in (0.0, 0.3, 0.5, 0.8, 1.0):
        mask, kept = box_mask((20, 30, 25), weight, generator=generator)
        assert kept == pytest.approx(mask.double().mean().item())
        assert kept == pytest.approx(weight, abs=0.03)
    assert box_mask((4, 6), 1.0, generator=generator)[0].all()
    with pytest.raises(ValueError, match="in \\[0, 1\\]"):
        box_mask((4, 6), 1.5, generator=generator)


@pytest.mark.parametrize("size", [(40, 56), (24, 40, 32)])
def test_boxes_of_a_batch_differ_and_keep_to_their_share(size: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    masks = box_masks(40, size, share=(0.1, 0.4), generator=generator)
    shares = (~masks).flatten(1).double().mean(1)
    assert 0.08 < shares.min() < 0.16
    assert 0.34 < shares.max() < 0.44
    for box in ~masks:
        where = box.nonzero()
        assert (where.amax(0) - where.amin(0) + 1).prod() == len(where), "a box has no holes"
    exact = box_masks(3, size, share=((2 / 3) ** len(size),) * 2, generator=generator)
    for box in ~exact:  # two thirds of each side
        extent = box.nonzero().amax(0) - box.nonzero().amin(0) + 1
        assert extent.tolist() == [round(side * 2 / 3) for side in size]
    assert box_masks(5, size, share=(0.5, 0.5), probability=0.0, generator=generator).all()
    some = box_masks(60, size, share=(0.5, 0.5), probability=0.5, generator=generator).flatten(1).all(1)
    assert 15 < some.sum() < 45
    with pytest.raises(ValueError, match="range within"):
        box_masks(2, size, share=(0.5, 0.2), generator=generator)


def test_cutmix_by_hand() -> None:
    """Ones pasted over by zeros on the last two of four slices: half of each, and of the labels."""
    mask = torch.zeros(1, 4, 4, 4, dtype=torch.bool)
    mask[:, :2] = True
    image = torch.stack((torch.ones(4, 4, 4), torch.zeros(4, 4, 4)))[:, None]
    assert paste(image, mask, next_partner(2))[0].mean() == 0.5
    label = torch.stack((torch.full((4, 4, 4), 1), torch.full((4, 4, 4), 2)))
    assert paste(label, mask, next_partner(2))[0].flatten().bincount().tolist() == [0, 32, 32]
    label[1] = -1
    assert int((paste(label, mask, next_partner(2))[0] == -1).sum()) == 32


def test_what_belongs_together_stays_together() -> None:
    """A marker painted into image, label and confidence alike is alike after mixing."""
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, 4, (5, 12, 9), generator=generator)
    mask, partner = half_box_mask(5, (12, 9), generator=generator), random_partner(5, generator=generator)
    mixed = [paste(maps, mask, partner) for maps in (label[:, None].float(), label, label.double())]
    assert torch.equal(mixed[0][:, 0], mixed[1].float())
    assert torch.equal(mixed[2], mixed[1].double())
    assert torch.equal(mixed[1][mask], label[mask])
    assert torch.equal(paste(label, torch.ones_like(mask), partner), label)
    assert (partner != torch.arange(5)).all()
    assert partner.sort().values.tolist() == [0, 1, 2, 3, 4]
    assert random_partner(1, generator=generator).tolist() == [0]
    with pytest.raises(ValueError, match="does not fit"):
        paste(label, mask[:, 1:], partner)


def test_mixup_is_symmetric() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 1, 4, 6, generator=generator, dtype=torch.float64)
    partner = next_partner(2)
    torch.testing.assert_close(mixup(x, 0.7, partner), mixup(x, 0.3, partner)[partner])
    assert torch.equal(mixup(x, 1.0, partner), x)


def test_weights_follow_their_law() -> None:
    generator = torch.Generator().manual_seed(0)
    folded = torch.tensor([mixing_weight(generator=generator) for _ in range(20_000)])
    assert folded.min() >= 0.5
    assert folded.mean().item() == pytest.approx(0.75, abs=0.005)
    plain = torch.tensor([mixing_weight(alpha=2, fold=False, generator=generator) for _ in range(20_000)])
    assert plain.mean().item() == pytest.approx(0.5, abs=0.01)
    assert plain.var().item() == pytest.approx(1 / 20, abs=0.003)
    with pytest.raises(ValueError, match="alpha must be positive"):
        mixing_weight(alpha=0, generator=generator)


def test_classes_are_halved_and_unknown_pixels_stay_out() -> None:
    label = torch.tensor([[[0, 1, 2, -1, 2, 1]], [[-1, -1, 3, 3, 3, 3]]])
    for seed in range(5):
        mask = class_mask(label, generator=torch.Generator().manual_seed(seed))
        assert len(set(label[0][mask[0]].tolist())) == 1
        assert not mask[label == -1].any()
        assert not mask[1].any(), "half of one class, rounded down, is none"
