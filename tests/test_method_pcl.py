"""What PCL must hold beyond the contract: positions of slices or patches decide, and there are some to tell apart."""

import dataclasses

import pytest
import torch

from handful.errors import DataError, UsageError
from handful.losses.contrastive import positional_contrast
from handful.methods.pcl import PCL, Settings
from handful.networks.unet import UNet
from test_methods import made, phantom_source


def network(dims: int) -> UNet:
    return UNet(dims=dims, in_channels=1, classes=2, widths=(4, 6, 8))


@pytest.mark.parametrize(("dims", "axes"), [(2, "slice"), (3, "slice"), (3, "all")])
def test_positives_are_near_along_the_slice_axis_or_along_all(dims: int, axes: str) -> None:
    torch.manual_seed(0)
    method = PCL(network(dims), Settings(axes=axes, batch=8, threshold=0.3)).eval()  # type: ignore[arg-type]
    batch = method.batch(phantom_source(dims))
    z = method.head(method.encoder(torch.cat([batch.first, batch.second]))[-1])
    losses = {
        name: positional_contrast(
            torch.stack(z.chunk(2), dim=1), where, threshold=0.3, temperature=0.1, related=batch.related
        )
        for name, where in (("slice", batch.position[:, 0]), ("all", batch.position))
    }
    assert torch.allclose(method.step(batch, 0.0).loss, losses[axes])
    assert dims == 2 or not torch.allclose(losses["slice"], losses["all"])


def test_a_slice_has_one_position() -> None:
    with pytest.raises(UsageError, match="axes=slice"):
        PCL(network(2), Settings(axes="all"))


def test_volumes_of_one_slice_are_refused_before_the_first_step() -> None:
    source = phantom_source(2)
    flat = [
        dataclasses.replace(case, image=case.image[:, :1, :, :], label=None)
        for case in (*source.labelled, *source.unlabelled)
    ]
    with pytest.raises(DataError, match="every pair would be a positive"):
        made("pcl", 2).batch(dataclasses.replace(source, labelled=[], unlabelled=flat))


def test_volumes_shown_whole_are_refused_before_the_first_step() -> None:
    source = phantom_source(3)
    whole = source.unlabelled[0].image.shape[1:]
    cases = source.unlabelled[:1]
    method = PCL(network(3), Settings(patch_share=1.0))
    with pytest.raises(DataError, match="patch_share"):
        method.batch(dataclasses.replace(source, labelled=[], unlabelled=cases, patch=tuple(whole)))
