"""Models Genesis: what is corrupted, what is restored, and the published network and range."""

import dataclasses

import pytest
import torch

from handful.data.augment.corruption import CorruptionSettings
from handful.data.sampling import StoredCase
from handful.errors import DataError
from handful.methods.models_genesis import Batch, ModelsGenesis, Settings
from handful.networks.presets import preset
from handful.networks.unet import UNet
from test_methods import phantom_source

NOTHING = CorruptionSettings(p_shuffle=0.0, p_curve=0.0, p_paint=0.0)


def method(dims: int = 3, *, channels: int = 1, **settings: object) -> ModelsGenesis:
    torch.manual_seed(0)
    network = UNet(dims=dims, in_channels=channels, classes=3, widths=(4, 6))
    return ModelsGenesis(network, Settings(**settings))  # type: ignore[arg-type]


@pytest.mark.parametrize("dims", [2, 3])
def test_the_target_is_the_view_before_corruption(dims: int) -> None:
    source = phantom_source(dims)
    batch = method(dims).batch(source)
    plain = source.view(source.draw_any(source.batch), intensity=False).image
    assert torch.equal(batch.clean, plain)
    assert not torch.equal(batch.corrupted, plain)
    uncorrupted = method(dims, corruption=NOTHING).batch(source)
    assert torch.equal(uncorrupted.corrupted, uncorrupted.clean)


def test_the_loss_is_the_mean_squared_error_over_the_whole_patch() -> None:
    """A network whose head gives 0.5 everywhere: (0.5 - 1)^2 for one half of the patch, (0.5 - 2)^2 for the other."""
    trained = method()
    torch.nn.init.zeros_(trained.head.weight)
    torch.nn.init.constant_(trained.head.bias, 0.5)
    clean = torch.ones(2, 1, 8, 16, 12)
    clean[:, :, :4] = 2
    batch = Batch(torch.randn(2, 1, 8, 16, 12), clean)
    assert trained.step(batch, 0.5).loss.item() == pytest.approx((0.25 + 2.25) / 2)
    absolute = method(norm="l1")
    absolute.load_state_dict(trained.state_dict())
    assert absolute.step(batch, 0.5).loss.item() == pytest.approx((0.5 + 1.5) / 2)


def test_it_learns_from_images_without_any_label_and_restores_every_channel() -> None:
    source = phantom_source(3)
    two = [
        StoredCase(case.name, torch.cat([case.image[:], -case.image[:]]), None, (), case.spacing_mm)
        for case in source.unlabelled
    ]
    trained = method(channels=2)
    batch = trained.batch(dataclasses.replace(source, labelled=[], unlabelled=two))
    assert batch.corrupted.shape == batch.clean.shape == (3, 2, 8, 16, 12)
    trained.step(batch, 0.5).loss.backward()
    assert trained.head.weight.grad is not None
    assert (trained.head.weight.grad.flatten(1).norm(dim=1) > 0).all()


def test_the_published_range_is_asked_for_and_kept() -> None:
    trained = method(unit_range=True)
    with pytest.raises(DataError, match=r"needs images in \[0, 1\]"):
        trained.batch(phantom_source(3))
    source = phantom_source(3)
    unit = [
        dataclasses.replace(case, image=case.image[:].clamp(0.2, 0.8), label=None)
        for case in (*source.labelled, *source.unlabelled)
    ]
    batch = trained.batch(dataclasses.replace(source, labelled=[], unlabelled=unit))
    assert batch.corrupted.min() >= 0
    assert batch.corrupted.max() <= 1
    assert (
        batch.corrupted.max() > 0.8 > batch.clean.max() - 1e-6
    )  # noise spans [0, 1], not the patch's own range
    torch.nn.init.constant_(trained.head.bias, 100.0)  # a sigmoid never leaves [0, 1]
    assert trained.step(batch, 0.5).loss < 1


def test_the_published_network_has_its_published_size() -> None:
    with torch.device("meta"):
        trained = ModelsGenesis(preset("genesis", in_channels=1, classes=2), Settings())
    assert sum(p.numel() for p in trained.parameters()) == 19_073_665
    assert sum(p.numel() for p in trained.exports()["encoder"].parameters()) == 7_027_776
