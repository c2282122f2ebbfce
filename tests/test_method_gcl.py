"""What GCL must hold beyond the contract: which slices are pairs, what each stage trains, what it refuses."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from handful.data.sampling import Source
from handful.errors import DataError, UsageError
from handful.losses import global_contrast, local_contrast, partition_contrast
from handful.losses.global_local import nearest_regions, region_corners, regions
from handful.methods.gcl import GCL, GlobalBatch, LocalBatch, Settings, partners
from handful.networks.unet import UNet
from test_methods import changed_field, made, phantom_source


def gcl(dims: int = 2, **settings: Any) -> GCL:
    torch.manual_seed(0)
    network = UNet(dims=dims, in_channels=1, classes=3, widths=(4, 6, 8), norm="batch")
    return GCL(network, Settings(**settings))


def early(dims: int = 2, **changes: Any) -> Source:
    return dataclasses.replace(phantom_source(dims, progress=0.1), **changes)


def embedded(method: GCL, batch: GlobalBatch) -> Tensor:
    z = method.head(method.encoder(batch.views)[-1])
    return torch.stack(z.split(len(batch.partition)), dim=1)


def test_partners_by_hand() -> None:
    """Three volumes, the second and third of one case: 0 -> 1, 1 -> 0, 2 -> 0."""
    assert partners(torch.tensor([5, 7, 7]), 2).tolist() == [2, 3, 0, 1, 0, 1]
    assert partners(torch.tensor([5, 5]), 2).tolist() == [-1] * 4


@pytest.mark.parametrize("dims", [2, 3])
def test_the_original_global_stage_pairs_each_slice_with_its_partition_elsewhere(dims: int) -> None:
    method = gcl(dims)
    batch = method.batch(early(dims))
    assert isinstance(batch, GlobalBatch)
    assert len(batch.views) == 2 * 16
    assert batch.partition.tolist() == [0, 1, 2, 3] * 4
    assert torch.equal(batch.partition[batch.partner], batch.partition)
    assert (batch.partner // 4 != torch.arange(16) // 4).all()
    expected = global_contrast(
        embedded(method, batch), batch.partition, partner=batch.partner, related=batch.related
    )
    assert torch.allclose(method.step(batch, 0.1).loss, expected)


def test_the_first_view_is_the_slice_itself() -> None:
    source = early()
    batch = gcl().batch(source)
    crops = source.draw_parts(4, 4)
    case = [*source.labelled, *source.unlabelled][int(crops.case[5])]
    low, high = crops.low[5].tolist(), crops.high[5].tolist()
    box = tuple(slice(a, b) for a, b in zip(low, high))
    assert torch.equal(batch.views[5], case.image[(slice(None), *box)].squeeze(1))
    assert not torch.equal(batch.views[5], batch.views[16 + 5])


def test_without_partners_each_slice_has_three_views_and_own_pairs_only() -> None:
    method = gcl(across=False)
    batch = method.batch(early())
    assert batch.partner is None
    assert len(batch.views) == 3 * 16
    expected = global_contrast(embedded(method, batch), batch.partition, related=batch.related)
    assert torch.allclose(method.step(batch, 0.1).loss, expected)
    one = early(labelled=early().labelled[:1], unlabelled=[])
    assert len(method.batch(one).views) == 48


def test_the_form_of_pcl_is_partition_contrast() -> None:
    method = gcl(form="pcl", stage="global")
    batch = method.batch(phantom_source(2, progress=0.9))
    expected = partition_contrast(
        embedded(method, batch), batch.partition, temperature=0.1, related=batch.related
    )
    assert torch.allclose(method.step(batch, 0.9).loss, expected)


@pytest.mark.parametrize("form", ["original", "pcl"])
def test_changing_any_field_of_a_global_batch_changes_the_loss(form: str) -> None:
    method = gcl(form=form).eval()
    batch = method.batch(early())
    before = method.step(batch, 0.1).loss
    if batch.partner is not None:  # another volume of the same partition
        others = (batch.partner + 4) % 16
        assert not torch.equal(method.step(batch._replace(partner=others), 0.1).loss, before)
    for field in ("views", "related"):
        other = batch._replace(**{field: changed_field(getattr(batch, field))})
        assert not torch.equal(method.step(other, 0.1).loss, before), field


def test_the_local_stage_is_the_contrast_of_regions_seen_in_two_intensities() -> None:
    method = gcl().eval()
    batch = method.batch(phantom_source(2))
    assert isinstance(batch, LocalBatch)
    maps = [
        method.pixel_head(method.decoder(method.encoder(view))[1]) for view in (batch.first, batch.second)
    ]
    corners = region_corners((8, 6))
    first, second = (method.region_head(regions(m, corners)) for m in maps)
    expected = local_contrast(first, second, nearest_regions(corners))
    assert torch.allclose(method.step(batch, 0.5).loss, expected, atol=1e-6)


@pytest.mark.parametrize("moved", [True, False])
def test_local_views_see_the_same_pixels(moved: bool) -> None:
    """Without intensity changes the two views are one."""
    source = phantom_source(2)
    plain = dataclasses.replace(
        source.augment, p_noise=0, p_blur=0, p_low_resolution=0, p_brightness=0, p_contrast=0, p_gamma=0
    )
    batch = gcl(local_geometry=moved).batch(dataclasses.replace(source, augment=plain))
    assert torch.equal(batch.first, batch.second)
    crops = source.draw_any(source.batch)
    still = torch.equal(batch.first, source.view(crops, intensity=False).image)
    low, high = crops.low[0].tolist(), crops.high[0].tolist()
    case = [*source.labelled, *source.unlabelled][int(crops.case[0])]
    cut = case.image[(slice(None), *(slice(a, b) for a, b in zip(low, high)))].squeeze(1)
    assert torch.equal(batch.first[0], cut) != moved
    assert still == moved


def trained(method: GCL, *progress: float) -> set[str]:
    for value in progress:
        method.step(method.batch(phantom_source(2, progress=value)), value).loss.backward()
    return {name.split(".")[0] for name, p in method.named_parameters() if p.grad is not None}


def test_each_stage_trains_its_own_parts() -> None:
    assert trained(gcl(), 0.1) == {"encoder", "head"}
    assert trained(gcl(), 0.9) == {"decoder", "pixel_head", "region_head"}
    assert trained(gcl(freeze=False), 0.9) == {"encoder", "decoder", "pixel_head", "region_head"}
    assert trained(gcl(stage="local"), 0.1) == {"decoder", "pixel_head", "region_head"}
    assert not any(p.requires_grad for p in gcl(stage="local").encoder.parameters())
    only = gcl(stage="global")
    assert trained(only, 0.9) == {"encoder", "head"} == {n.split(".")[0] for n, _ in only.named_parameters()}
    assert set(only.exports()) == {"encoder"}


def test_what_cannot_work_is_said_before_the_first_step() -> None:
    one = early(labelled=early().labelled[:1], unlabelled=[])
    with pytest.raises(UsageError, match="across=false"):
        gcl().batch(one)
    with pytest.raises(DataError, match="13 partitions need as many"):
        gcl(partitions=13).batch(early())
    with pytest.raises(UsageError, match=r"decoder level 1.*local_level=0"):
        gcl().batch(early(patch=(4, 12)))
    with pytest.raises(UsageError, match="the levels 0"):
        gcl(local_level=2)
    with pytest.raises(UsageError, match="form=pcl always"):
        Settings(form="pcl", across=False)
    with pytest.raises(UsageError, match="volumes must be at least 2"):
        Settings(volumes=1)
    assert made("gcl", 2).level == 1
