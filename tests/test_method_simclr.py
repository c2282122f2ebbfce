"""What SimCLR must hold beyond the contract: its loss is NT-Xent, and tissue seen twice is no negative."""

import dataclasses

import pytest
import torch

from handful.errors import DataError
from handful.losses import nt_xent
from handful.methods.simclr import Settings, SimCLR
from handful.networks.unet import UNet
from test_methods import made, phantom_source


def test_the_loss_is_nt_xent_of_the_heads_outputs() -> None:
    method = made("simclr", 2)
    batch = method.batch(phantom_source(2))
    alone = batch._replace(related=torch.eye(16, dtype=torch.bool))
    a, b = (method.head(method.encoder(view)[-1]) for view in (batch.first, batch.second))
    assert torch.allclose(method.step(alone, 0.5).loss, nt_xent(a, b, temperature=0.1))


def test_a_slice_drawn_twice_is_not_its_own_negative() -> None:
    method = made("simclr", 2)
    batch = method.batch(phantom_source(2))
    kept = torch.tensor([0, 1, 2])
    three = batch._replace(first=batch.first[kept], second=batch.second[kept], related=torch.eye(3).bool())
    once = method.step(three, 0.5).loss * 6  # sums over the embeddings
    related = torch.eye(4).bool()
    related[3] = related[:, 3] = True  # the fourth, a copy of the first, is related to all: its own cost is 0
    copied = torch.tensor([0, 1, 2, 0])
    four = batch._replace(first=batch.first[copied], second=batch.second[copied], related=related)
    assert torch.allclose(method.step(four, 0.5).loss * 8, once)


def test_related_are_exactly_the_boxes_that_share_a_voxel() -> None:
    batch = made("simclr", 3).batch(phantom_source(3))
    related = batch.related
    assert torch.equal(related, related.T)
    assert related.diagonal().all()
    assert not related[:4, :4].fill_diagonal_(False).any()  # the first four patches come from four volumes


def test_one_volume_shown_whole_has_nothing_to_tell_apart() -> None:
    source = phantom_source(3)
    one = dataclasses.replace(source, labelled=source.labelled[:1], unlabelled=[], patch=(12, 16, 12))
    method = SimCLR(UNet(dims=3, in_channels=1, classes=2, widths=(4, 6, 8)), Settings(patch_share=1.0))
    with pytest.raises(DataError, match="same place of one volume"):
        method.batch(one)
