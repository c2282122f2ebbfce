"""What SSCL must hold beyond the contract: which pixels are contrasted, with which labels, and what it refuses."""

import dataclasses
import math
from typing import Any

import pytest
import torch

from handful.batches import IGNORE
from handful.data.sampling import Source
from handful.errors import DataError, UsageError
from handful.losses import nt_xent, pixel_contrast
from handful.methods.sscl import SSCL, GlobalBatch, LocalBatch, Settings
from handful.networks.unet import UNet
from test_methods import phantom_source


def sscl(dims: int = 2, **settings: Any) -> SSCL:
    torch.manual_seed(0)
    network = UNet(dims=dims, in_channels=1, classes=3, widths=(4, 6, 8), norm="instance")
    return SSCL(network, Settings(**{"local_width": 8, **settings}))


def embedded(method: SSCL, batch: LocalBatch, level: int) -> torch.Tensor:
    views = [method.decoder(method.encoder(view))[level] for view in (batch.first, batch.second)]
    return torch.stack([method.pixel_head(view) for view in views], dim=1)


def test_the_global_stage_is_simclr_on_all_images() -> None:
    method = sscl()
    batch = method.batch(phantom_source(2, progress=0.1))
    assert isinstance(batch, GlobalBatch)
    alone = batch._replace(related=torch.eye(16, dtype=torch.bool))
    a, b = (method.head(method.encoder(view)[-1]) for view in (batch.first, batch.second))
    assert torch.allclose(method.step(alone, 0.1).loss, nt_xent(a, b, temperature=0.5), rtol=1e-4)
    other = batch._replace(related=~batch.related)
    assert not torch.equal(method.step(batch, 0.1).loss, method.step(other, 0.1).loss)


@pytest.mark.parametrize(
    ("settings", "loss"),
    [
        ({}, {}),
        ({"local": "stride", "stride": 2}, {"stride": 2}),
        ({"local": "block", "block": 4}, {"block": 4}),
    ],
)
def test_the_local_stage_is_pixel_contrast_over_both_views(settings: Any, loss: Any) -> None:
    method = sscl(**settings)
    batch = method.batch(phantom_source(2))
    assert isinstance(batch, LocalBatch)
    label = batch.label[:, None].expand(-1, 2, -1, -1)
    expected = pixel_contrast(embedded(method, batch, 0), label, temperature=0.1, **loss)
    assert torch.allclose(method.step(batch, 0.5).loss, expected, rtol=1e-4)


def test_in_3d_every_second_voxel_is_contrasted_on_the_half_resolution_map() -> None:
    method = sscl(3, local_pixels=10**6)
    batch = method.batch(dataclasses.replace(phantom_source(3), batch=8))
    label = batch.label[:, ::2, ::2, ::2]
    z = embedded(method, batch, 1)
    assert z.shape == (4, 2, 8, 4, 8, 6)
    expected = pixel_contrast(z, torch.stack([label, label], 1), temperature=0.1)
    assert torch.allclose(method.step(batch, 0.5).loss, expected, rtol=1e-4)


def test_the_self_supervised_local_stage_sees_all_cases_and_no_label() -> None:
    method = sscl(local="self", stride=2)
    source = dataclasses.replace(phantom_source(2), labelled=[])
    batch = method.batch(source)
    assert batch.label is None
    expected = pixel_contrast(embedded(method, batch, 0), None, temperature=0.1, stride=2)
    assert torch.allclose(method.step(batch, 0.5).loss, expected, rtol=1e-4)


def test_labels_lie_on_the_pixels_of_both_views() -> None:
    """Images that are their label times ten, without intensity changes: the views are the label."""
    source = phantom_source(2)
    cases = [dataclasses.replace(case, image=case.label[None].float() * 10) for case in source.labelled]
    plain = dataclasses.replace(
        source.augment, p_noise=0, p_blur=0, p_low_resolution=0, p_brightness=0, p_contrast=0, p_gamma=0
    )
    batch = sscl(local_batch=6).batch(dataclasses.replace(source, labelled=cases, augment=plain))
    assert torch.equal(batch.first, batch.second)
    known = batch.label != IGNORE
    near = (batch.first[:, 0] / 10 - batch.label).abs()[known]
    assert near.max() <= 1  # a border between classes 0 and 2 passes 1
    assert (near < 0.5).float().mean() > 0.95
    still = sscl(local_geometry=False, local_batch=6).batch(
        dataclasses.replace(source, labelled=cases, augment=plain)
    )
    assert torch.equal(still.first[:, 0], still.label * 10.0)


def test_the_two_views_differ_in_intensities() -> None:
    batch = sscl().batch(phantom_source(2))
    assert not torch.equal(batch.first, batch.second)


@pytest.mark.parametrize("dims", [2, 3])
def test_local_patches_are_made_as_small_as_the_pixels_allow(dims: int) -> None:
    source = dataclasses.replace(phantom_source(dims), patch=(16, 32, 48)[3 - dims :])
    method = sscl(dims, local_pixels=2 * 4 * 8**dims, local_level=0)
    batch = method.batch(source)
    pixels = 2 * batch.label.numel()
    assert pixels <= 1.6 * 2 * 4 * 8**dims  # "about": sides are multiples of the stride
    assert math.prod(batch.label.shape[1:]) < math.prod(source.patch)
    roomy = dataclasses.replace(source, batch=8)  # two views of four images: a planned batch
    whole = sscl(dims, local_pixels=10**6).batch(roomy)
    assert tuple(whole.label.shape[1:]) == source.patch
    planned = dataclasses.replace(source, batch=2)
    fitted = sscl(dims, local_pixels=10**6).batch(planned)
    assert 2 * fitted.label.numel() <= 1.6 * 2 * math.prod(source.patch)


def test_background_alone_costs_nothing() -> None:
    method = sscl()
    batch = method.batch(phantom_source(2))
    for value in (0, IGNORE):
        loss = method.step(batch._replace(label=torch.full_like(batch.label, value)), 0.5).loss
        loss.backward()
        assert loss.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in method.parameters())


def trained(method: SSCL, progress: float) -> set[str]:
    method.step(method.batch(phantom_source(2, progress=progress)), progress).loss.backward()
    return {name.split(".")[0] for name, p in method.named_parameters() if p.grad is not None}


def test_each_stage_trains_its_own_parts_and_the_local_one_moves_the_encoder_too() -> None:
    assert trained(sscl(), 0.1) == {"encoder", "head"}
    assert trained(sscl(), 0.9) == {"encoder", "decoder", "pixel_head"}
    assert trained(sscl(stage="local"), 0.1) == {"encoder", "decoder", "pixel_head"}
    only = sscl(stage="global")
    assert trained(only, 0.9) == {"encoder", "head"} == {n.split(".")[0] for n, _ in only.named_parameters()}
    assert set(only.exports()) == {"encoder"}
    assert set(sscl().exports()) == {"encoder", "decoder"}


def without_labels(**changes: Any) -> Source:
    source = phantom_source(2, progress=0.0)
    return dataclasses.replace(source, labelled=[], **changes)


def test_missing_labels_are_said_at_the_first_step_of_the_global_stage() -> None:
    with pytest.raises(UsageError, match=r"this run has none.*method.local=self"):
        sscl().batch(without_labels())
    assert isinstance(sscl(stage="global").batch(without_labels()), GlobalBatch)
    assert isinstance(sscl(local="self").batch(without_labels()), GlobalBatch)


def test_what_cannot_work_is_said_before_the_first_step() -> None:
    with pytest.raises(UsageError, match=r"level 0 has \(8, 8\) pixels"):
        sscl(local="block").batch(phantom_source(2, progress=0.0))
    source = phantom_source(3, progress=0.0)
    one = dataclasses.replace(source, labelled=source.labelled[:1], unlabelled=[], patch=(12, 16, 12))
    with pytest.raises(DataError, match="same place of one volume"):
        sscl(3, patch_share=1.0).batch(one)
    with pytest.raises(UsageError, match="global_share"):
        Settings(global_share=1.0)
